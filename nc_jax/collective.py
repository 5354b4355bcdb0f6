"""Sums over devices, for code that runs on one device or on many.

Heads and normalisations call `all_sum`. The training step names the mapped axis once, with `over`. Without `over`,
`all_sum` changes nothing: this is right on one device, and also under `jax.jit` over sharded arrays, where JAX itself
sums over devices. So modules do not name an axis, and cannot be given a wrong one.

In your own `jax.pmap` or `jax.shard_map`, wrap the step:

    def step(state, batch):
        with collective.over("devices"):
            ...                                  # model.apply, jax.grad and so on

The bound axes are part of the key of JAX's compilation cache. So JAX compiles a function again if the axes change.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Axes = str | tuple[str, ...] | None

# A JAX context instead of a Python context variable, because jax.jit uses its value as a part of the cache key.
_BOUND = jax.make_user_context(())


def over(*axis_names: str) -> Any:
    """Return a context manager: in its `with` block, `all_sum` adds over these mapped axes.

    Args:
        *axis_names: names of mapped axes. No names: `all_sum` adds over nothing (for one client among many).
    """
    return _BOUND(axis_names)


def axes(axis_name: Axes = None) -> tuple[str, ...]:
    """Return the axes to sum over: `axis_name` if it is given, else the axes of the enclosing `over`, else none."""
    if axis_name is None:
        return _BOUND.value
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def all_sum(tree: Any, axis_name: Axes = None) -> Any:
    """Sum every array of a tree over all devices; every device gets the sum.

    Args:
        tree: tree of arrays, the parts of this device.
        axis_name: name or names of mapped axes; None takes the axes that `over` has bound.

    Returns:
        The tree of sums; the tree itself if there is no axis.

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
    """Return the rows of all devices, in the order that they have in the whole batch.

    Args:
        array: rows of this device, shape (N, ...).
        places: position of each row of this device in the whole batch, shape (N,).

    Returns:
        Shape (N times the number of devices, ...), the same on every device. Gradients pass through it.
    """
    names = axes()
    if not names:
        return array
    rows, order = (jax.lax.all_gather(one, names, tiled=True) for one in (array, places))
    return rows[jnp.argsort(order)]


def device() -> tuple[Any, int]:
    """Return the number of this device and the number of devices along the bound axes; (0, 1) without bound axes."""
    names = axes()
    return (jax.lax.axis_index(names), jax.lax.axis_size(names)) if names else (0, 1)
