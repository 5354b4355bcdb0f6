"""Drawings of label trees."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.hierarchy.tree import LabelTree

_NUMBERED = re.compile(r"(cut\d+|merge):\d+$")  # the groups of a clustering (`from_linkage`), which have no names


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
    named = [node for node in range(1, len(tree.nodes)) if tree.heights[node] and not _NUMBERED.match(tree.nodes[node])]
    inner, leaf = (max(map(len, names), default=0) for names in ([tree.nodes[node] for node in named], tree.classes))
    # A letter is about 0.065 inches wide. The name of an inner node stands on a line that is one level long.
    width = (0.065 * inner + 0.2) * tree.height + 0.07 * leaf if labels else 0
    size = float(np.clip(width, 7, 40)), float(np.clip(0.15 * count, 2.5, 60))
    figure = Figure(figsize=size, layout="constrained")
    axis: Any = figure.add_subplot()
    for node, parent in enumerate(tree.parents[1:], start=1):
        left, right = tree.depths[parent], tree.depths[node]
        # Every leaf ends at the right edge, so that all names are in one column.
        right = right if tree.heights[node] else tree.height
        axis.plot([left, left, right], [rows[parent], rows[node], rows[node]], color="0.3", linewidth=0.8)
    if labels:
        for name, node in zip(tree.classes, tree.leaves, strict=True):
            axis.text(tree.height + 0.05, rows[node], _written(name), va="center", fontsize=8, parse_math=False)
        for node in named:
            place = tree.depths[node] - 0.97, rows[node]
            above = {"xytext": (0, 1), "textcoords": "offset points", "va": "bottom", "parse_math": False}
            axis.annotate(_written(tree.nodes[node]), place, fontsize=7, color="#0072B2", **above)
    axis.margins(x=0.01)
    axis.set_ylim(count - 0.4, -0.6)
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.axis("off")
    figure.savefig(path, dpi=150)


def _written(name: str) -> str:
    return name.replace("_", " ")


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
