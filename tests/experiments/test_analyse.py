"""Statistics and plots from saved lines alone: against NumPy, on a log that is written here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import analyse
from nc_jax.training import MetricsLog

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, SEEDS = 3, 4


def value(head: str, seed: int, epoch: int) -> float:
    return float(np.random.default_rng([len(head), seed, epoch]).uniform(0.2, 0.9))


@pytest.fixture
def directory(tmp_path) -> Path:
    with MetricsLog(tmp_path / "run") as log:
        for head in ("nearest", "fixed"):
            for seed in range(SEEDS):
                for epoch in range(EPOCHS + 1):
                    agreement, loss = value(head, seed, epoch), value(head, seed, epoch + 100)
                    metrics = {"train/loss": loss, "test/nc4": agreement, "step/seconds": 1.0}
                    log.write(f"{head}-seed{seed}", 5 * epoch, epoch, metrics)
    lines = [{"run": "nearest-seed0", "split": "test", "percentiles": list(np.linspace(-1, 1, 101))}]
    (tmp_path / "run" / "margins.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


@pytest.mark.parametrize("epoch", [None, 1])
def test_statistics_are_those_of_numpy(directory, epoch):
    found = analyse.run(analyse.Config((directory,), epoch=epoch))
    assert found.keys() == {"train/loss", "test/mismatch"}
    for head in ("nearest", "fixed"):
        at = EPOCHS if epoch is None else epoch
        mismatch = [1 - value(head, seed, at) for seed in range(SEEDS)]
        expected = {
            "seeds": SEEDS,
            "mean": np.mean(mismatch),
            "sd": np.std(mismatch, ddof=1),
            "median": np.median(mismatch),
            "min": np.min(mismatch),
            "max": np.max(mismatch),
        }
        assert found["test/mismatch"][head] == pytest.approx(expected)
        assert found["train/loss"][head]["mean"] == pytest.approx(
            np.mean([value(head, seed, at + 100) for seed in range(SEEDS)])
        )
    for name in ("analysis.md", "analysis.png", "margins.png"):
        assert (directory / name).stat().st_size > 0
    row = next(line for line in (directory / "analysis.md").read_text().splitlines() if "mismatch | nearest" in line)
    assert f"{found['test/mismatch']['nearest']['median']:.4g}" in row


def test_directories_are_told_apart_and_their_settings_compared_first(directory, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    for place, rate in (("run", 0.1), ("other", 0.05)):
        document = {"config": {"workdir": place, "optimizer": {"learning_rate": rate, "name": "sgd"}}}
        (tmp_path / place / "config.json").write_text(json.dumps(document))
    (tmp_path / "other" / "metrics.jsonl").write_text((directory / "metrics.jsonl").read_text())
    found = analyse.run(analyse.Config((directory, tmp_path / "other"), metrics=("train/loss",)))
    assert found.keys() == {"train/loss"}
    assert found["train/loss"].keys() == {"run/nearest", "run/fixed", "other/nearest", "other/fixed"}
    assert capsys.readouterr().out.startswith("optimizer.learning_rate: 0.1, 0.05\n")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["nowhere"], "a run's directory has a metrics.jsonl; got nowhere, without"),
        (["run", "--epoch", "9"], "epoch must be one of the log's, [0, 1, 2, 3]; got 9"),
        (["run", "--metrics", "nc9"], "metrics must be in the log, which has epoch, run, step"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_analysed_is_refused(directory, monkeypatch, flags, sentence):
    monkeypatch.chdir(directory.parent)
    program = [sys.executable, "-m", "experiments.analyse", *flags]
    found = subprocess.run(program, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert found.returncode == 2
    assert sentence in found.stderr
