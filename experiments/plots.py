"""Plots of training runs, from the rows of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no window system is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

# Okabe and Ito's colours, which colour-blind readers can tell apart; one per head, the same in every plot.
COLOURS = {"learned": "#D55E00", "fixed": "#0072B2", "nearest": "#009E73"}


def curves(
    path: Path,
    rows: Sequence[dict[str, Any]],
    groups: Mapping[Any, list[str]],
    panels: Sequence[tuple[str, str, str]],
    unit: str = "epoch",
) -> None:
    """Draw one panel per metric: the mean over seeds against epochs or steps, in a band of one standard deviation.

    Args:
        path: of the PNG.
        rows: of metrics.jsonl.
        groups: the runs (seeds) of each head.
        panels: (metric, title, "linear" or "log").
        unit: "epoch" or "step", what the metrics are drawn against.
    """
    columns = min(len(panels), 3)
    figure, axes = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(4.2 * columns, 3.1 * -(-len(panels) // columns)), squeeze=False
    )
    for axis, (metric, title, scale) in zip(axes.flat, panels, strict=False):
        for head, runs in groups.items():
            epochs, values = _by_run(rows, runs, metric, unit)
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
            low, high = mean - sd, mean + sd
            if scale == "log":
                low = np.maximum(low, values.min(axis=0))  # a band must not reach below zero on a log axis
            (line,) = axis.plot(epochs, mean, color=COLOURS.get(head), label=head)
            axis.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_yscale(scale)
        if scale == "linear":
            # The initial state would squeeze everything after it into a corner.
            low = min(_by_run(rows, runs, metric, unit)[1][:, 1:].min() for runs in groups.values())
            axis.set_ylim(bottom=low - 0.05 * (axis.get_ylim()[1] - low))
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    axes.flat[0].legend()
    _save(figure, path)


def cosine_matrices(path: Path, matrices: dict[str, np.ndarray], target: float) -> None:
    """Draw the cosines between centred class means, one matrix per head.

    Args:
        path: of the PNG.
        matrices: (K, K) per head.
        target: the cosine that every pair of different classes should have, named in the title.
    """
    figure, axes = plt.subplots(1, len(matrices), figsize=(4 * len(matrices), 3.9), squeeze=False, layout="constrained")
    image = None
    for axis, (head, matrix) in zip(axes.flat, matrices.items(), strict=True):
        diagonal = np.eye(len(matrix), dtype=bool)
        # The diagonal is one by definition; what matters is how far each pair is from the target, which is white.
        shown = np.where(diagonal, np.nan, matrix)
        image = axis.imshow(shown, vmin=target - 0.3, vmax=target + 0.3, cmap="RdBu_r")
        pairs = matrix[~diagonal]
        axis.set_title(f"{head}: {np.nanmean(pairs):.3f} ± {np.nanstd(pairs):.3f}", fontsize=10)
        axis.set_xlabel("class")
    figure.suptitle(f"cosines between centred class means (simplex ETF: {target:.3f})", fontsize=11)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def quantiles(path: Path, sets: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the distribution of the examples' margins, one panel per set, one curve per run.

    Args:
        path: of the PNG.
        sets: by set and run, percentiles 0 to 100.
    """
    figure, axes = plt.subplots(1, len(sets), figsize=(4.6 * len(sets), 3.4), squeeze=False)
    for axis, (name, runs) in zip(axes.flat, sets.items(), strict=True):
        for run, values in runs.items():
            head = run.rsplit("/", 1)[-1].rsplit("-seed", 1)[0]
            axis.plot(np.linspace(0, 100, len(values)), values, color=COLOURS.get(head), label=run)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(f"cosine margins, {name}", fontsize=10)
        axis.set_xlabel("% of the examples")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    _save(figure, path)


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


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def slice_of_a_landscape(
    path: Path, along: Sequence[float], across: Sequence[float], gaps: Sequence[Sequence[float]]
) -> None:
    """Draw values on a plane through a saddle, at (0, 0), and two minima, at (1, 1) and (1, -1).

    Args:
        path: of the PNG.
        along: coordinates from the saddle towards the minima, the horizontal axis.
        across: coordinates along the saddle's way down.
        gaps: values above the least one, (across, along).
    """
    values = np.maximum(np.asarray(gaps, float), 1e-6)  # the minima themselves are zero
    figure, axis = plt.subplots(figsize=(6.2, 4.8))
    levels = np.geomspace(1e-3, values.max(), 25)
    filled = axis.contourf(
        along, across, values, levels=levels, norm=LogNorm(1e-3, values.max()), cmap="viridis", extend="min"
    )
    axis.contour(along, across, values, levels=levels, colors="white", linewidths=0.4)
    axis.plot(0, 0, "X", color=COLOURS["learned"], markersize=11, markeredgecolor="white", label="saddle")
    axis.plot([1, 1], [1, -1], "*", color="white", markersize=14, markeredgecolor="black", label="minima")
    axis.set_xlabel("from the saddle to the minima, within the saddle's dimensions")
    axis.set_ylabel("in the dimension that the saddle leaves out")
    axis.legend(loc="lower left")
    ticks = [tick for tick in (1e-3, 1e-2, 1e-1, 1.0, 10.0) if tick <= values.max()]
    figure.colorbar(filled, ax=axis, label="value above the least", ticks=ticks)
    _save(figure, path)


def minority_curves(
    path: Path,
    decays: Sequence[float],
    angles: Mapping[str, Sequence[float | None]],
    norms: Mapping[str, Sequence[float]],
    **_: Any,
) -> None:
    """Draw angle and relative length of minority class vectors against the decay, a curve per number of examples."""
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.6))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(angles)))
    for colour, (count, series) in zip(colours, angles.items(), strict=True):
        axes[0].plot(
            decays, [np.nan if value is None else value for value in series], color=colour, label=f"n = {count}"
        )
        axes[1].plot(decays, norms[count], color=colour)
    axes[0].axhline(np.degrees(np.arccos(-1 / 3)), color="black", linewidth=0.8, linestyle=":", label="simplex ETF")
    axes[0].set_ylabel("angle between minority vectors, degrees")
    axes[1].set_ylabel("their length over the majority's")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlabel("decay of class vectors and features")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path)
