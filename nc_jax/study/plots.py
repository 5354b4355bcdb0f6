"""Curves and bars of runs, with one colour for each method wherever it is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart, for the heads that are compared most.
LEARNED, FIXED, NEAREST = "#D55E00", "#0072B2", "#009E73"
COLOURS = {
    "learned": LEARNED,
    "linear": LEARNED,
    "cross-entropy": LEARNED,
    "fixed": FIXED,
    "aligned": FIXED,
    "fixed ETF, cosine loss": FIXED,
    "nearest": NEAREST,
    "nearest HAFrame": NEAREST,
    "HAFrame": "#CC79A7",
    "HAFrame, shuffled tree": "#999999",
    "turned at random": "#56B4E9",
    "random, smoothed": "#999999",
    "rotated": "#E69F00",
    "soft labels": "#F0E442",
    "HXE": "#882255",
    "YOLO-v2": "#44AA99",
    "Barz-Denzler": "#332288",
    "Flamingo": "#EE99AA",
    "HAFeature": "#117733",
    "cross-entropy + CRM": "#FFAA66",
    "HAFrame + CRM": "#E8B4D0",
    "HAFrame, alpha 0": "#AA4499",
    "nearest HAFrame, gamma learned": "#88CCAA",
}
# For names that have no colour of their own: variants of settings, people's own methods.
OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#117733", "#332288", "#999999")


def colour_of(name: str, place: int = 0) -> str:
    """Return the colour of a method, the same in every picture; of an unknown name, one by its place."""
    return COLOURS.get(name) or OTHERS[place % len(OTHERS)]


def curves(
    path: Path,
    rows: Sequence[dict[str, Any]],
    groups: Mapping[Any, list[str]],
    panels: Sequence[tuple[str, str, str]],
    unit: str = "epoch",
) -> None:
    """Draw one panel per metric: the mean over seeds against epochs or steps, in a band of one standard deviation.

    Args:
        path: of the picture.
        rows: of metrics.jsonl.
        groups: the runs (seeds) of each row.
        panels: (metric, title, "linear" or "log").
        unit: "epoch" or "step", what the metrics are drawn against.
    """
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines), layout="constrained")
    axes: Any = figure.subplots(lines, columns, squeeze=False)
    for axis, (metric, title, scale) in zip(axes.flat, panels, strict=False):
        for place, (name, runs) in enumerate(groups.items()):
            epochs, values = _by_run(rows, runs, metric, unit)
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
            low, high = mean - sd, mean + sd
            if scale == "log":
                low = np.maximum(low, values.min(axis=0))  # a band must not reach below zero on a log axis
            (line,) = axis.plot(epochs, mean, color=colour_of(name, place), label=name)
            axis.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_yscale(scale)
        if scale == "log":
            _plain_ticks(axis)
        if scale == "linear":
            # The initial state would squeeze everything after it into a corner.
            low = min(_by_run(rows, runs, metric, unit)[1][:, 1:].min(initial=np.inf) for runs in groups.values())
            if np.isfinite(low):
                axis.set_ylim(bottom=low - 0.05 * (axis.get_ylim()[1] - low))
        axis.set_xlabel(unit)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def quantiles(path: Path, sets: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the distribution of the examples' margins, one panel per set, one curve per run.

    Args:
        path: of the PNG.
        sets: by set and run, percentiles 0 to 100.
    """
    figure = Figure(figsize=(4.6 * len(sets), 3.4), layout="constrained")
    axes: Any = figure.subplots(1, len(sets), squeeze=False)
    for axis, (name, runs) in zip(axes.flat, sets.items(), strict=True):
        for place, (run, values) in enumerate(runs.items()):
            name = run.rsplit("/", 1)[-1].rsplit("-seed", 1)[0]
            axis.plot(np.linspace(0, 100, len(values)), values, color=colour_of(name, place), label=run)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(f"cosine margins, {name}", fontsize=10)
        axis.set_xlabel("% of the examples")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def severity(path: Path, histograms: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw how large a share of the test examples lies at each distance from the truth, mistakes only.

    Args:
        path: of the PNG.
        histograms: per method, per seed, the shares at distance 0, 1, ...
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axis: Any = figure.add_subplot()
    width = 0.85 / len(histograms)
    for place, (name, seeds) in enumerate(histograms.items()):
        shares = np.asarray(seeds)[:, 1:]
        at = np.arange(1, shares.shape[1] + 1) + (place - (len(histograms) - 1) / 2) * width
        spread = shares.std(axis=0, ddof=1) if len(shares) > 1 else None
        bars: Any = {"color": colour_of(name, place), "error_kw": {"lw": 0.7}}
        axis.bar(at, shares.mean(axis=0), width, yerr=spread, label=name, **bars)
    axis.set_xticks(range(1, np.asarray(next(iter(histograms.values()))).shape[1]))
    axis.set_xlabel("distance of the prediction from the truth, in edges")
    axis.set_ylabel("share of the test images")
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)


def _by_run(
    rows: Sequence[dict[str, Any]], runs: Sequence[str], metric: str, unit: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs (or steps) in which all runs have the metric, and its values, a row per run."""
    series: list[dict] = [{} for _ in runs]
    places = {run: place for place, run in enumerate(runs)}
    for row in rows:
        value = row.get(metric, np.nan)
        if row["run"] in places and np.isfinite(value):
            series[places[row["run"]]][row[unit]] = value
    epochs = sorted(set.intersection(*(set(values) for values in series)))
    return np.array(epochs), np.array([[values[epoch] for epoch in epochs] for values in series], float)


def _plain_ticks(axis: Any) -> None:
    """Write 0.4 and not 4 x 10^-1 where a logarithmic axis spans few decades."""
    low, high = axis.get_ylim()
    if not 0 < low < high or high / low > 1e3:
        return
    steps = (1.0, 2.0, 5.0) if high / low > 10 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
