"""Steihaug-Toint truncated conjugate gradients: the step of a trust region."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TruncatedStep(NamedTuple):
    """The step, its image under the Hessian, the number of Hessian products, and whether it ends on the boundary."""

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
    max_iterations: int,
) -> TruncatedStep:
    r"""Approximately minimise the model <g, s> + <s, H s> / 2 over ||s|| <= radius.

    Conjugate gradients from s = 0, stopped where the residual is small enough, where the path leaves the trust region,
    or where a direction of negative curvature shows; in the last two cases the step ends on the boundary.

    Args:
        inner: inner product of two tangent vectors.
        hessian: product of the Hessian with a tangent vector.
        gradient: g, a tangent vector of any shape.
        radius: of the trust region.
        tolerance: on the residual norm ||g + H s||.
        max_iterations: at most this many products with the Hessian.

    Returns:
        The step with what the trust region needs to judge it.

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
            # A NaN fails every comparison above: without this the loop would run to its limit on it.
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
    # Of the two forms of the root, the one without cancellation.
    return jnp.where(along > 0, room / (along + root), (root - along) / jnp.where(length > 0, length, 1))
