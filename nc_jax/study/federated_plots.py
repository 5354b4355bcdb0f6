"""Pictures of federated learning: who has what, accuracy by rounds and by bytes, angles of missing classes, clients."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nc_jax.methods import method
from nc_jax.study import plots
from nc_jax.study.experiment import Scene
from nc_jax.study.heat_maps import MOST_WRITTEN

NUMBERS = colormaps["viridis_r"].with_extremes(bad="0.95")  # no example is a class of its own, not the least number
MOST_IN_LINE = 3  # partitions
MEGABYTE, GIGABYTE = 1e6, 1e9
ACCURACIES = {
    "personal_by_client": "among all classes",
    "personal_masked_by_client": "among the classes that exist at the client",
}
ANGLES = {"angle_existing": "existing classes", "angle_missing": "missing classes"}


class Row(NamedTuple):
    """A row of the table in a panel: its label, what the legend calls it, how it is drawn, and its runs."""

    label: str
    name: str
    look: plots.Look
    runs: tuple[str, ...]


def partition_picture(scene: Scene) -> Path | None:
    """Draw how many training examples of each class each client has: one panel per partition, of the first seed."""
    panels = _partitions(scene)
    if not panels:
        return None
    path = scene.path("partition")
    clients, classes = map(max, zip(*(counts.shape for counts in panels.values()), strict=True))
    size = (1.6 + min(max(0.3 * classes, 1.6), 5.0), 0.9 + min(max(0.28 * clients, 1.6), 6.0))
    figure, axes = plots.grid(len(panels), MOST_IN_LINE, size, (0.6, 0.3))
    largest = max(counts.max() for counts in panels.values())
    image = None
    for axis, (title, counts) in zip(axes.flat, panels.items(), strict=False):
        shown = np.where(counts > 0, counts, np.nan)
        image = axis.imshow(shown, norm=LogNorm(1, max(largest, 2)), cmap=NUMBERS, aspect="auto", interpolation="none")
        for client, label in np.argwhere(counts > 0) if max(counts.shape) <= MOST_WRITTEN else ():
            number = int(counts[client, label])
            shade = "w" if number > math.sqrt(largest) else "k"  # the colours darken upwards, by the logarithm
            axis.text(label, client, str(number), ha="center", va="center", color=shade, fontsize=7)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
        axis.set_xlabel("class")
        axis.set_title(title, fontsize=10)
    for line in axes:
        line[0].set_ylabel("client")
    if image is not None:
        figure.colorbar(image, ax=axes, format="{x:g}", label="training examples, first seed\n(pale grey: none)")
    plots.save(figure, path)
    return path


def _partitions(scene: Scene) -> dict[str, np.ndarray]:
    """Return the different numbers of examples (C, K) of the first seed, by the variants that have them."""
    variants = {group.label: group.variant for group in scene.groups}
    found: dict[str, np.ndarray] = {}
    for label, seeds in scene.found("partition").items():
        found.setdefault(variants.get(label, label), np.asarray(seeds[0]))
    panels: dict[str, np.ndarray] = {}
    for variant, counts in found.items():
        if not any(np.array_equal(counts, one) for one in panels.values()):
            panels[variant] = counts
    return panels


def accuracy_by_bytes(scene: Scene) -> Path | None:
    """Draw the test accuracy against rounds, and against what was communicated: mean and spread over seeds."""
    sent = {label: float(np.mean(values)) for label, values in scene.found("bytes_per_round").items()}
    if not any(sent.values()):
        return None
    path, blocks = scene.path("communication"), _blocks(scene)
    figure, axes = plots.grid(2 * len(blocks), 2, (4.8, 3.4), (0.0, 0.9))
    for pair, (variant, rows) in zip(axes, blocks.items(), strict=True):
        drawn = {row: plots.by_run(scene.log, row.runs, "test/accuracy", "epoch") for row in rows}
        ends = [rounds[-1] * sent.get(row.label, 0) for row, (rounds, _) in drawn.items() if rounds.size]
        unit, name = (GIGABYTE, "gigabytes") if max(ends, default=0) >= 10 * GIGABYTE else (MEGABYTE, "megabytes")
        for row, (rounds, values) in drawn.items():
            if not rounds.size:
                continue
            _curve(pair[0], rounds, values, row)
            if sent.get(row.label):
                _curve(pair[1], rounds * sent[row.label] / unit, values, row)
            else:  # a bound, wherever the others are
                pair[1].axhline(values[:, -1].mean(), color=row.look.colour, linestyle=":", linewidth=1.2)
        _finish_panel(pair[0], variant, "by rounds", "test accuracy")
        _finish_panel(pair[1], variant, "by bytes", "test accuracy", f"communicated {name}")
    caption = "mean and standard deviation over seeds"
    if not all(sent.get(row.label) for rows in blocks.values() for row in rows):
        caption += "; dotted: the last accuracy of what does not communicate"
    _finish(figure, path, axes, caption)
    return path


def angles_picture(scene: Scene) -> Path | None:
    """Draw the angles between the class vectors of existing and of missing classes at clients, over the rounds."""
    blocks = {variant: [row for row in rows if _has_angles(scene, row)] for variant, rows in _blocks(scene).items()}
    blocks = {variant: rows for variant, rows in blocks.items() if rows}
    if not blocks:
        return None
    path, classes = scene.path("angles"), [np.shape(seeds[0])[1] for seeds in scene.found("partition").values()]
    figure, axes = plots.grid(2 * len(blocks), 2, (4.8, 3.4), (0.0, 0.9))
    for pair, (variant, rows) in zip(axes, blocks.items(), strict=True):
        for axis, (metric, title) in zip(pair, ANGLES.items(), strict=True):
            for row in rows:
                rounds, values = plots.by_run(scene.log, row.runs, metric, "epoch")
                if rounds.size:
                    _curve(axis, rounds, values, row)
            if classes:
                simplex = math.degrees(math.acos(-1 / (classes[0] - 1)))
                axis.axhline(simplex, color="black", linestyle="--", linewidth=1, label="simplex ETF")
            _finish_panel(axis, variant, title, "angle between class vectors (°)")
    caption = "mean over the pairs of classes and over clients; mean and standard deviation over seeds"
    _finish(figure, path, axes, caption)
    return path


def _has_angles(scene: Scene, row: Row) -> bool:
    return any(plots.by_run(scene.log, row.runs, metric, "epoch")[0].size for metric in ANGLES)


def clients_picture(scene: Scene) -> Path | None:
    """Draw the personal accuracy of every client: a strip of points per row, with the mean and the deciles."""
    found = {name: scene.found(name) for name in ACCURACIES}
    rows = [label for label in scene.rows if any(label in values for values in found.values())]
    if not rows:
        return None
    path, shown = scene.path("clients"), [name for name in ACCURACIES if found[name]]
    size, names = (3.6, 0.5 * len(rows) + 0.9), 0.075 * max(map(len, rows))
    figure, axes = plots.grid(len(shown), len(shown), size, (names, 0.5), sharey=True)
    for axis, name in zip(axes.flat, shown, strict=True):
        for place, label in enumerate(rows):
            values = np.concatenate([np.asarray(seed, float) for seed in found[name].get(label, [[]])])
            values = np.sort(values[np.isfinite(values)])
            if not values.size:
                continue
            heights = place + np.linspace(0.34, -0.34, values.size) if values.size > 1 else np.array([place])
            colour = scene.looks[label].colour
            axis.plot(values, heights, ".", color=colour, alpha=0.6, markersize=5, markeredgewidth=0)
            low, high = np.percentile(values, (10, 90))
            axis.plot([low, high], [place, place], color=colour, linewidth=1.5, solid_capstyle="butt")
            style: Any = {"markerfacecolor": colour, "markeredgecolor": "black", "markersize": 6}
            axis.plot(values.mean(), place, "o", **style)
        for place in range(1, len(rows)):
            axis.axhline(place - 0.5, color="0.9", linewidth=0.8)
        axis.set_xlim(-0.03, 1.03)
        axis.set_title(ACCURACIES[name], fontsize=10)
        axis.set_xlabel("accuracy on the client's own test split")
        axis.grid(axis="x", alpha=0.3)
    axes.flat[0].set_yticks(range(len(rows)), rows, fontsize=9)
    axes.flat[0].set_ylim(len(rows) - 0.5, -0.5)  # the rows of the table from above; both panels share the axis
    caption = "a point is a client of a seed, in the order of accuracy; circle: mean; line: 10th to 90th percentile"
    figure.supxlabel(caption, fontsize=8)
    plots.save(figure, path)
    return path


def _blocks(scene: Scene) -> dict[str, list[Row]]:
    """Return which rows share panels: all of them, unless there are several variants of several methods each."""
    looks = scene.looks
    runs = {label: tuple(names) for label, names in scene.results.runs(scene.case).items()}
    groups = [group for group in scene.groups if group.label in scene.rows]
    variants = list(dict.fromkeys(group.variant for group in groups))
    if len(variants) == 1 or len(variants) == len(groups):
        return {"": [Row(one.label, one.label, looks[one.label], runs[one.label]) for one in groups]}
    blocks: dict[str, list[Row]] = {variant: [] for variant in variants}
    for group in groups:
        title = method(group.method).title
        blocks[group.variant].append(Row(group.label, title, plots.Look(plots.colour_of(title)), runs[group.label]))
    return blocks


def _curve(axis: Any, places: np.ndarray, values: np.ndarray, row: Row) -> None:
    """Draw the mean over seeds (seeds, places), in a band of one standard deviation."""
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
    axis.plot(places, mean, color=row.look.colour, linestyle=row.look.dash, label=row.name, linewidth=1.5)
    axis.fill_between(places, mean - sd, mean + sd, color=row.look.colour, alpha=0.15, linewidth=0)


def _finish_panel(axis: Any, variant: str, what: str, up: str, across: str = "round") -> None:
    axis.set_title(f"{variant}: {what}" if variant else what, fontsize=10)
    axis.set(xlabel=across, ylabel=up)
    axis.xaxis.set_major_locator(MaxNLocator(integer=across == "round", steps=[1, 2, 5, 10]))
    axis.grid(alpha=0.3)


def _finish(figure: Figure, path: Path, axes: Any, caption: str) -> None:
    figure.suptitle(caption, fontsize=9)
    plots.legend_below(figure, *axes.flat)
    plots.save(figure, path)
