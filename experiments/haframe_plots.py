"""Plots of the hierarchy experiments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure


def severity(path: Path, histograms: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw how large a share of the test examples lies at each distance from the truth, mistakes only.

    Args:
        path: of the PNG.
        histograms: per method, per seed, the shares at distance 0, 1, ...
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axis: Any = figure.add_subplot()
    width = 0.85 / len(histograms)
    colours = colormaps["tab10" if len(histograms) <= 10 else "tab20"]
    for place, (name, seeds) in enumerate(histograms.items()):
        shares = np.asarray(seeds)[:, 1:]
        at = np.arange(1, shares.shape[1] + 1) + (place - (len(histograms) - 1) / 2) * width
        spread = shares.std(axis=0, ddof=1) if len(shares) > 1 else None
        axis.bar(at, shares.mean(axis=0), width, yerr=spread, label=name, color=colours(place), error_kw={"lw": 0.7})
    axis.set_xticks(range(1, np.asarray(next(iter(histograms.values()))).shape[1]))
    axis.set_xlabel("distance of the prediction from the truth, in edges")
    axis.set_ylabel("share of the test images")
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)


def cosines(path: Path, wanted: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
    """Draw the wanted cosines between classes and those of the class means, of methods that have some.

    Args:
        path: of the PNG.
        wanted: (K, K).
        found: (K, K) per method; empty ones are left out.
    """
    shown = {"wanted": wanted} | {name: matrix for name, matrix in found.items() if matrix.size}
    # Classes in the order of a clustering, so that the tree is seen as blocks.
    order = _leaf_order(wanted)
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    image = None
    for axis, (name, matrix) in zip(axes.flat, shown.items(), strict=False):
        image = axis.imshow(matrix[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r")
        error = np.abs(matrix - wanted)[np.triu_indices(len(wanted), 1)].mean()
        axis.set_title(name if name == "wanted" else f"{name}: {error:.3f}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.7)
    figure.suptitle("cosines between class means, and their mean error", fontsize=10)
    figure.savefig(path, dpi=120)


def heat_maps(
    path: Path, tables: Mapping[str, np.ndarray], rows: Sequence[Any], columns: Sequence[Any], labels: tuple[str, str]
) -> None:
    """Draw tables of numbers side by side as heat maps, each number written in its cell.

    Args:
        path: of the PNG.
        tables: by title, each of shape (rows, columns).
        rows: what stands beside the rows.
        columns: what stands below the columns.
        labels: of both axes, the rows' first.
    """
    width, height = 0.5 + 0.8 * len(columns), 1.0 + 0.5 * len(rows)
    figure = Figure(figsize=(width * len(tables), height), layout="constrained")
    axes: Any = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axis, (title, values) in zip(axes, tables.items(), strict=True):
        axis.imshow(values, cmap="viridis", aspect="auto")
        middle = (values.min() + values.max()) / 2
        for row, column in np.ndindex(*values.shape):
            shade = "k" if values[row, column] > middle else "w"  # the colours brighten upwards
            axis.text(column, row, f"{values[row, column]:.3f}", ha="center", va="center", color=shade, fontsize=8)
        axis.set_xticks(range(len(columns)), [str(value) for value in columns])
        axis.set_yticks(range(len(rows)), [str(value) for value in rows])
        axis.set_xlabel(labels[1])
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel(labels[0])
    figure.savefig(path, dpi=120)


def _leaf_order(wanted: np.ndarray) -> np.ndarray:
    from scipy.cluster.hierarchy import average, leaves_list
    from scipy.spatial.distance import squareform

    return leaves_list(average(squareform(1 - wanted, checks=False)))
