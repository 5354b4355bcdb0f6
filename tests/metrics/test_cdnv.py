"""CDNV with an exponent: the released package's numbers, NumPy, scales, and what has no value."""

import inspect
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import ClassStatistics, class_distance_normalized_variance, within_class_collapse

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 3], [5, 2, 8])  # class 2 is absent
FEATURES = RNG.normal(size=(15, 6)) + 2 * RNG.normal(size=(4, 6))[LABELS]


@partial(jax.jit, static_argnums=(2, 3))
def cdnv(features, labels, num_classes, exponent):
    stats = ClassStatistics.from_batch(features, labels, num_classes, scatter=False)
    return class_distance_normalized_variance(stats, exponent), within_class_collapse(stats, "cdnv")


def expected(features, labels, exponent):
    classes = np.unique(labels)
    means = [features[labels == k].mean(axis=0) for k in classes]
    widths = [np.sum(features[labels == k].var(axis=0)) for k in classes]
    pairs = [(i, j) for i in range(len(classes)) for j in range(i)]
    return np.mean([(widths[i] + widths[j]) / 2 / np.sum((means[i] - means[j]) ** 2) ** exponent for i, j in pairs])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["balanced_K4_d5_n3", "gnc_K5_d3_n2"])
def test_equals_the_released_package(x64, name):
    data, golden = GOLDEN["feature_sets"][name], GOLDEN["rhubarbwu_metrics"][name]
    for exponent, key in ((1, "nc1_cdnv"), (2, "nc1_cdnv_exp2")):
        found, variant = cdnv(np.array(data["X"]), np.array(data["y"]), len(data["W"]), exponent)
        np.testing.assert_allclose(found, golden[key], rtol=1e-9)
        np.testing.assert_allclose(variant, golden["nc1_cdnv"], rtol=1e-9)


@pytest.mark.parametrize("scale", [1, 1e-12, 1e12])
@pytest.mark.parametrize("exponent", [1, 0.5, 2])
def test_equals_numpy_at_every_scale(exponent, scale):
    features = np.float32(scale * FEATURES)
    found, _ = cdnv(features, LABELS, 4, exponent)
    np.testing.assert_allclose(found, expected(features.astype(float), LABELS, exponent), rtol=2e-5)


def test_what_has_no_value():
    assert cdnv(FEATURES[LABELS], LABELS, 4, 2)[0] == 0  # examples of a class are equal
    assert np.isnan(cdnv(FEATURES, np.zeros(15, int), 4, 2)[0])
    same = np.tile([[1.0], [-1.0], [0.0]], (5, 6))  # means and scatters have no rounding
    assert np.isinf(cdnv(same, np.repeat([0, 1, 1, 1, 1], 3), 4, 2)[0])
    with pytest.raises(ValueError, match=r"^exponent must be positive; got 0$"):
        inspect.unwrap(class_distance_normalized_variance)(ClassStatistics.init(2, 2), 0)


@pytest.mark.slow
def test_it_has_a_gradient_where_class_means_differ():
    stats = lambda x: ClassStatistics.from_batch(x, jnp.asarray(LABELS), 4, scatter=False)  # noqa: E731
    for exponent in (1, 2):
        gradient = jax.jit(jax.grad(lambda x, p=exponent: class_distance_normalized_variance(stats(x), p)))
        assert np.isfinite(gradient(jnp.asarray(FEATURES))).all()
