"""Variability collapse index, ranks, distance to the nearest simplex: NumPy oracles, invariances, degenerate inputs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.linalg

from nc_jax import nearest_simplex_etf
from nc_jax.frames import simplex_etf, simplex_template
from nc_jax.metrics import (
    ClassStatistics,
    effective_rank,
    nearest_etf_distance,
    nuclear_rank,
    numerical_rank,
    stable_rank,
    variability_collapse_index,
)

from_batch = jax.jit(ClassStatistics.from_batch, static_argnums=2)
collapse_index = jax.jit(variability_collapse_index, static_argnums=1)
etf_distance = jax.jit(nearest_etf_distance)
CENTRES = ("balanced", "sample", "origin")
RANKS = (numerical_rank, stable_rank, nuclear_rank, effective_rank)
FEW = {"sizes": (14, 6, 10), "dim": 5}  # fewer classes than dimensions, and more; both unequal
MANY = {"sizes": (12, 9, 4, 6, 13), "dim": 3}


def gaussian_classes(sizes, dim, width=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    means, root = 2 * rng.normal(size=(len(sizes), dim)), rng.normal(size=(dim, dim))
    return means[labels] + width * rng.normal(size=(len(labels), dim)) @ root, labels


def covariances(features, labels, centre="sample"):
    """Sigma_W and Sigma_B in float64, by loops over classes and examples."""
    classes, features = np.unique(labels), np.asarray(features, np.float64)
    means = np.stack([features[labels == k].mean(axis=0) for k in classes])
    middle = {"sample": features.mean(axis=0), "balanced": means.mean(axis=0), "origin": 0}[centre]
    shares = [np.mean(labels == k) for k in classes]
    between = sum(share * np.outer(mean - middle, mean - middle) for share, mean in zip(shares, means, strict=True))
    within = np.mean([np.outer(h - means[k], h - means[k]) for h, k in zip(features, labels, strict=True)], axis=0)
    return within, between


def index_by_definition(features, labels, centre="sample"):
    """With pseudo-inverse and rank of the covariances themselves."""
    within, between = covariances(features, labels, centre)
    rank = np.linalg.matrix_rank(between, rtol=1e-10, hermitian=True)
    return 1 - np.trace(np.linalg.pinv(within + between, rcond=1e-12, hermitian=True) @ between) / rank


@pytest.mark.slow
@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("case", [FEW, MANY], ids=["few classes", "many classes"])
def test_index_equals_its_definition(x64, case, centre):
    features, labels = gaussian_classes(**case)
    expected = index_by_definition(features, labels, centre)
    assert 0.05 < expected < 0.95
    stats = from_batch(jnp.array(features), jnp.array(labels), len(case["sizes"]))
    np.testing.assert_allclose(collapse_index(stats, centre), expected, rtol=1e-9)
    # A class without examples must not change the result.
    wide = from_batch(jnp.array(features), 2 * jnp.array(labels) + 1, 2 * len(case["sizes"]))
    np.testing.assert_allclose(collapse_index(wide, centre), expected, rtol=1e-9)


@pytest.mark.slow
def test_index_equals_its_definition_for_dependent_means_and_dead_features(x64):
    features, labels = gaussian_classes(**FEW)
    # The third mean on the line through the others: Sigma_B has rank 1. One feature twice, one constant, one zero.
    means = np.stack([features[labels == k].mean(axis=0) for k in range(3)])
    features = features + np.where(labels == 2, 1.0, 0.0)[:, None] * (3 * means[0] - 2 * means[1] - means[2])
    features = np.c_[features, features[:, 0], np.full(len(labels), 0.1), np.zeros(len(labels))]
    stats = from_batch(jnp.array(features), jnp.array(labels), 3)
    np.testing.assert_allclose(collapse_index(stats, "sample"), index_by_definition(features, labels), rtol=1e-9)


def test_index_by_hand():
    # Class means +-1, variances 1 and 1: Sigma_B = 1 and Sigma_T = 2.
    features, labels = jnp.array([[2.0], [0.0], [-2.0], [0.0]]), jnp.array([0, 0, 1, 1])
    np.testing.assert_allclose(collapse_index(from_batch(features, labels, 2), "sample"), 0.5, rtol=1e-6)
    # Class sizes 3 and 1 with means -1 and 3 about 0: Sigma_B = (3 + 9) / 4 = 3; Sigma_W = (1 + 1 + 4) / 4 = 1.5.
    features, labels = jnp.array([[-2.0], [-2.0], [1.0], [3.0]]), jnp.array([0, 0, 0, 1])
    np.testing.assert_allclose(collapse_index(from_batch(features, labels, 2), "sample"), 1.5 / 4.5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", [FEW, MANY], ids=["few classes", "many classes"])
def test_invertible_affine_maps_do_not_change_the_index(x64, case):
    features, labels = gaussian_classes(**case)
    dim, num_classes = case["dim"], len(case["sizes"])
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    mixing = left * np.geomspace(1, 1e-3, dim) @ right
    before, after = (
        from_batch(jnp.array(x), jnp.array(labels), num_classes) for x in (features, features @ mixing.T * 1e5)
    )
    for centre in CENTRES:
        np.testing.assert_allclose(collapse_index(after, centre), collapse_index(before, centre), rtol=1e-7)
    shifted = from_batch(jnp.array(features @ mixing.T + 10), jnp.array(labels), num_classes)
    for centre in ("balanced", "sample"):
        np.testing.assert_allclose(collapse_index(shifted, centre), collapse_index(before, centre), rtol=1e-7)


@pytest.mark.parametrize("condition", [1e1, 1e2])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_invertible_maps_in_float32(condition, scale):
    features, labels = gaussian_classes((60, 50, 40, 70), dim=16)
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2))
    mixing = left * np.geomspace(1, 1 / condition, 16) @ right
    stats = from_batch(jnp.asarray(scale * features @ mixing.T, jnp.float32), jnp.array(labels), 4)
    # The scatter itself is of the squared condition number, and rounded to eps.
    tolerance = 1e-6 * condition**2
    assert tolerance < 0.02
    np.testing.assert_allclose(collapse_index(stats, "sample"), index_by_definition(features, labels), rtol=tolerance)


def test_scales_of_single_features_cost_no_digits_in_float32():
    features, labels = gaussian_classes((60, 50, 40, 70), dim=16)
    stats = from_batch(jnp.asarray(features * np.geomspace(1e-6, 1e6, 16), jnp.float32), jnp.array(labels), 4)
    np.testing.assert_allclose(collapse_index(stats, "sample"), index_by_definition(features, labels), rtol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_nearly_dependent_means_in_float32(spread):
    """Means whose distances in 20 directions range over a factor of 1e4, against noise of one size."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(25, 25)))[0]
    weights = np.linalg.qr(np.c_[np.ones(21), rng.normal(size=(21, 20))])[0][:, 1:]
    means = np.float32(np.sqrt(21) * basis[:, :20] * np.geomspace(1, 1e-4, 20) @ weights.T)
    root = spread * rng.normal(size=(25, 25)) / 5
    scatter = np.float32(210 * root @ root.T)
    stats = oracles.statistics_of(np.full(21, 10), means, scatter, np.zeros(21))
    # The oracle uses the float32 values, without the direction of the mean, which centring reduces to rounding errors.
    between, within = np.cov(means.astype(np.float64), bias=True), scatter.astype(np.float64) / 210
    ratios = scipy.linalg.eigh(between, within, eigvals_only=True)[-20:]
    np.testing.assert_allclose(collapse_index(stats, "sample"), np.mean(1 / (1 + ratios)), rtol=2e-4)


