"""Minimisers of a function of a tree of arrays, for many starts at once."""

from nc_jax.extras import require

require("optax", "train", __name__)

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.theory import hessian_extremes

QUIET = 200  # steps between two kicks: enough for the escape from a strict saddle to show in the gradient
KICKS = 2  # one to leave a saddle, one more to see that the end is none

Cost = Callable[[Any], Float[Array, ""]]


class Descended(NamedTuple):
    """Where a descent ended.

    Attributes:
        point: like the start.
        value: cost at the point.
        grad_norm: norm of the cost's gradient at the point.
        steps: taken.
    """

    point: Any
    value: Float[Array, "*starts"]
    grad_norm: Float[Array, "*starts"]
    steps: Int[Array, "*starts"]


def random_trees(like: Any, number: int, *, scale: float, seed: int) -> Any:
    """Return trees of normal numbers, one per leading index, shaped like a tree of arrays or shapes.

    By NumPy: XLA takes longer to compile its generator for every shape on a CPU than the descents take.
    """
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * generator.normal(size=(number, *leaf.shape)), leaf.dtype), like
    )


def quick_key(seed: int) -> PRNGKeyArray:
    """Return a key of the generator that XLA compiles at once, for use within compiled functions."""
    return jax.random.key(seed, impl="rbg")


def stable_rate(cost: Cost, starts: Any) -> Float[Array, ""]:
    """Return the step 1 / L, with L the largest eigenvalue of all the starts' Hessians."""
    largest = _steepest(cost, starts)
    return 1 / jnp.max(largest)


MEMORY = 20  # steps that L-BFGS remembers, twice optax's default: the minimum is a flat orbit of rotations


@partial(jax.jit, static_argnames="cost")
def _steepest(cost: Cost, starts: Any) -> Float[Array, " starts"]:
    # A few percent are enough.
    return jax.vmap(lambda at: hessian_extremes(cost, at, key=quick_key(0), steps=20).largest)(starts)


def gradient_descent(
    cost: Cost,
    starts: Any,
    *,
    rate: float | Float[Array, ""],
    steps: int,
    tolerance: float,
    seed: int | None = None,
    noise: float = 1e-2,  # far above rounding, far below the points' entries of order one
) -> Descended:
    """Descend from every start, one per leading index, until the gradient is small.

    The step is constant, and halved where the value has risen: ten classes on a line are steeper than any start.

    Args:
        cost: cost of one point. Pass the same function object again, and nothing is compiled again.
        starts: tree of points.
        rate: the first step; below 2 over the largest eigenvalue of the Hessian.
        steps: the most steps to take.
        tolerance: a descent ends when the norm of the gradient is below this.
        seed: seed of the kicks of perturbed gradient descent. A point is kicked where its gradient is below a thousand
            times the tolerance and the last kick is `QUIET` steps ago, `KICKS` times at most. None is plain gradient
            descent.
        noise: standard deviation of the entries of a kick.

    Reference: Jin, Ge, Netrapalli, Kakade and Jordan, How to escape saddle points efficiently (2017).
    """
    # Drawn before the loop: a draw takes longer than a step.
    kicks = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 0, 1), random_trees(starts, KICKS, scale=noise, seed=seed or 0)
    )
    return _gradient_descent(cost, starts, kicks, 0 if seed is None else KICKS, rate, steps, tolerance)


class _State(NamedTuple):
    point: Any
    value: Array  # of the point before
    rate: Array
    grad_norm: Array
    step: Array
    kicked: Array  # when last
    kicks: Array


@partial(jax.jit, static_argnames="cost")
def _gradient_descent(
    cost: Cost, starts: Any, kicks: Any, number: Array, rate: Array, steps: Array, tolerance: Array
) -> Descended:
    both = jax.value_and_grad(cost)

    def descend(start: Any, kicks: Any) -> Descended:
        def unfinished(state: _State) -> Array:
            expected = (state.kicks < number) | (state.step - state.kicked < QUIET)
            return ((state.grad_norm > tolerance) | expected) & (state.step < steps)

        def advance(state: _State) -> _State:
            value, gradient = both(state.point)
            norm = optax.tree.norm(gradient)
            risen = value > state.value + 1e-12 * jnp.abs(state.value)  # not by rounding
            rate = jnp.where(risen, state.rate / 2, state.rate)
            due = (norm < 1e3 * tolerance) & (state.step - state.kicked >= QUIET) & (state.kicks < number)
            place = jnp.minimum(state.kicks, KICKS - 1)
            point = jax.tree.map(
                lambda here, way, kick: here - rate * way + jnp.where(due, kick[place], 0),
                state.point,
                gradient,
                kicks,
            )
            kicked = jnp.where(due, state.step, state.kicked)
            before = jnp.where(due, jnp.inf, value)  # a kick may raise it
            return _State(point, before, rate, norm, state.step + 1, kicked, state.kicks + due)

        zero, infinite = jnp.zeros((), int), jnp.asarray(jnp.inf)
        first = _State(start, infinite, jnp.asarray(rate, float), infinite, zero, zero - QUIET, zero)
        last = jax.lax.while_loop(unfinished, advance, first)
        value, gradient = both(last.point)
        return Descended(last.point, value, optax.tree.norm(gradient), last.step)

    return jax.vmap(descend)(starts, kicks)


@partial(jax.jit, static_argnames="cost")
def lbfgs(
    cost: Cost,
    starts: Any,
    *,
    steps: int | Int[Array, ""],
    tolerance: float | Float[Array, ""],
) -> Descended:
    """Run L-BFGS with optax's zoom line search from every start, one per leading index.

    Args:
        cost: cost of one point. Pass the same function object again, and nothing is compiled again.
        starts: tree of points.
        steps: the most steps to take.
        tolerance: a descent ends when the norm of the gradient is below this.
    """
    optimizer = optax.lbfgs(memory_size=MEMORY)
    both = optax.value_and_grad_from_state(cost)

    def descend(start: Any) -> Descended:
        def unfinished(carry: tuple[Any, Any, Array, Array]) -> Array:
            _, _, norm, step = carry
            return (norm > tolerance) & (step < steps)

        def advance(carry: tuple[Any, Any, Array, Array]) -> tuple[Any, Any, Array, Array]:
            point, state, _, step = carry
            value, gradient = both(point, state=state)
            updates, state = optimizer.update(gradient, state, point, value=value, grad=gradient, value_fn=cost)
            return optax.apply_updates(point, updates), state, optax.tree.norm(gradient), step + 1

        first = start, optimizer.init(start), jnp.asarray(jnp.inf), jnp.zeros((), int)
        point, _, _, step = jax.lax.while_loop(unfinished, advance, first)
        return Descended(point, cost(point), optax.tree.norm(jax.grad(cost)(point)), step)

    return jax.vmap(descend)(starts)
