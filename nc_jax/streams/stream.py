"""Streams: which examples make up step s, and where a run stops to look."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int


class Plan(NamedTuple):
    """The examples of consecutive steps, a row for each step.

    Attributes:
        index: example numbers, -1 for padding at the end of a row, shape (S, B), int32.
        slot: place of each example in a replay memory, -1 without, shape (S, B), int32; None where there is no memory.
        replayed: which examples come out of that memory, shape (S, B), bool; None where there is none.
    """

    index: Int[np.ndarray, "steps batch"]
    slot: Int[np.ndarray, "steps batch"] | None = None
    replayed: Bool[np.ndarray, "steps batch"] | None = None


@runtime_checkable
class Stream(Protocol):
    """Which examples make up step s: a pure function of the seed and s, so that a run resumes at any step.

    Training is cut into segments (epochs, tasks, rounds). At the end of each the run evaluates and saves.

    Streams compose: a replay memory, say, is a stream that takes another and adds old examples to its steps. Which
    examples a reservoir holds at step s is a function of the seed and s as well, so the memory itself is no state.
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
        """Return the steps of a segment."""
        ...


def locate(stream: Stream, step: int) -> tuple[int, int]:
    """Return the segment that holds a step, and the step's place in it.

    Raises:
        ValueError: if the stream ends before that step.
    """
    ends = stream.ends
    segment = bisect.bisect_right(ends, step)
    if not 0 <= step < ends[-1]:
        raise ValueError(f"a step of this stream must lie in 0..{ends[-1] - 1}; got {step}")
    return segment, step - (ends[segment - 1] if segment else 0)


def local_rows(plan: Plan, rows: slice | int, columns: np.ndarray | slice = slice(None)) -> Plan:
    """Return some steps of a plan, and of these the places in the batch that are wanted."""
    index, slot, replayed = (None if part is None else part[rows][..., columns] for part in plan)
    assert index is not None, "a plan always has one"
    return Plan(index, slot, replayed)
