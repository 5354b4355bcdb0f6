"""Curves and points of runs, with one colour for each method wherever it is drawn."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nc_jax.study.colours import COLOURS
from nc_jax.study.statistics import half_width

DPI = 150
MOST_BANDS = 5  # more of them cover each other
DASHES = ("-", "--", ":", "-.")


class Look(NamedTuple):
    """How the curve of a row is drawn."""

    colour: str
    dash: str = "-"


def colour_of(method: str) -> str:
    """Return the colour of a method by its title, the same in every picture; a method without one is black."""
    return COLOURS.get(method, "#000000")


def looks(rows: Mapping[str, tuple[str, str]]) -> dict[str, Look]:
    """Choose how rows are drawn: methods by their colours; variants of one method by shades; of several, by dashes.

    Args:
        rows: variant of the settings ("" where there is one only) and title of the method, by label.
    """
    variants = list(dict.fromkeys(variant for variant, _ in rows.values()))
    methods = {method for _, method in rows.values()}
    if len(variants) > 1 and len(methods) == 1:
        # The first variant is what the others are compared with; the shades are in order, as weights often are.
        shades = colormaps["viridis"](np.linspace(0.1, 0.95, max(len(variants) - 1, 1)))
        return dict(zip(rows, map(Look, ("#000000", *map(to_hex, shades))), strict=False))
    dashes = dict(zip(variants, itertools.cycle(DASHES), strict=False))
    return {label: Look(colour_of(method), dashes[variant]) for label, (variant, method) in rows.items()}


def curves(
    path: Path,
    rows: Sequence[dict[str, Any]],
    groups: Mapping[str, list[str]],
    panels: Sequence[tuple[str, str, str]],
    unit: str = "epoch",
    look: Mapping[str, Look] | None = None,
    *,
    legend: bool = True,
) -> None:
    """Draw one panel per metric: the mean over seeds against epochs or steps, in a band of one standard deviation.

    Args:
        path: path of the picture; its suffix is the file format.
        rows: lines of metrics.jsonl.
        groups: the runs (seeds) of each row of the table.
        panels: (metric, title, "linear" or "log").
        unit: "epoch" or "step", what the metrics are drawn against.
        look: how each row is drawn; None draws methods in their colours.
        legend: whether to say below the panels which curve is which.
    """
    look = looks({name: ("", name) for name in groups}) if look is None else look
    figure, axes = grid(len(panels), 3, (4.2, 3.1), (0.0, 0.4 if legend else 0.0))
    for axis, (metric, title, scale) in zip(axes.flat, panels, strict=False):
        drawn = {name: by_run(rows, runs, metric, unit) for name, runs in groups.items()}
        if scale == "linear" and _far_off_at_first(drawn):
            drawn = {name: (epochs[1:], values[:, 1:]) for name, (epochs, values) in drawn.items()}
        for name, (epochs, values) in drawn.items():
            if not epochs.size:
                continue  # its runs have no epoch in common, or not this metric
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
            low, high = mean - sd, mean + sd
            if scale == "log":
                low = np.maximum(low, values.min(axis=0))  # a band must not reach below zero on a log axis
            marker = "." if len(epochs) == 1 else None  # a line through one point is not seen
            axis.plot(epochs, mean, color=look[name].colour, linestyle=look[name].dash, label=name, marker=marker)
            axis.fill_between(epochs, low, high, color=look[name].colour, alpha=0.2, linewidth=0)
        axis.set_title(title, fontsize=10)
        if scale == "log" and any((values > 0).any() for _, values in drawn.values()):
            axis.set_yscale(scale)
            plain_ticks(axis)
        axis.set_xlabel(unit)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.grid(alpha=0.3)
    if legend:
        legend_below(figure, axes.flat[0])
    save(figure, path)


def lines(
    path: Path,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    look: Mapping[str, Look],
    labels: tuple[str, str],
) -> None:
    """Draw numbers over places 1, 2, ... (tasks, layers), one panel each: the mean over seeds.

    Up to `MOST_BANDS` rows have a band of one standard deviation.

    Args:
        path: path of the picture; its suffix is the file format.
        panels: numbers of shape (seeds, places), by title and row. NaN leaves a gap.
        look: how each row is drawn.
        labels: names of the horizontal and of the vertical axis.
    """
    figure, axes = grid(len(panels), 2, (5.2, 3.6), (0.0, 0.6))
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        for row, values in rows.items():
            places, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            sd = values.std(axis=0, ddof=min(1, len(values) - 1))
            axis.plot(places, mean, color=look[row].colour, linestyle=look[row].dash, label=row, marker=".")
            if len(rows) <= MOST_BANDS:
                axis.fill_between(places, mean - sd, mean + sd, color=look[row].colour, alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(labels[0])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel(labels[1])
    legend_below(figure, axes.flat[0])
    save(figure, path)


def points(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    look: Mapping[str, Look],
    caption: str = "",
    scales: Mapping[str, str] | None = None,
) -> None:
    """Draw what the seeds of each row reached: a faint point per seed, the mean and its 95 % interval, one panel each.

    Args:
        path: path of the picture; its suffix is the file format.
        panels: a number per seed, by title and row. Numbers that are not finite are left out.
        look: how each row is drawn.
        caption: text below the panels.
        scales: "linear" or "log", by title; "linear" where it is not given.
    """
    rows = list(dict.fromkeys(row for values in panels.values() for row in values))
    columns = 3 if len(panels) % 4 == 1 else 4  # no panel alone in a line of four
    names = 0.075 * max(map(len, rows))
    figure, axes = grid(len(panels), columns, (2.6, 0.24 * len(rows) + 1.0), (names, 0.3), sharey=True)
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=False):
        for place, row in enumerate(rows):
            numbers = np.asarray(values.get(row, ()), float)
            numbers = numbers[np.isfinite(numbers)]
            if not numbers.size:
                continue
            axis.plot(numbers, np.full(len(numbers), place), ".", color=look[row].colour, alpha=0.3, markersize=5)
            style: Any = {"color": look[row].colour, "markersize": 6, "capsize": 3}
            axis.errorbar(numbers.mean(), place, xerr=half_width(numbers), fmt="o", **style)
        low, high = axis.get_xlim()
        if (scales or {}).get(title) == "log" and 0 < low < high and high / low > 10:
            axis.set_xscale("log")
            plain_ticks(axis, "x")
        else:
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_yticks(range(len(rows)), rows, fontsize=8)
    axes.flat[0].set_ylim(len(rows) - 0.5, -0.5)  # the rows of the table from above; all panels share the axis
    if caption:
        figure.supxlabel(caption, fontsize=8)
    save(figure, path)


def quantiles(path: Path, sets: Mapping[str, Mapping[str, Sequence[float]]], look: Mapping[str, Look]) -> None:
    """Draw the distribution of the examples' margins, one panel per set, one curve per row of the table.

    Args:
        path: path of the picture; its suffix is the file format.
        sets: percentiles 0 to 100 of the margins, by set and row.
        look: how each row is drawn.
    """
    figure, axes = grid(len(sets), len(sets), (4.6, 3.8), (0.0, 0.0), sharey=True)
    for axis, (title, rows) in zip(axes.flat, sets.items(), strict=True):
        for row, values in rows.items():
            style: Any = {"color": look[row].colour, "linestyle": look[row].dash}
            axis.plot(np.linspace(0, 100, len(values)), values, label=row, **style)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(f"{title} set", fontsize=10)
        axis.set_xlabel("% of the examples, by their margin")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("cosine margin")
    legend_below(figure, axes.flat[0])
    save(figure, path)


def grid(
    count: int,
    columns: int,
    size: tuple[float, float],
    around: tuple[float, float] = (0.0, 0.4),
    *,
    sharey: bool = False,
) -> tuple[Figure, Any]:
    """Return a figure of panels in lines, and their axes as a matrix; places without a panel stay empty.

    Args:
        count: number of panels.
        columns: the most panels in a line.
        size: width and height of a panel, in inches.
        around: width and height to leave for what stands beside and below all of them, in inches.
        sharey: let all panels have one vertical axis.
    """
    columns = min(count, columns)
    lines = -(-count // columns)
    inches = (size[0] * columns + around[0], size[1] * lines + around[1])
    figure = Figure(figsize=inches, layout="constrained")
    axes: Any = figure.subplots(lines, columns, squeeze=False, sharey=sharey)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a picture, all of it or nothing; the suffix of its path says in which format."""
    from nc_jax.files import write_atomically  # with all that training imports

    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format=path.suffix[1:])
    write_atomically(path, content.getvalue())


