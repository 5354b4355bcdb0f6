r"""Attacks on inputs: small changes, none larger than a radius, that raise a cost as far as they can.

An attack needs only a cost, a function of a batch of inputs that gives one number for each of them. So it works for any
network, head and loss. Two costs are usual, for a function `logits_of` from inputs to logits:

    lambda inputs: losses.cross_entropy(logits_of(inputs), labels)
    lambda inputs: -metrics.logit_margins(logits_of(inputs), labels)

The second one is positive exactly if the model is wrong. It is the safer choice, because the gradient of a margin does
not depend on how large the margin is. That of cross-entropy is the softmax less the label, and it is rounded. In
float32, from a margin of 17 on the entry of the true class is zero, so an attack follows the rivals alone and forgets
to leave the true class. From a margin of 104 on all of it is zero, and the attack stands still. The network then seems
robust because its logits are long (gradient masking by scale). `Attacked.blind` marks examples without any gradient.

The cost of an example must depend on its own row alone, as in evaluation. With batch statistics, examples would be
moved for the sake of others. The functions run under `jax.jit` (the radius may be a traced number, so one program
serves all radii), `jax.vmap` and `jax.pmap`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from nc_jax.arrays import at_least_float32
from nc_jax.checks import Reals, as_array, check_at_least, check_key, is_traced, real_array

Cost = Callable[[Array], Array]  # inputs (N, ...) -> costs (N,)
Bounds = tuple[ArrayLike, ArrayLike]


class Attacked(NamedTuple):
    """What an attack has found. Constants for derivatives, so that training on attacked inputs is possible.

    Attributes:
        inputs: changed inputs, shape (N, ...), in at least float32: within the radius of the originals, up to rounding,
            and within the bounds.
        costs: their costs, shape (N,). NaN for an example whose cost or gradient was NaN anywhere, whose input did not
            lie within the bounds, or whose radius is no finite number of at least 0 (which is refused with an error
            where it is known, and not under `jax.jit`; the inputs are NaN, too, then).
        blind: True for an example for which every gradient that was computed is zero, shape (N,). The attack had
            nothing to follow, so that it has found nothing says nothing.
    """

    inputs: Float[Array, "batch ..."]
    costs: Float[Array, " batch"]
    blind: Bool[Array, " batch"]


def fgsm(cost: Cost, inputs: Reals, radius: ArrayLike, *, bounds: Bounds) -> Attacked:
    r"""Fast gradient sign method: one step along the sign of the gradient, to a corner of the ball.

    .. math:: x' = \Pi\big(x + \epsilon \operatorname{sign} \nabla_x c(x)\big)

    The projection :math:`\Pi` takes every coordinate to its bounds. For a cost that is linear in the inputs, or a
    growing function of one that is, this is the worst input of all. Otherwise the cost may even fall; see `pgd`.

    Args:
        cost: c, a function of inputs (N, ...) that gives one number per example, shape (N,).
        inputs: x, floating, shape (N, ...).
        radius: :math:`\epsilon >= 0`, the largest change of a coordinate, in the unit of the inputs.
        bounds: smallest and largest valid value of the inputs: two numbers, or arrays that broadcast against the
            inputs. (-inf, inf) allows everything.

    Returns:
        The changed inputs, and their costs.

    Raises:
        ValueError: if the inputs are not floating or do not lie within the bounds, the radius is negative or not
            finite, or the cost does not give one number per example.

    Example:
        >>> found = fgsm(lambda x: x @ jnp.array([1.0, -2.0]), jnp.array([[0.5, 0.05]]), 0.1, bounds=(0.0, 1.0))
        >>> [round(value, 2) for value in found.inputs[0].tolist()]
        [0.6, 0.0]

    Reference: Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples (2015), section 4.
    """
    ball = _ball(inputs, radius, bounds)
    _, gradient, failed = _look(cost, ball.centre)
    point = ball.project(ball.centre + ball.radius * jnp.sign(gradient))
    costs = _costs_of(cost, point)
    return _found(ball, point, costs, failed | jnp.isnan(costs), _zero(gradient))


def pgd(
    cost: Cost,
    inputs: Reals,
    radius: ArrayLike,
    *,
    bounds: Bounds,
    key: PRNGKeyArray,
    steps: int = 20,  # Madry et al. (2018) attack CIFAR-10 with 7 and with 20 steps
    step_size: ArrayLike | None = None,
    restarts: int = 1,  # the least; more find more, at their price
) -> Attacked:
    r"""Projected gradient ascent on the sign of the gradient, from random starts; the worst point seen is the result.

    .. math::
        x_0 \sim \text{uniform on } B, \qquad
        x_{t+1} = \Pi_B\big(x_t + \alpha \operatorname{sign} \nabla_x c(x_t)\big), \qquad
        B = \{x' : \|x' - x\|_\infty \le \epsilon\} \cap \text{bounds}

    The result has the largest cost among all points of all restarts, the original input among them. So it is never
    better than the input, and never worse for more restarts of the same key.

    Args:
        cost: c, a function of inputs (N, ...) that gives one number per example, shape (N,).
        inputs: x, floating, shape (N, ...).
        radius: :math:`\epsilon >= 0`, the largest change of a coordinate, in the unit of the inputs.
        bounds: smallest and largest valid value of the inputs: two numbers, or arrays that broadcast against the
            inputs. (-inf, inf) allows everything.
        key: random key, which draws the starts.
        steps: steps after each start, >= 1.
        step_size: :math:`\alpha >= 0`, in the unit of the inputs. None: 2.5 radii over the number of steps, which
            reaches the far side of the ball (2 radii away) from any start, with some steps left to move along it.
        restarts: number of random starts, >= 1.

    Returns:
        The worst inputs seen, and their costs.

    Raises:
        ValueError: if the inputs are not floating or do not lie within the bounds, the radius or the step size is
            negative or not finite, steps or restarts are below 1, or the cost does not give one number per example.

    Example:
        >>> away = lambda x: jnp.abs(x[:, 0])  # FGSM goes to the nearer end
        >>> x, ball = jnp.array([[0.1]]), {"bounds": (-1.0, 0.2)}
        >>> round(float(fgsm(away, x, 0.5, **ball).costs[0]), 2)
        0.2
        >>> round(float(pgd(away, x, 0.5, **ball, key=jax.random.key(0), restarts=8).costs[0]), 2)
        0.4

    Reference: Madry et al., Towards deep learning models resistant to adversarial attacks (2018), section 2.1.
    """
    for name, number in (("steps", steps), ("restarts", restarts)):
        check_at_least(name, number)
    check_key(key)
    ball = _ball(inputs, radius, bounds)
    size = 2.5 * ball.radius / steps if step_size is None else _length(step_size, "step_size", ball.centre)
    visited = steps + 1  # points of a restart: its start, and the one after each step

    # The first point is the input. One loop body for it and for all restarts: a network is compiled once.
    def visit(state: _State, number: Array) -> tuple[_State, None]:
        costs, gradient, failed = _look(cost, state.point)
        better = costs > state.costs
        moved = ball.project(state.point + size * jnp.sign(gradient))
        turn = jax.random.fold_in(key, number)
        point = jax.lax.cond(number % visited == 0, lambda: ball.draw(turn), lambda: moved)
        best = jnp.where(_rows(better, point), state.point, state.best)
        return _State(
            point,
            best,
            jnp.where(better, costs, state.costs),
            state.failed | failed,
            state.blind & _zero(gradient),
        ), None

    each = ball.centre[(slice(None), *[0] * (ball.centre.ndim - 1))]  # a number per example, for dtype and device axes
    none = jnp.zeros_like(each, bool)
    costs = jnp.full_like(each, -jnp.inf, dtype=jax.eval_shape(lambda x: _costs_of(cost, x), ball.centre).dtype)
    start = _State(ball.centre, ball.centre, costs, none, ~none)
    end, _ = jax.lax.scan(visit, start, jnp.arange(restarts * visited + 1))
    return _found(ball, end.best, end.costs, end.failed | (size < 0) | ~jnp.isfinite(size), end.blind)


class _State(NamedTuple):
    """Where the ascent is, the worst point so far and its cost, and what is known about its gradients."""

    point: Array
    best: Array
    costs: Array
    failed: Array
    blind: Array


class _Ball(NamedTuple):
    """The inputs that an attack may choose from: a box around each input."""

    centre: Array
    radius: Array
    low: Array
    high: Array
    valid: Array

    def project(self, point: Array) -> Array:
        return jnp.clip(point, self.low, self.high)

    def draw(self, key: PRNGKeyArray) -> Array:
        shape, dtype = self.centre.shape, self.centre.dtype
        return self.project(jax.random.uniform(key, shape, dtype, self.low, self.high))


def _ball(inputs: Reals, radius: ArrayLike, bounds: Bounds) -> _Ball:
    """Check an attack's arguments, and return the box around each input."""
    given = as_array(inputs, "inputs")
    if jnp.issubdtype(given.dtype, jnp.integer) or given.dtype == bool:
        raise ValueError(
            f"inputs must be floating, because an attack moves them by fractions; got dtype {given.dtype} (scale the "
            "bytes of images to [0, 1])"
        )
    if not given.ndim:
        raise ValueError(f"inputs must have shape (batch, ...); got {given.shape}")
    centre = at_least_float32(real_array(given, "inputs"))
    length = _length(radius, "radius", centre)
    lowest, highest = _limits(bounds, centre)
    inside = (centre >= lowest) & (centre <= highest)
    if not is_traced(inside) and not np.all(inside):
        place = tuple(np.argwhere(~np.asarray(inside))[0])
        limits = " to ".join(f"{float(jnp.broadcast_to(limit, centre.shape)[place]):g}" for limit in (lowest, highest))
        raise ValueError(f"inputs must lie within bounds, {limits}; got {float(centre[place]):g} in example {place[0]}")
    valid = jnp.all(inside, axis=tuple(range(1, centre.ndim))) & (length >= 0) & jnp.isfinite(length)
    return _Ball(centre, length, jnp.maximum(centre - length, lowest), jnp.minimum(centre + length, highest), valid)


