"""The experiment on continual learning, through its command line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import continual, zero_mean_collapse
from nc_jax.study import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--continual.memory", "0"], "memory must be at least 1; got 0"),
        (["--continual.memory", "99999"], "a replay memory must hold 1 to all 1437 training examples; got 99999"),
        (["--continual.tasks", "1"], "continual learning needs at least two tasks; got --continual.tasks 1"),
        (["--data.image-size", "12"], "images are cut into tasks as they are stored, so without --data.image-size"),
        (
            ["--rates", "0.1", "--continual.memory", "1200"],
            "a replay memory must hold 1 to all 1077 training examples; got 1200",
        ),
        (["--continual.tasks", "3"], "tasks must divide the classes into equal parts; got 3 for 10 classes"),
        (
            ["--data.tree", "digits"],
            "the classes of a label tree keep their order (--continual.order given); got an order",
        ),
        (["--loop.evaluate-every", "2"], "evaluate_every must divide the epochs of a task"),
        (["--continual.alpha", "0"], "alpha must be positive and finite; got 0"),
        (
            ["--loop.batch-size", "8", "--loop.devices", "8"],
            "the batch size must be a multiple of the 8 devices; got 28",
        ),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags, sentence, tmp_path, digits_dir, capsys):
    words = ["smoke", "--methods", "er", "--workdir", str(tmp_path / "run"), "--data.data-dir", digits_dir, *flags]
    with pytest.raises(SystemExit) as stop:
        main(continual.run_comparison, continual.PRESETS, words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_a_run_finds(tmp_path, digits_dir):
    words = ["smoke", "--methods", "er", "joint", "gdumb-fno", "--seeds", "1", "--workdir", str(tmp_path / "run")]
    main(continual.run_comparison, continual.PRESETS, [*words, "--data.data-dir", digits_dir])
    (found,) = json.loads((tmp_path / "run" / "summary.json").read_text())["cases"].values()
    assert set(found) == {"ER", "ER + nearest mean", "joint", "GDumb, FNO"}
    for numbers in found.values():
        assert 0 <= numbers["class_il"][0] <= numbers["task_il"][0] <= 1
    assert math.isfinite(found["ER"]["forgetting"][0])
    assert math.isnan(found["joint"]["forgetting"][0])
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    by_method = {line["key"]["method"]: line["found"] for line in lines}
    matrix = np.array(by_method["er"]["matrix"])
    assert matrix.shape == (5, 5)
    np.testing.assert_allclose(matrix[-1].mean(), found["ER"]["class_il"][0], atol=1e-4)
    assert len(by_method["gdumb-fno"]["occupancy"]) == 10
    confusion = np.array(by_method["er"]["confusion"])
    by_time = np.array(by_method["er"]["confusion_by_time"])
    assert np.trace(confusion) == np.trace(by_time)
    assert sorted(confusion.sum(axis=1).tolist()) == sorted(by_time.sum(axis=1).tolist())


@pytest.mark.slow
def test_domains_are_compared_by_class_il_alone(tmp_path, digits_dir):
    words = ["smoke", "--methods", "er", "--seeds", "1", "--continual.scenario", "domain", "--continual.tasks", "2"]
    words += ["--workdir", str(tmp_path / "run"), "--data.data-dir", digits_dir]
    main(continual.run_comparison, continual.PRESETS, words)
    (found,) = json.loads((tmp_path / "run" / "summary.json").read_text())["cases"].values()
    assert "task_il" not in found["ER"]
    assert found["ER"]["class_il"][0] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("module", [continual, zero_mean_collapse])
def test_a_flag_that_a_preset_varies_is_refused(module, tmp_path):
    """Through the module as it is run, since the check is the command line's."""
    flags = {continual: ["--continual.memory", "30"], zero_mean_collapse: ["--backbone.dim", "30"]}[module]
    words = [sys.executable, "-m", module.__name__, *flags, "--dry-run"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is what this preset varies" in done.stderr
