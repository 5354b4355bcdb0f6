"""Class statistics without the d x d scatter: the same numbers otherwise, and room for intermediate layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import ClassStatistics, collapse_metrics, variability_collapse_index, within_class_collapse

NUM_CLASSES, DIM, BATCH = 4, 3, 12


def draw(num_devices=4):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, NUM_CLASSES, (num_devices, BATCH))
    return jnp.asarray(rng.normal(size=(num_devices, BATCH, DIM)) + 3 * labels[..., None]), jnp.asarray(labels)


def gathered(features, labels, scatter):
    """Statistics in three ways: merged by two, over a mapped axis, and in a scan over the batches."""
    parts = [
        ClassStatistics.from_batch(*batch, NUM_CLASSES, scatter=scatter) for batch in zip(features, labels, strict=True)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    reduced = jax.vmap(lambda part: part.all_reduce("parts"), axis_name="parts", out_axes=None)(stacked)
    empty = ClassStatistics.init(NUM_CLASSES, DIM, features.dtype, scatter=scatter)
    scanned, _ = jax.lax.scan(lambda stats, batch: (stats.update(*batch), None), empty, (features, labels))
    return merged, reduced, scanned


@pytest.mark.slow
def test_light_statistics_equal_full_ones_but_for_the_scatter(x64):
    features, labels = draw()
    full, light = (jax.jit(gathered, static_argnums=2)(features, labels, scatter) for scatter in (True, False))
    for whole, part in zip(full, light, strict=True):
        assert part.scaled_scatter is None
        rest = whole._replace(scaled_scatter=None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), rest, part)
        for variant in ("cdnv", "quotient"):
            np.testing.assert_allclose(
                within_class_collapse(part, variant), within_class_collapse(whole, variant), rtol=1e-12
            )
        np.testing.assert_allclose(part.global_mean, whole.compute().global_mean, rtol=1e-12)


@pytest.mark.slow
def test_the_features_of_a_wide_layer_need_no_square_matrix():
    """A scatter would take 17 GB here."""
    rng = np.random.default_rng(1)
    dim, labels = 65_536, np.array([0, 0, 1, 1, 2, 2, 2, 0])
    features = np.float32(rng.normal(size=(8, dim)) + 100 + labels[:, None])
    stats = ClassStatistics.init(3, dim, scatter=False)
    for part in (slice(0, 4), slice(4, 8)):
        stats = stats.merge(ClassStatistics.from_batch(features[part], labels[part], 3, scatter=False))
    x = features.astype(np.float64)
    means = np.stack([x[labels == k].mean(axis=0) for k in range(3)])
    widths = np.array([np.mean(np.sum((x[labels == k] - means[k]) ** 2, axis=1)) for k in range(3)])
    pairs = [(0, 1), (0, 2), (1, 2)]
    cdnv = np.mean([(widths[i] + widths[j]) / (2 * np.sum((means[i] - means[j]) ** 2)) for i, j in pairs])
    np.testing.assert_allclose(within_class_collapse(stats, "cdnv"), cdnv, rtol=1e-5)
    within = np.mean(np.sum((x - means[labels]) ** 2, axis=1))
    quotient = within / np.mean(np.sum((means - means.mean(axis=0)) ** 2, axis=1))
    np.testing.assert_allclose(within_class_collapse(stats, "quotient"), quotient, rtol=1e-5)


def test_what_needs_the_scatter_says_so():
    light = ClassStatistics.init(NUM_CLASSES, DIM, scatter=False)
    for metric in (within_class_collapse, collapse_metrics, variability_collapse_index, ClassStatistics.compute):
        with pytest.raises(ValueError, match="this needs class statistics with a scatter; got some made with scatter="):
            metric(light)
    with pytest.raises(ValueError, match="must both have a scatter, or both not; got one with and one without"):
        light.merge(ClassStatistics.init(NUM_CLASSES, DIM))
