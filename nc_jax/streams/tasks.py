"""Task after task: the stream of continual learning."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nc_jax.checks import as_array, check_at_least
from nc_jax.data.source import ExampleSource
from nc_jax.streams.epochs import epoch_indices, steps_per_epoch
from nc_jax.streams.stream import Plan


@dataclass(frozen=True, eq=False)
class Tasks:
    """Every example of a task once per epoch, for some epochs; then those of the next task, and so on.

    A segment is an epoch of a task: segment s belongs to task s div E, with E epochs per task. The last batch of an
    epoch is filled up with padding, so no batch has examples of two tasks.

    Attributes:
        source: N examples.
        tasks: number of the task of each example, 0..T-1, shape (N,); -1 for examples that are never visited.
            `nc_jax.data.tasks` makes such arrays.
        batch_size: examples per step over all processes.
        epochs: passes over the examples of each task, E.

    Raises:
        ValueError: if a number is below 1, there is not one task number per example, or a task has no example.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> arrays = LabelledArrays(np.zeros((5, 2)), np.array([0, 0, 1, 1, 1]), num_classes=2)
        >>> stream = Tasks(arrays, arrays.labels, batch_size=2, epochs=1)
        >>> stream.ends, np.sort(stream.plan(0, 0).index).tolist()
        ((1, 3), [[0, 1]])
    """

    source: ExampleSource
    tasks: np.ndarray | Any
    batch_size: int
    epochs: int = 1
    _ends: tuple[int, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self):
        tasks = np.asarray(as_array(self.tasks, "tasks"))
        if tasks.shape != (len(self.source),) or not np.issubdtype(tasks.dtype, np.integer):
            raise ValueError(
                f"tasks must hold a whole number for each of the {len(self.source)} examples; "
                f"got {tasks.dtype} of shape {tasks.shape}"
            )
        if tasks.min() < -1 or tasks.max() < 0:
            raise ValueError(f"numbers of tasks count from 0, or are -1; got {tasks.min()}..{tasks.max()}")
        empty = np.flatnonzero(np.bincount(tasks[tasks >= 0]) == 0)
        if empty.size:
            raise ValueError(f"every task needs an example; task {empty[0]} of 0..{tasks.max()} has none")
        check_at_least("epochs", self.epochs)
        steps = [steps_per_epoch(int(count), self.batch_size) for count in np.bincount(tasks[tasks >= 0])]
        object.__setattr__(self, "tasks", tasks.astype(np.int32))
        object.__setattr__(self, "_ends", tuple(np.cumsum(np.repeat(steps, self.epochs)).tolist()))

    @property
    def ends(self) -> tuple[int, ...]:
        """Step numbers at which the epochs of all tasks end."""
        return self._ends

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches besides the source and the seed: see `nc_jax.training.fingerprint`."""
        return {"tasks": self.tasks, "batch_size": self.batch_size, "epochs_per_task": self.epochs}

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of an epoch of a task."""
        members = np.flatnonzero(self.tasks == segment // self.epochs)
        order = epoch_indices(np.zeros(len(members), np.int32), self.batch_size, seed=seed, epoch=segment)
        return Plan(np.where(order >= 0, members[order], -1).astype(np.int32))
