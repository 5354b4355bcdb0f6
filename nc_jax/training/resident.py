"""Epochs of a set that fits on the device: the host gathers, moves and awaits no batch."""

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


def resident_steps(
    step: Callable[[Any, Any, dict], tuple[Any, Any]], *, devices: Devices = None, donate: bool = False, parts: int = 1
) -> Callable[[Any, Any, dict, Int[np.ndarray, "steps batch"]], Any]:
    """Compile step after step, as one program where that is quicker.

    XLA's CPU backend runs a convolution in a loop's body on one core and without its fast kernels (a training step of a
    ResNet-18 of width 1/4 took 17 s in a scan and 1.0 s out of it): such steps are started one by one there.

    Args:
        step: (carry, constant, batch) -> (carry, report), of replicated trees as for `data_parallel`. Nobody reads the
            report, but a compiled step should return it: without, XLA took 315 s instead of 22 for an EfficientNet's on
            a CPU (JAX 0.10.2).
        devices: see `data_parallel`.
        donate: reuse the memory of the carry.
        parts: see `data_parallel`.

    Returns:
        A function (carry, constant, content of a ResidentSet, example numbers of the batches) -> carry.
    """

    def scan(carry: Any, constant: Any, content: dict, batches: Any) -> Any:
        def body(carry: Any, chosen: Any) -> tuple[Any, None]:
            return step(carry, constant, _take(content, chosen))[0], None

        return jax.lax.scan(body, carry, batches)[0]

    # It does not see the size of the set, so sets share the compiled step.
    mapped_one = data_parallel(step, devices=devices, donate=donate, split=(None, 0), parts=parts)
    take = jax.jit(_take)
    mapped_scan = data_parallel(scan, devices=devices, donate=donate, split=(None, None, 1), parts=parts)
    in_one_program: list[bool] = []  # known once there are arguments

    def run(carry: Any, constant: Any, content: dict, batches: Int[np.ndarray, "steps batch"]) -> Any:
        if not in_one_program:
            on_cpu = (devices or jax.local_devices())[0].platform == "cpu"
            slow = on_cpu and _convolves(mapped_one, carry, constant, take(content, batches[0]))
            in_one_program.append(not slow)
        if in_one_program[0]:
            return mapped_scan(carry, constant, content, batches)
        for chosen in batches:
            carry, _ = mapped_one(carry, constant, take(content, chosen))
        return carry

    return run


def _convolves(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function has a convolution anywhere. What is traced for that is not traced again for a call."""
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*arguments))


def _take(content: dict, chosen: Any) -> dict:
    """Gather a batch; padding has features 0 and labels -1, as in `nc_jax.data.batches`."""
    used = chosen >= 0
    features = content["features"][jnp.maximum(chosen, 0)]
    return {
        "features": jnp.where(used.reshape(-1, *[1] * (features.ndim - 1)), features, 0),
        "labels": jnp.where(used, content["labels"][jnp.maximum(chosen, 0)], PADDING_LABEL),
    }
