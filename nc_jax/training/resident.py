"""Epochs of a set that fits on the device: the host gathers, moves and awaits no batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nc_jax.data import Batch, LabelledArrays
from nc_jax.data.batch import PADDING_LABEL, rows_with
from nc_jax.streams import Epochs, Plan, local_rows
from nc_jax.training.parallel import Devices, data_parallel, replicate

LIMIT = 256 * 2**20  # bytes of inputs; all that is called small here is below it, ImageNet far above


def fits(arrays: LabelledArrays) -> bool:
    """Whether a set is so small that it may stay on every device."""
    return arrays.inputs.nbytes <= LIMIT


class ResidentSet:
    """A set on the devices.

    Args:
        arrays: the set.
        batch_size: examples per step on all devices together.
        devices: None takes all local ones.
    """

    def __init__(self, arrays: LabelledArrays, batch_size: int, *, devices: Devices = None):
        self.arrays, self.batch_size = arrays, batch_size
        self.content = replicate({"inputs": arrays.inputs, "labels": arrays.labels}, devices)
        self.in_order = Epochs(arrays, batch_size, shuffle=False).plan(0, 0)


def resident_steps(
    step: Callable[[Any, Any, Batch], tuple[Any, Any]], *, devices: Devices = None, donate: bool = False, parts: int = 1
) -> Callable[[Any, Any, dict, Plan], Any]:
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
        A function (carry, constant, content of a `ResidentSet`, plan of the steps) -> carry.
    """

    def scan(carry: Any, constant: Any, content: dict, plan: Plan) -> Any:
        def body(carry: Any, chosen: Any) -> tuple[Any, None]:
            return step(carry, constant, _take(content, chosen))[0], None

        return jax.lax.scan(body, carry, plan)[0]

    # It does not see the size of the set, so sets share the compiled step.
    mapped_one = data_parallel(step, devices=devices, donate=donate, split=(None, 0), parts=parts)
    take = jax.jit(_take)
    mapped_scan = data_parallel(scan, devices=devices, donate=donate, split=(None, None, 1), parts=parts)
    in_one_program: list[bool] = []  # known once there are arguments

    def run(carry: Any, constant: Any, content: dict, plan: Plan) -> Any:
        if not in_one_program:
            on_cpu = (devices or jax.local_devices())[0].platform == "cpu"
            slow = on_cpu and _convolves(mapped_one, carry, constant, take(content, local_rows(plan, 0)))
            in_one_program.append(not slow)
        if in_one_program[0]:
            return mapped_scan(carry, constant, content, plan)
        for row in range(len(plan.index)):
            carry, _ = mapped_one(carry, constant, take(content, local_rows(plan, row)))
        return carry

    return run


def _convolves(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function has a convolution anywhere. What is traced for that is not traced again for a call."""
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*arguments))


def _take(content: dict, chosen: Plan) -> Batch:
    """Gather a batch; padding is as `nc_jax.streams.read` gives it."""
    mask = chosen.index >= 0
    inputs = content["inputs"][jnp.maximum(chosen.index, 0)]
    return Batch(
        inputs=jnp.where(rows_with(mask, inputs), inputs, 0),
        labels=jnp.where(mask, content["labels"][jnp.maximum(chosen.index, 0)], PADDING_LABEL),
        mask=mask,
        index=chosen.index,
        slot=chosen.slot,
        replayed=chosen.replayed,
    )
