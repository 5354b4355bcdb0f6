"""What experiments on continual learning measure: accuracies after each task, and what is forgotten."""

import math
from typing import Any

import jax
import numpy as np

from nc_jax.data import LabelledArrays
from nc_jax.methods import Setting
from nc_jax.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    nearest_mean_scores,
)
from nc_jax.study.comparison import MOST_IN_ROWS, Found, Run
from nc_jax.study.data import Data, DataOptions
from nc_jax.study.heat_maps import rounded
from nc_jax.study.occupancy import occupancy
from nc_jax.study.outputs import Outputs, unit_rows
from nc_jax.study.settings import Comparison
from nc_jax.study.trainers import setting_of
from nc_jax.training import Trainer, TrainState
from nc_jax.training.running import Watch, watch_nothing

# A decision by the nearest class mean costs no training, so for these methods it comes with their own runs.
BY_MEANS = ("er", "er-fno", "few-shot", "few-shot-linear")
KINDS = ("class_il", "task_il")  # accuracies among all classes, and among the classes of the task


def check_tasks(settings: Comparison) -> None:
    """Raise a ValueError unless a run has several tasks, evaluates after each, and takes images as they are stored."""
    data, usual = settings.data, DataOptions()
    if any(getattr(data, name) != getattr(usual, name) for name in ("image_size", "train_crop", "test_crop")):
        raise ValueError(
            "images are cut into tasks as they are stored, so without --data.image-size, --data.train-crop and "
            f"--data.test-crop; got {data.image_size}, {data.train_crop} and {data.test_crop}"
        )
    loop, tasks = settings.loop, settings.continual.tasks
    if tasks < 2:
        raise ValueError(f"continual learning needs at least two tasks; got --continual.tasks {tasks}")
    if loop.epochs % loop.evaluate_every:
        raise ValueError(
            "evaluate_every must divide the epochs of a task, so that the end of each task is evaluated; "
            f"got {loop.evaluate_every} and {loop.epochs}"
        )


def watching(trainer: Trainer, data: Data, settings: Comparison) -> Watch:
    """Return what finds the accuracy on each task at every evaluation: "class_il/0", "task_il/0" and so on."""
    tasks = data.tasks
    if tasks is None:
        return watch_nothing
    setting = setting_of(settings, data)

    def watch(state: TrainState, train: Any, test: Any) -> dict[str, float]:
        del train, test
        found = Outputs.of(trainer, state, data.test)
        return {
            f"{kind}/{task}": float(share)
            for kind, right in _right(found.logits, found.labels, setting).items()
            for task, share in enumerate(_shares(right, tasks[1]))
        }

    return watch


def measure(run: Run) -> Found:
    """Return the accuracies over all tasks at the end, forgetting and transfer, and what pictures need.

    Returns:
        "class_il" and "task_il" (none in domain-incremental learning), the mean accuracy over the tasks after the last
        one; "rate_error", by which learning rates are chosen; "forgetting", "backward_transfer" and "forward_transfer",
        NaN for a method that does not visit task after task; "matrix", accuracies on each task (columns) after each
        task (rows); "confusion_by_time", with classes in the order in which they were learned; "occupancy", for a frame
        whose class vectors share no feature. With a base session, also what `_of_sessions` returns. Under "also", for
        some methods, the accuracies of the nearest class mean of the memory.
    """
    matrices = {kind: _matrix(run, kind) for kind in KINDS}
    matrix, untrained = matrices["class_il"], _accuracies(run.history, 0, "class_il")
    found: Found = {"class_il": float(average_accuracy(matrix)), "matrix": rounded(matrix, 4)}
    if run.group.settings.continual.base is not None:
        found |= _of_sessions(matrix, run.data)
    found["rate_error"] = 1 - found.get("accuracy_seen", found["class_il"])
    found["forgetting"] = float(forgetting(matrix))
    found["backward_transfer"] = float(backward_transfer(matrix))
    found["forward_transfer"] = float(forward_transfer(matrix, untrained))
    if np.isfinite(matrices["task_il"][-1]).all():
        found["task_il"] = float(average_accuracy(matrices["task_il"]))
    confusion, tested = run.trained.test.confusion, Outputs.of(run.trainer, run.trained.state, run.data.test)
    if confusion is not None and run.data.num_classes <= MOST_IN_ROWS:
        found["confusion_by_time"] = np.asarray(confusion).tolist()
        found |= occupancy(np.asarray(run.trained.test.frame), tested)
    if run.group.method in BY_MEANS:
        found["also"] = {f"{run.group.label} + nearest mean": by_means(run, tested)}
    return found


