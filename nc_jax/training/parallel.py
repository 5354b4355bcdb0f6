"""Data parallelism by one `jax.pmap`: turns a step for one device into the same step on all devices.

The state is replicated and has no leading device axis (`in_axes=None`, `out_axes=None`); batches are split. Steps sum
over devices along the mapped axis `AXIS`. With several processes (`jax.distributed`), the sums include the devices of
all processes: each process passes its own share of the batch and the same state, and gets the same state back.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np

AXIS = "devices"  # name of the mapped axis along which steps and heads sum over devices

Devices = Sequence[Any] | None  # of jax.Device, which type checkers take for a variable


def data_parallel(
    step: Callable[..., Any],
    *,
    devices: Devices = None,
    donate: bool = False,
    split: Sequence[int | None] = (0,),
    parts: int = 1,
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

    Returns:
        A compiled function of the same arguments: the state, and this process's share of the batches. It raises
        ValueError for a batch whose size is not a multiple of `parts` times the number of devices.

    Raises:
        ValueError: if there are several processes and `devices` leaves out some of the local devices.
    """
    local = jax.local_devices()
    chosen = local if devices is None else list(devices)
    if jax.process_count() > 1 and len(chosen) != len(local):
        raise ValueError(f"with several processes all {len(local)} local devices must be used; got {len(chosen)}")
    # With several processes, do not donate: pmap then wraps the state in a global array and donates that array, so the
    # next call finds the buffers of its own input deleted (JAX 0.10.2). The price is a second copy of the state.
    donate = donate and jax.process_count() == 1
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, *split),
        out_axes=None,
        devices=chosen if jax.process_count() == 1 else None,
        donate_argnums=(0,) if donate else (),
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


def replicate(tree: Any, devices: Devices = None) -> Any:
    """Copy a tree of arrays to every device of this process; with several processes, return the tree unchanged.

    Apply this to the first state that you pass to a function of `data_parallel`. Its results have the same placement,
    so the function compiles only once; a first state with another placement would make it compile twice. With several
    processes this is not needed, because pmap places its arguments itself.
    """
    if jax.process_count() > 1:
        return tree
    mesh = jax.sharding.Mesh(np.array(jax.local_devices() if devices is None else list(devices)), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


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
