"""Drawings of label trees."""

import heapq
import re
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.hierarchy.tree import LabelTree

_NUMBERED = re.compile(r"(cut\d+|merge):\d+$")  # the groups of a clustering (`from_linkage`), which have no names
_SENSE = re.compile(r"\.n\.\d\d$")  # which meaning of a word a synset of WordNet has; the tree around it shows it
_GROUPS = "#0072B2"  # blue
# In inches: height of a row, width of a letter of a class's and of a group's name, room around a group's name.
_ROW, _LETTER, _SMALL_LETTER, _SPACE = 0.15, 0.07, 0.065, 0.2


def draw_dendrogram(
    tree: LabelTree,
    path: str | Path,
    *,
    rows: int = 120,  # a page of 18 inches, whose names can still be read on a screen
    title: str = "",
) -> None:
    """Draw a label tree into an image file, with the root on the left and the classes on the right.

    The names of groups are blue. If there are more classes than rows, not all groups are opened: the group of most
    classes is opened first, as long as there are rows for its children. A group that stays closed has one row, with the
    number of its classes. So the largest tree has a drawing that can be read, and `rows=len(tree.classes)` shows all.

    Args:
        tree: label tree.
        path: path of the file; its suffix decides the format.
        rows: number of rows at most.
        title: text above the drawing.

    Raises:
        ValueError: if rows is less than 1.
    """
    if rows < 1:
        raise ValueError(f"a drawing needs at least 1 row; got {rows}")
    from matplotlib.figure import Figure  # pyplot is avoided, because it has global state and may open a window system

    sizes = tree.membership.sum(axis=1).astype(int)
    shown, closed = _opened(tree, sizes, rows)
    places = _places(tree, shown)
    edges, right = _columns(tree, shown - closed)
    ends = sorted((node for node in shown if node in closed or not tree.heights[node]), key=places.__getitem__)
    names = {node: _written(tree.nodes[node]) for node in ends}
    names |= {node: f"{names[node]} ({sizes[node]} classes)" for node in closed}
    width = float(np.clip(right + _LETTER * max(map(len, names.values())), 7, 60))
    figure = Figure(figsize=(width, max(_ROW * len(ends), 2.5)), layout="constrained")
    axis: Any = figure.add_subplot()
    for node, name in names.items():
        beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "parse_math": False}
        color = _GROUPS if node in closed else "black"
        axis.annotate(name, (right, places[node]), fontsize=8, color=color, **beside)
    for node in sorted(shown - {0}):
        above = tree.parents[node]
        # Every row ends at the right edge, so that all names are in one column.
        end = right if node in names else edges[tree.depths[node]]
        start = edges[tree.depths[above]]
        axis.plot([start, start, end], [places[above], places[node], places[node]], color="0.3", linewidth=0.8)
        if node not in names and not _NUMBERED.match(tree.nodes[node]):
            above_line = {"xytext": (0, 1), "textcoords": "offset points", "va": "bottom", "parse_math": False}
            place = start + 0.03, places[node]
            axis.annotate(_written(tree.nodes[node]), place, fontsize=7, color=_GROUPS, **above_line)
    axis.margins(x=0.01)
    axis.set_ylim(len(ends) - 0.4, -0.6)
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.axis("off")
    figure.savefig(path, dpi=150)


def _written(name: str) -> str:
    return _SENSE.sub("", name).replace("_", " ")


def _children(tree: LabelTree) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents[1:], start=1):
        found.setdefault(parent, []).append(node)
    return found


def _opened(tree: LabelTree, sizes: np.ndarray, rows: int) -> tuple[set[int], set[int]]:
    """The nodes to be drawn, and which of these are groups that stay closed."""
    children = _children(tree)
    shown, closed, count = {0}, set(), 1
    waiting = [(-sizes[0], 0)]
    while waiting:
        _, node = heapq.heappop(waiting)
        below = children[node]
        if count - 1 + len(below) > rows:
            closed.add(node)
            continue
        count += len(below) - 1
        shown.update(below)
        for child in below:
            if child in children:
                heapq.heappush(waiting, (-sizes[child], child))
    return shown, closed


def _columns(tree: LabelTree, opened: set[int]) -> tuple[np.ndarray, float]:
    """Where the line of a node at each depth ends, in inches, and where the rows do: each name has room on its line."""
    widths = np.zeros(tree.height + 1)
    for node in opened - {0}:
        if tree.heights[node]:
            known = "" if _NUMBERED.match(tree.nodes[node]) else _written(tree.nodes[node])
            widths[tree.depths[node]] = max(widths[tree.depths[node]], _SMALL_LETTER * len(known) + _SPACE)
    edges = np.cumsum(widths)
    return edges, float(edges[-1] + _SPACE)


def _places(tree: LabelTree, shown: set[int]) -> dict[int, float]:
    """Row of each node that is drawn: ends in depth-first order, every other node in the middle of its children."""
    children = {node: [child for child in below if child in shown] for node, below in _children(tree).items()}
    places: dict[int, float] = {}
    stack = [0]
    while stack:
        node = stack.pop()
        below = children.get(node)
        if below:
            stack.extend(reversed(below))
        else:
            places[node] = float(len(places))
    for node in sorted(shown, reverse=True):  # children have larger numbers
        if node not in places:
            places[node] = float(np.mean([places[child] for child in children[node]]))
    return places
