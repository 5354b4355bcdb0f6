"""Experience replay as a stream: what a memory of old examples holds is a pure function of the seed and the step."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from nc_jax.checks import check_at_least
from nc_jax.data.draws import draws_for
from nc_jax.streams.stream import Plan, Stream, locate

CHUNK = 4096  # about so many examples are compared with the memory at once
# The high half of the random key tells the purpose of the numbers; streams of epochs use the small ones.
_PRIORITIES, _DRAWS = 1 << 62, 1 << 63


@dataclass(frozen=True, eq=False)
class Replay:
    r"""Adds examples that were seen before to every step of a stream.

    The memory is a reservoir. Every example i has a priority :math:`u_i`, a random number that depends only on the seed
    and i. Before step s, the memory holds the `capacity` examples with the smallest priorities among all that earlier
    steps have shown. So it is a uniform random subset of the examples seen so far, without repetition, whatever the
    stream. An example that enters takes the place (slot) of the one that leaves.

    Each step of the stream gets `draws` times `draw_size` further examples: independent draws from the memory as it is
    before the step, each without replacement. As long as the memory holds fewer examples, the rest is padding.

    In the plan, `replayed` is 0 for the stream's own examples and m for those of the m-th draw. `slot` is the place in
    the memory: of a replayed example, its own; of a new one, the place that it has after the step, -1 if it has none.

    Attributes:
        stream: the stream of new examples.
        capacity: number of examples in the full memory, >= 1.
        draw_size: number of examples in each draw, >= 1.
        draws: number of independent draws in each step, >= 1.

    Raises:
        ValueError: if a number is below 1.

    Reference: Chaudhry et al., On tiny episodic memories in continual learning (2019); Vitter, Random sampling with a
    reservoir (1985), for the uniform subset.
    """

    stream: Stream
    capacity: int
    draw_size: int
    draws: int = 1
    _memories: dict[int, "_Reservoir"] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        for name in ("capacity", "draw_size", "draws"):
            check_at_least(f"{name} of a replay memory", getattr(self, name))

    @property
    def batch_size(self) -> int:
        """Examples per step, replayed ones and padding included."""
        return self.stream.batch_size + self.draws * self.draw_size

    @property
    def ends(self) -> Sequence[int]:
        """Step numbers at which the segments of the stream end."""
        return self.stream.ends

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches: see `nc_jax.training.fingerprint`."""
        return {name: getattr(self, name) for name in ("stream", "capacity", "draw_size", "draws")}

    def memory(self, seed: int, step: int) -> Int[np.ndarray, " held"]:
        """Return the numbers of the examples in the memory before a step, in the order of their slots.

        Args:
            seed: random seed of the stream.
            step: a step of the stream, or the number of its steps: then the memory at the end.

        Raises:
            ValueError: if the step is neither.
        """
        if not 0 <= step <= self.ends[-1]:
            raise ValueError(f"a step of this stream must lie in 0..{self.ends[-1]}; got {step}")
        return self._reservoir(seed).before(step)

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of a segment."""
        new = self.stream.plan(seed, segment).index
        start = self.ends[segment - 1] if segment else 0
        steps = np.arange(start, start + len(new) + 1)
        reservoir = self._reservoir(seed)
        held, entered = reservoir.before(start), reservoir.entries(start, start + len(new))
        rows = np.searchsorted(entered.step, steps)  # entries rows[s]..rows[s + 1]-1 are those of row s
        slots = self._drawn(seed, segment, np.minimum(len(held) + rows[:-1], self.capacity))
        memory = np.full(self.capacity, -1, np.int64)
        memory[: len(held)] = held
        place = np.full(max(new.max(initial=-1), memory.max()) + 2, -1, np.int64)  # of examples; the last: of padding
        place[held] = np.arange(len(held))
        index, new_slots = np.empty_like(slots), np.empty_like(new)
        for row in range(len(new)):
            index[row] = np.where(slots[row] >= 0, memory[slots[row]], -1)
            for entry in range(rows[row], rows[row + 1]):
                slot, example = entered.slot[entry], entered.example[entry]
                place[memory[slot]] = -1
                memory[slot], place[example] = example, slot
            new_slots[row] = place[new[row]]
        draw = np.repeat(np.arange(self.draws + 1), [new.shape[1], *[self.draw_size] * self.draws])
        parts = np.hstack([new, index]), np.hstack([new_slots, slots]), np.tile(draw, (len(new), 1))
        return Plan(*(part.astype(np.int32) for part in parts))

    def _drawn(self, seed: int, segment: int, counts: np.ndarray) -> np.ndarray:
        """Return the slots drawn in the steps of a segment, shape (S, draws * draw_size), -1 for padding.

        Args:
            seed: random seed of the stream.
            segment: number of the segment.
            counts: number of examples in the memory before each step, shape (S,).
        """
        numbers = draws_for(seed, _DRAWS + segment)
        counts = np.repeat(counts, self.draws)
        raw = numbers.random_raw((len(counts), self.draw_size))
        chosen, rows = np.full(raw.shape, -1, np.int64), np.arange(len(counts))
        taken = np.zeros((len(counts), max(self.capacity, self.draw_size)), bool)
        # Floyd's sampling without replacement: of places 0..j, take a random one, or j if that is taken; then j + 1.
        for place in range(self.draw_size):
            last = np.where(counts < self.draw_size, place, counts - self.draw_size + place)
            drawn = (raw[:, place] % (last + 1).astype(np.uint64)).astype(np.int64)
            found = np.where(taken[rows, drawn], last, drawn)
            taken[rows, found] = True
            chosen[:, place] = np.where(place < counts, found, -1)
        return chosen.reshape(-1, self.draws * self.draw_size)

    def _reservoir(self, seed: int) -> "_Reservoir":
        if seed not in self._memories:
            self._memories.clear()  # a run has one seed, and the entries of a large set take memory
            self._memories[seed] = _Reservoir(self.stream, self.capacity, seed)
        return self._memories[seed]


@dataclass(frozen=True)
class _Entries:
    """Examples that entered the memory, in their order: the step, the slot, and the example's number, shape (E,)."""

    step: np.ndarray
    slot: np.ndarray
    example: np.ndarray