@pytest.mark.parametrize("width", [1e-1, 1e-3, 1e-5])
def test_a_small_index_keeps_its_digits_in_float32(width):
    features, labels = gaussian_classes((60, 50, 40, 70), dim=16, width=width)
    features = jnp.asarray(features, jnp.float32)
    found = collapse_index(from_batch(features, jnp.array(labels), 4), "sample")
    # The definition suffers cancellation in float64, too. For Sigma_W = I and Sigma_B = diag(g), the index is the mean
    # of 1 / (1 + g).
    within, between = covariances(features, labels)
    expected = np.mean(1 / (1 + scipy.linalg.eigh(between, within, eigvals_only=True)[-3:]))
    assert expected < 100 * width**2
    # Features of size 1 are rounded to 1e-7: at 1e-5 a class mean is known to a hundredth of the width.
    np.testing.assert_allclose(found, expected, rtol=1e-3 if width > 1e-4 else 3e-2)


@pytest.mark.slow
def test_the_extremes_of_the_index(x64):
    labels = jnp.array([0, 0, 0, 1, 2, 2])
    points = 3 * simplex_etf(3, 4, key=jax.random.key(0), dtype=jnp.float64).T[labels] + 10
    np.testing.assert_allclose(collapse_index(from_batch(points, labels, 3), "sample"), 0, atol=1e-14)
    # Class means that differ by a millionth of the width are smaller than the noise.
    features, labels = gaussian_classes((500, 500), dim=3)
    noise = features - np.stack([features[labels == k].mean(axis=0) for k in (0, 1)])[labels]
    stats = from_batch(jnp.array(noise + 1e-6 * labels[:, None]), jnp.array(labels), 2)
    found = collapse_index(stats, "sample")
    assert 1 - 1e-9 < found <= 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_index_is_zero_where_a_linear_map_tells_all_examples_apart(x64, dtype):
    features = jnp.asarray(np.random.default_rng(0).normal(size=(12, 20)), dtype)
    labels = jnp.arange(12) % 3
    found = collapse_index(from_batch(features, labels, 3), "sample")
    assert 0 <= found < 30 * jnp.finfo(dtype).eps
    assert collapse_index(from_batch(features[:, :6], labels, 3), "sample") > 0.1


