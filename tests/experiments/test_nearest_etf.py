"""The main experiment, started as by a user: killed and resumed, on eight devices, with a missing class, diverging."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from experiments import ablations, nearest_etf
from nc_jax.study import cli, main
from nc_jax.study.settings import expand
from nc_jax.study.trainers import data_of, make_trainer
from nc_jax.training import Checkpoints, read_metrics

ROOT = Path(__file__).resolve().parents[2]
ONE = ["--methods", "nearest", "--seeds", "1", "--loop.epochs", "4", "--loop.devices", "1"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def config_of(*flags: str, preset: str = "smoke"):
    return cli.parse(nearest_etf.PRESETS[preset], list(flags))


def rows_of(directory: Path) -> list[dict]:
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step/seconds"} for row in rows]


def final_state(directory: Path, data_dir: str):
    config = config_of(*ONE, "--data.data-dir", data_dir)
    (group,) = expand(config)[""]
    data = data_of(config)
    trainer = make_trainer(group, data)
    with Checkpoints(directory / "checkpoints" / "nearest-seed0") as checkpoints:
        return jax.device_get(checkpoints.restore(trainer.init(data.train, seed=0)))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_parameters(tmp_path, data_dir):
    """SIGKILL in the third epoch, then --resume on the command line."""
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    program = (
        "import os, signal\n"
        "from experiments import nearest_etf\n"
        "from nc_jax.streams import Epochs\n"
        "from nc_jax.study import main\n"
        "plan = Epochs.plan\n"
        "def deadly(self, seed, segment):\n"
        "    if segment == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plan(self, seed, segment)\n"
        "Epochs.plan = deadly\n"
        "main(nearest_etf.run_comparison, nearest_etf.PRESETS)\n"
    )
    flags = [*ONE, "--data.data-dir", data_dir]
    killed = subprocess.run(
        [sys.executable, "-c", program, "smoke", *flags, "--workdir", str(broken)], cwd=ROOT, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert max(row["epoch"] for row in rows_of(broken)) == 2
    command = [sys.executable, "-m", "experiments.nearest_etf", "--resume", str(broken)]
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr

    nearest_etf.run_comparison(config_of(*flags, "--workdir", str(unbroken)))
    chex.assert_trees_all_equal(final_state(broken, data_dir), final_state(unbroken, data_dir))
    assert rows_of(broken) == rows_of(unbroken)


@pytest.mark.slow
def test_eight_devices_make_the_same_table(tmp_path, data_dir):
    tables = []
    for devices in ("1", "8"):
        flags = [*ONE[:-1], devices, "--data.data-dir", data_dir, "--workdir", str(tmp_path / devices)]
        tables.append(nearest_etf.run_comparison(config_of(*flags))["cases"][""]["nearest"])
    for name in ("test/accuracy", "train/nc4", "accuracy_epoch_1"):
        np.testing.assert_array_equal(tables[0][name], tables[1][name])  # these count labels
    states = [final_state(tmp_path / devices, data_dir) for devices in ("1", "8")]
    chex.assert_trees_all_close(*states, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_short_run_says_what_is_missing_and_who_is_confused_with_whom(tmp_path, data_dir, capsys):
    directory = tmp_path / "run"
    flags = [*ONE, "--data.without-class", "3", "--data.data-dir", data_dir, "--workdir", str(directory)]
    summary = nearest_etf.run_comparison(config_of(*flags))
    assert "left out of all NC metrics: [3]." in capsys.readouterr().out
    assert rows_of(directory)[-1]["train/num_present"] == 9
    assert rows_of(directory)[-1]["train/accuracy"] > 0.8
    (accuracy,) = summary["class_accuracy"][""]["nearest"]
    assert accuracy[3] == 0  # the network has never seen a three with its label
    (line,) = (directory / "results.jsonl").read_text().splitlines()
    confusion = np.array(json.loads(line)["found"]["confusion"])
    assert confusion.sum() == 360
    np.testing.assert_allclose(np.diagonal(confusion) / confusion.sum(axis=1), accuracy)


@pytest.mark.slow
def test_a_run_that_diverges_is_a_row_and_if_all_do_a_sentence(tmp_path, data_dir, capsys):
    flags = ["smoke", *ONE, "--optimizer.learning-rate", "1e38", "--data.data-dir", data_dir]
    with pytest.raises(SystemExit) as stop:
        main(nearest_etf.run_comparison, nearest_etf.PRESETS, [*flags, "--workdir", str(tmp_path / "all")])
    assert stop.value.code == 2
    assert "met a NaN or an infinity in epoch 1, and the last good state" in capsys.readouterr().err
    assert [row["epoch"] for row in rows_of(tmp_path / "all")] == [0]

    flags = [*ONE, "--data.data-dir", data_dir, "--workdir", str(tmp_path / "one")]
    grid = {"": {"usual": {}, "wild": {"optimizer.learning_rate": 1e38}}}
    from nc_jax.study.config import changed

    summary = nearest_etf.run_comparison(changed(config_of(*flags), {"grid": grid}))
    assert "wild: 1 of 1 runs diverged and are left out." in summary["notes"][""]
    assert summary["cases"][""]["usual"]["test/accuracy"][0] > 0.8
    assert "-" in (tmp_path / "one" / "summary.md").read_text()


@pytest.mark.slow
def test_the_papers_recipe_lowers_the_loss(tmp_path, data_dir):
    """AGD on a residual network without biases and scales, from its orthogonal start, on a small set."""
    flags = [
        "--data.name",
        "digits",
        "--data.augmentation",
        "none",
        "--data.data-dir",
        data_dir,
        "--methods",
        "nearest",
    ]
    flags += ["--backbone.width-multiplier", "0.0625", "--seeds", "1", "--loop.epochs", "1", "--loop.batch-size", "64"]
    flags += ["--loop.devices", "1", "--loop.evaluate-every", "1", "--workdir", str(tmp_path / "run")]
    paper = nearest_etf.PRESETS["paper-cifar10-resnet18"]
    assert (paper.loop.epochs, paper.loop.batch_size, paper.optimizer.name, paper.head.radius) == (200, 256, "agd", 5.0)
    nearest_etf.run_comparison(cli.parse(paper, flags))
    before, after = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert after["train/loss"] < before["train/loss"] - 0.3


@pytest.mark.parametrize("question", ablations.QUESTIONS)
def test_every_question_names_variants_that_differ(question):
    for groups in expand(ablations.PRESETS[question]).values():
        assert len({(repr(group.settings), group.method) for group in groups}) == len(groups) > 1
        assert len({group.settings.seeds for group in groups}) == 1


@pytest.mark.slow
def test_phases_without_the_gradient_are_all_or_nothing_in_the_one_epoch_there_is(tmp_path, data_dir):
    flags = ["--data.data-dir", data_dir, "--loop.epochs", "1", "--seeds", "1", "--workdir", str(tmp_path / "run")]
    found = ablations.run_comparison(cli.parse(ablations.PRESETS["smoke"], flags))["cases"]["digits, MLP"]
    assert found["without, epochs 1 to 5"]["train/loss"] == pytest.approx(found["without"]["train/loss"], rel=1e-5)
    whole = found["with the gradient"]["train/loss"]
    assert found["without, epochs 6 to 20"]["train/loss"] == pytest.approx(whole, rel=1e-5)
    assert found["without"]["train/loss"] != pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_a_run_whose_data_have_changed_goes_on_only_anew(tmp_path, data_dir, capsys):
    run = tmp_path / "run"
    flags = ["smoke", *ONE, "--loop.epochs", "1", "--data.data-dir", data_dir, "--workdir", str(run)]
    main(nearest_etf.run_comparison, nearest_etf.PRESETS, flags)
    (run / "results.jsonl").unlink()  # begun, and not finished
    facts = run / "checkpoints" / "nearest-seed0" / "run.json"
    stored = json.loads(facts.read_text())
    stored["fingerprint"]["test set.labels"] = "int32[360] of yesterday"
    facts.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="2"):
        main(nearest_etf.run_comparison, nearest_etf.PRESETS, ["--resume", str(run)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        f"error: run 'nearest-seed0' in {run}/checkpoints/nearest-seed0 was begun with other settings:"
    )
    assert "test set.labels is int32[360]" in said
    assert said.endswith("give the run another name, or restart it (restart=True, --restart)")
    main(nearest_etf.run_comparison, nearest_etf.PRESETS, ["--resume", str(run), "--restart"])
    assert (run / "superseded" / "nearest-seed0" / "run.json").is_file()
    assert len(rows_of(run)) == 2
