"""Finished runs read back: statistics of one against NumPy; several set beside each other, seed by seed."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import analyse
from nc_jax.study import Ledger
from nc_jax.study.cli import parse
from nc_jax.study.ends import one_sentence
from nc_jax.training import MetricsLog

EPOCHS, SEEDS = 3, 4


def value(head: str, seed: int, epoch: int, rate: float = 0.0) -> float:
    return float(np.random.default_rng([len(head), seed, epoch]).uniform(0.2, 0.9)) + rate * (1 + seed % 2)


def make_run(directory: Path, rate: float) -> Path:
    with MetricsLog(directory) as log:
        for head in ("nearest", "fixed"):
            for seed in range(SEEDS):
                for epoch in range(EPOCHS + 1):
                    agreement, loss = value(head, seed, epoch), value(head, seed, epoch + 100)
                    metrics = {"train/loss": loss, "test/nc4": agreement, "step/seconds": 1.0}
                    log.write(f"{head}-seed{seed}", 5 * epoch, epoch, metrics)
    document = {
        "experiment": "nearest_etf",
        "config": {"workdir": "x", "optimizer": {"learning_rate": rate, "name": "sgd"}, "target_accuracy": 0.9},
        "environment": {"commit": "abc", "versions": {"jax": "0"}, "device": {"kind": "cpu"}},
    }
    (directory / "config.json").write_text(json.dumps(document))
    ledger = Ledger(directory / "results.jsonl")
    for head in ("nearest", "fixed"):
        gain = rate if head == "nearest" else 0.0
        for seed in range(SEEDS):
            found = {"epochs_to_target": value(head, seed, 200, gain), "diverged": "", "confusion": [[1]]}
            key = {"case": "", "variant": "", "method": head, "seed": seed, "run": f"{head}-seed{seed}"}
            ledger.once(key, lambda found=found: found)
    # A run that only chose a learning rate is no result.
    key = {"case": "", "variant": "", "method": "fixed", "seed": 0, "run": "fixed-rate0.1-split0"}
    ledger.once(key, lambda: {"epochs_to_target": 99.0})
    return directory


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    return make_run(tmp_path / "slow", 0.1), make_run(tmp_path / "quick", 0.4)


def call(*words):
    with one_sentence("experiments.analyse"):
        return analyse.run(parse(analyse.Config(()), [str(word) for word in words]))


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("epoch", [None, 1])
def test_statistics_are_those_of_numpy(runs, tmp_path, epoch):
    before = files_of(runs[0])
    flags = [] if epoch is None else ["--epoch", epoch]
    found = call(runs[0], "--workdir", tmp_path / "out", *flags)["statistics"]
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
    assert (tmp_path / "out" / "curves.png").stat().st_size > 0
    text = (tmp_path / "out" / "summary.md").read_text()
    row = next(line for line in text.splitlines() if "mismatch | nearest" in line)
    assert f"{found['test/mismatch']['nearest']['median']:.4g}" in row
    assert files_of(runs[0]) == before


def test_a_long_name_is_shown_whole_on_the_terminal(tmp_path, capsys):
    name = "10-512-a-variant-with-a-very-long-name-of-many-words-and-numbers-1234567890-nearest"
    with MetricsLog(tmp_path / "run") as log:
        log.write(f"{name}-seed0", 1, 1, {"train/loss": 1.0})
    call(tmp_path / "run", "--workdir", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert name in "".join(line.split("│")[2].strip() for line in lines if line.startswith("│"))
    assert "…" not in "".join(lines)
    table = [line for line in lines if line[:1] in tuple("┏┃┡│└")]  # other lines hold paths, which stay whole
    assert max(map(len, table)) <= 100


def test_two_runs_are_compared_settings_first_then_seed_by_seed(runs, tmp_path, capsys):
    before = files_of(tmp_path)
    found = call(*runs, "--workdir", tmp_path / "out")
    assert found["settings"] == [["optimizer.learning_rate", "0.1", "0.4"]]
    said = capsys.readouterr().out
    assert said.index("Settings that differ") < said.index("nearest: quick against slow")
    ours, theirs = ([value("nearest", seed, 200, rate) for seed in range(SEEDS)] for rate in (0.4, 0.1))
    p = stats.ttest_rel(ours, theirs).pvalue
    (nearest, fixed) = found["verdicts"]
    numbers = f"{np.mean(ours):.1f} against {np.mean(theirs):.1f}, p = {p:.2g}"
    assert f"epochs to 90 % test accuracy: {numbers}" in nearest or f"accuracy ({numbers})" in nearest
    assert fixed == "fixed: the runs agree in every number of their 4 common seeds."
    after = files_of(tmp_path)
    assert {name: after[name] for name in before} == before  # the runs stay as they are


def test_an_analysis_does_not_replace_another(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Path(call(*runs)["directory"])
    assert first.parent == Path("runs/analyse")
    with pytest.raises(SystemExit):
        call(*runs, "--workdir", first)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "at least one run's directory is needed; got none"),
        (["nowhere"], "the directory of a run that has curves has a metrics.jsonl; got nowhere, without"),
        (["."], "one run's directory is needed; got ., below which are quick, slow"),
        (["saddles"], "curves need a run with a metrics.jsonl; got saddles, of landscape, which has its results in"),
        (["slow", "nowhere"], "the directory of a run has a config.json; got nowhere, without"),
        (["slow", "saddles"], "runs that can be compared have results by method and seed; got saddles, of landscape"),
        (["slow", "empty"], "runs that can be compared have a results.jsonl; got empty, of haframe_trees, without"),
        (["slow", "slow/."], "the runs must be in different directories; got slow, slow"),
        (["slow", "--epoch", "9"], "epoch must be one of the log's, [0, 1, 2, 3]; got 9"),
        (["slow", "--metrics", "nc9"], "metrics must be in the log, which has epoch, run, step"),
        (["slow", "quick", "--metrics", "nc9"], "metrics must be among epochs_to_target; got nc9"),
        (["slow", "--unit", "year"], "the command line must name settings that exist and values that fit"),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_a_sentence(runs, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    for name, experiment in (("saddles", "landscape"), ("empty", "haframe_trees")):
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(json.dumps({"experiment": experiment, "config": {}}))
    Ledger(Path("saddles/results.jsonl")).once({"what": "slice", "case": ""}, lambda: 1)
    with pytest.raises(SystemExit) as stop:
        call(*words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()
