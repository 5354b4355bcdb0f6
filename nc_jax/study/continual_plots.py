"""Pictures of continual learning: accuracy task after task, what is forgotten, and what is taken for what."""

from pathlib import Path

import numpy as np

from nc_jax.study import heat_maps, plots
from nc_jax.study.experiment import Scene
from nc_jax.study.occupancy import MOST_MATRICES


def tasks(scene: Scene) -> Path | None:
    """Draw the accuracy on what was seen so far, after each task, and what each task has lost at the end.

    It is the mean over the tasks; with a base session, which is larger, it is that over the test examples.
    """
    matrices = _matrices(scene)
    sessions = {label: np.array(found) for label, found in scene.found("sessions").items() if label in matrices}
    name = f"Class-IL accuracy on the {'classes' if sessions else 'tasks'} seen so far"
    seen = sessions or {label: np.stack([_over_seen(one) for one in found]) for label, found in matrices.items()}
    lost = {label: np.stack([_lost(one) for one in found]) for label, found in matrices.items()}
    if not seen:
        return None
    path = scene.path("tasks")
    panels = {name: seen, "accuracy lost since its best, by task": lost}
    plots.lines(path, panels, look=scene.looks, labels=("task", "share of the test examples"))
    return path


def matrix(scene: Scene) -> Path | None:
    """Draw the accuracy on each task after each task, mean over seeds."""
    found = {label: np.mean(one, axis=0) for label, one in list(_matrices(scene).items())[:MOST_MATRICES]}
    if not found:
        return None
    path, title = scene.path("matrix"), "Class-IL accuracy on each task after each task, mean over seeds"
    heat_maps.shares(path, found, title=title, labels=("after task", "on task"), first=1)
    return path


def mistakes(scene: Scene) -> Path | None:
    """Draw what is taken for what, with classes in the order in which they were learned, summed over seeds."""
    matrices = list(scene.found("confusion_by_time").items())[:MOST_MATRICES]
    found = {label: np.sum(values, axis=0) for label, values in matrices}
    if not found:
        return None
    path = scene.path("mistakes")
    names = [str(place) for place in range(1, len(next(iter(found.values()))) + 1)]
    heat_maps.confusion(path, found, names)
    return path


def _matrices(scene: Scene) -> dict[str, np.ndarray]:
    """Return the matrices of accuracies of all rows that have seen task after task, (seeds, T, T)."""
    found = {label: np.array(values, float) for label, values in scene.found("matrix").items()}
    return {label: one for label, one in found.items() if np.isfinite(one).all()}


def _over_seen(matrix: np.ndarray) -> np.ndarray:
    return np.array([np.mean(row[: place + 1]) for place, row in enumerate(matrix)])


def _lost(matrix: np.ndarray) -> np.ndarray:
    best = [np.max(matrix[task:, task]) for task in range(len(matrix))]
    return np.array(best) - matrix[-1]
