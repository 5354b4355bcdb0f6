"""Collapse metrics: the released programs' numbers, NumPy oracles, masked classes, invariances, degenerate inputs."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax.metrics import (
    Agreement,
    ClassStatistics,
    bias_collapse,
    collapse_metrics,
    equiangle,
    equinorm,
    etf_distance,
    maximal_angle,
    nearest_centre_agreement,
    self_duality,
    within_class_collapse,
)

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "methods.json").read_text())
ORTHOGONAL = json.loads((FOLDER / "orthogonal.json").read_text())["fno"]["nc_znc_metrics"]
from_batch = jax.jit(ClassStatistics.from_batch, static_argnums=2)
agreement = jax.jit(nearest_centre_agreement)
FEW = {"sizes": (4, 2, 5), "dim": 4}  # fewer classes than dimensions, and more; few shapes, because each is compiled
MANY = {"sizes": (2, 9, 4, 6, 3), "dim": 3}
VARIANTS = ("pinv", "quotient", "cdnv")
CENTRES = ("balanced", "sample", "origin")


def gaussian_classes(sizes, dim, seed=0, dtype=jnp.float64):
    """Draw features and labels of unequal classes with different widths, and a classifier (d, K) with its bias."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    means, noise = 2 * rng.normal(size=(len(sizes), dim)), rng.normal(size=(len(labels), dim))
    features = means[labels] + (1 + labels)[:, None] * noise
    frame, bias = rng.normal(size=(dim, len(sizes))), rng.normal(size=len(sizes))
    return jnp.asarray(features, dtype), jnp.asarray(labels), jnp.asarray(frame, dtype), jnp.asarray(bias, dtype)


@jax.jit
def measure(stats, frame, bias):
    """Compute every metric in every form in one program per shape, because compilation takes most of the time."""
    means, mask = stats.centred_means(), stats.present
    found = dict(collapse_metrics(stats, frame, bias))
    found["difference"] = self_duality(frame, stats, "difference")
    for metric in (etf_distance, equinorm, equiangle, maximal_angle):
        found[f"{metric.__name__}_means"], found[f"{metric.__name__}_frame"] = metric(means, mask), metric(frame, mask)
    for centre in CENTRES:
        found |= {f"{variant}_{centre}": within_class_collapse(stats, variant, centre) for variant in VARIANTS}
        found[f"product_{centre}"] = self_duality(frame, stats, "product", centre)
    return found


def simplex(num_classes):
    """K unit vectors in R^K with equal angles, as columns."""
    return (np.eye(num_classes) - 1 / num_classes) * np.sqrt(num_classes / (num_classes - 1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", GOLDEN["feature_sets"])
def test_equals_the_released_programs(x64, name, dtype):
    data, zhu, rhubarbwu = (GOLDEN[part][name] for part in ("feature_sets", "tding1_metrics", "rhubarbwu_metrics"))
    features, labels, bias = jnp.array(data["X"], dtype), jnp.array(data["y"]), jnp.array(data["b"], dtype)
    frame = jnp.array(data["W"], dtype).T
    stats = from_batch(features, labels, len(bias))
    metrics = measure(stats, frame, bias)
    found = {
        "NC1": metrics["pinv_sample"],
        "nc1_pinv": metrics["nc1"],
        "nc1_quot": metrics["quotient_balanced"],
        "nc1_cdnv": metrics["cdnv_balanced"],
        "NC2_of_W": metrics["nc2_classifier"],
        "nc2_etf_err": metrics["nc2_means"],
        "NC3": metrics["product_sample"],
        "nc3_dual_err": metrics["nc3"],
        "NC4_bias": metrics["nc4_bias"],
        "nc4_agree_weighted": agreement(features, frame, bias, stats.means).compute(),
    }
    for metric, value in found.items():
        assert value.shape == ()
        tolerance = {"atol": 1e-9, "rtol": 0} if dtype == jnp.float64 else {"rtol": 1e-5}
        np.testing.assert_allclose(value, {**zhu, **rhubarbwu}[metric], **tolerance, err_msg=metric)


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "centre", "target"), [("NC", "balanced", None), ("ZNC", "origin", 0.0)])
@pytest.mark.parametrize("classifier", ["W", "Q"])
def test_equals_the_orthogonal_classifiers_program(x64, prefix, centre, target, classifier):
    golden = ORTHOGONAL[f"{prefix}_with_{classifier}"]
    stats = from_batch(jnp.array(ORTHOGONAL["features"]), jnp.array(ORTHOGONAL["labels"]), 3)
    frame, means = jnp.array(ORTHOGONAL[classifier]).T, stats.centred_means(centre)
    pairs = {"equinorm": (equinorm(means, ddof=1), equinorm(frame, ddof=1))}
    pairs["equiangularity"] = (equiangle(means, ddof=1), equiangle(frame, ddof=1))
    pairs["maximal_angle"] = tuple(maximal_angle(vectors, target=target, signed=True) for vectors in (means, frame))
    pairs["class_mean_convergence"] = self_duality(frame, stats, "difference", centre) ** 2
    pairs["within_class_variation"] = within_class_collapse(stats, "pinv", centre)
    for metric, value in pairs.items():
        # The program ran in float32: cosines and norms of order one, rounded to 1e-7.
        np.testing.assert_allclose(value, golden[metric], rtol=1e-5, atol=1e-7, err_msg=metric)


