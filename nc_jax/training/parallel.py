"""The one pmap: a step on one device becomes the same step on all of them.

The state is replicated without a leading device axis (`in_axes=None`, `out_axes=None`), the batch is split on its first
axis. Steps sum over devices under the name `AXIS`.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np

AXIS = "devices"  # the name under which steps and heads sum over devices

Devices = Sequence[Any] | None  # of jax.Device, which is a variable to type checkers


def data_parallel(
    step: Callable[[Any, Any], Any], *, devices: Devices = None, donate: bool = False
) -> Callable[[Any, Any], Any]:
    """Run step(state, batch) on several devices, the batch split between them.

    Args:
        step: a function of a replicated tree and of a batch, a tree of arrays (N, ...), that returns replicated trees
            only (it has summed over `AXIS` whatever differs between devices).
        devices: which; None takes all local ones.
        donate: let the step reuse the memory of the state, which the caller then must not use again.

    Returns:
        A compiled function of the same arguments: the state, and the global batch with N divisible by the devices.

    Raises:
        ValueError: when called with a batch that the devices cannot share equally.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )

    @wraps(step)
    def run(state: Any, batch: Any) -> Any:
        return mapped(state, jax.tree.map(lambda array: _split(array, len(devices)), batch))

    return run


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raise a ValueError unless the devices can share a batch equally."""
    if batch_size % num_devices:
        raise ValueError(f"the batch size must be a multiple of the {num_devices} devices; got {batch_size}")


def _split(array: Any, num_devices: int) -> Any:
    array = np.asarray(array) if not isinstance(array, jax.Array) else array
    check_divisible(array.shape[0], num_devices)
    return array.reshape(num_devices, array.shape[0] // num_devices, *array.shape[1:])
