"""The trust region on costs whose minimisers an eigendecomposition gives, and every way in which it can end."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest

from nc_jax.manifolds import Stiefel
from nc_jax.solvers import Status, TrustRegionOptions, describe, trust_region

F64_VALUE = 1e-13
F64_POINT = 1e-11  # the gradient's tolerance times the condition of the problems
F32_VALUE = 1e-5
OPTIONS = TrustRegionOptions()


class Brockett(NamedTuple):
    """Cost trace(U^T A U N), minimised by the eigenvectors of A; with one column it is the Rayleigh quotient."""

    matrix: np.ndarray
    weights: np.ndarray

    @property
    def manifold(self):
        return Stiefel(len(self.matrix), len(self.weights))

    @property
    def minimum(self):
        return np.linalg.eigvalsh(self.matrix)[: len(self.weights)] @ self.weights

    @property
    def minimiser(self):
        """Up to the signs of the columns."""
        return np.linalg.eigh(self.matrix)[1][:, : len(self.weights)]


def brockett(n, p, seed=0):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return Brockett(vectors * np.arange(1.0, n + 1) @ vectors.T, np.arange(p, 0, -1.0))


def cost(point, matrix, weights):
    return jnp.vdot(point, matrix @ point * weights)


def gradient(point, matrix, weights):
    return 2 * matrix @ point * weights


def hessian_vector(point, tangent, matrix, weights):
    return 2 * matrix @ tangent * weights


@partial(jax.jit, static_argnames=("gradient", "hessian_vector", "options", "cost"))
def minimise(init, matrix, weights, cost=cost, **how):
    return trust_region(Stiefel(*init.shape), cost, init, matrix, weights, **how)


def start(problem, seed=1):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=problem.manifold.shape))[0]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 1), (6, 3), (4, 4)], ids=str)
def test_finds_the_eigenvectors(x64, shape):
    for seed in range(5):
        problem = brockett(*shape, seed)
        found = jax.device_get(minimise(start(problem, seed), *problem))
        np.testing.assert_allclose(found.value, problem.minimum, rtol=F64_VALUE)
        np.testing.assert_allclose(np.abs(found.point.T @ problem.minimiser), np.eye(shape[1]), atol=F64_POINT)
        assert found.status == Status.CONVERGED
        assert found.grad_norm < 1e-14 * np.linalg.norm(2 * problem.matrix) * problem.weights.sum()
        assert found.iterations <= found.inner_iterations < 200


@pytest.mark.slow
def test_given_derivatives_take_the_same_path(x64):
    problem = brockett(6, 3)
    found = minimise(start(problem), *problem)
    given = minimise(start(problem), *problem, gradient=gradient, hessian_vector=hessian_vector)
    np.testing.assert_allclose(found.point, given.point, atol=F64_POINT)
    assert (found.iterations, found.inner_iterations) == (given.iterations, given.inner_iterations)


@pytest.mark.slow
def test_the_end_is_quadratic(x64):
    """Quadratic convergence: from four correct digits to fifteen in two iterations."""
    problem = brockett(6, 1)
    rough = minimise(start(problem), *problem, options=TrustRegionOptions(relative_tolerance=1e-4))
    assert minimise(start(problem), *problem).iterations <= rough.iterations + 2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_cost_does_not_matter(x64, scale):
    problem = brockett(6, 1)
    found, scaled = (
        minimise(start(problem), *problem),
        minimise(start(problem), scale * problem.matrix, problem.weights),
    )
    np.testing.assert_allclose(scaled.point, found.point, atol=F64_POINT)
    assert scaled.iterations == found.iterations
    assert scaled.status == Status.CONVERGED


@pytest.mark.slow
def test_float32_ends_at_its_rounding():
    problem = brockett(6, 1)
    single = [array.astype(np.float32) for array in (start(problem), *problem)]
    found = minimise(*single)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float32", "int32"}
    np.testing.assert_allclose(found.value, problem.minimum, rtol=F32_VALUE)
    assert found.status <= Status.CONVERGED_TO_PRECISION


# --- Every status. ---


def eigenvector_plus_cliff(point, matrix, weights):
    """A cost that is NaN everywhere except near the start, so no step is accepted."""
    near = jnp.linalg.norm(point - jnp.eye(*point.shape)) < 1e-18
    return jnp.where(near, cost(point, matrix, weights), jnp.nan)


def nan_cost(point, matrix, weights):
    return cost(point, matrix, weights) * jnp.nan


ENDINGS = {
    Status.CONVERGED: {},
    Status.CONVERGED_TO_PRECISION: {"options": TrustRegionOptions(relative_tolerance=1e-300)},
    Status.ITERATION_LIMIT: {"options": TrustRegionOptions(max_iterations=1)},
    Status.RADIUS_COLLAPSED: {"cost": eigenvector_plus_cliff, "gradient": gradient},
    Status.NON_FINITE: {"cost": nan_cost},
}


@pytest.mark.slow
@pytest.mark.parametrize("status", ENDINGS, ids=lambda status: status.name)
def test_every_ending_is_reported(x64, status):
    problem = brockett(6, 3)
    found = minimise(np.eye(6, 3), *problem, **ENDINGS[status])
    assert found.status == status
    if status <= Status.CONVERGED_TO_PRECISION:
        np.testing.assert_allclose(found.value, problem.minimum, rtol=F64_VALUE)


@pytest.mark.slow
def test_a_wrong_gradient_does_not_converge(x64):
    """Steps up are refused until nothing is left to try; the point stays where it was."""
    problem = brockett(6, 1)
    init = start(problem)
    found = minimise(init, *problem, gradient=lambda *args: -gradient(*args))
    assert describe(found.status).startswith("not converged")
    np.testing.assert_allclose(found.point, init, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("max_inner_iterations", [3000, 1300])
def test_a_converged_solve_has_a_small_gradient(x64, max_inner_iterations):
    """Also if the limit cuts some solves off, at a condition of 1e5."""
    rng = np.random.default_rng(0)
    lefts, rights = np.linalg.qr(rng.normal(size=(20, 12, 9)))[0], np.linalg.qr(rng.normal(size=(20, 9, 9)))[0]
    matrices = lefts * np.logspace(0, -5, 9) @ np.swapaxes(rights, 1, 2)
    inits = np.linalg.qr(rng.normal(size=(20, 12, 9)))[0]
    procrustes = partial(
        trust_region,
        Stiefel(12, 9),
        lambda point, matrix: -jnp.vdot(point, matrix),
        hessian_vector=lambda point, tangent, matrix: jnp.zeros_like(tangent),
        options=TrustRegionOptions(max_inner_iterations=max_inner_iterations),
    )
    found = jax.device_get(jax.jit(jax.vmap(procrustes))(inits, matrices))
    converged = found.status <= Status.CONVERGED_TO_PRECISION
    assert converged.sum() == 20 if max_inner_iterations == 3000 else 0 < converged.sum() < 20
    np.testing.assert_array_equal(found.status[~converged], Status.ITERATION_LIMIT)
    assert found.inner_iterations.max() <= max_inner_iterations
    assert found.grad_norm[converged].max() < 1e-14
    for point, matrix in zip(found.point[converged], matrices[converged], strict=True):
        # The smallest eigenvalue of the Hessian is 1e-5.
        np.testing.assert_allclose(point, oracles.polar_by_svd(matrix), atol=1e-9)


# --- Under jax's transformations. ---


@pytest.mark.slow
def test_a_batch_is_solved_like_its_members(x64):
    problems = [brockett(6, 3, seed) for seed in range(4)]
    inits = np.stack([start(problem, seed) for seed, problem in enumerate(problems)])
    matrices, weights = map(np.stack, zip(*problems, strict=True))
    together = jax.vmap(minimise)(inits, matrices, weights)
    on_devices = jax.pmap(jax.vmap(minimise), devices=jax.devices()[:2])(
        *(array.reshape(2, 2, *array.shape[1:]) for array in (inits, matrices, weights))
    )
    for number in range(4):
        alone = minimise(inits[number], matrices[number], weights[number])
        np.testing.assert_allclose(together.point[number], alone.point, atol=F64_POINT)
        np.testing.assert_allclose(on_devices.point[number // 2, number % 2], alone.point, atol=F64_POINT)
        assert together.iterations[number] == on_devices.iterations[number // 2, number % 2] == alone.iterations


@pytest.mark.slow
def test_arguments_may_be_trees(x64):
    problem = brockett(6, 1)
    found = jax.jit(
        lambda init, tree: trust_region(Stiefel(6, 1), lambda point, tree: cost(point, **tree), init, tree)
    )(start(problem), problem._asdict())
    np.testing.assert_allclose(found.value, problem.minimum, rtol=F64_VALUE)


# --- What is refused. ---


REFUSED = {
    "max_iterations must be positive; got 0": lambda: TrustRegionOptions(max_iterations=0),
    "max_inner_iterations must be positive; got -1": lambda: TrustRegionOptions(max_inner_iterations=-1),
    "relative_tolerance must be positive; got 0.0": lambda: TrustRegionOptions(relative_tolerance=0.0),
    "initial_radius must be positive; got nan": lambda: TrustRegionOptions(initial_radius=float("nan")),
    "max_radius must be positive; got -1.0": lambda: TrustRegionOptions(max_radius=-1.0),
    "max_iterations must be a whole number; got 2.5": lambda: TrustRegionOptions(max_iterations=2.5),
    "initial_radius must be at most max_radius = 0.1; got 0.5": (
        lambda: TrustRegionOptions(initial_radius=0.5, max_radius=0.1)
    ),
    "forcing must lie in (0, 1); got 1.0": lambda: TrustRegionOptions(forcing=1.0),
    "superlinear must be at least 0; got -1.0": lambda: TrustRegionOptions(superlinear=-1.0),
    "accept_ratio must lie in [0, 0.25); got 0.25": lambda: TrustRegionOptions(accept_ratio=0.25),
    "init must have the manifold's shape (6, 1); got (6, 2)": (
        lambda: trust_region(Stiefel(6, 1), jnp.sum, jnp.eye(6, 2))
    ),
    "init must be float32 or float64; got bfloat16": (
        lambda: trust_region(Stiefel(6, 1), jnp.sum, jnp.eye(6, 1, dtype=jnp.bfloat16))
    ),
    "init must be float32 or float64; got int32": (
        lambda: trust_region(Stiefel(6, 1), jnp.sum, jnp.eye(6, 1, dtype=jnp.int32))
    ),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_bad_input_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value) == sentence
