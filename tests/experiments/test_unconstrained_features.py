"""Free features: the least loss, the race of the three heads, what a run writes, refusals."""

import re

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

from experiments import unconstrained_features
from experiments.unconstrained_features import Config, head_of
from nc_jax.study import cli
from nc_jax.study.free_features import Descent, DescentOptions, least_loss
from nc_jax.training import MetricsLog, read_metrics


def descent_of(name: str, case: str, **options) -> Descent:
    config = Config(descent=DescentOptions(**options))
    return Descent(config.descent, case, head_of(config, name, int(case.split(":")[0])))


def config_of(*flags: str) -> Config:
    return cli.parse(unconstrained_features.PRESETS["smoke"], list(flags))


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "dim"), [(3, 2), (4, 5)])
def test_no_features_and_class_vectors_have_a_smaller_loss(num_classes, dim):
    """Compare with a general minimiser that does not use frames."""

    def loss(flat):
        vectors = flat.reshape(2, num_classes, dim)
        frame, features = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        logits = 5 * features @ frame.T
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))

    starts = np.random.default_rng(0).normal(size=(5, 2 * num_classes * dim))
    found = min(minimize(loss, start, options={"gtol": 1e-9}).fun for start in starts)
    assert found == pytest.approx(least_loss(num_classes, 5.0), rel=1e-5)


@pytest.mark.slow
def test_the_nearest_frame_wins_the_race():
    """A small version of the paper's claim: K = 30 in 64 dimensions, three seeds."""
    steps = {}
    for head in ("learned", "fixed", "nearest"):
        descent = descent_of(head, "30:64", steps=150)
        histories = [descent(seed) for seed in range(3)]
        steps[head] = [next((i for i, nc3 in enumerate(history["nc3"]) if nc3 < 0.1), 150) for history in histories]
        assert all(history["accuracy"][-1] == 1 for history in histories)
        assert all(0 < history["loss_gap"][-1] < 0.01 for history in histories)
        if head == "nearest":
            assert max(history["solve_status"].max() for history in histories) == 0
            assert max(history["classifier_to_etf"][-1] for history in histories) < 1e-5
    assert max(steps["nearest"]) < min(steps["fixed"]) / 1.5
    assert max(steps["nearest"]) < min(steps["learned"]) / 3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gd", "sgd", "agd"])
def test_every_optimizer_descends(optimizer):
    rate = 1.0 if optimizer == "agd" else 0.03
    options = {"steps": 40, "optimizer": optimizer, "learning_rate": rate, "batch_size": 6, "measure_every": 40}
    gaps = descent_of("nearest", "5:8", **options)(0)["loss_gap"]
    assert gaps[-1] < gaps[0] / 3


@pytest.mark.slow
def test_the_summary_holds_what_the_log_says(tmp_path):
    flags = ["--methods", "fixed", "--workdir", str(tmp_path / "run")]
    summary = unconstrained_features.run(config_of(*flags))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 * 13
    values = summary["cases"]["5:8"]["fixed"]
    assert values["nc3"] == [row["nc3"] for row in rows if row["step"] == 12]
    assert values["milliseconds"][0] > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--cases", "ten:8"], "a case is \"K:d\", classes and dimensions; got 'ten:8'"),
        (["--cases", "10:8"], "a simplex ETF of 10 classes needs dim >= 9; got dim=8"),
        (["--seeds", "0"], "at least one case, method and seed are needed"),
        (["--cases", "5:8", "5:8"], "cases must differ, in lower case too, and none may be empty; got '5:8', '5:8'"),
        (["--methods", "fixed", "fixed"], "methods must differ"),
        (["--gap-targets", "0.01", "0.0100000001"], "gap_targets must differ"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, flags, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        unconstrained_features.run(config_of(*flags, "--workdir", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_options_of_a_descent_are_checked():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        DescentOptions(steps=0)
    with pytest.raises(ValueError, match="learning_rate must be positive; got 0"):
        DescentOptions(learning_rate=0.0)


def test_a_descent_that_diverges_has_no_numbers(tmp_path, capsys):
    def diverging(seed):
        series = {name: np.array([1.0, np.nan]) for name in ("loss_gap", *unconstrained_features.FINAL)}
        return series | {"solve_status": np.zeros(2)}

    key = {"case": "5:8", "method": "fixed", "seed": 0, "run": "5-8-fixed-seed0"}
    with MetricsLog(tmp_path) as log:
        found = unconstrained_features.descend(Config(), log, key, diverging)
    assert np.isnan(list(found.values())).all()
    assert capsys.readouterr().out == "5-8-fixed-seed0 diverged in step 1\n"


def test_the_memory_of_a_descent_is_what_xla_plans():
    descent = descent_of("fixed", "5:8", steps=3)
    assert 15 * 8 * 4 < descent.memory() < 1e6
    assert jax.devices()[0].platform == "cpu"