# Four times 25 rows; those of a class sum to zero exactly, and stay exact in float32 when 2**13 is added.
TWINS = np.round(256 * np.random.default_rng(0).normal(size=(2, 25, 3))) / 256
TWINS = np.concatenate([TWINS[0], -TWINS[0], TWINS[1], -TWINS[1]])


@pytest.mark.parametrize("centre", ["balanced", "sample"])
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.zeros((4, 3)), [0, 0, 1, 1]),
        (np.array([[1e3, 0.1, 7.3]]) + np.array([[-1.0], [1.0], [-2.0], [2.0]]), [0, 0, 1, 1]),
        (2**13 + TWINS, np.arange(100) // 50),
        (np.full((4, 3), 7.3), [0, 0, 0, 1]),
        (np.arange(12.0).reshape(4, 3), [1, 1, 1, 1]),
        (np.ones((4, 3)), [-1, -1, -1, -1]),
        (np.array([[0.0, 1.0], [1.0, 2.0], [5.0, np.nan], [1.0, 0.0]]), [0, 0, 1, 1]),
    ],
    ids=[
        "zero features",
        "equal means",
        "means equal up to rounding",
        "constant features",
        "single class",
        "no examples",
        "not a number",
    ],
)
def test_an_undefined_index_is_nan(features, labels, centre):
    stats = from_batch(jnp.asarray(features, jnp.float32), jnp.array(labels), 3)
    assert jnp.isnan(collapse_index(stats, centre))


@pytest.mark.slow
def test_index_under_vmap_equals_each_run(x64):
    runs = [gaussian_classes(**FEW, seed=seed) for seed in (3, 4)]

    def whole(features, labels):
        return variability_collapse_index(ClassStatistics.from_batch(features, labels, 3))

    together = jax.vmap(whole)(*(jnp.stack([jnp.array(run[part]) for run in runs]) for part in (0, 1)))
    np.testing.assert_allclose(together, [index_by_definition(*run) for run in runs], rtol=1e-9)


