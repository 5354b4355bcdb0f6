"""The discrepancies against loops over classes, and their derivatives where those are delicate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.discrepancies import cosine, huber, squared_frobenius

rng = np.random.default_rng(0)
ALIGNED, MEANS = rng.normal(size=(2, 5, 4))
MEANS[:, 1] *= 10  # an outlier
MEANS[:, 2] = ALIGNED[:, 2] + 1e-3
F64_EXACT = 1e-12


def huber_of(gap, threshold):
    length = np.linalg.norm(gap)
    return length**2 if length <= threshold else 2 * threshold * length - threshold**2


def loop(name):
    threshold = np.sqrt(np.mean([column @ column for column in ALIGNED.T])) / 2
    formulas = {
        "squared_frobenius": lambda u, h: np.sum((h - u) ** 2),
        "huber": lambda u, h: huber_of(h - u, threshold),
        "cosine": lambda u, h: 1 - u @ h / np.linalg.norm(u) / np.linalg.norm(h),
    }
    return [formulas[name](u, h) for u, h in zip(ALIGNED.T, MEANS.T, strict=True)]


@pytest.mark.parametrize("discrepancy", [squared_frobenius, huber, cosine], ids=lambda function: function.__name__)
def test_equals_the_formula(x64, discrepancy):
    aligned, means = jnp.asarray(ALIGNED), jnp.asarray(MEANS)
    # The absolute part is what the oracle's own 1 - cosine loses where that is 1e-7.
    np.testing.assert_allclose(discrepancy(aligned, means), loop(discrepancy.__name__), rtol=F64_EXACT, atol=1e-15)


@pytest.mark.parametrize("discrepancy", [squared_frobenius, huber, cosine], ids=lambda function: function.__name__)
def test_derivatives_are_finite_where_vectors_coincide_or_vanish(x64, discrepancy):
    gradient = jax.jit(jax.grad(lambda means, aligned: jnp.sum(discrepancy(aligned, means))))
    for means in (ALIGNED, np.zeros_like(ALIGNED)):
        assert np.isfinite(gradient(means, ALIGNED)).all()
    assert np.isfinite(gradient(MEANS, np.zeros_like(ALIGNED))).all()


def test_huber_and_cosine_do_not_depend_on_scale(x64):
    aligned, means = jnp.asarray(ALIGNED), jnp.asarray(MEANS)
    np.testing.assert_allclose(huber(3 * aligned, 3 * means), 9 * huber(aligned, means), rtol=F64_EXACT)
    np.testing.assert_allclose(cosine(3 * aligned, 7 * means), cosine(aligned, means), rtol=F64_EXACT)


def test_an_outlier_pulls_linearly(x64):
    aligned = jnp.asarray(ALIGNED)
    pull = jax.jit(lambda means: jnp.linalg.norm(jax.grad(lambda m: jnp.sum(huber(aligned, m)))(means), axis=0))
    near, far = pull(jnp.asarray(MEANS)), pull(jnp.asarray(MEANS * [1, 100, 1, 1]))
    np.testing.assert_allclose(near, far, rtol=F64_EXACT)
    assert near[2] < near[1]
