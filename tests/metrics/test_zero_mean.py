"""Zero-mean collapse: the released program's numbers, collapse itself, and what has no number."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import nonnegative_orthogonal, owner
from nc_jax.metrics import (
    ClassStatistics,
    collapse_metrics,
    equiangle,
    equinorm,
    nearest_centre_accuracy,
    support_occupancy,
    zero_mean_collapse,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["fno"]["nc_znc_metrics"]
K, DIM, N = 4, 10, 40
from_batch = jax.jit(ClassStatistics.from_batch, static_argnums=2)
measure = jax.jit(zero_mean_collapse)
FRAME = nonnegative_orthogonal(K, DIM, key=jax.random.key(0))
LABELS = np.arange(N) % K
NOISE = np.abs(np.random.default_rng(0).normal(size=(N, DIM))).astype(np.float32)
MEANS = {"equinorm_means", "equiangle_means", "angle_means", "convergence", "variation", "mismatch"}
CLASSIFIER = {"equinorm_classifier", "equiangle_classifier", "angle_classifier"}


def measured(features, labels=LABELS, frame=FRAME, num_classes=K):
    found = measure(from_batch(jnp.asarray(features), jnp.asarray(labels), num_classes), frame)
    return {name.removeprefix("zero_mean_"): float(value) for name, value in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["W", "Q"])
def test_equals_the_released_program(x64, classifier):
    golden, frame = GOLDEN[f"ZNC_with_{classifier}"], np.array(GOLDEN[classifier]).T
    found = measured(np.array(GOLDEN["features"]), np.array(GOLDEN["labels"]), frame, 3)
    sample = np.sqrt(3 / 2)  # the program divides by one less than the 3 norms, and than the 3 pairs
    for metric, name, scale in [("equinorm", "equinorm", sample), ("equiangularity", "equiangle", sample)]:
        pair = found[f"{name}_means"] * scale, found[f"{name}_classifier"] * scale
        np.testing.assert_allclose(pair, golden[metric], rtol=1e-6, atol=1e-7)
    # All cosines of the means are positive. Those of W have both signs, and the program averages them with their signs.
    np.testing.assert_allclose(found["angle_means"], golden["maximal_angle"][0], rtol=1e-6)
    assert found["angle_classifier"] >= abs(golden["maximal_angle"][1]) - 1e-7
    np.testing.assert_allclose(found["convergence"] ** 2, golden["class_mean_convergence"], rtol=1e-6)
    np.testing.assert_allclose(found["variation"], golden["within_class_variation"], rtol=1e-5)  # float32 pinv
    means = np.array(GOLDEN["features"]).reshape(3, -1, 4).mean(axis=1).T
    nearest = nearest_centre_accuracy(np.array(GOLDEN["features"]), np.array(GOLDEN["labels"]), means)
    assert 1 - nearest.compute() == golden["ncc"]


@pytest.mark.slow
def test_everything_is_zero_at_collapse_and_the_usual_metrics_cannot_tell():
    collapsed = 7 * np.asarray(FRAME).T[LABELS]
    found = measured(collapsed)
    assert found.keys() == MEANS | CLASSIFIER
    np.testing.assert_allclose(list(found.values()), 0, atol=1e-6)
    usual = collapse_metrics(from_batch(jnp.asarray(collapsed), jnp.asarray(LABELS), K), FRAME)
    np.testing.assert_allclose([usual["nc1"], usual["nc2_means"]], 0, atol=1e-6)
    np.testing.assert_allclose(support_occupancy(collapsed, LABELS, FRAME), np.eye(K), atol=1e-6)


@pytest.mark.slow
def test_nothing_is_zero_elsewhere_and_the_scale_does_not_matter():
    features = NOISE + np.asarray(FRAME).T[(LABELS + 1) % K]  # every mean leans to the next class's vector
    found, smaller = measured(features), measured(1e-25 * features)
    assert min(found[name] for name in MEANS) > 0.01
    assert found["mismatch"] == 1
    assert found == pytest.approx(smaller, rel=1e-4, abs=1e-6)
    means = from_batch(jnp.asarray(features), jnp.asarray(LABELS), K).means
    np.testing.assert_allclose(found["equinorm_means"], equinorm(means), rtol=1e-5)
    np.testing.assert_allclose(found["equiangle_means"], equiangle(means), rtol=1e-5)


@pytest.mark.slow
def test_a_class_that_is_no_nearer_to_its_own_vector_is_a_mismatch():
    features = np.asarray(FRAME).T[LABELS] * np.ones((N, 1))
    features[LABELS == 1] = np.asarray(FRAME).T[2]
    assert measured(features)["mismatch"] == 1 / K
    assert measured(np.ones((N, DIM)) @ np.asarray(FRAME @ FRAME.T))["mismatch"] == 1  # all at the same angle


@pytest.mark.slow
def test_absent_classes_are_left_out():
    present = LABELS < 3
    features = 2 * np.asarray(FRAME).T[LABELS]
    found = measured(features, np.where(present, LABELS, -1))
    others = {name: found[name] for name in MEANS - {"convergence"}}
    np.testing.assert_allclose(list(others.values()), 0, atol=1e-6)
    occupancy = np.asarray(support_occupancy(features, np.where(present, LABELS, -1), FRAME))
    np.testing.assert_allclose(occupancy[:3], np.eye(K)[:3], atol=1e-6)
    assert np.isnan(occupancy[3]).all()


@pytest.mark.parametrize(
    ("features", "labels", "frame", "unknown"),
    [
        (NOISE, np.where(LABELS == 0, 0, -1), FRAME, MEANS),  # one class
        (NOISE, np.full(N, -1), FRAME, MEANS),  # none
        (0 * NOISE, LABELS, FRAME, MEANS),
        (NOISE * (LABELS > 0)[:, None], LABELS, FRAME, {"equiangle_means", "angle_means", "mismatch"}),
        (NOISE, LABELS, FRAME * jnp.array([0, 1, 1, 1]), {"mismatch", "equiangle_classifier", "angle_classifier"}),
        (NOISE, LABELS, jnp.nan * FRAME, {"mismatch", "convergence"} | CLASSIFIER),
    ],
    ids=["one class", "no class", "zero features", "a zero mean", "a zero vector", "NaN"],
)
def test_what_does_not_exist_is_nan(features, labels, frame, unknown):
    found = measured(features, labels, frame)
    assert {name for name, value in found.items() if np.isnan(value)} == unknown


# --- With the examples themselves. ---


@pytest.mark.slow
def test_the_nearest_centre_is_found_by_distance_whatever_the_offset():
    rng = np.random.default_rng(1)
    means, labels = rng.normal(size=(DIM, K)), np.where(np.arange(N) < 35, LABELS, -1)
    features = means.T[LABELS] + rng.normal(size=(N, DIM))
    present = np.array([True, True, True, False])
    distances = np.linalg.norm(features[:, :, None] - means[None], axis=1)
    for mask in (None, present):
        right = np.argmin(np.where(np.ones(K, bool) if mask is None else mask, distances, np.inf), axis=1) == labels
        for offset in (0, 1e3):
            found = nearest_centre_accuracy(
                (features + offset).astype(np.float32),
                labels,
                (means + offset).astype(np.float32),
                None if mask is None else jnp.asarray(mask),
            )
            assert (int(found.agree), int(found.count)) == (right[:35].sum(), 35)


def test_an_example_that_is_not_finite_has_no_nearest_centre():
    assert nearest_centre_accuracy(jnp.full((2, 3), jnp.nan), jnp.array([0, 0]), jnp.eye(3)).agree == 0


@pytest.mark.slow
def test_occupancy_is_the_share_of_each_examples_squared_length(x64):
    owners = np.asarray(owner(FRAME))
    shares = np.stack([np.sum(NOISE[:, owners == k] ** 2, axis=1) for k in range(K)], axis=1)
    shares /= np.sum(shares, axis=1, keepdims=True)
    expected = np.stack([shares[k == LABELS].mean(axis=0) for k in range(K)])
    scales = np.exp(np.linspace(-20, 20, N))[:, None]  # the length of an example does not matter
    padded = np.concatenate([NOISE * scales, np.full((3, DIM), np.nan)]), np.concatenate([LABELS, [-1] * 3])
    np.testing.assert_allclose(support_occupancy(*padded, FRAME), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(support_occupancy)(*padded, 3 * FRAME), expected, rtol=1e-6)
    one_is_zero = NOISE * (np.arange(N) > 0)[:, None]
    assert np.isnan(support_occupancy(one_is_zero, LABELS, FRAME)).all(axis=1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda stats: zero_mean_collapse(stats, FRAME.T),
            r"frame must have shape \(10, 4\) like the class means; got",
        ),
        (
            lambda stats: inspect.unwrap(nearest_centre_accuracy)(NOISE, LABELS, FRAME.T),
            r"features and class_means must have shapes \(batch, dim\) and \(dim, classes\); got \(40, 10\) and \(4",
        ),
        (
            lambda stats: support_occupancy(NOISE[:, :4], LABELS, FRAME),
            r"features and frame must have shapes \(batch, dim\) and \(dim, classes\); got \(40, 4\) and \(10, 4\)",
        ),
        (lambda stats: support_occupancy(NOISE, LABELS, FRAME + 1), "class vectors must share no feature"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call(ClassStatistics.init(K, DIM))
