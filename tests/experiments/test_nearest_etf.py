"""The main job, as a user starts it: what it writes, how it resumes, and what it says when it cannot run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from experiments import harness, nearest_etf
from nc_jax.training import Checkpoints, read_metrics

ROOT = Path(__file__).resolve().parents[2]
ONE = ["--heads", "nearest", "--seeds", "1", "--epochs", "4", "--devices", "1"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def config_of(*flags: str, preset: str = "smoke") -> nearest_etf.Config:
    return harness.parse(nearest_etf.PRESETS[preset], list(flags))


def rows_of(directory: Path) -> list[dict]:
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step/seconds"} for row in rows]


def final_state(directory: Path):
    config = config_of(*ONE)
    task = nearest_etf.load(config)
    trainer, train_set = nearest_etf.make_trainer(config, "nearest", task), task.train
    with Checkpoints(directory / "checkpoints" / "nearest-seed0") as checkpoints:
        return jax.device_get(checkpoints.restore(trainer.init(train_set, seed=0)))


def test_a_run_writes_what_its_header_promises(tmp_path, data_dir):
    directory = tmp_path / "run"
    summary = nearest_etf.run(config_of("--workdir", str(directory), "--data-dir", data_dir, "--devices", "1"))
    for name in ("config.json", "summary.md", "summary.json", "convergence.png", "cosines.png", "margins.jsonl"):
        assert (directory / name).stat().st_size > 0
    assert "digits, mlp, 2 seeds, mean ± standard deviation" in (directory / "summary.md").read_text()
    assert len(list((directory / "tensorboard").glob("*/events*"))) == 6
    assert len(list((directory / "checkpoints").iterdir())) == 6
    assert {row["epoch"] for row in rows_of(directory)} == {0, 1, 2}
    assert json.loads((directory / "config.json").read_text())["environment"]["versions"]["jax"]
    assert json.loads((directory / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for head in ("learned", "fixed", "nearest"):
        assert np.mean(summary["heads"][head]["values"]["test/accuracy"]) > 0.6  # two epochs of a tiny network
    assert 0 < summary["heads"]["nearest"]["solve_share"] < 1
    assert summary["heads"]["nearest"]["solve_status"] == 0


def test_a_killed_run_resumes_to_the_same_parameters(tmp_path, data_dir):
    """SIGKILL in the third epoch, then --resume on the command line."""
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    program = (
        "import os, signal\n"
        "from experiments import harness, nearest_etf\n"
        "from nc_jax.training import ResidentSet\n"
        "shuffled = ResidentSet.shuffled\n"
        "def deadly(self, seed, epoch, **keywords):\n"
        "    if epoch == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return shuffled(self, seed, epoch, **keywords)\n"
        "ResidentSet.shuffled = deadly\n"
        "harness.main(nearest_etf.run, nearest_etf.PRESETS)\n"
    )
    flags = [*ONE, "--data-dir", data_dir]
    killed = subprocess.run(
        [sys.executable, "-c", program, "smoke", *flags, "--workdir", str(broken)], cwd=ROOT, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert max(row["epoch"] for row in rows_of(broken)) == 2
    command = [sys.executable, "-m", "experiments.nearest_etf", "--resume", str(broken)]
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr

    nearest_etf.run(config_of(*flags, "--workdir", str(unbroken)))
    chex.assert_trees_all_equal(final_state(broken), final_state(unbroken))
    assert rows_of(broken) == rows_of(unbroken)


def test_eight_devices_make_the_same_table(tmp_path, data_dir):
    tables = []
    for devices in ("1", "8"):
        flags = [*ONE[:-1], devices, "--data-dir", data_dir, "--workdir", str(tmp_path / devices)]
        tables.append(nearest_etf.run(config_of(*flags))["heads"]["nearest"])
    for name in ("test/accuracy", "train/nc4", "accuracy_epoch_1", "epochs_to_target"):
        np.testing.assert_array_equal(tables[0]["values"][name], tables[1]["values"][name])  # these count labels
    chex.assert_trees_all_close(final_state(tmp_path / "1"), final_state(tmp_path / "8"), rtol=0, atol=1e-5)


def test_a_class_without_examples_is_reported(tmp_path, data_dir, capsys):
    directory = tmp_path / "run"
    flags = [*ONE, "--without-class", "3", "--data-dir", data_dir, "--workdir", str(directory)]
    summary = nearest_etf.run(config_of(*flags))
    assert summary["absent_classes"] == [3]
    assert "without a training example, left out of all NC metrics: [3]" in capsys.readouterr().out
    assert rows_of(directory)[-1]["train/num_present"] == 9
    assert rows_of(directory)[-1]["train/accuracy"] > 0.8


MISTAKES = {
    "unknown preset": (["huge"], "the preset must be one of default, smoke, paper-cifar10-resnet18, "),
    "unknown flag": (["smoke", "--widht", "3"], "--widht"),
    "unknown head": (["smoke", "--heads", "nearst"], "nearst"),
    "too few dimensions": (["smoke", "--dim", "8"], "a simplex ETF of 10 classes needs dim >= 9; got dim=8"),
    "a class that is not there": (["smoke", "--without-class", "12"], "without_class must lie in 0..9; got 12"),
    "a batch that does not divide": (["smoke", "--batch-size", "33"], "a multiple of the 8 devices; got 33"),
    "no epochs": (["smoke", "--epochs", "0"], "epochs must be at least 1; got 0"),
    "nothing to resume": (["--resume", "nowhere"], "--resume needs the directory of a nearest_etf run"),
    "resume with settings": (["--resume", "nowhere", "--dim", "9"], "it must be the only argument"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_status_2(mistake, tmp_path, monkeypatch, capsys):
    arguments, sentence = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        harness.main(nearest_etf.run, nearest_etf.PRESETS, arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing was written


def test_an_existing_directory_is_not_touched(tmp_path, data_dir, capsys):
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(SystemExit) as stop:
        harness.main(
            nearest_etf.run, nearest_etf.PRESETS, ["smoke", "--workdir", str(tmp_path), "--data-dir", data_dir]
        )
    assert stop.value.code == 2
    assert "a new run needs a directory that does not exist yet" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_divergence_is_a_sentence_and_keeps_what_was_good(tmp_path, data_dir, capsys):
    directory = tmp_path / "run"
    flags = ["smoke", *ONE, "--learning-rate", "1e38", "--workdir", str(directory), "--data-dir", data_dir]
    with pytest.raises(SystemExit) as stop:
        harness.main(nearest_etf.run, nearest_etf.PRESETS, flags)
    assert stop.value.code == 2
    assert "met a NaN or an infinity in epoch 1, and the last good state" in capsys.readouterr().err
    assert [row["epoch"] for row in rows_of(directory)] == [0]


def test_the_environment_variable_shows_the_traceback(monkeypatch):
    monkeypatch.setitem(os.environ, "NC_JAX_DEBUG", "1")
    with pytest.raises(ValueError, match="needs dim >= 9"):
        harness.main(nearest_etf.run, nearest_etf.PRESETS, ["smoke", "--dim", "8"])
