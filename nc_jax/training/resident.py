"""Training on a set that is kept on the devices: the devices gather the batches, and the host copies no data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nc_jax.checks import PADDING_LABEL
from nc_jax.data import Batch, ExampleSource, LabelledArrays
from nc_jax.data.batch import rows_with
from nc_jax.streams import Epochs, Plan, local_rows
from nc_jax.training.parallel import Devices, data_parallel, replicate

LIMIT = 256 * 2**20  # bytes of inputs of the largest set that is kept on the devices by default


def fits(*sets: LabelledArrays) -> bool:
    """Return whether the inputs of sets take at most `LIMIT` bytes together, so that every device may hold a copy."""
    return sum(one.inputs.nbytes for one in sets) <= LIMIT


def belongs_on_devices(examples: ExampleSource, resident: bool | None) -> bool:
    """Return whether a set of examples is to be kept on the devices.

    Args:
        examples: the set.
        resident: what the user wants; None keeps sets in memory that fit, in a single process.

    Raises:
        ValueError: if the user wants what cannot be.
    """
    if jax.process_count() == 1 and isinstance(examples, LabelledArrays):
        return fits(examples) if resident is None else resident
    if resident:
        raise ValueError(
            f"resident sets must be in memory, in a single process; got {examples!r} in {jax.process_count()}"
        )
    return False


def padded(plan: Plan, rows: int = 1) -> Plan:
    """Return a plan with more rows, up to a power of two, so that plans of similar lengths share a compiled program.

    The rows that are added are never used.

    Args:
        plan: the steps.
        rows: least number of rows.
    """
    given = len(plan.index)
    more = (1 << (max(given, rows) - 1).bit_length()) - given
    parts: Any = (None if part is None else np.pad(part, ((0, more), (0, 0)), constant_values=-1) for part in plan)
    return Plan(*parts)


class ResidentSet:
    """A set of examples, copied to every device.

    Args:
        arrays: the set.
        batch_size: examples per step of an evaluation, on all devices together.
        devices: local devices; None takes all of them.
        content: arrays on the devices that hold the set, and the number of its first example there; None copies the
            set.
        rows: least number of rows of the plan of an evaluation.
    """

    def __init__(
        self,
        arrays: LabelledArrays,
        batch_size: int,
        *,
        devices: Devices = None,
        content: dict | None = None,
        rows: int = 1,
    ):
        self.arrays, self.batch_size = arrays, batch_size
        self.content = _on_devices([arrays], devices)[0] if content is None else content
        plan = Epochs(arrays, batch_size, shuffle=False).plan(0, 0)
        self.in_order, self.all = padded(plan, rows), (0, len(plan.index))

    @classmethod
    def side_by_side(
        cls, sets: Sequence[LabelledArrays], batch_size: int, *, devices: Devices = None
    ) -> "list[ResidentSet]":
        """Copy sets to every device. If they are alike, compiled programs serve all of them.

        Args:
            sets: the sets.
            batch_size: examples per step of an evaluation, on all devices together.
            devices: local devices; None takes all of them.
        """
        alike = len({(one.inputs.shape[1:], one.inputs.dtype) for one in sets}) == 1
        contents = _on_devices(sets, devices) if alike and fits(*sets) else [None] * len(sets)
        rows = -(-max(map(len, sets), default=0) // batch_size)
        return [
            cls(one, batch_size, devices=devices, content=content, rows=rows)
            for one, content in zip(sets, contents, strict=True)
        ]


def _on_devices(sets: Sequence[LabelledArrays], devices: Devices) -> list[dict]:
    """Copy sets to the devices, one after another in the same arrays; return a content for each."""
    parts = {name: [getattr(one, name) for one in sets] for name in ("inputs", "labels")}
    # A single set is not copied on the host.
    arrays = {name: found[0] if len(found) == 1 else np.concatenate(found) for name, found in parts.items()}
    shared = replicate(arrays, devices)
    firsts = np.cumsum([0, *map(len, sets[:-1])], dtype=np.int32)
    return [shared | {"first": replicate(first, devices)} for first in firsts]


def resident_steps(
    step: Callable[[Any, Any, Batch], tuple[Any, Any]],
    *,
    devices: Devices = None,
    donate: bool = False,
    parts: int = 1,
    pieces: Callable[[Any, Batch], tuple[Any, Any]] | None = None,
) -> Callable[[Any, Any, dict, Plan, int, int], Any]:
    """Compile a sequence of steps, as one program where that is faster. The program serves any part of the sequence.

    On a CPU, steps with convolutions are started one by one instead: inside a loop, XLA's CPU backend runs convolutions
    on one core and without its fast kernels. (A training step of a ResNet-18 of width 1/4 took 17 s inside a scan and
    1.0 s outside.)

    Args:
        step: (carry, constant, batch) -> (carry, report). Carry and constant are replicated as in `data_parallel`.
            The report is discarded. Return it anyway: without it, XLA needs 315 s instead of 22 s to compile the step
            of an EfficientNet on a CPU (JAX 0.10.2).
        devices: local devices to use; None takes all of them.
        donate: let the steps reuse the memory of the carry; the caller must not use the old carry again.
        parts: number of equal parts of a batch; every device gets an equal share of each part.
        pieces: (carry, batch) -> (carry, report), the same step for steps that are started one by one, if `step` itself
            has a loop. None: it has none.

    Returns:
        A function (carry, constant, content of a `ResidentSet`, plan of the steps, first, last) -> carry, which runs
        the steps first..last-1 of the plan.
    """

    def loop(carry: Any, constant: Any, content: dict, first: Any, last: Any, plan: Plan) -> Any:
        def body(row: Any, carry: Any) -> Any:
            chosen = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, row, keepdims=False), plan)
            return step(carry, constant, _take(content, chosen))[0]

        return jax.lax.fori_loop(first, last, body, carry)

    # The single step takes gathered batches and not the whole set, so sets of different sizes share its program.
    mapped_one = data_parallel(step, devices=devices, donate=donate, split=(None, 0), parts=parts)
    take = jax.jit(_take)
    split = (None, None, None, None, 1)
    mapped_loop = data_parallel(loop, devices=devices, donate=donate, split=split, parts=parts)
    in_one_program: list[bool] = []  # decided at the first call, which brings the arguments to trace with

    def run(carry: Any, constant: Any, content: dict, plan: Plan, first: int, last: int) -> Any:
        if not in_one_program:
            slow = slow_in_loops(devices, mapped_one, carry, constant, take(content, local_rows(plan, 0)))
            in_one_program.append(not slow)
        if in_one_program[0]:
            return mapped_loop(carry, constant, content, np.int32(first), np.int32(last), plan)
        for row in range(first, last):
            batch = take(content, local_rows(plan, row))
            carry, _ = mapped_one(carry, constant, batch) if pieces is None else pieces(carry, batch)
        return carry

    return run


def slow_in_loops(devices: Devices, function: Callable[..., Any], *arguments: Any) -> bool:
    """Return whether a function would be slow inside a compiled loop: one with convolutions, on a CPU."""
    on_cpu = (devices or jax.local_devices())[0].platform == "cpu"
    # JAX caches this trace, so a call does not trace again.
    return on_cpu and "conv_general_dilated" in str(jax.make_jaxpr(function)(*arguments))


def without_loops(
    step: Callable[[Any, Batch], tuple[Any, Any]], pieces: Callable[[Any, Batch], tuple[Any, Any]], devices: Devices
) -> Callable[[Any, Batch], tuple[Any, Any]]:
    """Return one of two equal steps, the compiled one or the one in pieces: that which is faster on the devices."""
    faster: list[Callable[[Any, Batch], tuple[Any, Any]]] = []  # decided at the first call

    def run(state: Any, batch: Batch) -> tuple[Any, Any]:
        if not faster:
            faster.append(pieces if slow_in_loops(devices, step, state, batch) else step)
        return faster[0](state, batch)

    return run


def _take(content: dict, chosen: Plan) -> Batch:
    """Gather a batch, with the same padding as `nc_jax.streams.read`."""
    mask = chosen.index >= 0
    rows = content["first"] + jnp.maximum(chosen.index, 0)
    inputs = content["inputs"][rows]
    return Batch(
        inputs=jnp.where(rows_with(mask, inputs), inputs, 0),
        labels=jnp.where(mask, content["labels"][rows], PADDING_LABEL),
        mask=mask,
        **chosen._asdict(),
    )