def by_means(run: Run, tested: Outputs) -> Found:
    """Return the accuracies over all tasks at the end if the nearest class mean of the memory's features decides.

    Features and class means have unit length.

    Reference: Rebuffi et al., iCaRL (2017). (They choose the examples of the memory by herding; here they are random.)
    """
    assert isinstance(run.data.train, LabelledArrays) and run.data.tasks is not None, "tasks are cut in memory"  # noqa: PT018
    memory = run.stream.memory(run.seed, run.stream.ends[-1])  # pyright: ignore[reportAttributeAccessIssue]
    held = Outputs.of(run.trainer, run.trained.state, run.data.train.subset(memory))
    members = np.eye(run.data.num_classes)[held.labels]
    means = unit_rows(members.T @ held.units()).T
    scores = jax.jit(nearest_mean_scores)(tested.units(), means, members.any(axis=0))
    right = _right(np.asarray(scores), tested.labels, setting_of(run.group.settings, run.data))
    shares = {kind: _shares(each, run.data.tasks[1]) for kind, each in right.items()}
    found: Found = {kind: float(np.mean(each)) for kind, each in shares.items()}
    if run.group.settings.continual.base is not None:
        found |= _at_the_end(shares["class_il"], _test_counts(run.data))
    return found


def _of_sessions(matrix: np.ndarray, data: Data) -> Found:
    """Return accuracies that count every test example once: tasks of unequal size are not to weigh the same.

    Returns:
        "accuracy_seen", on the classes of all tasks after the last one; "accuracy_base" and "accuracy_new", then on the
        classes of the first task, and on all others; "sessions", the accuracy on the classes seen so far after each
        task; "drop", by how much it falls from the first to the last.
    """
    counts = _test_counts(data)
    seen = [float(np.average(row[: task + 1], weights=counts[: task + 1])) for task, row in enumerate(matrix)]
    return _at_the_end(matrix[-1], counts) | {
        "sessions": [round(share, 4) for share in seen],
        "drop": seen[0] - seen[-1],
    }


def _at_the_end(shares: np.ndarray, counts: np.ndarray) -> Found:
    """Return the accuracies after the last task, given those on each task and the number of its test examples."""
    return {
        "accuracy_seen": float(np.average(shares, weights=counts)),
        "accuracy_base": float(shares[0]),
        "accuracy_new": float(np.average(shares[1:], weights=counts[1:])),
    }


def _test_counts(data: Data) -> np.ndarray:
    """Return the number of test examples of each task, shape (T,)."""
    assert data.tasks is not None, "continual learning has tasks"
    return np.bincount(data.tasks[1])


def _matrix(run: Run, kind: str) -> np.ndarray:
    """Return the accuracies on all tasks (columns) after each task (rows); NaN where none was measured."""
    assert run.data.tasks is not None, "continual learning has tasks"
    number, epochs = int(run.data.tasks[1].max()) + 1, run.group.settings.loop.epochs
    matrix = np.full((number, number), math.nan)
    # A method that trains on everything at once has no accuracies between tasks.
    rows = range(number) if len(run.stream.ends) == number * epochs else [number - 1]
    for row, end in zip(rows, range(epochs, len(run.stream.ends) + 1, epochs), strict=True):
        matrix[row] = _accuracies(run.history, end, kind, number)
    return matrix


def _accuracies(history: list[dict[str, Any]], epoch: int, kind: str, number: int = 0) -> np.ndarray:
    """Return the accuracies on all tasks that the log has of an epoch."""
    (line,) = [row for row in history if row["epoch"] == epoch]
    number = number or sum(name.startswith(f"{kind}/") for name in line)
    return np.array([line.get(f"{kind}/{task}", math.nan) for task in range(number)])


def _right(scores: np.ndarray, labels: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    """Return which examples are classified correctly, among all classes and among those of their task."""
    right = {"class_il": np.argmax(scores, axis=1) == labels}
    if setting.task_of_class is not None:
        tasks = np.asarray(setting.task_of_class)
        within = np.where(tasks[labels][:, None] == tasks, scores, -np.inf)
        right["task_il"] = np.argmax(within, axis=1) == labels
    return right


def _shares(right: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Return the share of right answers in each task, shape (T,)."""
    return np.bincount(tasks, right) / np.bincount(tasks)
