"""Energy gaps, moments of kernels and the uniformity gap: released programs' numbers, closed forms, NumPy oracles."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.energies import riesz_energy, separation
from nc_jax.metrics import ClassStatistics, energy_gap, kernel_moments, uniformity_gap

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "methods.json").read_text())
# Executed HUG_MHE of yulonghui/Uniformity-Gap@47e4071: sum over ordered pairs of centred class means for s = 2, and
# least distance of the class vectors.
HUG = {
    "balanced_K4_d5_n3": (5.749608305354198, 1.2010725782537848),
    "gnc_K5_d3_n2": (15.735806849213347, 0.9157283390370551),
}
EXPONENTS = (0.0, 2.0, -1.0)
from_batch = jax.jit(partial(ClassStatistics.from_batch, scatter=False), static_argnums=2)
moments = jax.jit(kernel_moments, static_argnums=1)
gap_of = jax.jit(energy_gap, static_argnums=1)
uniformity = jax.jit(uniformity_gap, static_argnums=1)


def simplex(num_classes):
    return np.eye(num_classes) - 1 / num_classes


def polygon(num_classes):
    angles = np.arange(num_classes) * 2 * np.pi / num_classes
    return np.stack([np.cos(angles), np.sin(angles)])


def kernels(vectors, s):
    """Kernel of all pairs i < j."""
    units = vectors / np.linalg.norm(vectors, axis=0)
    pairs = np.triu_indices(units.shape[1], 1)
    distances = np.linalg.norm(units[:, pairs[0]] - units[:, pairs[1]], axis=0)
    return -np.log(distances) if s == 0 else np.sign(s) * distances ** (-float(s))


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", HUG)
def test_equals_the_released_programs(x64, name):
    data, rhubarbwu = GOLDEN["feature_sets"][name], GOLDEN["rhubarbwu_metrics"][name]
    features, frame = np.array(data["X"]), np.array(data["W"]).T
    dim, num_classes = frame.shape
    means = from_batch(features, np.array(data["y"]), num_classes).centred_means()
    for s, golden in ((0, "nc2g_log_mean_var"), (dim - 2, "nc2g_riesz_mean_var")):
        np.testing.assert_allclose(moments(means, s), rhubarbwu[golden], rtol=0, atol=1e-9)
    negative_distance = moments(means, -1)
    np.testing.assert_allclose(-negative_distance.mean, rhubarbwu["nc2g_dist_mean_var"][0], atol=1e-9)
    np.testing.assert_allclose(negative_distance.variance, rhubarbwu["nc2g_dist_mean_var"][1], atol=1e-9)
    energy, least_distance = HUG[name]
    np.testing.assert_allclose(gap_of(means, 2).energy * num_classes * (num_classes - 1), energy, atol=1e-9)
    np.testing.assert_allclose(separation(frame), least_distance, atol=1e-9)


@pytest.mark.parametrize("s", EXPONENTS)
def test_the_variance_equals_its_definition_over_several_tiles(x64, s):
    vectors, present = draw((3, 1100)), np.random.default_rng(1).random(1100) < 0.7  # a tile of 1024 and a part
    found, expected = moments(vectors, s, present=present), kernels(vectors[:, present], s)
    np.testing.assert_allclose(found.mean, expected.mean(), rtol=1e-10)
    np.testing.assert_allclose(found.variance, expected.var(), rtol=1e-9)


@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize(
    "vectors",
    [simplex(4), np.hstack([np.eye(3), -np.eye(3)]), polygon(7)],
    ids=["simplex", "cross-polytope", "polygon"],
)
def test_the_gap_is_zero_where_the_energy_is_least(x64, vectors, s):
    gap = gap_of(vectors * np.arange(1, vectors.shape[1] + 1), s)
    np.testing.assert_allclose(gap.least, kernels(vectors, s).mean(), rtol=1e-12)
    np.testing.assert_allclose((gap.absolute, gap.relative), 0, atol=1e-12)
    worse = gap_of(vectors + 0.2 * draw(vectors.shape), s)
    assert worse.absolute > 1e-4
    np.testing.assert_allclose(worse.relative, worse.absolute / abs(worse.least), rtol=1e-12)


def test_the_least_energy_is_that_of_the_classes_that_count(x64):
    vectors, present = draw((3, 8)), np.arange(8) < 6  # six vectors in three dimensions: a cross-polytope
    gap, narrow = gap_of(vectors, 2.0, present=present), gap_of(vectors[:, :6], 2.0)
    np.testing.assert_allclose(gap, narrow, rtol=1e-12)
    np.testing.assert_allclose(gap.least, 13.5 / 30, rtol=1e-12)
    assert jnp.isnan(gap_of(vectors, 2.0, present=np.arange(8) < 1).energy)


@pytest.mark.slow
def test_a_reference_takes_the_place_of_an_unknown_least_energy(x64):
    vectors, other = draw((4, 31)), draw((4, 31), seed=1)
    assert jnp.isnan(gap_of(vectors, 1.0).relative)
    assert jnp.isfinite(gap_of(vectors, 1.0).energy)
    gap = gap_of(vectors, 1.0, least=riesz_energy(other, 1.0))
    np.testing.assert_allclose(gap.absolute, kernels(vectors, 1).mean() - kernels(other, 1).mean(), rtol=1e-9)


@pytest.mark.parametrize("spoil", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_seen_and_an_absent_one_ignored(spoil):
    vectors, present = np.float32(draw((3, 6))), np.arange(6) != 2
    spoilt = vectors.copy()
    spoilt[:, 2] = spoil
    assert jnp.isnan(gap_of(spoilt, 2.0).absolute)
    assert all(jnp.isnan(value) for value in moments(spoilt, 0.0))
    masked = moments(spoilt, 0.0, present=present), moments(vectors[:, present], 0.0)
    np.testing.assert_allclose(*masked, rtol=1e-5)


def test_equal_directions_have_infinite_energy_and_variance():
    vectors = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    assert gap_of(vectors, 2.0).energy == jnp.inf
    assert moments(vectors, 0.0) == (jnp.inf, jnp.inf)
    np.testing.assert_allclose(moments(vectors, -1.0), (-(2**1.5) / 3, 4 / 9), rtol=1e-5)


@pytest.mark.slow
def test_narrow_vectors_vmap_and_errors():
    runs = jnp.asarray(draw((2, 3, 6)), jnp.bfloat16)
    together = jax.vmap(lambda run: kernel_moments(run, 2.0))(runs)
    apart = [moments(run.astype(jnp.float32), 2.0) for run in runs]
    assert together.mean.dtype == jnp.float32
    np.testing.assert_allclose(np.array(together).T, np.array(apart), rtol=1e-5)
    for metric in (energy_gap, kernel_moments):
        with pytest.raises(ValueError, match="s must be a finite number above -2; got -2"):
            metric(runs[0], -2)
        with pytest.raises(ValueError, match=r"with classes >= 2; got \(3, 1\)"):
            metric(runs[0][:, :1])


def directions_of(sizes, dim=3):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    features = 2 * draw((len(sizes), dim))[labels] + draw((len(labels), dim), seed=1)
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


@pytest.mark.slow
def test_the_uniformity_gap_is_a_difference_of_means_over_pairs(x64):
    units, labels = directions_of((4, 1, 3, 5))
    stats = from_batch(units, labels, 6)  # two classes are absent, one has one example
    between = np.stack([units[labels == k].mean(axis=0) for k in range(4)], axis=1)
    within = [np.mean(kernels(units[labels == k].T, -1) ** 2) for k in (0, 2, 3)]
    found = uniformity(stats)
    expected = -kernels(between, 2).mean(), np.mean(within)
    np.testing.assert_allclose(found, (*expected, expected[0] - expected[1]), rtol=1e-9)
    parts = [from_batch(units[part], labels[part], 6) for part in (slice(0, 6), slice(6, 13))]
    np.testing.assert_allclose(uniformity(parts[0].merge(parts[1])), found, rtol=1e-9)
    np.testing.assert_allclose(uniformity(stats, 0.0).between, -kernels(between, 0).mean(), rtol=1e-9)


def test_at_collapse_the_uniformity_gap_is_the_largest(x64):
    vectors = np.hstack([np.eye(3), -np.eye(3)])
    labels = np.repeat(np.arange(6), 3)
    found = uniformity(from_batch(vectors.T[labels], labels, 6))
    np.testing.assert_allclose(found, (-0.45, 0, -0.45), atol=1e-12)


@pytest.mark.slow
def test_the_uniformity_gap_is_nan_for_what_is_no_direction():
    units, labels = directions_of((4, 2, 3))
    units = jnp.asarray(units, jnp.bfloat16)
    assert jnp.isfinite(uniformity(from_batch(units, labels, 3)).gap)
    for features, classes in ((1.1 * units, labels), (units, np.zeros_like(labels)), (units[::4], np.arange(3))):
        assert all(jnp.isnan(value) for value in uniformity(from_batch(features, classes, 3)))
