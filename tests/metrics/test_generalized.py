"""Generalized collapse: zero at collapse for more classes than dimensions, golden numbers, floors, masks, large K."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nc_jax.metrics import (
    ClassStatistics,
    collapse_metrics,
    equiangle,
    etf_distance,
    etf_distance_floor,
    generalized_collapse_metrics,
    maximal_angle,
    self_duality,
    uniform_duality,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
from_batch = jax.jit(
    lambda features, labels, num: ClassStatistics.from_batch(features, labels, num, scatter=False), static_argnums=2
)
measure = jax.jit(generalized_collapse_metrics)
CROSS = np.hstack([np.eye(3), -np.eye(3)])


def duality(stats, frame):
    return (
        self_duality(frame, stats, "directions"),
        self_duality(frame, stats, "cosine"),
        uniform_duality(frame, stats, ddof=1),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["feature_sets"])
def test_equals_the_released_program(x64, name):
    data, rhubarbwu = GOLDEN["feature_sets"][name], GOLDEN["rhubarbwu_metrics"][name]
    stats = from_batch(jnp.array(data["X"]), jnp.array(data["y"]), len(data["W"]))
    frame, bias = jnp.array(data["W"]).T, jnp.array(data["b"])
    metrics, (directions, cosine, uniform) = measure(stats, frame, bias), jax.jit(duality)(stats, frame)
    found = {
        "nc1_cdnv": metrics["gnc1_cdnv"],
        "nc1_quot": metrics["gnc1_quotient"],
        "nc3_sims_dot_var": uniform,
    }
    for golden, value in found.items():
        np.testing.assert_allclose(value, rhubarbwu[golden], rtol=0, atol=1e-9, err_msg=golden)
    np.testing.assert_allclose(metrics["log_variance_means"], rhubarbwu["nc2g_log_mean_var"][1], atol=1e-9)
    np.testing.assert_allclose(directions, np.mean(rhubarbwu["nc3_distance_norms"]), atol=1e-9)
    np.testing.assert_allclose(cosine, 1 - np.mean(rhubarbwu["nc3_sims_cos"]), atol=1e-9)
    floor = etf_distance_floor(len(bias), len(frame))
    np.testing.assert_allclose(metrics["nc2_gap_means"] + floor, rhubarbwu["nc2_etf_err"], atol=1e-9)
    np.testing.assert_allclose(metrics["gnc3_directions"], directions, rtol=1e-12)
    np.testing.assert_allclose(metrics["gnc3_uniform"] * len(bias) / (len(bias) - 1), uniform, rtol=1e-12)


def collapsed(absent=False):
    """Six classes in three dimensions at generalized collapse, with an offset; one more class without examples."""
    labels = jnp.repeat(jnp.arange(6), 2)
    features = 3 * CROSS.T[np.asarray(labels)] + np.arange(3.0)
    return from_batch(jnp.asarray(features), labels, 7 if absent else 6)


@pytest.mark.slow
def test_at_collapse_gaps_are_zero(x64):
    stats = collapsed()
    metrics = measure(stats, jnp.asarray(0.5 * CROSS), None)
    np.testing.assert_allclose(metrics.pop("separation_means"), np.sqrt(2), rtol=1e-12)
    np.testing.assert_allclose(metrics.pop("energy_classifier"), 0.45, rtol=1e-12)
    for name in metrics.keys() - {
        "energy_means",
        "separation_classifier",
        "log_variance_means",
        "log_variance_classifier",
        "num_present",
        "nc4_bias",
    }:
        np.testing.assert_allclose(metrics[name], 0, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_absent_classes_and_no_classifier(x64):
    narrow, wide = measure(collapsed()), measure(collapsed(absent=True))
    assert wide["num_present"] == 6
    assert not any("classifier" in name or "gnc3" in name for name in wide)
    for name in narrow:
        np.testing.assert_allclose(wide[name], narrow[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_shared_names_have_shared_values():
    features, labels = np.float32(np.random.default_rng(0).normal(size=(12, 3))), np.arange(12) % 6
    stats = jax.jit(ClassStatistics.from_batch, static_argnums=2)(features, labels, 6)
    frame, bias = np.float32(CROSS), np.arange(6, dtype=np.float32)
    usual, found = jax.jit(collapse_metrics)(stats, frame, bias), measure(stats, frame, bias)
    shared = usual.keys() & found.keys()
    assert {"equinorm_means", "nc4_bias", "num_present"} < shared
    for name in shared:
        np.testing.assert_allclose(found[name], usual[name], rtol=1e-5, err_msg=name)
    assert jax.eval_shape(partial(generalized_collapse_metrics, rows=True), stats, frame.T, bias).keys() == found.keys()
    with pytest.raises(ValueError, match="a bias needs the frame of its classifier"):
        generalized_collapse_metrics(stats, None, bias)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [0.0, np.nan])
def test_undefined_metrics_are_nan_and_never_raise(spoil):
    stats = from_batch(jnp.full((4, 3), spoil), jnp.array([0, 0, 1, 1]), 6)
    metrics = measure(stats, jnp.asarray(CROSS), None)
    for name in ("gnc1_quotient", "energy_means", "separation_means", "log_variance_means", "equinorm_means"):
        assert jnp.isnan(metrics[name]), name
    for name in ("energy_gap_means", "nc2_gap_means", "gnc3_directions", "gnc3_cosine"):
        assert jnp.isnan(metrics[name]), name
    assert jnp.isfinite(metrics["energy_gap_classifier"])


def least_found(metric, num_classes, dim):
    """Least value of a metric over vectors, from several starts."""
    value = jax.jit(jax.value_and_grad(lambda x: metric(x.reshape(dim, num_classes))))

    def objective(x):
        return tuple(np.asarray(part, np.float64) for part in value(jnp.asarray(x)))

    starts = np.random.default_rng(0).normal(size=(4, dim * num_classes))
    return min(scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B").fun for start in starts)


@pytest.mark.parametrize(("num_classes", "dim"), [(5, 2), (4, 1)])
def test_no_vectors_are_nearer_to_a_simplex_than_the_floor(x64, num_classes, dim):
    floor = float(etf_distance_floor(num_classes, dim))
    np.testing.assert_allclose(least_found(etf_distance, num_classes, dim), floor, atol=1e-6)
    assert etf_distance_floor(jnp.asarray(num_classes), dim) == floor
    with pytest.raises(ValueError, match="the least distance needs num_classes >= 2 and dim >= 1; got 1 and 2"):
        etf_distance_floor(1, 2)


@pytest.mark.slow
def test_what_angles_say_without_room_for_a_simplex(x64):
    """The values that the docstrings of equiangle and maximal_angle give."""
    num_classes, dim = 12, 7
    others = num_classes - 1
    np.testing.assert_allclose(equiangle(jnp.ones((dim, num_classes))), 0, atol=1e-7)
    # Unit vectors of sum zero that form a tight frame: the regular polygon in the plane.
    angles = np.arange(num_classes) * 2 * np.pi / num_classes
    polygon = np.stack([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(equiangle(polygon), np.sqrt(num_classes * (others - 2) / 2) / others, rtol=1e-12)
    # d directions with the cosine -1/(K-1), of which K - d are shared by two classes.
    gram = np.where(np.eye(dim, dtype=bool), 1, -1 / others)
    roots = np.linalg.cholesky(gram).T
    shared = np.hstack([roots, roots[:, : num_classes - dim]])
    np.testing.assert_allclose(maximal_angle(shared), 2 * (num_classes - dim) / others**2, rtol=1e-9)
    assert least_found(maximal_angle, 5, 2) > (5 - 1 - 2) / (5 - 1) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("metric", [etf_distance, equiangle, maximal_angle, partial(maximal_angle, signed=True)])
def test_distances_and_angles_in_parts(x64, monkeypatch, metric):
    vectors = jnp.asarray(np.random.default_rng(2).normal(size=(3, 11)))
    present = jnp.arange(11) != 4
    slope = jax.value_and_grad(metric)
    whole = slope(vectors, present)
    monkeypatch.setattr("nc_jax.metrics.simplex._TILE", 4)
    for found, expected in zip(slope(vectors, present), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


LARGE = """
import re, jax, jax.numpy as jnp
from nc_jax.metrics import ClassStatistics, energy_gap, equiangle, kernel_moments
frame = jax.random.normal(jax.random.key(0), (64, 20_000))
stats = ClassStatistics.init(20_000, 64, scatter=False)
for part in range(0, 2000, 1000):  # the others are absent, which costs the same
    stats = stats.update(frame.T[part : part + 1000], jnp.arange(part, part + 1000))
means, present = stats.centred_means(), stats.present
print(energy_gap(frame).energy, kernel_moments(means, present=present).variance, equiangle(frame))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())  # getrusage's begins at the parent's memory
print(int(peak[1]) / 2**20, "GiB")
"""


@pytest.mark.slow
def test_very_many_classes_need_no_array_of_all_pairs():
    """Such an array takes 1.5 GiB alone."""
    plain = os.environ | {"XLA_FLAGS": ""}  # optimised, as for a user
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, env=plain)
    assert float(re.search(r"([\d.]+) GiB", done.stdout)[1]) < 1.4
