"""Pictures of the landscape of unconstrained features."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nc_jax.study.colours import LEARNED
from nc_jax.study.plots import plain_ticks, save


def slice_of_a_landscape(
    path: Path, along: Sequence[float], across: Sequence[float], gaps: Sequence[Sequence[float]]
) -> None:
    """Draw values on a plane through a saddle, at (0, 0), and two minima, at (1, 1) and (1, -1).

    Args:
        path: path of the picture; its suffix is the file format.
        along: coordinates from the saddle towards the minima, the horizontal axis.
        across: coordinates along the saddle's way down.
        gaps: values above the least one, (across, along).
    """
    values = np.maximum(np.asarray(gaps, float), 1e-6)  # the minima themselves are zero
    figure = Figure(figsize=(6.2, 4.8), layout="constrained")
    axis: Any = figure.add_subplot()
    levels = np.geomspace(1e-3, values.max(), 25)
    filled = axis.contourf(
        along, across, values, levels=levels, norm=LogNorm(1e-3, values.max()), cmap="viridis", extend="min"
    )
    axis.contour(along, across, values, levels=levels, colors="white", linewidths=0.4)
    axis.plot(0, 0, "X", color=LEARNED, markersize=11, markeredgecolor="white", label="saddle")
    axis.plot([1, 1], [1, -1], "*", color="white", markersize=14, markeredgecolor="black", label="minima")
    axis.set_xlabel("from the saddle to the minima, within the saddle's dimensions")
    axis.set_ylabel("in the dimension that the saddle leaves out")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    ticks = [tick for tick in (1e-3, 1e-2, 1e-1, 1.0, 10.0) if tick <= values.max()]
    figure.colorbar(filled, ax=axis, label="value above the least", ticks=ticks, format="{x:g}")
    save(figure, path)


def minority_curves(
    path: Path,
    decays: Sequence[float],
    angles: Mapping[str, Sequence[float | None]],
    norms: Mapping[str, Sequence[float]],
) -> None:
    """Draw angle and relative length of minority class vectors against the decay, a curve per number of examples."""
    figure = Figure(figsize=(9.4, 4.2), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(angles)))
    for colour, (count, series) in zip(colours, angles.items(), strict=True):
        axes[0].plot(
            decays, [np.nan if value is None else value for value in series], color=colour, label=f"n = {count}"
        )
        axes[1].plot(decays, norms[count], color=colour)
    axes[0].axhline(np.degrees(np.arccos(-1 / 3)), color="black", linewidth=0.8, linestyle=":", label="simplex ETF")
    axes[0].set_ylabel("angle between minority vectors (degrees)")
    axes[1].set_ylabel("their length over the majority's")
    for axis in axes:
        axis.set_xscale("log")
        plain_ticks(axis, "x")
        axis.set_xlabel("decay of class vectors and features")
        axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(angles) + 1, fontsize=9, frameon=False)
    save(figure, path)
