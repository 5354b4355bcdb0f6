"""Drawings of label trees."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.hierarchy.tree import LabelTree


def draw_dendrogram(tree: LabelTree, path: str | Path, *, labels: bool | None = None, title: str = "") -> None:
    """Draw a label tree into an image file, with the root on the left and the classes on the right.

    Args:
        tree: label tree.
        path: path of the file; its suffix decides the format.
        labels: whether to write the names of the classes, and in blue those of the groups above them. None: only if
            there are at most 120 classes.
        title: text above the drawing.
    """
    from matplotlib.figure import Figure  # pyplot is avoided, because it has global state and may open a window system

    rows = _rows(tree)
    count = len(tree.classes)
    labels = count <= 120 if labels is None else labels
    figure = Figure(figsize=(7.0, float(np.clip(0.15 * count, 2.5, 60))), layout="constrained")
    axis: Any = figure.add_subplot()
    for node, parent in enumerate(tree.parents[1:], start=1):
        left, right = tree.depths[parent], tree.depths[node]
        # Every leaf ends at the right edge, so that all names are in one column.
        right = right if tree.heights[node] else tree.height
        axis.plot([left, left, right], [rows[parent], rows[node], rows[node]], color="0.3", linewidth=0.8)
    if labels:
        for name, leaf in zip(tree.classes, tree.leaves, strict=True):
            axis.text(tree.height + 0.05, rows[leaf], _written(name), va="center", fontsize=8)
        for node, name in enumerate(tree.nodes):
            # Neither the root nor a class; the groups of a clustering (`from_linkage`) have numbers for names.
            if node and tree.heights[node] and not re.fullmatch(r"cut\d+:\d+", name):
                place = tree.depths[node] - 0.97, rows[node]
                axis.text(*place, _written(name), va="bottom", fontsize=7, color="#0072B2")
    axis.set_ylim(count - 0.4, -0.6)
    axis.set_title(title, fontsize=10)
    axis.axis("off")
    figure.savefig(path, dpi=150)


def _written(name: str) -> str:
    """Return a name as Matplotlib writes it: a dollar sign begins no formula."""
    return name.replace("$", r"\$").replace("_", " ")


def _rows(tree: LabelTree) -> np.ndarray:
    """Vertical position of each node: leaves in depth-first order, every other node in the middle of its children."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents[1:], start=1):
        children.setdefault(parent, []).append(node)
    rows = np.zeros(len(tree.nodes))
    stack, place = [0], 0
    while stack:
        node = stack.pop()
        below = children.get(node)
        if below is None:
            rows[node], place = place, place + 1
        else:
            stack.extend(reversed(below))
    for node in range(len(tree.nodes) - 1, -1, -1):
        if node in children:
            rows[node] = np.mean([rows[child] for child in children[node]])
    return rows
