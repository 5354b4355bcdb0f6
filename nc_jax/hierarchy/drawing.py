"""Drawings of label trees."""

from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.hierarchy.tree import LabelTree


def draw_dendrogram(tree: LabelTree, path: str | Path, *, labels: bool | None = None, title: str = "") -> None:
    """Draw a tree, root on the left and classes on the right, into an image file.

    Args:
        tree: any.
        path: of the file; the suffix chooses the format.
        labels: write the names of the classes; None does so for up to 120.
        title: above the drawing.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system

    rows = _rows(tree)
    count = len(tree.classes)
    labels = count <= 120 if labels is None else labels
    figure = Figure(figsize=(6.0, float(np.clip(0.13 * count, 3, 60))), layout="constrained")
    axis: Any = figure.add_subplot()
    for node, parent in enumerate(tree.parents[1:], start=1):
        left, right = tree.depths[parent], tree.depths[node]
        # A leaf ends on the right edge, so that all names stand in one column.
        right = right if tree.heights[node] else tree.height
        axis.plot([left, left, right], [rows[parent], rows[node], rows[node]], color="0.3", linewidth=0.8)
    if labels:
        for name, leaf in zip(tree.classes, tree.leaves, strict=True):
            text = name.replace("$", r"\$").replace("_", " ")
            axis.text(tree.height + 0.05, rows[leaf], text, va="center", fontsize=6)
    axis.set_title(title, fontsize=10)
    axis.invert_yaxis()
    axis.axis("off")
    figure.savefig(path, dpi=120)


def _rows(tree: LabelTree) -> np.ndarray:
    """Height at which each node stands: leaves one by one in depth-first order, others between their children."""
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