def plain_ticks(axis: Any, which: str = "y") -> None:
    """Write 0.4 and not 4 x 10^-1 where a logarithmic axis spans few decades."""
    low, high = axis.get_ylim() if which == "y" else axis.get_xlim()
    side = axis.yaxis if which == "y" else axis.xaxis
    if not 0 < low < high or high / low > 1e3:
        return
    crowded = 30 if which == "x" else 200  # a vertical axis has room for more labels
    steps = (1.0,) if high / low > crowded else (1.0, 2.0, 5.0)
    if high / low < 8:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    side.set_major_locator(LogLocator(subs=steps))
    side.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    side.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, *axes: Any) -> None:
    """Put a legend of all panels below them, where it covers nothing: what is drawn in these, each name once."""
    drawn = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles_of = {name: handle for handle, name in drawn}
    names, handles = list(handles_of), list(handles_of.values())
    widest = max(map(len, names), default=1)
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13 / (widest + 6))))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def by_run(
    rows: Sequence[dict[str, Any]], runs: Sequence[str], metric: str, unit: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs (or steps) in which all runs have a metric, and its values, a row per run.

    Args:
        rows: lines of metrics.jsonl.
        runs: names of the runs.
        metric: name of the metric; values that are not finite do not count.
        unit: "epoch" or "step".
    """
    series: list[dict] = [{} for _ in runs]
    places = {run: place for place, run in enumerate(runs)}
    for row in rows:
        value = row.get(metric, np.nan)
        if row["run"] in places and np.isfinite(value):
            series[places[row["run"]]][row[unit]] = value
    epochs = sorted(set.intersection(*(set(values) for values in series)))
    return np.array(epochs), np.array([[values[epoch] for epoch in epochs] for values in series], float)


def _far_off_at_first(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether the state before training would squeeze everything after it into a corner of a linear axis."""
    series = [values for _, values in drawn.values() if values.shape[1] > 2]
    if not series:
        return False
    first = np.concatenate([values[:, 0] for values in series])
    later = np.concatenate([values[:, 1:].ravel() for values in series])
    return bool(first.mean() < later.min() - np.ptp(later))
