"""A few examples of each class of earlier tasks, which come back in every step of later ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from nc_jax.checks import check_at_least
from nc_jax.data.draws import draws_for
from nc_jax.data.source import labels_of
from nc_jax.streams.stream import Plan, locate
from nc_jax.streams.tasks import Tasks

# The high half of the random key tells the purpose of the numbers; streams of epochs use the small ones.
_PRIORITIES, _DRAWS = 1 << 59, 1 << 58


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Adds examples of earlier tasks to every step, from a memory that has equally many of each class.

    When a task ends, some random examples of each of its classes enter the memory (exemplars), and stay. A reservoir
    (`Replay`) is a uniform subset of all examples instead: where tasks are of unequal size, it has hardly any example
    of a class with few.

    Each step of the tasks' stream gets `draw_size` further examples, a random draw from the memory without replacement.
    As long as the memory holds fewer examples, the rest is padding. In the plan, `replayed` is 0 for the stream's own
    examples and 1 for drawn ones.

    Attributes:
        stream: the tasks, of a set whose labels are known.
        per_class: number of examples that are kept of each class of a task, >= 1; all of a class with fewer.
        draw_size: number of examples in each draw, >= 1.

    Raises:
        ValueError: if a number is below 1, or the labels are not known.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> arrays = LabelledArrays(np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 2]), num_classes=3)
        >>> stream = Exemplars(Tasks(arrays, arrays.labels, batch_size=4), per_class=1, draw_size=2)
        >>> arrays.labels[stream.memory(seed=0, step=2)], np.sum(stream.plan(0, 1).index >= 0)
        (array([0, 1], dtype=int32), np.int64(3))

    Reference: Rebuffi et al., iCaRL (2017), for exemplars of each class. (They choose them by herding.)
    """

    stream: Tasks
    per_class: int
    draw_size: int

    def __post_init__(self):
        for name in ("per_class", "draw_size"):
            check_at_least(f"{name} of a memory of exemplars", getattr(self, name))
        if labels_of(self.stream.source) is None:
            raise ValueError(f"exemplars need a set whose labels are known; got {self.stream.source!r}")

    @property
    def batch_size(self) -> int:
        """Examples per step, drawn ones and padding included."""
        return self.stream.batch_size + self.draw_size

    @property
    def ends(self) -> Sequence[int]:
        """Step numbers at which the epochs of all tasks end."""
        return self.stream.ends

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches besides the source and the seed: see `nc_jax.training.fingerprint`."""
        return {name: getattr(self, name) for name in ("stream", "per_class", "draw_size")}

    def memory(self, seed: int, step: int) -> Int[np.ndarray, " held"]:
        """Return the numbers of the examples in the memory before a step, ascending.

        Args:
            seed: random seed of the stream.
            step: a step of the stream, or the number of its steps: then the memory at the end.

        Raises:
            ValueError: if the step is neither.
        """
        segment = len(self.ends) if step == self.ends[-1] else locate(self, step)[0]
        return np.flatnonzero(self._kept(seed) & (self.stream.tasks < segment // self.stream.epochs))

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of an epoch of a task."""
        new = self.stream.plan(seed, segment).index
        memory = self.memory(seed, self.ends[segment - 1] if segment else 0)
        numbers = draws_for(seed, _DRAWS + segment).random_raw((len(new), len(memory)))
        drawn = np.full((len(new), self.draw_size), -1, np.int32)
        chosen = memory[np.argsort(numbers, axis=1, kind="stable")[:, : self.draw_size]]
        drawn[:, : chosen.shape[1]] = chosen
        replayed = np.repeat([0, 1], [new.shape[1], self.draw_size]).astype(np.int32)
        return Plan(np.hstack([new, drawn]), replayed=np.tile(replayed, (len(new), 1)))

    def _kept(self, seed: int) -> Bool[np.ndarray, " examples"]:
        """Return which examples are kept when their task ends."""
        labels, tasks = np.asarray(labels_of(self.stream.source)), self.stream.tasks
        priorities = draws_for(seed, _PRIORITIES).random_raw(len(labels))
        order = np.lexsort((priorities, labels, tasks))  # by task and class, at random within each
        group = np.stack([tasks[order], labels[order]])
        begins = np.append(True, (group[:, 1:] != group[:, :-1]).any(axis=0))
        ranks = np.arange(len(order)) - np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        kept = np.zeros(len(labels), bool)
        kept[order] = ranks < self.per_class
        return kept & (tasks >= 0)
