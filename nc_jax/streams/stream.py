"""Streams: which examples make up step s, and after which steps a run evaluates."""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from nc_jax.checks import check_whole


class Plan(NamedTuple):
    """The examples of S consecutive steps with B examples each: one row for each step.

    Attributes:
        index: example numbers, shape (S, B), int32; -1 for padding at the end of a row.
        slot: place of each example in a replay memory, shape (S, B), int32; -1 for examples without a place. None if
            there is no replay memory.
        replayed: 0 for new examples, m for those of the m-th draw from the replay memory, shape (S, B), int32. None if
            there is no replay memory.
        client: number of the client of each place, also of padding, shape (S, B), int32. None if there are no clients.
    """

    index: Int[np.ndarray, "steps batch"]
    slot: Int[np.ndarray, "steps batch"] | None = None
    replayed: Int[np.ndarray, "steps batch"] | None = None
    client: Int[np.ndarray, "steps batch"] | None = None


@runtime_checkable
class Stream(Protocol):
    """Which examples make up step s: a pure function of the seed and s, so that a run resumes at any step.

    Training is cut into segments (epochs, tasks, rounds). At the end of a segment the run may evaluate and save.

    Streams compose: a replay memory, for instance, is a stream that wraps another stream and adds old examples to its
    steps. The content of the memory at step s is also a function of the seed and s, so it is not part of the state.

    A run that goes on must have the stream with which it began; `nc_jax.training.fingerprint` compares all the fields.
    A stream whose fields do not all decide its batches says which do by a method `fingerprint`.
    """

    @property
    def batch_size(self) -> int:
        """Examples per step, padding included."""
        ...

    @property
    def ends(self) -> Sequence[int]:
        """Step numbers at which segments end, ascending; the last one is the number of steps."""
        ...

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of a segment."""
        ...


def locate(stream: Stream, step: int) -> tuple[int, int]:
    """Return the number of the segment that contains a step, and the place of the step in this segment, from 0.

    Raises:
        ValueError: if the step is negative, or the stream ends before it.
    """
    check_whole("step", step)
    ends = stream.ends
    segment = bisect.bisect_right(ends, step)
    if not 0 <= step < ends[-1]:
        raise ValueError(f"a step of this stream must lie in 0..{ends[-1] - 1}; got {step}")
    return segment, step - (ends[segment - 1] if segment else 0)


def local_rows(plan: Plan, rows: slice | int, columns: np.ndarray | slice = slice(None)) -> Plan:
    """Return some steps (rows) of a plan, and only some places (columns) of their batches."""
    parts: Any = (None if part is None else part[rows][..., columns] for part in plan)
    return Plan(*parts)