@pytest.mark.slow
@pytest.mark.parametrize("case", [FEW, MANY], ids=["few classes", "many classes"])
def test_nc1_equals_its_definition_for_unequal_classes(x64, case):
    features, labels, frame, bias = gaussian_classes(**case)
    num_classes = len(bias)
    metrics = measure(from_batch(features, labels, num_classes), frame, bias)
    x, y = np.asarray(features), np.asarray(labels)
    means = np.stack([x[y == k].mean(axis=0) for k in range(num_classes)])
    within = np.mean([np.outer(h - means[k], h - means[k]) for h, k in zip(x, y, strict=True)], axis=0)
    widths = [np.mean(np.sum((x[y == k] - means[k]) ** 2, axis=1)) for k in range(num_classes)]
    pairs = [(i, j) for i in range(num_classes) for j in range(i)]
    cdnv = np.mean([(widths[i] + widths[j]) / (2 * np.sum((means[i] - means[j]) ** 2)) for i, j in pairs])
    for centre, middle in {"balanced": means.mean(axis=0), "sample": x.mean(axis=0), "origin": 0}.items():
        between = np.mean([np.outer(mean - middle, mean - middle) for mean in means], axis=0)
        pinv, quotient = np.trace(within @ np.linalg.pinv(between)) / num_classes, np.trace(within) / np.trace(between)
        for variant, expected in zip(VARIANTS, (pinv, quotient, cdnv), strict=True):
            np.testing.assert_allclose(metrics[f"{variant}_{centre}"], expected, rtol=1e-9)


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_nc1_in_float32_for_nearly_dependent_means(condition):
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(16, 5)))
    weights, _ = np.linalg.qr(np.c_[np.ones(6), rng.normal(size=(6, 5))])
    means = basis * np.geomspace(1, 1 / condition, 5) @ weights[:, 1:].T
    root = rng.normal(size=(16, 16)) / 10
    scatter = root @ root.T
    stats = oracles.statistics_of(np.ones(6), means, scatter, np.full(6, np.trace(scatter) / 6))
    # The smallest singular value has a relative error of eps * condition. From eigh of a Gram matrix, at a condition of
    # 1e4, its relative error would be of order one.
    expected = np.sum(np.sum((basis.T @ scatter) * basis.T, axis=1) / 6 * np.geomspace(1, condition, 5) ** 2)
    np.testing.assert_allclose(within_class_collapse(stats), expected, rtol=1e-7 * condition + 1e-5)


@pytest.mark.slow
def test_perfect_collapse_is_zero_also_with_unequal_classes(x64):
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 4)))
    vectors = jnp.asarray(rotation @ simplex(4))
    labels = jnp.array([0, 0, 0, 0, 1, 2, 2, 3])
    offset = jnp.arange(6.0)
    features = 3 * vectors.T[labels] + offset
    stats = from_batch(features, labels, 4)
    bias = -stats.compute().global_mean @ vectors
    metrics = measure(stats, vectors, bias)
    assert metrics.pop("num_present") == 4
    for name in metrics.keys() - {"product_sample", "product_origin"}:
        np.testing.assert_allclose(metrics[name], 0, atol=1e-12, err_msg=name)
    centring_bias = -(stats.compute().balanced_mean @ vectors)
    assert agreement(features, vectors, centring_bias, stats.means).compute() == 1


