"""Pictures of long-tailed learning: recall against class size, accuracy against ratio, alignment, and bars."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nc_jax.methods import method
from nc_jax.study import plots
from nc_jax.study.experiment import Scene
from nc_jax.study.settings import Group
from nc_jax.study.statistics import half_width

MOST_LINES = 8  # more of them cover each other


def shown(scene: Scene) -> list[str]:
    """Return the rows of pictures that have no room for all: the first one, and the most accurate of the others."""
    values = scene.results.values(scene.case)
    means = {label: _finite(numbers.get("balanced_accuracy", ())).sum() for label, numbers in values.items()}
    first, *others = means
    best = sorted(others, key=lambda label: -means[label])[: MOST_LINES - 1]
    return [first, *(label for label in others if label in best)]


def recall_by_size(scene: Scene) -> Path | None:
    """Draw the test accuracy of each class against its number of training examples: the mean over seeds."""
    rows = shown(scene)
    recalls = {label: values for label, values in scene.found("recall_by_size").items() if label in rows}
    if not recalls:
        return None
    path, sizes = scene.path("recall"), scene.found("class_sizes")
    figure, axes = plots.grid(1, 1, (7.0, 4.2), (0.0, 0.2 * len(recalls)))
    axis = axes[0, 0]
    for label, values in recalls.items():
        by_size = _by_size(np.asarray(sizes[label], float), np.asarray(values, float))
        style: Any = {"color": scene.looks[label].colour, "linestyle": scene.looks[label].dash}
        axis.plot(*by_size, marker="o", markersize=3, label=label, **style)
    _finish(figure, path, "training examples of the class", "test accuracy of the class")
    return path


def _by_size(sizes: np.ndarray, recalls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes that occur, ascending, and the mean recall of the classes of each, over seeds (seeds, K)."""
    known = np.isfinite(recalls)
    found = np.unique(sizes[known])
    return found, np.array([recalls[known & (sizes == size)].mean() for size in found])


def accuracy_by_ratio(scene: Scene) -> Path | None:
    """Draw the accuracy against the ratio of class sizes, where the variants of the settings differ in nothing else."""
    if len({group.settings.tail.ratio for group in scene.groups} - {None}) < 2:
        return None
    path, values = scene.path("ratios"), scene.results.values(scene.case)
    figure, axes = plots.grid(1, 1, (7.0, 4.2), (0.0, 0.8))
    axis = axes[0, 0]
    for name in dict.fromkeys(group.method for group in scene.groups):
        own = sorted((group for group in scene.groups if group.method == name), key=_ratio)
        found = [_finite(values[group.label].get("balanced_accuracy", ())) for group in own]
        style: Any = {"color": plots.colour_of(method(name).title), "label": method(name).title}
        style |= {"marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1}
        axis.errorbar([*map(_ratio, own)], [one.mean() for one in found], [half_width(one) for one in found], **style)
    _finish(figure, path, "most frequent class over rarest class", "test accuracy, mean over classes")
    return path


def bars(scene: Scene) -> Path | None:
    """Draw the accuracy of every row as a bar, with the 95 % interval of its mean over seeds."""
    values = scene.results.values(scene.case)
    found = {label: _finite(numbers.get("balanced_accuracy", ())) for label, numbers in values.items()}
    found = {label: numbers for label, numbers in found.items() if numbers.size}
    if len(found) < 2:
        return None
    path, rows = scene.path("bars"), list(found)
    figure, axes = plots.grid(1, 1, (5.5, 0.28 * len(rows) + 0.8), (0.075 * max(map(len, rows)), 0.3))
    axis = axes[0, 0]
    for place, (label, numbers) in enumerate(found.items()):
        half = half_width(numbers)
        axis.barh(place, numbers.mean(), xerr=half, color=scene.looks[label].colour, capsize=2, height=0.7)
    lows = [numbers.mean() - half_width(numbers) for numbers in found.values()]
    highs = [numbers.mean() + half_width(numbers) for numbers in found.values()]
    margin = 0.1 * (max(highs) - min(lows))
    axis.set_xlim(max(min(lows) - margin, 0), max(highs) + margin)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title("test accuracy, mean over classes; the axis does not begin at 0", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    plots.save(figure, path)
    return path


def alignment_curves(scene: Scene) -> Path:
    """Draw the accuracy of rare classes and the alignment of the classifier with the class means against the epochs."""
    path = scene.path("alignment")
    panels = [
        ("few", "test accuracy of rare classes", "linear"),
        ("angle/many", "angle to class means, frequent classes (degrees)", "linear"),
        ("angle/few", "angle to class means, rare classes (degrees)", "linear"),
        ("exponent_ratio", "optimal error exponent over the best", "linear"),
        ("few_cosine", "cosine between class vectors of rare classes", "linear"),
        ("principal_angle", "largest principal angle (degrees)", "linear"),
    ]
    rows = shown(scene)
    runs = {label: names for label, names in scene.results.runs(scene.case).items() if label in rows}
    plots.curves(path, scene.log, runs, panels, look=scene.looks)
    return path


def _finish(figure: Figure, path: Path, across: str, up: str) -> None:
    """Label the axes of a picture with one panel, whose horizontal axis is logarithmic, and write it."""
    (axis,) = figure.axes
    axis.set_xscale("log")
    plots.plain_ticks(axis, "x")
    axis.set(xlabel=across, ylabel=up)
    plots.legend_below(figure, axis)
    plots.save(figure, path)


def _ratio(group: Group) -> float:
    return 1 / (group.settings.tail.ratio or 1)


def _finite(values: Any) -> np.ndarray:
    found = np.asarray(values, float)
    return found[np.isfinite(found)]