def _length(value: ArrayLike, name: str, like: Array) -> Array:
    """Return a radius or a step size as an array, once it is one finite number of at least 0, as far as is known."""
    array = real_array(value, name)
    if array.shape:
        raise ValueError(f"{name} must be one number; got shape {array.shape}")
    if not is_traced(array) and not 0 <= float(array) < np.inf:
        raise ValueError(f"{name} must be a finite number of at least 0; got {float(array):g}")
    return array.astype(like.dtype)


def _limits(bounds: Bounds, like: Array) -> tuple[Array, Array]:
    """Return the bounds as arrays, once they broadcast against the inputs."""
    pair = isinstance(bounds, tuple | list) and len(bounds) == 2
    limits = [real_array(limit, "bounds") for limit in bounds] if pair else []
    try:
        fit = pair and all(np.broadcast_shapes(limit.shape, like.shape) == like.shape for limit in limits)
    except ValueError:
        fit = False
    if not fit:
        got = f"shapes {', '.join(str(limit.shape) for limit in limits)}" if pair else repr(bounds)[:40]
        raise ValueError(
            f"bounds must be two numbers, or two arrays that broadcast against inputs of shape {like.shape}; got {got}"
        )
    low, high = (limit.astype(like.dtype) for limit in limits)
    return low, high


