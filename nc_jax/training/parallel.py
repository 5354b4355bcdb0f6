"""The one pmap: a step on one device becomes the same step on all of them.

The state is replicated without a leading device axis (`in_axes=None`, `out_axes=None`), batches are split. Steps sum
over devices under the name `AXIS`. With several processes (`jax.distributed`) the sums are over the devices of all of
them; each process passes its own share of the batch and the same state, and gets the same state back.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np

AXIS = "devices"  # the name under which steps and heads sum over devices

Devices = Sequence[Any] | None  # of jax.Device, which is a variable to type checkers


def data_parallel(
    step: Callable[..., Any],
    *,
    devices: Devices = None,
    donate: bool = False,
    split: Sequence[int | None] = (0,),
    parts: int = 1,
) -> Callable[..., Any]:
    """Run step(state, *batches) on several devices, the batches split between them.

    Args:
        step: a function of a replicated tree and of further trees, that returns replicated trees only (it has summed
            over `AXIS` whatever differs between devices).
        devices: local ones; None takes all of them. Several processes must use all.
        donate: let the step reuse the memory of the state, which the caller then must not use again (in a single
            process; several keep it).
        split: the axis along which each further argument is split; None replicates it.
        parts: every device gets a share of each of so many equal parts of a batch, one after the other. What a part
            holds, over all devices, then does not depend on their number.

    Returns:
        A compiled function of the same arguments: the state, and this process's share of the batches.

    Raises:
        ValueError: if several processes are to use some of their devices only; when called with a batch that the
            devices cannot share equally.
    """
    local = jax.local_devices()
    chosen = local if devices is None else list(devices)
    if jax.process_count() > 1 and len(chosen) != len(local):
        raise ValueError(f"with several processes all {len(local)} local devices must be used; got {len(chosen)}")
    # With several processes pmap wraps the state in a global array on the way in and donates that: the next call finds
    # the buffers of its own input deleted (JAX 0.10.2). There a step costs a second copy of the state instead.
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
    """Copy a tree of arrays to every device of this process, once; with several processes leave it as it is.

    What `data_parallel` returns lies there like this, so a function compiles once if its first arguments do, too; new
    arrays, which lie elsewhere, would have it compiled twice. (With several processes pmap places its arguments.)
    """
    if jax.process_count() > 1:
        return tree
    mesh = jax.sharding.Mesh(np.array(jax.local_devices() if devices is None else list(devices)), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raise a ValueError unless the devices can share a batch equally."""
    if batch_size % num_devices:
        raise ValueError(f"the batch size must be a multiple of the {num_devices} devices; got {batch_size}")


def _split(array: Any, num_devices: int, axis: int, parts: int) -> Any:
    """Give the axis a new one in front, of the devices."""
    array = np.asarray(array) if not isinstance(array, jax.Array) else array
    size = array.shape[axis]
    check_divisible(size, num_devices * parts)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    if parts == 1:
        return array.reshape(*before, num_devices, size // num_devices, *after)
    cut = array.reshape(*before, parts, num_devices, size // (parts * num_devices), *after)
    return cut.swapaxes(axis, axis + 1).reshape(*before, num_devices, size // num_devices, *after)