@pytest.mark.slow
def test_the_golden_simplex(x64):
    vectors = jnp.array(GOLDEN["perfect_simplex_K4"]["E"])
    np.testing.assert_allclose(etf_distance(vectors), 0, atol=1e-12)
    stats = from_batch(3 * vectors.T, jnp.arange(4), 4)
    np.testing.assert_allclose(self_duality(vectors, stats), 0, atol=1e-12)


@pytest.mark.slow
def test_the_least_and_the_most_that_etf_distance_says(x64):
    np.testing.assert_allclose(etf_distance(jnp.ones((1, 3))), np.sqrt(2), rtol=1e-12)  # all classes in one place
    # An orthonormal frame: <I / sqrt(K), simplex Gram> = sqrt((K - 1) / K).
    np.testing.assert_allclose(etf_distance(jnp.eye(5)), np.sqrt(2 - 2 * np.sqrt(4 / 5)), rtol=1e-12)


@pytest.mark.slow
def test_absent_classes_are_as_if_they_did_not_exist(x64):
    features, labels, frame, bias = gaussian_classes(**FEW)
    stats = from_batch(features, labels, 3)
    places = jnp.array([1, 2, 5])
    wide_stats = from_batch(features, places[labels], 7)
    wide_frame = jax.random.normal(jax.random.key(0), (4, 7)).at[:, places].set(frame)
    wide_bias = jnp.full(7, 99.0).at[places].set(bias)
    wide, narrow = measure(wide_stats, wide_frame, wide_bias), measure(stats, frame, bias)
    assert wide["num_present"] == 3
    for name in narrow.keys() - {"nc2_classifier", "equinorm_classifier", "equiangle_classifier", "nc4_bias"}:
        np.testing.assert_allclose(wide[name], narrow[name], rtol=1e-12, err_msg=name)
    found = agreement(features, wide_frame, wide_bias, wide_stats.means, wide_stats.present)
    assert found == agreement(features, frame, bias, stats.means)
    np.testing.assert_allclose(wide["nc2_classifier"], etf_distance(wide_frame))  # all seven vectors


@pytest.mark.slow
def test_rotation_scale_and_shift_change_nothing(x64):
    features, labels, frame, bias = gaussian_classes(**MANY)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    moved = 7 * features @ rotation.T + 10
    before = measure(from_batch(features, labels, 5), frame, bias)
    after = measure(from_batch(moved, labels, 5), 0.1 * rotation @ frame, bias)
    for name in before.keys() - {"nc4_bias", "pinv_origin", "quotient_origin", "product_origin"}:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-9, err_msg=name)


@pytest.mark.slow
def test_jit_and_vmap_equal_the_plain_call(x64):
    draws = [gaussian_classes(**FEW, seed=seed) for seed in (3, 4)]

    def whole(features, labels, frame, bias):
        stats = from_batch(features, labels, 3)
        return agreement(features, frame, bias, stats.means, labels=labels), measure(stats, frame, bias)

    together = jax.jit(jax.vmap(whole))(*map(jnp.stack, zip(*draws, strict=True)))
    apart = [whole(*draw) for draw in draws]
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, jnp.stack(b), rtol=1e-12), together, *apart)


@pytest.mark.slow
def test_agreement_counts_what_a_loop_counts(x64):
    features, labels, frame, bias = gaussian_classes((20, 30, 10), dim=4)
    means = from_batch(features, labels, 3).means
    labels = labels.at[::7].set(-1)
    agree = count = 0
    for h, label in zip(np.asarray(features), np.asarray(labels), strict=True):
        if label >= 0:
            count += 1
            nearest = np.argmin([np.linalg.norm(h - mean) for mean in np.asarray(means).T])
            agree += np.argmax(h @ np.asarray(frame) + np.asarray(bias)) == nearest
    assert 0 < agree < count
    whole = agreement(features, frame, bias, means, labels=labels)
    assert (whole.agree, whole.count) == (agree, count)
    assert whole.agree.dtype == whole.count.dtype == jnp.int32
    first, second = (
        agreement(features[part], frame, bias, means, labels=labels[part]) for part in (slice(0, 30), slice(30, None))
    )
    assert first.merge(second) == whole
    parts = jax.vmap(lambda a: a.all_reduce("batch"), axis_name="batch", out_axes=None)
    assert parts(Agreement(*map(jnp.stack, zip(first, second, strict=True)))) == whole


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_nearest_centre_as_a_linear_rule_agrees_with_itself(offset):
    """The centre with the least ||h - mu|| has the largest mu^T h - ||mu||^2 / 2, wherever the centres are."""
    features, labels, *_ = gaussian_classes((20, 30, 10), dim=4, dtype=jnp.float32)
    means = from_batch(features, labels, 3).means
    agreed = agreement(features, means, -jnp.sum(means**2, axis=0) / 2, means).compute()
    assert agreed == 1
    near = jnp.argmin(jnp.linalg.norm((features + offset)[:, :, None] - (means + offset)[None], axis=1), axis=1)
    # A rule that always says class k agrees exactly where the nearest centre is k.
    for k in range(3):
        always = jnp.zeros(3).at[k].set(1)
        found = agreement(features + offset, jnp.zeros((4, 3)), always, means + offset)
        assert found.agree == jnp.sum(near == k)


