"""Sums over devices, for code that runs on one device or on many.

Heads and normalisations call `all_sum`. The training step names the mapped axis once, with `over`. Without `over`,
`all_sum` changes nothing: this is right on one device, and also under `jax.jit` over sharded arrays, where JAX itself
sums over devices. So modules do not name an axis, and cannot be given a wrong one.

In a loop of your own, `jax.jit` over sharded batches needs nothing else than the code for one device. Your own
`jax.pmap` or `jax.shard_map` needs `over` (without it, `all_sum` warns) and two means, the same for both::

    def step(params, state, batch):                          # params and state on all devices, a share of the batch
        def loss(params):
            losses, after = ...                              # model.apply and so on
            return jax.lax.pmean(jnp.mean(losses), "devices"), after

        with collective.over("devices"):
            gradients, state = jax.grad(loss, has_aux=True)(params)
        return jax.lax.pmean(gradients, "devices"), state

The first mean is for `shard_map` with its replication check (the default, `check_vma=True`). JAX then adds the
gradients of parameters that are the same on all devices by itself: they are complete, and the second mean changes
nothing. Without the first mean they would be the sum over the devices and not their mean, without a word. The second
mean is for `pmap`, and for `shard_map` with `check_vma=False`, where every device finds the gradient of its own share.

The bound axes are part of the key of JAX's compilation cache. So JAX compiles a function again if the axes change.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Axes = str | tuple[str, ...] | None

# A JAX context instead of a Python context variable, because jax.jit uses its value as a part of the cache key. Its
# value is None outside of `over`.
_BOUND = jax.make_user_context(None)


def over(*axis_names: str) -> Any:
    """Return a context manager: in its `with` block, `all_sum` adds over these mapped axes.

    Args:
        *axis_names: names of mapped axes. No names: `all_sum` adds over nothing (for one client among many, or for
            devices that each train a model of their own).
    """
    return _BOUND(axis_names)


def axes(axis_name: Axes = None) -> tuple[str, ...]:
    """Return the axes to sum over: `axis_name` if it is given, else the axes of the enclosing `over`, else none."""
    if axis_name is None:
        return _BOUND.value or ()
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def all_sum(tree: Any, axis_name: Axes = None) -> Any:
    """Sum every array of a tree over all devices; every device gets the sum.

    Without `over` and without `axis_name`, within your own `jax.pmap` or `jax.shard_map`, it adds nothing and warns:
    each device would go on with numbers of its own, and nothing would fail.

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
    if not names:
        _warn_of_unbound(axis_name)
        return tree
    return jax.lax.psum(tree, names)


def _warn_of_unbound(axis_name: Axes) -> None:
    """Warn where the program is split over devices, and nothing says whether to add over them."""
    split = jax.sharding.get_abstract_mesh().manual_axes
    if split and axis_name is None and _BOUND.value is None:
        named = ", ".join(repr(name) for name in split)
        warnings.warn(
            f"a program that is split over {named} must say whether a batch is, too; got sums over one device alone "
            f"(call the step inside nc_jax.collective.over({named}), or over() if each device has a batch of its own)",
            stacklevel=3,
        )


def own(tree: Any) -> Any:
    """Return a tree that is the same on all devices as one that each device has for itself. The values do not change.

    Under `jax.shard_map` with its replication check, JAX adds the gradients of what is the same on all devices. With
    respect to the result of this function, every device gets the gradient of its own share, as under `jax.pmap`. Sum
    such gradients by `all_sum`.

    Args:
        tree: tree of arrays.

    Returns:
        The tree with arrays of the same values; the tree itself if no axis is bound.
    """
    names = axes()
    # Only `shard_map` with its check tells arrays that differ between devices from others.
    if not names or not _varying(jax.lax.axis_index(names)):
        return tree

    def one(leaf: Array) -> Array:
        missing = tuple(name for name in names if name not in _varying(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree)


def _varying(array: Array) -> frozenset[str]:
    """Return the axes along which an array may differ, as far as JAX keeps book of them."""
    kind: Any = jax.typeof(array)
    return kind.manual_axis_type.varying


def all_rows(array: Array, places: Int[Array, " rows"], *, constant: bool = False) -> Array:
    """Return the rows of all devices, in the order that they have in the whole batch.

    Args:
        array: rows of this device, shape (N, ...).
        places: position of each row of this device in the whole batch, shape (N,).
        constant: whether nobody differentiates the result. `jax.shard_map` with its replication check then knows that
            the result is the same on every device.

    Returns:
        Shape (N times the number of devices, ...), the same on every device. Gradients pass through it.
    """
    names = axes()
    if not names:
        return array
    to = "varying"
    if constant and _varying(jax.lax.axis_index(names)):
        array, places, to = own(array), own(places), "invarying"
    rows, order = (jax.lax.all_gather(one, names, tiled=True, to=to) for one in (array, places))
    return rows[jnp.argsort(order)]


def device() -> tuple[Any, int]:
    """Return the number of this device and the number of devices along the bound axes; (0, 1) without bound axes."""
    names = axes()
    return (jax.lax.axis_index(names), jax.lax.axis_size(names)) if names else (0, 1)
