"""Every code block of the README runs."""

import importlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pages
import pytest

from nc_jax.methods import METHODS

README = pages.ROOT / "README.md"
BLOCKS = pages.blocks_of(README)
PRINTED = """
converged: the gradient norm is below the tolerance
-0.01010101 (512, 100) (2, 512, 100)
(32, 10) 0
1200 (20, 20)
(5, 20) ('0', '1', '2') (28, 28, 1)
"""


def test_the_blocks_are_the_ones_that_the_tests_know():
    assert {block.language for block in BLOCKS} == {"python", "bash"}
    measure, make, _ = (block.text.splitlines() for block in BLOCKS if block.language == "bash")
    assert [shlex.split(line)[0] for line in measure] == ["pip", "nc-jax"]
    assert [shlex.split(line, comments=True) for line in make] == [["make", "demo"], ["make", "test"]]


def test_every_method_is_in_its_table():
    text = README.read_text(encoding="utf-8")
    table = text[text.index("## The methods") : text.index("## Running experiments")]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= METHODS.keys()
    for command in re.findall(r"`(python -m [^`]+)`", table):
        name, *words = command.split()[2:]
        presets = importlib.import_module(name).PRESETS
        if not words[0].startswith("--"):
            assert words.pop(0) in presets
        if "--methods" in words:
            assert set(words[words.index("--methods") + 1 :]) <= METHODS.keys()


@pytest.mark.slow
def test_blocks_run_one_after_the_other(tmp_path):
    """The experiment only says what it would do; the tests of the experiments train."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(90, 8)), np.arange(90) % 3
    arrays = {"features": features, "labels": labels, "weight": random.normal(size=(3, 8)), "bias": np.zeros(3)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    printed = [line for line in pages.run_page(README, tmp_path).splitlines() if line.strip()]
    assert printed[0].startswith("90 examples of 3 classes")
    start = next(number for number, line in enumerate(printed) if line.startswith("converged"))
    pages.compare("\n".join(printed[start : start + 5]), PRINTED)
    assert "steps" in "\n".join(printed[start + 5 :])


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["demo", "test"])
def test_make_knows_the_goals(goal):
    """It says what it would do, since it would run these tests."""
    run = ["make", "--dry-run", "--always-make", goal, f"PYTHON={sys.executable}"]
    done = subprocess.run(run, cwd=pages.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