class _Reservoir:
    """The memory of one run, simulated segment by segment as far as it is asked for."""

    def __init__(self, stream: Stream, capacity: int, seed: int):
        self._stream, self._capacity, self._seed = stream, capacity, seed
        self._segments = 0  # so many have been simulated
        self._held: list[tuple[int, int, int]] = []  # a heap of (-priority, slot, example), the largest priority first
        self._inside: set[int] = set()  # the examples in it
        self._priorities = np.zeros(0, np.uint64)
        self._log: list[tuple[int, int, int]] = []  # (step, slot, example) of every entry
        self._entries = np.zeros((0, 3), np.int64)  # the same as an array

    def before(self, step: int) -> np.ndarray:
        """Return the examples in the memory before a step, in the order of their slots."""
        entered = self.entries(0, step)
        content = np.full(self._capacity, -1, np.int64)
        content[entered.slot] = entered.example  # of several entries into a slot, NumPy keeps the last
        return content[content >= 0]

    def entries(self, start: int, stop: int) -> _Entries:
        """Return the entries of the steps start..stop-1."""
        if stop:
            self._simulate(locate(self._stream, stop - 1)[0])
        if len(self._entries) < len(self._log):
            self._entries = np.array(self._log, np.int64)
        first, last = np.searchsorted(self._entries[:, 0], [start, stop])
        return _Entries(*self._entries[first:last].T)

    def _simulate(self, segment: int) -> None:
        """Offer the examples of all segments up to this one to the memory."""
        for number in range(self._segments, segment + 1):
            index = self._stream.plan(self._seed, number).index
            if index.max() >= len(self._priorities):
                # The first numbers of a generator do not depend on how many are drawn.
                self._priorities = draws_for(self._seed, _PRIORITIES).random_raw(index.max() + 1)
            step = self._stream.ends[number - 1] if number else 0
            rows = max(CHUNK // index.shape[1], 1)
            for row in range(0, len(index), rows):
                self._offer(index[row : row + rows], step + row)
            self._segments = number + 1

    def _offer(self, index: np.ndarray, step: int) -> None:
        """Offer the examples of a few steps, the first of which is `step`.

        An example that has left the memory, or was refused, is refused again, since the largest priority in a full
        memory only decreases.
        """
        wanted = index >= 0
        if len(self._held) == self._capacity:
            wanted &= self._priorities[index] < np.uint64(-self._held[0][0])
        for row, column in np.argwhere(wanted):
            self._take(int(index[row, column]), step + int(row))

    def _take(self, example: int, step: int) -> None:
        priority, slot = int(self._priorities[example]), len(self._held)
        if example in self._inside:
            return
        if slot < self._capacity:
            heapq.heappush(self._held, (-priority, slot, example))
        elif priority < -self._held[0][0]:
            slot = self._held[0][1]
            _, _, left = heapq.heapreplace(self._held, (-priority, slot, example))
            self._inside.remove(left)
        else:
            return
        self._inside.add(example)
        self._log.append((step, slot, example))