def _costs_of(cost: Cost, point: Array) -> Array:
    costs = cost(point)
    if jnp.shape(costs) != point.shape[:1]:
        raise ValueError(
            f"cost must give one number for each of {len(point)} examples, shape ({len(point)},); "
            f"got shape {jnp.shape(costs)}"
        )
    return at_least_float32(costs)


def _look(cost: Cost, point: Array) -> tuple[Array, Array, Array]:
    """Return the costs, their gradients, and for which examples one of them is NaN."""

    def total(point: Array) -> tuple[Array, Array]:
        costs = _costs_of(cost, point)
        return jnp.sum(costs), costs

    gradient, costs = jax.grad(total, has_aux=True)(point)
    return costs, gradient, jnp.isnan(costs) | _any(jnp.isnan(gradient))


def _found(ball: _Ball, point: Array, costs: Array, failed: Array, blind: Array) -> Attacked:
    nan = jnp.asarray(jnp.nan, costs.dtype)
    inputs = jnp.where(_rows(ball.valid, point), point, jnp.asarray(jnp.nan, point.dtype))
    found = Attacked(inputs, jnp.where(failed | ~ball.valid, nan, costs), blind)
    return jax.tree.map(jax.lax.stop_gradient, found)


def _zero(gradient: Array) -> Array:
    return ~_any(gradient != 0)


def _any(array: Array) -> Array:
    return jnp.any(array, axis=tuple(range(1, array.ndim)))


def _rows(each: Array, like: Array) -> Array:
    return each.reshape(-1, *[1] * (like.ndim - 1))
