"""Lanczos and Hessian products against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.theory import (
    UnconstrainedFeatures,
    curvature,
    hessian_eigenvalues,
    hessian_extremes,
    hessian_product,
    objective,
)

pytestmark = pytest.mark.usefixtures("x64")


def quadratic(eigenvalues, seed=0):
    """A function of a tree whose Hessian has the given eigenvalues, and a point."""
    size = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    matrix = basis @ np.diag(eigenvalues) @ basis.T

    def function(tree):
        flat = jnp.concatenate([tree["a"].ravel(), tree["b"]])
        return flat @ matrix @ flat / 2 + jnp.sum(flat)

    return function, {"a": jnp.ones((2, 2)), "b": jnp.zeros(size - 4)}, matrix


@pytest.mark.slow
def test_products_curvatures_and_spectra_are_those_of_the_matrix():
    values = np.linspace(-2, 7, 12)
    function, point, matrix = quadratic(values)
    way = {"a": jnp.arange(4.0).reshape(2, 2), "b": jnp.arange(8.0)}
    flat = np.concatenate([np.arange(4.0), np.arange(8.0)])
    product = hessian_product(function, point, way)
    np.testing.assert_allclose(np.concatenate([product["a"].ravel(), product["b"]]), matrix @ flat, atol=1e-12)
    assert curvature(function, point, way) == pytest.approx(flat @ matrix @ flat)
    np.testing.assert_allclose(hessian_eigenvalues(function, point), values, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [12, 64])
@pytest.mark.parametrize(
    "values",
    [np.linspace(-2, 7, 12), np.repeat([-1.0, 3.0], 6), np.full(12, 5.0), np.zeros(12), np.r_[-1e-3, np.full(11, 1e3)]],
    ids=["distinct", "two values", "one value", "zero", "far apart"],
)
def test_the_ends_are_those_of_the_matrix_even_if_the_krylov_space_is_small(values, steps):
    function, point, _ = quadratic(values)
    found = hessian_extremes(function, point, key=jax.random.key(0), steps=steps)
    scale = np.abs(values).max() + 1e-300
    assert found.smallest == pytest.approx(values.min(), abs=1e-11 * scale)
    assert found.largest == pytest.approx(values.max(), abs=1e-11 * scale)
    assert curvature(function, point, found.direction) == pytest.approx(values.min(), abs=1e-10 * scale)
    assert found.error <= 1e-9 * scale


@pytest.mark.slow
def test_the_error_bounds_what_too_few_steps_miss():
    values = np.linspace(-2, 7, 60)
    function, point, _ = quadratic(values)
    found = hessian_extremes(function, point, key=jax.random.key(0), steps=6)
    for end in (found.smallest, found.largest):
        assert np.abs(values - float(end)).min() <= found.error
    assert found.smallest > values.min() + 1e-6


@pytest.mark.slow
def test_an_objective_of_unconstrained_features_settles_within_the_default_number_of_steps():
    problem = UnconstrainedFeatures.balanced(10, 3, dim=12, weight_decay=5e-4, feature_decay=5e-4, bias_decay=5e-4)
    function = lambda at: objective(problem, at)  # noqa: E731
    point = problem.random_point(jax.random.key(0), scale=0.5)
    dense = hessian_eigenvalues(function, point)
    found = jax.jit(lambda at: hessian_extremes(function, at, key=jax.random.key(1)))(point)
    assert found.smallest == pytest.approx(float(dense[0]), rel=1e-8)
    assert found.largest == pytest.approx(float(dense[-1]), rel=1e-8)


@pytest.mark.parametrize(("steps", "point"), [(0, jnp.ones(3)), (5, jnp.ones(0))])
def test_no_steps_and_no_point_are_refused(steps, point):
    with pytest.raises(ValueError, match=r"(steps must be at least 1|needs a point that is not empty); got"):
        hessian_extremes(lambda at: jnp.sum(at**2), point, key=jax.random.key(0), steps=steps)
