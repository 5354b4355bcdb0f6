"""Data parallelism by one `jax.pmap` or `jax.shard_map`: turns a step for one device into the same step on all devices.

The state is replicated and has no leading device axis (`in_axes=None`, `out_axes=None`); batches are split. Steps sum
over devices along the mapped axis `AXIS`. With several processes (`jax.distributed`), the sums include the devices of
all processes: each process passes its own share of the batch and the same state, and gets the same state back.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nc_jax.checks import is_traced

AXIS = "devices"  # name of the mapped axis along which steps and heads sum over devices

Devices = Sequence[Any] | None  # of jax.Device, which type checkers take for a variable


def data_parallel(
    step: Callable[..., Any],
    *,
    devices: Devices = None,
    donate: bool = False,
    split: Sequence[int | None] = (0,),
    parts: int = 1,
    checked: bool = False,
) -> Callable[..., Any]:
    """Run step(state, *batches) on several devices, with the batches split between them.

    Args:
        step: function of a replicated tree and further trees. All that it returns must be equal on all devices, so it
            must sum over `AXIS` whatever differs between them.
        devices: local devices to use; None takes all of them. With several processes, each must use all of its own.
        donate: let the step reuse the memory of the state; the caller must not use the old state again. With several
            processes this has no effect.
        split: for each argument after the state, the axis along which it is split; None replicates the argument.
        parts: number of equal, contiguous parts of a batch; every device gets an equal share of each part. The examples
            in a part, over all devices, then do not depend on the number of devices.
        checked: use `jax.shard_map` with its replication check instead of `jax.pmap`. The results are the same, but a
            step that forgets a sum over devices raises JAX's ValueError when it is compiled, where `pmap` returns what
            one device has computed. For a single process.

    Returns:
        A compiled function of the same arguments: the state, and this process's share of the batches. It raises
        ValueError for a batch whose size is not a multiple of `parts` times the number of devices.

    Raises:
        ValueError: if there are several processes and `devices` leaves out some of the local devices, or `checked` is
            True.
    """
    local = jax.local_devices()
    chosen = local if devices is None else list(devices)
    if jax.process_count() > 1 and len(chosen) != len(local):
        raise ValueError(f"with several processes all {len(local)} local devices must be used; got {len(chosen)}")
    if jax.process_count() > 1 and checked:
        raise ValueError(f"checked steps run in a single process; got {jax.process_count()}")
    # With several processes, do not donate: pmap then wraps the state in a global array and donates that array, so the
    # next call finds the buffers of its own input deleted (JAX 0.10.2). The price is a second copy of the state.
    donated = (0,) if donate and jax.process_count() == 1 else ()
    if checked:
        mapped = jax.jit(_shard_mapped(step, chosen, split), donate_argnums=donated)
    else:
        mapped = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, *split),
            out_axes=None,
            devices=chosen if jax.process_count() == 1 else None,
            donate_argnums=donated,
        )

    @wraps(step)
    def run(state: Any, *batches: Any) -> Any:
        shared = [
            batch
            if axis is None
            else jax.tree.map(lambda array, axis=axis: _split(array, len(chosen), axis, parts), batch)
            for batch, axis in zip(batches, split, strict=True)
        ]
        return mapped(state, *shared)

    return run


def _shard_mapped(step: Callable[..., Any], devices: list[Any], split: Sequence[int | None]) -> Callable[..., Any]:
    """Return the step as `jax.shard_map` runs it on arrays that `_split` has given an axis for the devices."""

    def local(state: Any, *shares: Any) -> Any:
        own = [
            share if axis is None else jax.tree.map(lambda array, axis=axis: array.squeeze(axis), share)
            for share, axis in zip(shares, split, strict=True)
        ]
        return step(state, *own)

    specs = [PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS) for axis in split]
    return jax.shard_map(
        local, mesh=_mesh(devices), in_specs=(PartitionSpec(), *specs), out_specs=PartitionSpec(), check_vma=True
    )


def _mesh(devices: Devices) -> Mesh:
    return Mesh(np.array(jax.local_devices() if devices is None else list(devices)), (AXIS,))


def replicate(tree: Any, devices: Devices = None) -> Any:
    """Copy a tree of arrays to every device of this process; with several processes, return the tree unchanged.

    Apply this to the first state that you pass to a function of `data_parallel`. Its results have the same placement,
    so the function compiles only once; a first state with another placement would make it compile twice. With several
    processes this is not needed, because pmap places its arguments itself.
    """
    place = replicated(devices)

    def is_there(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.sharding == place

    # Asking first is faster: `device_put` needs 30 us for each array, even for one that is there.
    return tree if place is None or all(map(is_there, jax.tree.leaves(tree))) else jax.device_put(tree, place)


def replicated(devices: Devices = None) -> NamedSharding | None:
    """Return where `replicate` puts arrays; None with several processes, where it leaves them."""
    return None if jax.process_count() > 1 else NamedSharding(_mesh(devices), PartitionSpec())


class UnequalDevicesError(RuntimeError):
    """Devices hold different values of what should be one state."""


def check_equal_on_devices(tree: Any) -> None:
    """Compare the copies that the local devices hold of every array of a replicated tree.

    `jax.pmap` returns the copy of one device and does not compare. Copies differ where a module needs a sum over
    devices and has none.

    Raises:
        UnequalDevicesError: if copies differ by more than rounding. It names the array that differs most.
    """
    worst, name = 0.0, ""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.number):
            continue
        first, *others = (np.asarray(shard.data).astype(np.float64) for shard in leaf.addressable_shards)
        scale = np.max(np.abs(first), initial=np.finfo(np.float64).tiny)
        # Infinities and NaN are training's to report.
        apart = max((float(np.nan_to_num(np.max(np.abs(one - first), initial=0))) for one in others), default=0.0)
        tolerance = float(jnp.finfo(leaf.dtype).eps) ** 0.5 if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0.0
        if apart > tolerance * scale and apart / scale > worst:
            worst, name = apart / scale, jax.tree_util.keystr(path, simple=True, separator="/")
    if name:
        raise UnequalDevicesError(
            f"all devices must hold the same state after a step; their copies of {name} differ by {worst:.2g} of its "
            "size (sum over devices with nc_jax.collective.all_sum whatever a module learns from a batch)"
        )


def check_divisible(batch_size: int, num_devices: int, parts: int = 1) -> None:
    """Raise a ValueError unless the devices can share each part of a batch equally."""
    if batch_size % (num_devices * parts):
        times = f" times accumulate={parts}" if parts > 1 else ""
        devices = "1 device" if num_devices == 1 else f"{num_devices} devices"
        raise ValueError(f"the batch size must be a multiple of the {devices}{times}; got {batch_size}")


def _split(array: Any, num_devices: int, axis: int, parts: int) -> Any:
    """Split an axis into two: the devices, and each device's share of the axis."""
    array = np.asarray(array) if not isinstance(array, jax.Array) else array
    size = array.shape[axis]
    check_divisible(size, num_devices, parts)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    if parts == 1:
        return array.reshape(*before, num_devices, size // num_devices, *after)
    cut = array.reshape(*before, parts, num_devices, size // (parts * num_devices), *after)
    return cut.swapaxes(axis, axis + 1).reshape(*before, num_devices, size // num_devices, *after)
