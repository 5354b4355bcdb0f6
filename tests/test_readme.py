"""Every code block of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nc_jax.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]


def test_the_blocks_are_the_ones_that_the_tests_know():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert [shlex.split(command, comments=True)[:2] for command in COMMANDS][:2] == [["make", "demo"], ["make", "test"]]


def test_every_method_is_in_its_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## The methods") : text.index("## Running experiments")]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= METHODS.keys()
    for command in re.findall(r"`(python -m [^`]+)`", table):
        program, _, name, flag, *methods = command.split()
        module = ROOT / f"{name.replace('.', '/')}.py"
        assert program == "python"
        assert flag == "--methods" or f'"{flag}":' in module.read_text(encoding="utf-8")  # or a preset
        assert set(methods) <= METHODS.keys()


@pytest.mark.slow
def test_python_blocks_run_one_after_the_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), namespace)
    assert capsys.readouterr().out.splitlines() == [
        "converged: the gradient norm is below the tolerance",
        str(namespace["gram"][0, 1]) + " (512, 100) (2, 512, 100)",
        "(32, 10) 0",
        "1200 (20, 20)",
        "(5, 20) ('0', '1', '2') (28, 28, 1)",
    ]
    assert abs(namespace["gram"][0, 1] + 1 / 99) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path):
    """An experiment runs as its smoke preset; make says what it would do, since it would run these tests."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "make":
        run = ["make", "--dry-run", "--always-make", *arguments, f"PYTHON={sys.executable}"]
    else:
        run = [sys.executable, *arguments, "smoke", "--methods", "fixed", "--workdir", str(tmp_path / "run")]
        run += ["--data.data-dir", str(tmp_path / "data")]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
