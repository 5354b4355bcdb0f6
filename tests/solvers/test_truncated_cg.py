"""Truncated conjugate gradients on dense quadratic models, against the exact minimum in the trust region."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.solvers import truncated_cg

F64_EXACT = 1e-9  # the condition of the models, 1e2 to 1e3, times the rounding of a few steps
SIZE = 6


@jax.jit
def solve(matrix, gradient, radius, tolerance):
    return truncated_cg(jnp.vdot, lambda vector: matrix @ vector, gradient, radius, tolerance, 2 * SIZE)


def model(matrix, gradient, step):
    return gradient @ step + step @ matrix @ step / 2


def minimum_in_ball(matrix, gradient, radius):
    """Value of the model at its minimiser over a ball, from the secular equation."""
    values, vectors = np.linalg.eigh(matrix)
    rotated = vectors.T @ gradient

    def step(shift):
        return -vectors @ (rotated / (values + shift))

    if values[0] > 0 and np.linalg.norm(step(0)) <= radius:
        return model(matrix, gradient, step(0))
    low, high = max(0, -values[0]) + 1e-12, max(0, -values[0]) + np.linalg.norm(gradient) / radius + 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(step(middle)) > radius else (low, middle)
    return model(matrix, gradient, step(high))


def random_model(seed, values):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    return vectors * values @ vectors.T, rng.normal(size=SIZE)


CONVEX = np.array([0.1, 0.5, 1, 2, 5, 10])
SADDLE = np.array([-1, 0.5, 1, 2, 5, 10])


def check_consistent(found, matrix, radius):
    np.testing.assert_allclose(found.hessian_step, matrix @ found.step, atol=F64_EXACT)
    assert np.linalg.norm(found.step) <= radius * (1 + F64_EXACT)
    if found.on_boundary:
        np.testing.assert_allclose(np.linalg.norm(found.step), radius, rtol=F64_EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_a_large_region_gives_the_newton_step(x64, seed):
    matrix, gradient = random_model(seed, CONVEX)
    found = jax.device_get(solve(matrix, gradient, 1e3, 1e-12))
    np.testing.assert_allclose(found.step, -np.linalg.solve(matrix, gradient), atol=F64_EXACT)
    assert not found.on_boundary
    assert found.iterations <= SIZE + 1, "conjugate gradients end with the dimension"
    check_consistent(found, matrix, 1e3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_a_small_region_gives_half_of_the_best_decrease(x64, seed, radius):
    matrix, gradient = random_model(seed, CONVEX)
    found = jax.device_get(solve(matrix, gradient, radius, 1e-12))
    assert found.on_boundary
    check_consistent(found, matrix, radius)
    # Yuan, On the truncated conjugate gradient method (2000): at least half of it, for a convex model.
    assert model(matrix, gradient, found.step) <= minimum_in_ball(matrix, gradient, radius) / 2


@pytest.mark.parametrize("seed", range(3))
def test_negative_curvature_leads_to_the_boundary(x64, seed):
    matrix, gradient = random_model(seed, SADDLE)
    found = jax.device_get(solve(matrix, gradient, 5.0, 1e-12))
    assert found.on_boundary
    check_consistent(found, matrix, 5.0)
    length = np.linalg.norm(gradient)
    along = gradient @ matrix @ gradient / length**2
    cauchy = length / along if 0 < length / along < 5 else 5
    assert model(matrix, gradient, found.step) <= model(matrix, gradient, -cauchy * gradient / length) + F64_EXACT
    assert minimum_in_ball(matrix, gradient, 5.0) < model(matrix, gradient, found.step) < 0


def test_the_tolerance_ends_the_solve(x64):
    matrix, gradient = random_model(0, CONVEX)
    iterations = []
    for tolerance in (1e-10, 1e-2, 1.0, 10.0):
        found = solve(matrix, gradient, 1e3, tolerance)
        assert np.linalg.norm(gradient + found.hessian_step) <= tolerance
        iterations.append(int(found.iterations))
    assert iterations == sorted(iterations, reverse=True)
    assert iterations[0] > iterations[-1] == 0, "the gradient is already shorter than 10"


def test_the_limit_ends_the_solve(x64):
    matrix, gradient = random_model(0, np.logspace(-8, 0, SIZE))
    found = solve(matrix, gradient, 1e20, 0.0)
    assert found.iterations == 2 * SIZE
    assert np.isfinite(found.step).all()


def test_no_gradient_no_step(x64):
    matrix, _ = random_model(0, SADDLE)
    found = solve(matrix, np.zeros(SIZE), 1.0, 0.0)
    assert (found.iterations, np.abs(found.step).max()) == (0, 0)


def test_a_nan_ends_the_solve_at_once(x64):
    matrix, gradient = random_model(0, CONVEX)
    assert solve(matrix * np.nan, gradient, 1.0, 1e-12).iterations == 1
    assert solve(matrix, gradient * np.nan, 1.0, 1e-12).iterations == 1


def test_a_batch_is_solved_like_its_members(x64):
    models = [random_model(seed, values) for seed, values in enumerate([CONVEX, SADDLE, CONVEX])]
    matrices, gradients = map(np.stack, zip(*models, strict=True))
    together = jax.vmap(solve, in_axes=(0, 0, None, None))(matrices, gradients, 0.5, 1e-12)
    for number, (matrix, gradient) in enumerate(models):
        alone = solve(matrix, gradient, 0.5, 1e-12)
        np.testing.assert_allclose(together.step[number], alone.step, atol=F64_EXACT)
        assert together.iterations[number] == alone.iterations