def test_a_diverged_network_does_not_agree():
    found = agreement(jnp.full((5, 2), jnp.nan), jnp.eye(2), None, jnp.eye(2))
    assert (found.agree, found.count) == (0, 5)
    assert jnp.isnan(Agreement(jnp.int32(0), jnp.int32(0)).compute())


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (jnp.zeros((4, 3)), jnp.array([0, 0, 1, 1])),
        (jnp.array([[1e3, 0.1, 7.3]]) + jnp.array([[-1.0], [1.0], [-2.0], [2.0]]), jnp.array([0, 0, 1, 1])),
        (jnp.arange(12.0).reshape(4, 3), jnp.array([1, 1, 1, 1])),  # a single class
        (jnp.ones((4, 3)), jnp.array([-1, -1, -1, -1])),  # nothing
    ],
    ids=["zero features", "equal means", "single class", "no examples"],
)
def test_undefined_metrics_are_nan_and_never_raise(features, labels):
    stats = from_batch(features, labels, 3)
    metrics = measure(stats, jnp.eye(3), None)
    for name in ("nc1", "pinv_sample", "quotient_balanced", "quotient_sample"):
        assert jnp.isnan(metrics[name]), name
    if not stats.centred_means().any():  # even a distance that is only rounding has a direction
        for name in ("nc2_means", "nc3", "equinorm_means", "equiangle_means", "difference"):
            assert jnp.isnan(metrics[name]), name
    for name in ("nc2_classifier", "equinorm_classifier", "equiangle_classifier"):
        assert jnp.isfinite(metrics[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_merged_classes_make_cdnv_infinite_and_leave_the_others_finite(offset):
    features = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [5.0, 0.0], [5.0, 2.0]]) + offset
    stats = from_batch(features, jnp.array([0, 0, 1, 1, 2, 2]), 3)
    metrics = measure(stats, jnp.eye(2, 3), None)
    assert jnp.isposinf(metrics["cdnv_balanced"])
    # The means, (0, 0) twice and (5, 1), lie on a line: the direction across it is only rounding, not to be inverted.
    means = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 1.0]])
    between = np.cov(means.T, bias=True)
    expected = np.trace(np.diag([2 / 6, 4 / 6]) @ np.linalg.pinv(between)) / 3
    np.testing.assert_allclose(metrics["nc1"], expected, rtol=1e-5 if offset == 0 else 1e-3)


@pytest.mark.parametrize("metric", [etf_distance, equinorm, equiangle, maximal_angle], ids=lambda m: m.__name__)
def test_the_geometry_of_vectors_has_gradients_also_where_a_class_is_absent(metric):
    vectors = jax.random.normal(jax.random.key(0), (4, 5)).at[:, 1].set(0)
    with jax.debug_nans(True):
        gradient = jax.jit(jax.grad(metric))(vectors, jnp.arange(5) != 1)
    assert gradient[:, jnp.array([0, 2, 3, 4])].any(axis=0).all()
    assert not gradient[:, 1].any()