def matrix_with(singular, shape=(7, 5), seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, len(singular))))[0] for size in shape)
    return left * np.asarray(singular) @ right.T


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (5, 5)])
@pytest.mark.parametrize("singular", [[1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1e-2, 1e-4]], ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_ranks_equal_numpy_at_any_scale_in_float32(singular, shape, scale):
    matrix = scale * matrix_with(singular, shape)
    rank, stable, nuclear, effective = (jax.jit(function)(jnp.asarray(matrix, jnp.float32)) for function in RANKS)
    assert rank.dtype == jnp.int32
    assert rank == np.linalg.matrix_rank(matrix) == len(singular)
    frobenius, spectral = np.linalg.norm(matrix), np.linalg.norm(matrix, 2)
    np.testing.assert_allclose(stable, (frobenius / spectral) ** 2, rtol=1e-5)
    np.testing.assert_allclose(nuclear, (np.linalg.norm(matrix, "nuc") / frobenius) ** 2, rtol=1e-4)
    shares = np.array(singular) / np.sum(singular)
    np.testing.assert_allclose(effective, np.prod(shares**-shares), rtol=1e-4)
    assert 1 - 1e-5 < stable <= effective * (1 + 1e-5) <= len(singular) * (1 + 1e-4)


@pytest.mark.slow
def test_the_tolerance_of_the_rank(x64):
    matrix = jnp.array(matrix_with([4.0, 2.0, 1e-3, 1e-9]))
    assert [int(numerical_rank(matrix, tolerance)) for tolerance in (None, 1e-6, 0.1, 0.6, 1.5)] == [4, 3, 2, 1, 0]
    assert numerical_rank(matrix.astype(jnp.float32)) == 3
    edge = 5 * np.finfo(np.float64).eps
    for factor, expected in ((0.5, 1), (2.0, 2)):
        values = jnp.diag(jnp.array([1.0, factor * edge, 0, 0, 0]))
        assert numerical_rank(values) == np.linalg.matrix_rank(np.asarray(values)) == expected


@pytest.mark.slow
def test_ranks_of_nothing():
    for matrix in (jnp.zeros((3, 4)), jnp.eye(3).at[0, 1].set(jnp.nan), jnp.eye(3).at[0, 1].set(jnp.inf)):
        assert numerical_rank(matrix) == 0
        assert jnp.isnan(stable_rank(matrix))
        assert jnp.isnan(effective_rank(matrix))


@pytest.mark.parametrize("rank", RANKS, ids=lambda rank: rank.__name__)
def test_ranks_under_vmap_and_of_narrow_dtypes(rank):
    matrices = jnp.asarray(np.stack([matrix_with([2.0, 1.0]), matrix_with([1.0, 1.0, 1.0])]), jnp.float32)
    np.testing.assert_allclose(jax.vmap(rank)(matrices), [rank(matrix) for matrix in matrices], rtol=1e-6)
    narrow = matrices[0].astype(jnp.bfloat16)
    assert rank(narrow) == rank(narrow.astype(jnp.float32))


def nuclear_norm_distance(vectors):
    num_classes = vectors.shape[1]
    template = simplex_template_by_qr(num_classes)
    nuclear = np.linalg.norm(vectors @ template.T, "nuc") / np.linalg.norm(vectors) / np.sqrt(num_classes - 1)
    return np.sqrt(2 - 2 * nuclear)


def simplex_template_by_qr(num_classes):
    """Orthonormal rows that are orthogonal to the ones, another choice than the library's."""
    columns = np.c_[np.ones(num_classes), np.random.default_rng(5).normal(size=(num_classes, num_classes - 1))]
    return np.linalg.qr(columns)[0][:, 1:].T


@pytest.mark.parametrize(("dim", "num_classes"), [(8, 5), (5, 5), (4, 5), (1, 2)])
def test_distance_equals_the_nuclear_norm_and_the_nearest_simplex(x64, dim, num_classes):
    vectors = np.random.default_rng(0).normal(size=(dim, num_classes)) + 0.5
    found = etf_distance(jnp.array(vectors))
    np.testing.assert_allclose(found, nuclear_norm_distance(vectors), rtol=1e-10)
    frame = nearest_simplex_etf(jnp.array(vectors), solver="polar").frame
    apart = vectors / np.linalg.norm(vectors) - np.asarray(frame) / np.linalg.norm(frame)
    np.testing.assert_allclose(found, np.linalg.norm(apart), rtol=1e-9)


def test_no_rotation_is_nearer_than_the_distance_says(x64):
    """In two dimensions with three classes all rotations and reflections can be tried."""
    vectors = np.random.default_rng(3).normal(size=(2, 3))
    angles = np.linspace(0, 2 * np.pi, 20_001)
    rotations = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    template = np.asarray(simplex_template(3, dtype=jnp.float64)) / np.sqrt(2)
    tried = [
        np.linalg.norm(vectors / np.linalg.norm(vectors) - turns @ template, axis=(1, 2)).min()
        for turns in (rotations, rotations * np.array([1, -1]))
    ]
    np.testing.assert_allclose(etf_distance(jnp.array(vectors)), min(tried), rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_an_exact_simplex_is_at_distance_zero_in_float32(num_classes, scale):
    vectors = scale * simplex_etf(num_classes, num_classes + 3, key=jax.random.key(1))
    assert etf_distance(vectors) < 3e-6  # from 2 - 2 nuc it would be as much as 5e-4


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_a_small_distance_keeps_its_digits_in_float32(size):
    rng = np.random.default_rng(0)
    exact = np.linalg.qr(rng.normal(size=(40, 29)))[0] @ simplex_template_by_qr(30)
    vectors = jnp.asarray(exact + size * rng.normal(size=exact.shape) / np.sqrt(exact.size), jnp.float32)
    expected = nuclear_norm_distance(np.asarray(vectors, np.float64))
    assert expected > size / 10
    np.testing.assert_allclose(etf_distance(vectors), expected, atol=1e-6, rtol=0)


def test_the_hand_computed_distances(x64):
    # All vectors equal: the centred part is zero. Two of three vectors opposite, one zero: singular values (1, 0).
    np.testing.assert_allclose(etf_distance(jnp.ones((3, 3))), np.sqrt(2), rtol=1e-12)
    line = jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(etf_distance(line), np.sqrt(2 - np.sqrt(2)), rtol=1e-12)
    # The identity is a simplex and a common part of squared length 1/K: nuc = (K - 1) / sqrt(K (K - 1)).
    np.testing.assert_allclose(etf_distance(jnp.eye(4)), np.sqrt(2 - 2 * np.sqrt(3 / 4)), rtol=1e-12)


def test_scale_and_rotation_do_not_change_the_distance(x64):
    rng = np.random.default_rng(0)
    vectors, rotation = rng.normal(size=(6, 5)), np.linalg.qr(rng.normal(size=(9, 6)))[0]
    moved = -1e-9 * rotation @ vectors
    np.testing.assert_allclose(etf_distance(jnp.array(moved)), etf_distance(jnp.array(vectors)), rtol=1e-10)


@pytest.mark.slow
def test_absent_columns_are_as_if_they_did_not_exist(x64):
    vectors = jnp.array(np.random.default_rng(0).normal(size=(6, 4)))
    places = jnp.array([0, 2, 3, 6])
    wide = jnp.full((6, 7), jnp.nan).at[:, places].set(vectors)
    present = jnp.zeros(7, bool).at[places].set(True)
    np.testing.assert_allclose(etf_distance(wide, present), etf_distance(vectors), rtol=1e-12)
    part = simplex_etf(7, 6, dtype=jnp.float64)
    assert etf_distance(part) < 1e-14
    assert etf_distance(part, present) > 0.1  # a part of a simplex is not a simplex: its mean is not zero


def test_undefined_distances_are_nan():
    assert jnp.isnan(etf_distance(jnp.zeros((3, 3))))
    assert jnp.isnan(etf_distance(jnp.eye(3).at[0, 0].set(jnp.nan)))
    assert jnp.isnan(etf_distance(jnp.eye(3), jnp.array([True, False, False])))
    assert jnp.isnan(etf_distance(jnp.eye(3), jnp.zeros(3, bool)))


@pytest.mark.slow
def test_distance_under_vmap_and_in_bfloat16():
    stack = jax.random.normal(jax.random.key(0), (3, 6, 4))
    np.testing.assert_allclose(jax.vmap(nearest_etf_distance)(stack), [etf_distance(x) for x in stack], rtol=1e-6)
    narrow = stack[0].astype(jnp.bfloat16)
    found = etf_distance(narrow)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, etf_distance(narrow.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.slow
def test_distance_has_gradients_also_where_a_class_is_absent(x64):
    vectors = jax.random.normal(jax.random.key(0), (6, 5)).at[:, 1].set(0)
    present = jnp.arange(5) != 1
    with jax.debug_nans(True):
        gradient = jax.jit(jax.grad(nearest_etf_distance))(vectors, present)
    assert not gradient[:, 1].any()
    direction = jax.random.normal(jax.random.key(1), vectors.shape)
    ahead, behind = (etf_distance(vectors + step * direction, present) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(jnp.vdot(gradient, direction), (ahead - behind) / 2e-6, rtol=1e-6)


# The library's own error messages, without the shape checks that the tests install around every function.
def test_errors_say_what_was_expected_and_what_came():
    for rank in RANKS:
        with pytest.raises(ValueError, match=r"a matrix with at least one row and one column; got shape \(3,\)"):
            inspect.unwrap(rank)(jnp.ones(3))
        with pytest.raises(ValueError, match=r"got shape \(3, 0\)"):
            rank(jnp.ones((3, 0)))
    with pytest.raises(ValueError, match="relative_tolerance must be at least 0; got -1"):
        numerical_rank(jnp.eye(2), -1.0)
    with pytest.raises(ValueError, match="a simplex ETF of 5 classes needs dim >= 4; got dim=3"):
        nearest_etf_distance(jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="a simplex ETF needs num_classes >= 2; got 1"):
        nearest_etf_distance(jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"class vectors must have shape \(dim, classes\); got \(3,\)"):
        inspect.unwrap(nearest_etf_distance)(jnp.ones(3))
    with pytest.raises(ValueError, match=r"present must be booleans of shape \(4,\); got bool of shape \(3,\)"):
        inspect.unwrap(nearest_etf_distance)(jnp.ones((3, 4)), jnp.ones(3, bool))
