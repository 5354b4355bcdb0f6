"""Free features: the least loss, the race of the three heads, resume, refusals."""

import json
import re

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

from experiments import harness, unconstrained_features
from experiments.free_features import Descent, least_loss
from experiments.unconstrained_features import Config
from nc_jax.training import read_metrics


def config_of(*flags: str) -> Config:
    return harness.parse(unconstrained_features.PRESETS["smoke"], list(flags))


@pytest.mark.parametrize(("num_classes", "dim"), [(3, 2), (4, 5)])
def test_no_features_and_class_vectors_have_a_smaller_loss(num_classes, dim):
    """Against a minimiser that knows nothing of frames."""

    def loss(flat):
        vectors = flat.reshape(2, num_classes, dim)
        frame, features = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        logits = 5 * features @ frame.T
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))

    starts = np.random.default_rng(0).normal(size=(5, 2 * num_classes * dim))
    found = min(minimize(loss, start, options={"gtol": 1e-9}).fun for start in starts)
    assert found == pytest.approx(least_loss(num_classes, 5.0), rel=1e-5)


def test_the_nearest_frame_wins_the_race():
    """A small version of the paper's claim: K = 30 in 64 dimensions, three seeds."""
    steps = {}
    for head in ("learned", "fixed", "nearest"):
        descent = Descent(Config(cases=("30:64",), steps=150), "30:64", head)
        histories = [descent(seed) for seed in range(3)]
        steps[head] = [next((i for i, nc3 in enumerate(history["nc3"]) if nc3 < 0.1), 150) for history in histories]
        assert all(history["accuracy"][-1] == 1 for history in histories)
        assert all(0 < history["loss_gap"][-1] < 0.01 for history in histories)
        if head == "nearest":
            assert max(history["solve_status"].max() for history in histories) == 0
            assert max(history["classifier_to_etf"][-1] for history in histories) < 1e-5
    assert max(steps["nearest"]) < min(steps["fixed"]) / 1.5
    assert max(steps["nearest"]) < min(steps["learned"]) / 3


@pytest.mark.parametrize("optimizer", ["gd", "sgd", "agd"])
def test_every_optimizer_descends(optimizer):
    rate = 1.0 if optimizer == "agd" else 0.03
    config = Config(cases=("5:8",), steps=40, optimizer=optimizer, learning_rate=rate, batch_size=6)
    for head in ("learned", "fixed", "nearest"):
        gaps = Descent(config, "5:8", head)(0)["loss_gap"]
        assert gaps[-1] < gaps[0] / 3


def test_a_run_writes_what_its_header_promises_and_resumes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = unconstrained_features.run(config_of("--workdir", str(whole)))
    for name in ("config.json", "summary.json", "summary.md", "metrics.jsonl", "5-8.png"):
        assert (whole / name).stat().st_size > 0
    rows = read_metrics(whole / "metrics.jsonl")
    assert len(rows) == 3 * 2 * 13
    assert json.loads((whole / "summary.json").read_text())["cases"].keys() == {"5:8"}
    values = summary["cases"]["5:8"]["nearest"]["values"]
    assert values["nc3"] == [row["nc3"] for row in rows if row["run"].startswith("5:8-nearest") and row["step"] == 12]

    # Cut off in the middle of the third run.
    unconstrained_features.run(config_of("--workdir", str(broken)))
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:30]))
    unconstrained_features.run(config_of("--resume", str(broken)))
    key = lambda row: (row["run"], row["step"])  # noqa: E731
    again = sorted(read_metrics(broken / "metrics.jsonl"), key=key)
    for ours, theirs in zip(again, sorted(rows, key=key), strict=True):
        assert ours == pytest.approx(theirs, nan_ok=True)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--cases", "ten:8"], "a case is \"K:d\", classes and dimensions; got 'ten:8'"),
        (["--cases", "10:8"], "a simplex ETF of 10 classes needs dim >= 9; got dim=8"),
        (["--steps", "0"], "steps must be at least 1; got 0"),
        (["--learning-rate", "0"], "learning_rate must be positive; got 0.0"),
        (["--seeds", "0"], "at least one case, head and seed are needed"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, flags, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        unconstrained_features.run(config_of(*flags, "--workdir", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    values = {"loss_gap": np.array([1.0, np.nan])}
    with pytest.raises(FloatingPointError, match="met a NaN or an infinity in step 1"):
        unconstrained_features.write(None, "run", values)


def test_the_memory_of_a_descent_is_what_xla_plans():
    descent = Descent(Config(cases=("5:8",), steps=3), "5:8", "nearest")
    assert 15 * 8 * 4 < descent.memory() < 1e6
    assert jax.devices()[0].platform == "cpu"
