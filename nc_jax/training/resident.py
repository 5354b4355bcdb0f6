"""Epochs of a set that fits on the device, as one compiled scan: the host gathers, moves and awaits no batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from nc_jax.data import LabelledArrays, epoch_indices
from nc_jax.data.pipeline import PADDING_LABEL
from nc_jax.training.parallel import Devices, data_parallel, replicate

LIMIT = 256 * 2**20  # bytes of features; all that is called small here is below it, ImageNet far above


def fits(arrays: LabelledArrays) -> bool:
    """Whether a set is so small that it may stay on every device."""
    return arrays.features.nbytes <= LIMIT


class ResidentSet:
    """A set on the devices.

    Args:
        arrays: the set.
        batch_size: examples per step on all devices together.
        devices: None takes all local ones.
    """

    def __init__(self, arrays: LabelledArrays, batch_size: int, *, devices: Devices = None):
        self.arrays, self.batch_size = arrays, batch_size
        self.content = replicate({"features": arrays.features, "labels": arrays.labels}, devices)
        self.in_order = epoch_indices(arrays.labels, batch_size, shuffle=False).astype(np.int32)

    def shuffled(self, seed: int, epoch: int, *, stratified: bool) -> Int[np.ndarray, "steps batch"]:
        """Return the batches of an epoch, those of `nc_jax.data.batches`, as example numbers."""
        labels = self.arrays.labels
        order = epoch_indices(labels, self.batch_size, seed=seed, epoch=epoch, stratified=stratified)
        return order.astype(np.int32)


def scan_steps(
    step: Callable[[Any, Any, dict], Any], *, devices: Devices = None, donate: bool = False, parts: int = 1
) -> Callable[[tuple[Any, Any], dict, Int[np.ndarray, "steps batch"]], Any]:
    """Compile step after step into one program.

    Args:
        step: (constant, carry, batch) -> carry, of replicated trees as for `data_parallel`.
        devices: see `data_parallel`.
        donate: reuse the memory of the constant and of the carry.
        parts: see `data_parallel`.

    Returns:
        A function ((constant, carry), content of a ResidentSet, example numbers of the batches) -> carry.
    """

    def steps(start: tuple[Any, Any], content: dict, batches: Any) -> Any:
        constant, carry = start

        def advance(carry: Any, chosen: Any) -> tuple[Any, None]:
            return step(constant, carry, _take(content, chosen)), None

        return jax.lax.scan(advance, carry, batches)[0]

    return data_parallel(steps, devices=devices, donate=donate, split=(None, 1), parts=parts)


def _take(content: dict, chosen: Any) -> dict:
    """Gather a batch; padding has features 0 and labels -1, as in `nc_jax.data.batches`."""
    used = chosen >= 0
    features = content["features"][jnp.maximum(chosen, 0)]
    return {
        "features": jnp.where(used.reshape(-1, *[1] * (features.ndim - 1)), features, 0),
        "labels": jnp.where(used, content["labels"][jnp.maximum(chosen, 0)], PADDING_LABEL),
    }
