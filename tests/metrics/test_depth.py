"""Collapse by depth: layer by layer as one layer alone, batches that merge, the effective depth."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import ClassStatistics, collapse_by_depth, effective_depth, nearest_centre_by_layer
from nc_jax.metrics.agreement import Agreement

RNG = np.random.default_rng(0)
N, K = 40, 4
LABELS = np.where(np.arange(N) < 36, np.arange(N) % K, -1)
# Noise falls from layer to layer, down to none.
LAYERS = {
    f"layer {depth}": np.float32(RNG.normal(size=(K, dim))[LABELS] + noise * RNG.normal(size=(N, dim)))
    for depth, (dim, noise) in enumerate(((7, 3.0), (5, 1.0), (6, 0.0)))
}


@jax.jit
def measured(layers, labels):
    """Both passes in two batches."""
    stats, halves = {}, (slice(0, N // 2), slice(N // 2, N))
    for name, h in layers.items():
        stats[name] = ClassStatistics.init(K, h.shape[1], scatter=False)
        for half in halves:
            stats[name] = stats[name].update(h[half], labels[half])
    parts = [nearest_centre_by_layer({n: h[half] for n, h in layers.items()}, labels[half], stats) for half in halves]
    return collapse_by_depth(stats, {name: parts[0][name].merge(parts[1][name]) for name in stats})


@pytest.mark.slow
def test_every_layer_equals_numpy():
    found = measured(LAYERS, LABELS)
    used, labels = LABELS >= 0, LABELS[LABELS >= 0]
    for place, features in enumerate(LAYERS.values()):
        x = features[used].astype(float)
        means = np.stack([x[labels == k].mean(axis=0) for k in range(K)])
        widths = [np.sum(x[labels == k].var(axis=0)) for k in range(K)]
        cdnv = [(widths[i] + widths[j]) / 2 / np.sum((means[i] - means[j]) ** 2) for i in range(K) for j in range(i)]
        np.testing.assert_allclose(found["cdnv"][place], np.mean(cdnv), rtol=1e-5, atol=1e-12)
        between = np.mean(np.sum((means - means.mean(axis=0)) ** 2, axis=1))
        within = np.mean(np.sum((x - means[labels]) ** 2, axis=1))
        np.testing.assert_allclose(found["quotient"][place], within / between, rtol=1e-5, atol=1e-12)
        nearest = np.argmin(np.linalg.norm(x[:, None] - means[None], axis=2), axis=1)
        np.testing.assert_allclose(found["nearest_centre_error"][place], np.mean(nearest != labels), atol=1e-7)
    assert found["nearest_centre_error"][-1] == found["cdnv"][-1] == 0 < found["nearest_centre_error"][0]


@pytest.mark.slow
def test_one_pass_leaves_the_error_out():
    stats = {"only": ClassStatistics.from_batch(np.eye(2), np.arange(2), 2, scatter=False)}
    assert collapse_by_depth(stats).keys() == {"cdnv", "quotient"}


@pytest.mark.parametrize(
    ("errors", "tolerance", "depth"),
    [
        ([0.5, 0.1, 0.0, 0.0], 0, 3),
        ([0.5, 0.1, 0.0, 0.2], 0.1, 2),
        ([0.0], 0, 1),
        ([np.nan, 0.0], 0, 2),
        ([0.5, 0.1], 0, np.nan),
        ([np.nan, np.nan], 0.5, np.nan),
    ],
)
def test_effective_depth_is_the_first_small_error(errors, tolerance, depth):
    np.testing.assert_array_equal(effective_depth(np.float32(errors), tolerance), depth)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: collapse_by_depth({}), "collapse by depth needs at least one layer; got none"),
        (
            lambda: collapse_by_depth(
                {"a": ClassStatistics.init(2, 2)}, {"b": Agreement(jnp.asarray(0), jnp.asarray(0))}
            ),
            "stats and nearest must have the same layers; got 'a', 'b' in one of them",
        ),
        (
            lambda: nearest_centre_by_layer({}, np.arange(2), {"a": ClassStatistics.init(2, 2)}),
            "stats and features must have the same layers; got 'a' in one of them",
        ),
        (
            lambda: effective_depth(np.zeros((2, 2))),
            r"errors must have shape \(layers,\) with layers >= 1; got \(2, 2\)",
        ),
        (lambda: inspect.unwrap(effective_depth)(np.zeros(2), 1), r"tolerance must lie in \[0, 1\); got 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        call()
