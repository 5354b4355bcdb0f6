"""Zero-mean collapse: what is about which centre, and what is measured of a run."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import zero_mean_collapse
from experiments.zero_mean_collapse import METRICS, collapse
from nc_jax.frames import nonnegative_orthogonal, simplex_etf
from nc_jax.metrics import ClassStatistics
from nc_jax.study import cli
from nc_jax.training import Evaluation, read_metrics

K, DIM = 4, 10


def evaluation_of(vectors, frame):
    """What an evaluation finds of two equal examples per class."""
    labels = jnp.tile(jnp.arange(K), 2)
    statistics = ClassStatistics.from_batch(vectors.T[labels], labels, K)
    return Evaluation({"nearest_centre_accuracy": 0.75}, statistics, frame, jnp.zeros(K))


@pytest.mark.slow
def test_orthogonal_means_have_collapsed_about_the_origin_and_are_a_simplex_about_the_mean():
    frame = nonnegative_orthogonal(K, DIM)
    found = collapse(evaluation_of(3 * frame, frame))
    assert max(found[f"{centre}/{name}"] for centre in ("own", "origin") for name in METRICS) < 1e-5
    assert max(found["mean/equinorm"], found["mean/angle"]) < 1e-5
    assert found["mean/convergence"] > 0.1  # the class vectors have a mean of their own
    assert found["disagreement"] == pytest.approx(0.25)


@pytest.mark.slow
def test_a_simplex_and_a_common_part_have_collapsed_about_the_mean_only():
    frame = simplex_etf(K, DIM)
    found = collapse(evaluation_of(2 * frame + 1, frame))
    assert max(found[f"{centre}/{name}"] for centre in ("own", "mean") for name in METRICS) < 1e-5
    assert found["origin/angle"] > 0.5


@pytest.mark.slow
def test_a_run_has_its_metrics_in_log_and_summary(tmp_path):
    flags = ["--methods", "fno", "linear", "--seeds", "1", "--workdir", str(tmp_path / "run")]
    config = cli.parse(zero_mean_collapse.PRESETS["smoke"], [*flags, "--data.data-dir", str(tmp_path)])
    found = zero_mean_collapse.run_comparison(config)["cases"][""]
    last = {row["run"]: row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["epoch"] == 2}
    for row, run, centre in (("FNO", "fno-seed0", "origin"), ("linear", "linear-seed0", "mean")):
        for name in METRICS:
            assert found[row][f"own/{name}"] == pytest.approx([last[run][f"own/{name}"]])
            assert last[run][f"own/{name}"] == last[run][f"{centre}/{name}"]
    assert 0 < found["FNO"]["own_share"][0] < 1
    assert "own_share" not in found["linear"]
    assert math.isnan(found["FNO"]["epochs_to_fit"][0])
    assert np.isfinite(found["FNO"]["test_disagreement"][0])
