"""Conjugate gradients for the linear systems of derivatives, which stop where the operator is not positive."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import safe_norm


class Solved(NamedTuple):
    """What conjugate gradients have found.

    Attributes:
        solution: x, shape (n, p).
        flat: whether the iteration met a direction in which the operator is zero or negative up to rounding. If so,
            it ended before it divided by that curvature.
        residual: norm of operator(x) - rhs over that of rhs; 0 if the right-hand side is zero.
        converged: whether the residual is at most ten times the rounding unit of the dtype.
    """

    solution: Float[Array, "n p"]
    flat: Bool[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


def conjugate_gradients(
    operator: Callable[[Array], Array],
    rhs: Float[Array, "n p"],
    max_iterations: int,
    size: Float[Array, ""] | float = 0.0,
) -> Solved:
    """Solve operator(x) = rhs for a symmetric, positive semidefinite operator.

    Args:
        operator: linear function from arrays of shape (n, p) to arrays of the same shape.
        rhs: right-hand side of any scale, shape (n, p).
        max_iterations: largest number of products with the operator.
        size: norm of the terms from which the operator is computed, if they cancel and are larger than the operator.

    Returns:
        The solution so far, and whether it is one.
    """
    # The conjugate gradients of JAX and SciPy do not stop at such directions, and then return arbitrary results.
    eps = float(jnp.finfo(rhs.dtype).eps)
    tolerance = 10 * eps  # the relative tolerance of the trust region for the gradient
    floor = max(rhs.shape) * eps  # relative size below which curvature counts as zero, as in numpy.linalg.matrix_rank
    # At unit scale, squares neither overflow nor underflow, for every scale of the cotangent.
    norm = safe_norm(rhs).reshape(())
    scale = jnp.where(norm > 0, norm, 1)

    def inner(u: Array, v: Array) -> Array:
        return jnp.vdot(u, v, precision="highest")

    def advance(state: _Krylov) -> _Krylov:
        product = operator(state.direction)
        length = inner(state.direction, state.direction)
        curvature = inner(state.direction, product) / length
        steepest = jnp.maximum(state.steepest, safe_norm(product).reshape(()) / jnp.sqrt(length))
        flat = ~(curvature > floor * steepest)
        alpha = jnp.where(flat, 0, state.squared / jnp.where(flat, 1, curvature * length))
        residual = state.residual - alpha * product
        squared = inner(residual, residual)
        return _Krylov(
            solution=state.solution + alpha * state.direction,
            residual=residual,
            direction=residual + squared / state.squared * state.direction,
            squared=squared,
            steepest=steepest,
            flat=flat,
            iteration=state.iteration + 1,
        )

    def unfinished(state: _Krylov) -> Array:
        return (state.squared > tolerance**2) & ~state.flat & (state.iteration < max_iterations)

    unit = rhs / scale
    steepest = jnp.asarray(size, rhs.dtype)
    iteration = jnp.zeros((), jnp.int32)
    start = _Krylov(jnp.zeros_like(rhs), unit, unit, inner(unit, unit), steepest, jnp.zeros((), bool), iteration)
    end = jax.lax.while_loop(unfinished, advance, start)
    return Solved(scale * end.solution, end.flat, jnp.sqrt(end.squared), end.squared <= tolerance**2)


class _Krylov(NamedTuple):
    solution: Array
    residual: Array
    direction: Array
    squared: Array  # squared norm of the residual
    steepest: Array  # lower bound of the norm of the operator
    flat: Array
    iteration: Array
