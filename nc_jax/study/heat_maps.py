"""Matrices as pictures: cosines, confusions, numbers over a grid."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from nc_jax.study.plots import grid, save

COSINES = colormaps["RdBu_r"].with_extremes(bad="0.8")  # the diagonal, which is one by definition, is grey
MOST_WRITTEN = 10  # rows of a matrix up to which its numbers can be read in its cells
MOST_NAMES = 30  # classes up to which their names fit on an axis
LONGEST_NAME = 24  # letters of a name that leave more room to the matrix than they take


def cosine_matrices(
    path: Path, matrices: Mapping[str, np.ndarray], target: float, class_names: Sequence[str] = ()
) -> None:
    """Draw the cosines between centred class means, one matrix per method.

    Args:
        path: path of the picture; its suffix is the file format.
        matrices: (K, K) per method.
        target: the cosine that every pair of different classes should have, named in the title.
        class_names: K names, for the axes.
    """
    figure, axes = grid(len(matrices), len(matrices), (4.0, 4.1), (0.0, 0.0))
    image = None
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        diagonal = np.eye(len(matrix), dtype=bool)
        # The diagonal is one by definition; what matters is how far each pair is from the target, which is white.
        shown = np.where(diagonal, np.nan, matrix)
        image = axis.imshow(shown, vmin=target - 0.3, vmax=target + 0.3, cmap=COSINES)
        pairs = matrix[~diagonal]
        axis.set_title(f"{name}: {np.nanmean(pairs):.3f} ± {np.nanstd(pairs):.3f}", fontsize=10)
        _name_classes(axis, len(matrix), class_names)
    figure.suptitle(
        f"cosines between centred class means, last seed, mean ± sd over pairs (simplex ETF: {target:.3f}, white)",
        fontsize=10,
    )
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.8, extend="both")
    save(figure, path)


def confusion(path: Path, matrices: Mapping[str, np.ndarray], class_names: Sequence[str] = ()) -> None:
    """Draw which classes are taken for which: shares of each true class, mistakes only.

    Args:
        path: path of the picture; its suffix is the file format.
        matrices: counts (K, K) per method, true classes in rows.
        class_names: K names, for the axes.
    """
    figure, axes = grid(len(matrices), 4, (3.9, 3.9))
    shares = {name: counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for name, counts in matrices.items()}
    # Right answers are left out: beside them, the mistakes would all have the same colour.
    mistakes = {name: np.where(np.eye(len(share), dtype=bool), np.nan, share) for name, share in shares.items()}
    highest = max((np.nanmax(share) for share in mistakes.values()), default=0) or 1.0
    image = None
    for axis, (name, share) in zip(axes.flat, mistakes.items(), strict=False):
        image = axis.imshow(share, vmin=0, vmax=highest, cmap="magma_r")
        counts = matrices[name]
        axis.set_title(f"{name}: {np.trace(counts) / max(counts.sum(), 1):.1%} right", fontsize=10)
        _name_classes(axis, len(share), class_names)
        axis.set_xlabel("taken for", fontsize=8)
    for line in axes:
        line[0].set_ylabel("class", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.8, format="{x:.1%}")
    figure.suptitle("confusions on the test set, as shares of each class", fontsize=11)
    save(figure, path)


def wanted_cosines(
    path: Path,
    wanted: np.ndarray,
    found: Mapping[str, np.ndarray],
    errors: Mapping[str, float],
    class_names: Sequence[str] = (),
) -> None:
    """Draw the wanted cosines between classes and those of the class means, of methods that have some.

    Args:
        path: path of the picture; its suffix is the file format.
        wanted: (K, K).
        found: (K, K) per method; empty ones are left out.
        errors: mean absolute difference of a method's cosines to those that it was to have.
        class_names: K names, for the axes.
    """
    shown = {"wanted": wanted} | {name: matrix for name, matrix in found.items() if matrix.size}
    # Classes in the order of a clustering, so that the tree is seen as blocks.
    order = _leaf_order(wanted)
    figure, axes = grid(len(shown), 4, (3.0, 3.2))
    # The diagonal is one by definition. Without it the wanted cosines, which are small, have colours of their own.
    pairs = ~np.eye(len(wanted), dtype=bool)
    highest = float(np.ceil(10 * np.percentile(np.abs([matrix[pairs] for matrix in shown.values()]), 99)) / 10) or 1.0
    names: list[str] = [class_names[int(place)] for place in order] if class_names else []
    image = None
    for axis, (name, matrix) in zip(axes.flat, shown.items(), strict=False):
        drawn = np.where(pairs, matrix, np.nan)[np.ix_(order, order)]
        image = axis.imshow(drawn, vmin=-highest, vmax=highest, cmap=COSINES)
        axis.set_title(f"{name}\nmean error {errors[name]:.3f}" if name in errors else name, fontsize=8)
        if len(wanted) <= MOST_NAMES:
            _name_classes(axis, len(wanted), names)
        else:
            axis.set_xticks([])
            axis.set_yticks([])
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.7, extend="both")
    what = "classes in the order of the tree" if len(wanted) > MOST_NAMES else "classes clustered"
    figure.suptitle(f"cosines between class means of the last seed, {what}", fontsize=10)
    save(figure, path)


def shares(
    path: Path, matrices: Mapping[str, np.ndarray], *, title: str, labels: tuple[str, str], first: int = 0
) -> None:
    """Draw square matrices of shares, in [0, 1], on one scale; the numbers of small ones are written in their cells.

    Args:
        path: path of the picture; its suffix is the file format.
        matrices: shape (n, n), by name. NaN stays grey.
        title: what the shares are.
        labels: names of the vertical and of the horizontal axis.
        first: number of the first row and column.
    """
    figure, axes = grid(len(matrices), 3, (4.2, 4.0))
    image, colours = None, colormaps["viridis"].with_extremes(bad="0.8")
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=False):
        last = first + len(matrix) - 1
        image = axis.imshow(
            matrix, vmin=0, vmax=1, cmap=colours, extent=(first - 0.5, last + 0.5, last + 0.5, first - 0.5)
        )
        for row, column in np.argwhere(np.isfinite(matrix)) if len(matrix) <= MOST_WRITTEN else ():
            shade = "k" if matrix[row, column] > 0.6 else "w"  # the colours brighten upwards
            text = f"{matrix[row, column]:.2f}"
            axis.text(first + column, first + row, text, ha="center", va="center", color=shade, fontsize=6.5)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(labels[1], fontsize=8)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for line in axes:
        line[0].set_ylabel(labels[0], fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def heat_maps(
    path: Path, tables: Mapping[str, np.ndarray], rows: Sequence[Any], columns: Sequence[Any], labels: tuple[str, str]
) -> None:
    """Draw tables of numbers side by side as heat maps, each number written in its cell.

    Args:
        path: path of the picture; its suffix is the file format.
        tables: numbers of shape (rows, columns), by title.
        rows: what stands beside the rows.
        columns: what stands below the columns.
        labels: names of the vertical and of the horizontal axis.
    """
    size = (0.5 + 0.8 * len(columns), 1.0 + 0.5 * len(rows))
    figure, axes = grid(len(tables), len(tables), size, (0.0, 0.0), sharey=True)
    for axis, (title, values) in zip(axes.flat, tables.items(), strict=True):
        axis.imshow(values, cmap="viridis", aspect="auto")
        middle = (values.min() + values.max()) / 2
        for row, column in np.ndindex(*values.shape):
            shade = "k" if values[row, column] > middle else "w"  # the colours brighten upwards
            axis.text(column, row, f"{values[row, column]:.3f}", ha="center", va="center", color=shade, fontsize=8)
        axis.set_xticks(range(len(columns)), [str(value) for value in columns])
        axis.set_yticks(range(len(rows)), [str(value) for value in rows])
        axis.set_xlabel(labels[1])
        axis.set_title(title, fontsize=10)
    axes.flat[0].set_ylabel(labels[0])
    save(figure, path)


def rounded(matrix: Any, digits: int = 3) -> list[list[float]]:
    """Return a matrix as JSON can hold it, rounded: what a picture needs of it."""
    return np.round(np.asarray(matrix, float), digits).tolist()


def _leaf_order(wanted: np.ndarray) -> np.ndarray:
    between = scipy.spatial.distance.squareform(1 - wanted, checks=False)
    return scipy.cluster.hierarchy.leaves_list(scipy.cluster.hierarchy.average(between))


def _name_classes(axis: Any, count: int, class_names: Sequence[str]) -> None:
    if class_names and count <= MOST_NAMES:
        names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in class_names]
        rotation = 90 if max(map(len, names)) > 2 else 0
        written: Any = {"labels": names, "fontsize": 7, "parse_math": False}  # a dollar sign begins no formula
        axis.set_xticks(range(count), rotation=rotation, **written)
        axis.set_yticks(range(count), **written)
    else:
        axis.set_xlabel("class", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
