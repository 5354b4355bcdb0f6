"""Alignment: golden error exponents, loops as oracles, small angles, and what has no direction."""

import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.linalg import subspace_angles

from nc_jax.arrays import slerp
from nc_jax.frames import simplex_etf
from nc_jax.metrics import (
    class_angles,
    error_exponent_ratio,
    error_exponents,
    etf_error_exponent,
    mean_cosine,
    optimal_error_exponent,
    principal_angles,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
EXPONENTS = GOLDEN["optimal_error_exponent"]
K, DIM = 5, 7
exponents, optimum, ratio = jax.jit(error_exponents), jax.jit(optimal_error_exponent), jax.jit(error_exponent_ratio)
angles_of_classes, angles_of_spans, group_cosine = (
    jax.jit(class_angles),
    jax.jit(principal_angles),
    jax.jit(mean_cosine),
)


def random_problem(seed=0):
    """Means near their class vectors, and a bias."""
    rng = np.random.default_rng(seed)
    frame = rng.normal(size=(DIM, K))
    return frame + 0.3 * rng.normal(size=(DIM, K)), frame, 0.5 * rng.normal(size=K)


def loop_exponents(means, frame, bias, present):
    """Half the squared distance of each mean to the nearest boundary."""
    found = np.full(len(bias), np.nan)
    for k in np.flatnonzero(present):
        distances = [
            ((frame[:, k] - frame[:, j]) @ means[:, k] + bias[k] - bias[j]) / np.linalg.norm(frame[:, k] - frame[:, j])
            for j in np.flatnonzero(present)
            if j != k
        ]
        found[k] = max(min(distances), 0) ** 2 / 2
    return found


def simplex(num_classes):
    """Unit vectors in as many dimensions as classes."""
    return np.sqrt(num_classes / (num_classes - 1)) * (np.eye(num_classes) - 1 / num_classes)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 4])
def test_a_tilt_out_of_the_span_takes_the_squared_cosine(x64, num_classes):
    means = np.vstack([simplex(num_classes), np.zeros((num_classes, num_classes))])
    best = etf_error_exponent(num_classes)
    for degrees in (0, 15, 30, 45, 60):
        theta = np.radians(degrees)
        frame = np.cos(theta) * means + np.sin(theta) * means[::-1]
        found = optimum(means, frame)
        np.testing.assert_allclose(found, EXPONENTS[f"C{num_classes}_theta{degrees}"], rtol=1e-9)
        np.testing.assert_allclose(ratio(9 * means, frame), np.cos(theta) ** 2, rtol=1e-9)
        np.testing.assert_allclose(found, np.cos(theta) ** 2 * best, rtol=1e-9)
        np.testing.assert_allclose(angles_of_classes(means, frame), theta, atol=1e-14)
        np.testing.assert_allclose(angles_of_spans(means, frame), [theta] * (num_classes - 1), atol=1e-14)


def test_a_turn_within_the_span_costs_more_than_its_cosine(x64):
    golden = EXPONENTS["C4_inspan_expm(0.15*(A-A^T))_RandomState(11)"]
    means, frame = simplex(4), np.array(GOLDEN["slerp_alignment"]["W0"]).T
    np.testing.assert_allclose(optimum(means, frame), golden["oee"], rtol=1e-9)
    np.testing.assert_allclose(np.cos(angles_of_classes(means, frame)), golden["cosines"], rtol=1e-9)


@pytest.mark.slow
def test_slerp_brings_the_exponent_back(x64):
    golden = GOLDEN["slerp_alignment"]
    means, frame = jnp.array(simplex(4)), jnp.array(golden["W0"]).T
    for name in ("t0", "t0.25", "t0.5", "t0.75", "t1"):
        turned = slerp(frame, 3 * means, float(name[1:]))
        np.testing.assert_allclose(turned, np.array(golden[name]["W"]).T, atol=1e-9)
        np.testing.assert_allclose(optimum(means, turned), golden[name]["oee"], rtol=1e-9)
        np.testing.assert_allclose(np.cos(angles_of_classes(means, turned)).mean(), golden[name]["mean_cos"], rtol=1e-9)


