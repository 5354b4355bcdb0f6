"""Training on a small class-balanced part of a set, again and again."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from nc_jax.checks import check_whole
from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.draws import draws_for
from nc_jax.streams.epochs import epoch_order
from nc_jax.streams.stream import Plan, Stream

# The high half of the random key tells the purpose of the numbers; streams of epochs use the small ones.
_PRIORITIES = 1 << 60


@dataclass(frozen=True, eq=False)
class BalancedSubset:
    """Trains for as many steps as another stream, but on a class-balanced random subset of the examples only.

    The subset is what a greedy balancing sampler holds when the other stream has ended: of every class equally many
    examples, drawn at random; more of the others where a class is too small. Passes over the subset follow each other
    without padding.

    Attributes:
        stream: gives the number of steps and the batch size.
        source: the examples.
        capacity: number of examples in the subset, >= 1.
        segments: number of equal parts into which the steps are cut, >= 1.

    Raises:
        ValueError: if a number is out of its range.

    Reference: Prabhu, Torr and Dokania, GDumb: a simple approach that questions our progress in continual learning
    (2020), section 3. (They train to convergence on the subset; here the number of steps is that of the other methods.)
    """

    stream: Stream
    source: LabelledArrays
    capacity: int
    segments: int
    _chosen: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_whole("capacity", self.capacity)
        check_whole("segments", self.segments)
        if not 1 <= self.capacity <= len(self.source):
            raise ValueError(f"a subset must hold 1 to all {len(self.source)} examples; got {self.capacity}")
        if not 1 <= self.segments <= self.stream.ends[-1]:
            raise ValueError(f"{self.stream.ends[-1]} steps have 1 to as many segments; got {self.segments}")

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self.stream.batch_size

    @property
    def ends(self) -> tuple[int, ...]:
        """Step numbers at which segments end."""
        steps = self.stream.ends[-1]
        return tuple(steps * number // self.segments for number in range(1, self.segments + 1))

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches besides the source and the seed: see `nc_jax.training.fingerprint`."""
        return {name: getattr(self, name) for name in ("stream", "capacity", "segments")}

    def memory(self, seed: int, step: int = 0) -> Int[np.ndarray, " held"]:
        """Return the numbers of the examples in the subset, which is the same before all steps."""
        del step
        if seed not in self._chosen:
            self._chosen.clear()
            priorities = draws_for(seed, _PRIORITIES).random_raw(len(self.source))
            order = np.lexsort((priorities, self.source.labels))  # by class, at random within each
            counts = self.source.class_counts()
            ranks = np.empty(len(order), np.int64)
            ranks[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
            self._chosen[seed] = np.sort(np.lexsort((priorities, ranks))[: self.capacity])
        return self._chosen[seed]

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of a segment."""
        members = self.memory(seed)
        first, last = (self.ends[segment - 1] if segment else 0) * self.batch_size, self.ends[segment] * self.batch_size
        passes = range(first // self.capacity, -(-last // self.capacity))
        none = np.zeros(self.capacity, np.int32)
        shown = np.concatenate([members[epoch_order(none, seed, number)] for number in passes])
        start = first - passes[0] * self.capacity
        return Plan(shown[start : start + last - first].reshape(-1, self.batch_size).astype(np.int32))
