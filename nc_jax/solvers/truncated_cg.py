"""Steihaug-Toint truncated conjugate gradients, which compute the step of a trust region."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TruncatedStep(NamedTuple):
    """Result of `truncated_cg`.

    Attributes:
        step: the step s.
        hessian_step: the Hessian times the step, H s.
        iterations: number of products with the Hessian.
        on_boundary: whether the step ends on the boundary of the trust region.
    """

    step: Float[Array, "..."]
    hessian_step: Float[Array, "..."]
    iterations: Int[Array, ""]
    on_boundary: Bool[Array, ""]


class _State(NamedTuple):
    step: Array
    hessian_step: Array
    residual: Array
    direction: Array
    residual_squared: Array
    iteration: Array
    on_boundary: Array
    done: Array


def truncated_cg(
    inner: Callable[[Array, Array], Float[Array, ""]],
    hessian: Callable[[Array], Array],
    gradient: Float[Array, "..."],
    radius: Float[Array, ""],
    tolerance: Float[Array, ""],
    max_iterations: int | Int[Array, ""],
) -> TruncatedStep:
    r"""Approximately minimise the model <g, s> + <s, H s> / 2 over steps s with ||s|| <= radius.

    Conjugate gradients start from s = 0. They stop when the residual is small enough, when the path leaves the trust
    region, or when a direction has negative curvature. In the last two cases the step ends on the boundary.

    Args:
        inner: function that gives the inner product of two tangent vectors.
        hessian: function that multiplies a tangent vector by the Hessian H.
        gradient: g, a tangent vector of any shape.
        radius: radius of the trust region.
        tolerance: the iteration stops when the residual norm ||g + H s|| is at most this.
        max_iterations: largest number of products with the Hessian.

    Returns:
        The step, and the numbers that the trust region needs to judge it.

    Reference: Steihaug (1983); Absil, Baker and Gallivan, Trust-region methods on Riemannian manifolds (2007), alg. 2.
    """

    def not_done(state: _State) -> Array:
        return ~state.done

    def advance(state: _State) -> _State:
        product = hessian(state.direction)
        curvature = inner(state.direction, product)
        alpha = state.residual_squared / jnp.where(curvature > 0, curvature, 1)
        trial = state.step + alpha * state.direction
        leaves = (curvature <= 0) | (inner(trial, trial) >= radius**2)
        alpha = jnp.where(leaves, _to_boundary(inner, state.step, state.direction, radius), alpha)
        step = state.step + alpha * state.direction
        hessian_step = state.hessian_step + alpha * product
        residual = state.residual + alpha * product
        residual_squared = inner(residual, residual)
        beta = residual_squared / jnp.where(state.residual_squared > 0, state.residual_squared, 1)
        iteration = state.iteration + 1
        done = leaves | (residual_squared <= tolerance**2) | (iteration >= max_iterations)
        return _State(
            step=step,
            hessian_step=hessian_step,
            residual=residual,
            direction=beta * state.direction - residual,
            residual_squared=residual_squared,
            iteration=iteration,
            on_boundary=leaves,
            # A NaN fails every comparison above. Without this test, the loop would run to its limit.
            done=done | ~jnp.isfinite(residual_squared),
        )

    zero = jnp.zeros_like(gradient)
    squared = inner(gradient, gradient)
    start = _State(
        step=zero,
        hessian_step=zero,
        residual=gradient,
        direction=-gradient,
        residual_squared=squared,
        iteration=jnp.zeros((), jnp.int32),
        on_boundary=jnp.zeros((), bool),
        done=squared <= tolerance**2,
    )
    end = jax.lax.while_loop(not_done, advance, start)
    return TruncatedStep(end.step, end.hessian_step, end.iteration, end.on_boundary)


def _to_boundary(inner: Callable, step: Array, direction: Array, radius: Array) -> Array:
    """Return the t >= 0 with ||step + t direction|| = radius."""
    along, length = inner(step, direction), inner(direction, direction)
    room = jnp.maximum(radius**2 - inner(step, step), 0)
    root = jnp.sqrt(along**2 + length * room)
    # The root has two equivalent forms; take the one without cancellation.
    return jnp.where(along > 0, room / (along + root), (root - along) / jnp.where(length > 0, length, 1))