@pytest.mark.parametrize("name", ["balanced_K4_d5_n3", "gnc_K5_d3_n2"])
def test_class_means_as_their_own_classifier(x64, name):
    case = GOLDEN["feature_sets"][name]
    features, labels = np.array(case["X"]), np.array(case["y"])
    means = np.stack([features[labels == k].mean(axis=0) for k in range(labels.max() + 1)], axis=1)
    np.testing.assert_allclose(optimum(means, means), EXPONENTS[f"feature_set_{name}"], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("present", [np.ones(K, bool), np.array([True, False, True, True, False])], ids=["all", "some"])
def test_exponents_equal_a_loop(x64, present):
    means, frame, bias = random_problem()
    expected = loop_exponents(means, frame, bias, present)
    assert np.count_nonzero(expected[present]) > 1
    absent_is_ignored = np.where(present, means, np.nan), np.where(present, frame, 1e9)
    found = exponents(*absent_is_ignored, bias, present)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(optimum(means, frame, bias, present), np.nanmin(expected), rtol=1e-10)
    np.testing.assert_array_equal(error_exponents(means, frame, bias, jnp.array(present)), found)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scales(scale):
    means, frame, bias = (np.asarray(array, np.float32) for array in random_problem())
    before = exponents(means, frame, bias)
    after = exponents(np.float32(scale) * means, frame / np.float32(scale) ** 2, bias / np.float32(scale))
    np.testing.assert_allclose(after / np.float32(scale) / np.float32(scale), before, rtol=1e-4)
    np.testing.assert_allclose(ratio(1e19 * scale * means, frame, 1e19 * scale * bias), ratio(means, frame, bias), 1e-4)


def test_nearly_equal_class_vectors_keep_their_digits():
    """Squares of length 1 are rounded to 1e-7, so inner products leave three digits of a squared distance of 1e-4."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(DIM, 1))
    frame = np.asarray(common + 1e-3 * rng.normal(size=(DIM, K)), np.float32)
    means = np.asarray(frame - common, np.float32)
    expected = loop_exponents(means.astype(float), frame.astype(float), np.zeros(K), np.ones(K, bool))
    np.testing.assert_allclose(exponents(means, frame), expected, rtol=1e-5)


@pytest.mark.slow
def test_of_equal_class_vectors_the_larger_bias_wins():
    means, frame = 4 * jnp.eye(3), jnp.eye(3).at[:, 1].set(jnp.array([1.0, 0.0, 0.0]))
    best = float(exponents(means, frame)[2])
    # Class 1 has the vector of class 0 and a larger bias: nothing is decided for 0, and only 2 limits class 1.
    np.testing.assert_allclose(exponents(means, frame, jnp.array([0.0, 9.0, 0.0])), [0, 81 / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(exponents(means, frame), [0, 0, best])
    np.testing.assert_array_equal(exponents(means, 0 * frame, jnp.array([2.0, 1.0, 0.0])), [np.inf, 0, 0])
    assert optimum(means, 0 * frame, jnp.array([2.0, 1.0, 0.0])) == 0


@pytest.mark.slow
def test_the_ratio_is_one_at_collapse_and_never_larger(x64):
    frame = simplex_etf(4, 6, key=jax.random.key(0), dtype=jnp.float64)
    centre = jnp.arange(6.0)[:, None]
    collapsed = ratio(1e-3 * frame + centre, 7 * frame, -7 * jnp.sum(frame * centre, axis=0))
    np.testing.assert_allclose(collapsed, 1, rtol=1e-9)
    for seed in range(20):
        means, classifier, bias = random_problem(seed)
        assert 0 <= ratio(means, classifier, bias) <= 1
        # The best classifier for these means decides for the nearest one.
        assert ratio(means, classifier, bias) <= ratio(means, means, -np.sum(means**2, axis=0) / 2) < 1


@pytest.mark.slow
def test_one_class_or_equal_means_have_no_exponent():
    means, frame, bias = (jnp.asarray(array, jnp.float32) for array in random_problem())
    one = jnp.arange(K) == 2
    assert jnp.isnan(exponents(means, frame, bias, one)).all()
    for metric in (optimum, ratio):
        assert jnp.isnan(metric(means, frame, bias, one))
    assert jnp.isnan(ratio(jnp.ones((DIM, K)) / 3, frame, bias))
    assert jnp.isnan(optimum(means.at[0, 0].set(jnp.nan), frame, bias))
    assert jnp.isnan(angles_of_spans(means, frame, one)).all()
    assert jnp.isnan(angles_of_classes(means, frame, one)).all()


@pytest.mark.slow
def test_exponents_have_the_gradient_of_finite_differences(x64):
    means, frame, bias = map(jnp.array, random_problem())
    check_grads(lambda *a: jnp.sum(error_exponents(*a)), (means, frame, bias), 1, ["rev"], rtol=1e-5)
    equal = jax.grad(lambda w: jnp.sum(error_exponents(means, w)))(frame.at[:, 1].set(frame[:, 0]).at[:, 2].set(0))
    assert jnp.isfinite(equal).all()


def test_a_thousand_classes_need_no_array_of_all_differences():
    shapes = [jax.ShapeDtypeStruct((64, 1000), jnp.float32)] * 2
    temporary = jax.jit(error_exponents).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 10e6  # all differences would take 256 MB


@pytest.mark.slow
def test_class_angles_are_accurate_near_zero():
    angle = np.float32(1e-5)
    means = np.array([[1, -1], [0, 0]], np.float32) + 3
    frame = np.array([[1, -1], [angle, angle]], np.float32)
    np.testing.assert_allclose(angles_of_classes(means, frame), angle, rtol=1e-5)
    found = angles_of_classes(means, jnp.asarray(frame).at[:, 1].set(0))
    np.testing.assert_array_equal(jnp.isnan(found), [False, True])
    gradient = jax.grad(lambda w: jnp.nansum(angles_of_classes(means, w)))(jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    assert jnp.isfinite(gradient).all()


def test_principal_angles_of_planes(x64):
    """Two planes in four dimensions, one turned by 1e-9 and 0.5 radians, within the vectors of larger spaces."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    turn = np.array([1e-9, 0.5])
    first, second = basis[:, :2], basis[:, :2] * np.cos(turn) + basis[:, 2:4] * np.sin(turn)
    mixture = rng.normal(size=(2, K))
    found = angles_of_spans(first @ mixture + 5, second @ (2 * mixture[::-1]) - 1)
    np.testing.assert_allclose(found[:2], turn, rtol=1e-5)
    assert jnp.isnan(found[2:]).all()
    assert found.shape == (K - 1,)
    # A third direction that the class vectors lack adds no angle, in either order.
    wide = np.hstack([first, basis[:, 4:5]]) @ rng.normal(size=(3, K))
    for pair in [(wide, second @ mixture), (second @ mixture, wide)]:
        np.testing.assert_allclose(angles_of_spans(*pair)[:2], turn, rtol=1e-5)
        assert jnp.isnan(angles_of_spans(*pair)[2:]).all()
    right = angles_of_spans(basis[:, :2] @ mixture, basis[:, 4:6] @ mixture)
    np.testing.assert_allclose(right[:2], np.pi / 2)


def test_principal_angles_equal_scipy(x64):
    rng = np.random.default_rng(1)
    for dim in (DIM, 3):
        means, frame = rng.normal(size=(2, dim, K))
        centred = [vectors - vectors.mean(axis=1, keepdims=True) for vectors in (means, frame)]
        expected = subspace_angles(*(np.linalg.svd(c)[0][:, : min(dim, K - 1)] for c in centred))[::-1]
        # Two spaces of four dimensions share a direction of the seven, whose angle SciPy finds to be 3e-8.
        np.testing.assert_allclose(angles_of_spans(means, frame), expected, atol=1e-7)


@pytest.mark.slow
def test_mean_cosine_of_a_group():
    frame = np.asarray(simplex_etf(6, 8, key=jax.random.key(0)))
    np.testing.assert_allclose(group_cosine(frame * np.arange(1, 7), np.array([0, 3, 5])), -1 / 5, atol=1e-6)
    collapsed = jnp.asarray(frame).at[:, 3:].set(frame[:, 3:4] * jnp.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(group_cosine(collapsed, np.array([3, 4, 5])), 1, atol=1e-6)
    np.testing.assert_allclose(group_cosine(collapsed, np.array([0, 3, 5])), (2 - 1 / 5) / 3, atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda w: mean_cosine(w, np.array([0, 3, 5])))(collapsed)).all()
    assert jnp.isnan(mean_cosine(frame, np.array([2])))
    for wrong in (6, -1):
        assert jnp.isnan(group_cosine(frame, jnp.array([0, wrong])))


def test_errors_say_what_was_expected_and_what_came():
    means, frame = jnp.ones((3, 4)), jnp.ones((3, 4))
    plain = {f: inspect.unwrap(f) for f in (optimal_error_exponent, class_angles, mean_cosine, etf_error_exponent)}
    for call, message in [
        (
            lambda: plain[class_angles](means, frame.T),
            "frame must have shape (3, 4) like the class means; got (4, 3): tr",
        ),
        (lambda: plain[class_angles](means[:, :1], frame), "shape (dim, classes) with classes >= 2; got (3, 1)"),
        (
            lambda: plain[optimal_error_exponent](means, frame, jnp.ones(3)),
            "bias must have shape (4,), one entry per class; got (3,)",
        ),
        (
            lambda: plain[optimal_error_exponent](means, frame, None, jnp.ones(3, bool)),
            "present must be booleans of shape (4,); got bool of shape (3,)",
        ),
        (
            lambda: plain[mean_cosine](frame, [0, 4]),
            "members must be class numbers in 0..3, integers of shape (members,); got 4",
        ),
        (lambda: plain[mean_cosine](frame, [0.5]), "integers of shape (members,); got float64 of shape (1,)"),
        (lambda: plain[etf_error_exponent](1), "an error exponent needs at least 2 classes; got 1"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
