"""Sums over devices for code that does not know on how many devices it runs.

Heads and normalisations call `all_sum`. The training step says over which mapped axis, with `over`; where nobody has
said anything, there is one device, or a `jax.jit` over sharded arrays, and nothing is to be done. So no module names an
axis, and none can be given the wrong one.

Under `jax.pmap` or `jax.shard_map` of your own, do as the step does:

    def step(state, batch):
        with collective.over("devices"):
            ...                                  # model.apply, jax.grad and so on

The binding is part of JAX's own cache key, so a function compiled under one binding is compiled again under another.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Axes = str | tuple[str, ...] | None

# A context of JAX's, not of Python's: programs in the caches of jax.jit are looked up by its value, too.
_BOUND = jax.make_user_context(())


def over(*axis_names: str) -> Any:
    """Sum over these mapped axes within the `with` block; over none if none is named (for one client among many)."""
    return _BOUND(axis_names)


def axes(axis_name: Axes = None) -> tuple[str, ...]:
    """Return the axes to sum over: those given, else those that an enclosing `over` names, else none."""
    if axis_name is None:
        return _BOUND.value
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def all_sum(tree: Any, axis_name: Axes = None) -> Any:
    """Sum every array of a tree over all devices; every device gets the sum.

    Args:
        tree: of arrays, this device's.
        axis_name: of the mapped axis, or several; None takes what `over` has bound.

    Example:
        >>> def share(value):
        ...     with over("devices"):
        ...         return value / all_sum(value)
        >>> jax.vmap(share, axis_name="devices")(jnp.array([1.0, 3.0])).tolist()
        [0.25, 0.75]
    """
    names = axes(axis_name)
    return jax.lax.psum(tree, names) if names else tree


def all_rows(array: Array, places: Int[Array, " rows"]) -> Array:
    """Return the rows of all devices in the order of their places in the whole batch.

    Args:
        array: this device's rows, shape (N, ...).
        places: where each of them stands in the batch of all devices, shape (N,).

    Returns:
        Shape (N times the number of devices, ...), the same on every device. Gradients pass through it.
    """
    names = axes()
    if not names:
        return array
    rows, order = (jax.lax.all_gather(one, names, tiled=True) for one in (array, places))
    return rows[jnp.argsort(order)]


def device() -> tuple[Any, int]:
    """Return the number of this device and how many there are, counted over the bound axes: (0, 1) without any."""
    names = axes()
    return (jax.lax.axis_index(names), jax.lax.axis_size(names)) if names else (0, 1)
