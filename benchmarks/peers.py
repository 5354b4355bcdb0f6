"""Other programs for the problem of the benchmarks: the trust regions of pymanopt and geojax, with default settings.

Each builder takes a problem, a starting point and the gradient norm at which to stop. It returns a function without
arguments that solves the problem from the starting point. All minimise the same objective on the Stiefel manifold with
the Euclidean metric. pymanopt always computes in float64, because its zero tangent vector has this dtype.
"""

# pymanopt, geojax and PyTorch are in the extra `bench`, which may not be installed where the linter runs.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import Problem, float64

Solver = Callable[[], np.ndarray]


def pymanopt_numpy(problem: Problem, start: np.ndarray, grad_norm: float) -> Solver:
    """Pymanopt with the NumPy backend: cost, gradient and Hessian of the objective, written by hand."""
    means, template, previous, start = _float64(problem, start)
    manifold = _pymanopt_manifold(problem)

    def cost(rotation):
        residual = rotation @ template - means
        return np.sum(residual**2) + problem.prox_weight / 2 * np.sum((rotation - previous) ** 2)

    def gradient(rotation):
        return 2 * (rotation @ template - means) @ template.T + problem.prox_weight * (rotation - previous)

    def hessian(rotation, tangent):
        return 2 * (tangent @ template) @ template.T + problem.prox_weight * tangent

    return _pymanopt_numpy(manifold, cost, gradient, hessian, start, grad_norm)


def pymanopt_numpy_linear(problem: Problem, start: np.ndarray, grad_norm: float) -> Solver:
    """Pymanopt (NumPy) with the expanded objective of our own solvers: -<U, B> + constant, gradient -B, Hessian 0."""
    means, template, previous, start = _float64(problem, start)
    manifold = _pymanopt_manifold(problem)
    matrix = 2 * means @ template.T + problem.prox_weight * previous
    zero = np.zeros_like(matrix)

    def cost(rotation):
        return -np.vdot(rotation, matrix)

    def gradient(rotation):
        return -matrix

    def hessian(rotation, tangent):
        return zero

    return _pymanopt_numpy(manifold, cost, gradient, hessian, start, grad_norm)


def pymanopt_torch(problem: Problem, start: np.ndarray, grad_norm: float) -> Solver:
    """Pymanopt with the PyTorch backend: the objective, differentiated by PyTorch."""
    import torch

    pymanopt = _pymanopt()
    means, template, previous = map(torch.from_numpy, _float64(problem, start)[:3])
    manifold = _pymanopt_manifold(problem)

    @pymanopt.function.pytorch(manifold)
    def cost(rotation):
        residual = rotation @ template - means
        return torch.sum(residual**2) + problem.prox_weight / 2 * torch.sum((rotation - previous) ** 2)

    return _pymanopt_run(pymanopt.Problem(manifold, cost), start.astype(np.float64), grad_norm)


def geojax(problem: Problem, start: np.ndarray, grad_norm: float) -> Solver:
    """geojax: JAX compiles and differentiates the objective; the iterations are a Python loop.

    It computes in float64. In float32, rounding errors spoil its test of the decrease of the objective, and it runs to
    its limit of 200 iterations.
    """
    from geojax.geometry.stiefel import StiefelEuclidean
    from geojax.optimization import Minimize, TrustRegions

    manifold = StiefelEuclidean(start.shape)
    with jax.enable_x64(True):
        means, template, previous, init = (jnp.asarray(array) for array in _float64(problem, start))

    @jax.jit
    def cost(rotation):
        residual = rotation @ template - means
        return jnp.sum(residual**2) + problem.prox_weight / 2 * jnp.sum((rotation - previous) ** 2)

    def solve() -> np.ndarray:
        with jax.enable_x64(True):
            options = TrustRegions(tolgradnorm=grad_norm, verbosity=0)
            return np.asarray(Minimize(M=manifold, cost=cost, x0=init, solver=options).solve()[0])

    return solve


# Name in tables -> (builder, packages that must be installed).
PEERS: dict[str, tuple[Callable[[Problem, np.ndarray, float], Solver], tuple[str, ...]]] = {
    "pymanopt (NumPy)": (pymanopt_numpy, ("pymanopt",)),
    "pymanopt (NumPy, linear cost)": (pymanopt_numpy_linear, ("pymanopt",)),
    "pymanopt (PyTorch)": (pymanopt_torch, ("pymanopt", "torch")),
    "geojax": (geojax, ("geojax",)),
}


def _float64(problem: Problem, start: np.ndarray) -> list[np.ndarray]:
    return float64(problem.means, problem.template, problem.previous, start)


@functools.cache
def _pymanopt() -> ModuleType:
    """Import pymanopt, and undo that its import turns on 64-bit numbers in JAX for the whole process."""
    enabled = jax.config.read("jax_enable_x64")
    import pymanopt

    jax.config.update("jax_enable_x64", enabled)
    return pymanopt


def _pymanopt_manifold(problem: Problem):
    return _pymanopt().manifolds.Stiefel(problem.dim, problem.template.shape[0])


def _pymanopt_numpy(manifold, cost, gradient, hessian, start: np.ndarray, grad_norm: float) -> Solver:
    pymanopt = _pymanopt()
    wrap = pymanopt.function.numpy(manifold)
    problem = pymanopt.Problem(manifold, wrap(cost), euclidean_gradient=wrap(gradient), euclidean_hessian=wrap(hessian))
    return _pymanopt_run(problem, start, grad_norm)


def _pymanopt_run(problem, start: np.ndarray, grad_norm: float) -> Solver:
    optimizer = _pymanopt().optimizers.TrustRegions(min_gradient_norm=grad_norm, verbosity=0)
    return lambda: optimizer.run(problem, initial_point=start).point