@pytest.mark.slow
def test_bfloat16_classifiers_are_measured_in_float32():
    features, labels, frame, bias = gaussian_classes(**FEW, dtype=jnp.bfloat16)
    stats = from_batch(features, labels, 3)
    metrics = measure(stats, frame, bias)
    same = measure(stats, frame.astype(jnp.float32), bias.astype(jnp.float32))
    for name in metrics.keys() - {"num_present", "without_class"}:
        assert metrics[name].dtype == jnp.float32
        np.testing.assert_allclose(metrics[name], same[name])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_scale_matters_to_no_metric_in_float32(scale):
    features, labels, frame, bias = gaussian_classes(**FEW, dtype=jnp.float32)
    zeros = jnp.zeros_like(bias)
    before = measure(from_batch(features, labels, 3), frame, zeros)
    stats = from_batch(features * scale, labels, 3)
    after = measure(stats, frame * scale, zeros)
    for name in before.keys() - {"nc4_bias"}:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, err_msg=name)
    assert not jnp.isnan(after["nc4_bias"])
    agreed = agreement(features * scale, frame * scale, None, stats.means)
    assert agreed == agreement(features, frame, None, from_batch(features, labels, 3).means)


@pytest.mark.slow
def test_without_a_classifier_its_metrics_are_left_out():
    features, labels, frame, _ = gaussian_classes(**FEW, dtype=jnp.float32)
    stats = from_batch(features, labels, 3)
    alone, together = collapse_metrics(stats), collapse_metrics(stats, frame)
    assert sorted(alone) == ["equiangle_means", "equinorm_means", "nc1", "nc2_means", "num_present", "without_class"]
    assert all(alone[name] == together[name] for name in alone)
    with pytest.raises(ValueError, match="a bias needs the frame of its classifier"):
        collapse_metrics(stats, None, jnp.zeros(3))


@pytest.mark.slow
def test_a_frame_may_be_given_as_rows():
    features, labels, frame, bias = gaussian_classes(**FEW, dtype=jnp.float32)
    stats = from_batch(features, labels, 3)
    found = collapse_metrics(stats, np.asarray(frame).T, np.asarray(bias), rows=True)
    assert found == collapse_metrics(stats, frame, bias)
    with pytest.raises(ValueError, match=r"frame must have shape \(3, .*\), one row per class; got"):
        collapse_metrics(stats, frame, bias, rows=True)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "dim"), [(10, 3), (40, 20)])
def test_the_least_distance_where_no_simplex_fits(x64, num_classes, dim):
    """Attained by the projection of a simplex to d dimensions."""
    vectors = jnp.asarray(
        np.linalg.qr(np.c_[np.ones(num_classes), np.random.default_rng(0).normal(size=(num_classes, dim))])[0][:, 1:].T
    )
    np.testing.assert_allclose(etf_distance(vectors), np.sqrt(2 - 2 * np.sqrt(dim / (num_classes - 1))), rtol=1e-9)


# The library's own error messages, without the shape checks that the tests install around every function.
@pytest.mark.slow
def test_errors_say_what_was_expected_and_what_came():
    stats, frame = ClassStatistics.init(4, 3), jnp.ones((3, 4))
    with pytest.raises(ValueError, match="variant must be one of pinv, quotient, cdnv; got 'svd'"):
        inspect.unwrap(within_class_collapse)(stats, "svd")
    with pytest.raises(ValueError, match="form must be one of product, difference, directions, cosine; got 'angle'"):
        inspect.unwrap(self_duality)(frame, stats, "angle")
    with pytest.raises(
        ValueError, match=r"frame must have shape \(3, 4\) like the class means; got \(4, 3\): transpose it"
    ):
        collapse_metrics(stats, frame.T)
    with pytest.raises(ValueError, match=r"shape \(dim, classes\) with classes >= 2; got \(3, 1\)"):
        etf_distance(frame[:, :1])
    with pytest.raises(ValueError, match=r"present must be booleans of shape \(4,\); got bool of shape \(3,\)"):
        inspect.unwrap(equinorm)(frame, jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), one entry per class; got \(3,\)"):
        inspect.unwrap(bias_collapse)(frame, jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"global_mean must have shape \(3,\) like the frame; got \(4,\)"):
        inspect.unwrap(bias_collapse)(frame, jnp.ones(4), jnp.ones(4))
    with pytest.raises(ValueError, match=r"got \(5, 2\), \(3, 4\) and \(3, 4\)"):
        inspect.unwrap(nearest_centre_agreement)(jnp.ones((5, 2)), frame, None, frame)
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), one label for each row"):
        inspect.unwrap(nearest_centre_agreement)(jnp.ones((5, 3)), frame, None, frame, labels=jnp.ones(4, int))
