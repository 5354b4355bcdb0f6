"""Label trees from nested JSON, parent-child lines, tables of levels, NetworkX graphs and SciPy linkages."""

import contextlib
import csv
import io
import itertools
import json
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nc_jax.checks import check_whole
from nc_jax.hierarchy.tree import LabelTree

ROOT = "root"  # name of the root if the input does not name it
_SHORT = reprlib.Repr()  # for messages: a line or a branch of a file may be megabytes long
_SHORT.maxstring = 100


def from_nested(nested: Mapping[str, Any], *, parents: str = "one") -> LabelTree:
    """Make a tree from nested dicts, such as JSON objects.

    Args:
        nested: dict from the name of a node to its children: a dict of the same form, a list of leaf names, or None or
            {} if the node is a leaf. If the outermost dict has several keys, a node "root" becomes their parent.
        parents: what becomes of a node with several parents; see `LabelTree.from_edges`.

    Raises:
        ValueError: if a value has another type, or `LabelTree.from_edges` raises one.

    Example:
        >>> from_nested({"pet": ["cat", "dog"], "car": None}).classes
        ('car', 'cat', 'dog')
    """
    if len(nested) == 1:
        ((root, below),) = nested.items()
        return LabelTree.from_edges(_nested_edges(root, below), parents=parents)
    return LabelTree.from_edges(_nested_edges(ROOT, nested), parents=parents)


def read_json(path: str | Path, *, parents: str = "one") -> LabelTree:
    """Read a file of nested JSON objects; see `from_nested`.

    Args:
        path: path of the file, text in UTF-8.
        parents: what becomes of a node with several parents; see `LabelTree.from_edges`.

    Raises:
        ValueError: if the file does not hold a JSON object or names a key twice, or `from_nested` raises one. The
            message begins with the path.
    """
    with naming(path):
        try:
            document = json.loads(_text(path), object_pairs_hook=_no_key_twice)
        except json.JSONDecodeError as error:
            raise ValueError(f"a label tree in JSON must be valid JSON; got {error}") from error
        except RecursionError as error:
            raise ValueError(
                "a label tree in JSON must be less than about 1,000 levels deep, which lines of a parent and a child "
                "need not be; got a deeper one"
            ) from error
        if not isinstance(document, dict):
            raise ValueError(f"a label tree in JSON is an object of objects; got {type(document).__name__}")
        return from_nested(document, parents=parents)


def read_parent_child(path: str | Path, *, parents: str = "one") -> LabelTree:
    """Read a tree from a file with one edge per line: the name of the parent, then the name of the child.

    A tab separates the names; in a line without a tab, blanks do (so names with blanks need a tab). Commas do not
    separate: edges with commas go into a .csv file for `read_levels`. Empty lines and comments are skipped. A comment
    begins with "#", and with "# " if it would be an edge otherwise.

    Args:
        path: path of the file, text in UTF-8.
        parents: what becomes of a node with several parents; see `LabelTree.from_edges`.

    Raises:
        ValueError: if a line does not hold two names, or `LabelTree.from_edges` raises one. The message begins with the
            path.
    """
    with naming(path):
        return LabelTree.from_edges(_edges(_lines(_text(path))), parents=parents)


def from_levels(rows: Iterable[Sequence[str]], columns: Sequence[str], *, parents: str = "one") -> LabelTree:
    """Make a tree from a table with one row per class and one column per level.

    Args:
        rows: labels of each class, from the coarsest level to the name of the class itself. An empty label skips a
            level: the next label becomes a child of the last label before the gap.
        columns: names of the levels, one per label in a row. Inner nodes are named "level:label", so equal labels in
            different levels are different nodes.
        parents: what becomes of a label with several parents; see `LabelTree.from_edges`.

    Raises:
        ValueError: if a row does not have one label per column, a class has no name or two rows or is called "root", or
            `LabelTree.from_edges` raises one.

    Example:
        >>> from_levels([("pet", "cat"), ("pet", "dog"), ("", "car")], ("kind", "class")).nodes
        ('root', 'kind:pet', 'car', 'cat', 'dog')
    """
    edges: dict[tuple[str, str], None] = {}
    seen: set[str] = set()
    for row in rows:
        if len(row) != len(columns) or not row[-1]:
            raise ValueError(f"each row holds {len(columns)} labels, the last not empty; got {_SHORT.repr(list(row))}")
        if row[-1] == ROOT:
            raise ValueError(f"no class may be called {ROOT!r}, as the root of a table of levels is; got {list(row)}")
        if row[-1] in seen:
            raise ValueError(f"every class has one row; {row[-1]!r} has two")
        seen.add(row[-1])
        path = [f"{column}:{label}" for column, label in zip(columns[:-1], row[:-1], strict=True) if label]
        nodes = [ROOT, *path, row[-1]]
        edges.update(dict.fromkeys(itertools.pairwise(nodes)))
    return LabelTree.from_edges(edges, parents=parents)


def read_levels(path: str | Path, *, parents: str = "one") -> LabelTree:
    """Read a table of levels from a file with a separator of columns; see `from_levels`.

    Commas separate the columns of a .csv file, and a name that has a comma is quoted. Tabs separate those of any other
    file, and quotation marks are characters as all others. The first line holds the names of the levels, coarsest
    first. Every other line holds the labels of one class. If the first line is "parent" and "child", every other line
    holds an edge instead.

    Args:
        path: path of the file, text in UTF-8.
        parents: what becomes of a label with several parents; see `LabelTree.from_edges`.

    Raises:
        ValueError: if the file has fewer than two lines, or `from_levels` raises one. The message begins with the path.
    """
    with naming(path):
        text = _text(path)
        lines = _comma_separated(text) if Path(path).suffix.lower() == ".csv" else _tab_separated(text)
        table = [[label.strip() for label in line] for line in lines]
        if len(table) < 2:
            raise ValueError(f"a table of levels has a line of names and a line per class; got {len(table)} lines")
        columns, *rows = table
        if [name.lower() for name in columns] == ["parent", "child"]:
            return LabelTree.from_edges(map(_pair, rows), parents=parents)
        return from_levels(rows, columns, parents=parents)


def from_networkx(graph: Any, *, parents: str = "one") -> LabelTree:
    """Make a tree from a directed NetworkX graph with edges from parents to children. Node names are `str(node)`.

    Args:
        graph: a `networkx.DiGraph`.
        parents: what becomes of a node with several parents; see `LabelTree.from_edges`.

    Raises:
        ValueError: if the graph is not directed, or `LabelTree.from_edges` raises one.
    """
    if not graph.is_directed():
        raise ValueError("a label tree needs a directed graph, parent -> child; got an undirected one")
    return LabelTree.from_edges(((str(parent), str(child)) for parent, child in graph.edges()), parents=parents)


def to_networkx(tree: LabelTree) -> Any:
    """Return the tree as a `networkx.DiGraph` with edges from parents to children. nc_jax does not install NetworkX."""
    import networkx

    graph = networkx.DiGraph()
    named = zip(tree.parents[1:], tree.nodes[1:], strict=True)
    graph.add_edges_from((tree.nodes[parent], node) for parent, node in named)
    return graph


def from_linkage(linkage: Any, classes: Sequence[str], cuts: Sequence[int] | None = None) -> LabelTree:
    """Make a tree from a SciPy linkage (agglomerative clustering).

    Args:
        linkage: result of `scipy.cluster.hierarchy.linkage`, with K - 1 rows.
        classes: names of the K classes.
        cuts: number of nodes of each level, ascending; a cut of K adds no level. None: keep every merge, which gives a
            binary tree.

    Raises:
        ValueError: if the linkage does not have K - 1 rows, a cut is not in 1..K, or the cuts are not ascending.
    """
    merges = [(int(one), int(other)) for one, other, *_ in linkage]
    count = len(classes)
    if len(merges) != count - 1:
        raise ValueError(f"a linkage of {count} classes has {count - 1} rows; got {len(merges)}")
    if cuts is None:
        names = [*classes, *(f"merge:{number}" for number in range(count - 1))]
        return LabelTree.from_edges(
            (names[count + number], names[child]) for number in range(count - 2, -1, -1) for child in merges[number]
        )
    for cut in cuts:
        check_whole("a cut", cut)
    if list(cuts) != sorted(set(cuts)):
        raise ValueError(f"cuts must be ascending numbers of nodes; got {list(cuts)}")
    inner = [cut for cut in cuts if cut < count]
    columns = [cut_linkage(linkage, cut) for cut in cuts][: len(inner)]
    rows = [[*(str(column[label]) for column in columns), classes[label]] for label in range(count)]
    return from_levels(rows, [*(f"cut{cut}" for cut in inner), "class"])


def cut_linkage(linkage: Any, num_nodes: int) -> list[int]:
    """Cut a SciPy linkage of K classes into groups of classes.

    Args:
        linkage: result of `scipy.cluster.hierarchy.linkage`, with K - 1 rows.
        num_nodes: number of groups, 1..K.

    Returns:
        For each class, the number of its group. Groups are numbered in the order of their first class.

    Raises:
        ValueError: if num_nodes is not in 1..K.
    """
    # scipy.cluster.hierarchy.cut_tree (1.17.1) is not used, because it gives one group if K groups are requested.
    count = len(linkage) + 1
    if not 1 <= num_nodes <= count:
        raise ValueError(f"cuts must be numbers in 1..{count}; got {num_nodes}")
    members = {label: [label] for label in range(count)}
    for number, (one, other, *_) in enumerate(linkage[: count - num_nodes], start=count):
        members[number] = members.pop(int(one)) + members.pop(int(other))
    labels = [0] * count
    for number, below in enumerate(sorted(members.values(), key=min)):
        for label in below:
            labels[label] = number
    return labels


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _text(path: str | Path) -> str:
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")  # editors on Windows begin a file with a mark that is no part of its text
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"a label tree must be text in UTF-8; got the byte 0x{content[error.start]:02x} at position {error.start}, "
            f"in line {line}"
        ) from error
    return unicodedata.normalize("NFC", text)  # as the names of the classes of a folder of images


def _lines(text: str) -> list[str]:
    # Not str.splitlines, which also ends a line at characters that may be part of a name.
    return re.split(r"\r\n|\r|\n", text)


def _edges(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, start=1):
        names = _names_on(line)
        right = len(names) == 2 and all(names)
        if line.startswith("#") and right and re.match(r"#[^#\s]", line):
            raise ValueError(
                "a comment that could be an edge must begin with '# ', and a name that begins with '#' needs a .csv "
                f"or .json file; got {_SHORT.repr(line)} in line {number}"
            )
        if not line.strip() or line.startswith("#"):
            continue
        if not right:
            raise ValueError(
                "each line holds a parent and a child, separated by a tab (or by blanks, if the names have none; "
                f"commas are for .csv files); got {_SHORT.repr(line)} in line {number}"
            )
        yield names[0], names[1]


def _names_on(line: str) -> list[str]:
    if "\t" in line:
        return [name.strip() for name in line.split("\t")]
    names = line.split()
    return [] if any(name.strip(",") != name for name in names) else names  # "pet, cat" is separated by a comma


def _tab_separated(text: str) -> list[list[str]]:
    return [line.split("\t") for line in _lines(text) if line.strip()]


def _comma_separated(text: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(row)]
    except csv.Error as error:
        raise ValueError(f"a table in a .csv file must be valid CSV; got {error}") from error


def _pair(row: Sequence[str]) -> tuple[str, str]:
    if len(row) != 2:
        raise ValueError(f"each line holds a parent and a child; got {_SHORT.repr(list(row))}")
    return row[0], row[1]


def _nested_edges(root: str, below: Any) -> Iterator[tuple[str, str]]:
    stack = [(root, below)]
    while stack:  # a loop instead of recursion, because a tree may be deeper than Python's recursion limit
        node, below = stack.pop()
        if below is None:
            continue
        if isinstance(below, Mapping):
            children = list(below.items())
        elif isinstance(below, list | tuple) and all(isinstance(leaf, str) for leaf in below):
            children = [(leaf, None) for leaf in below]
        else:
            raise ValueError(
                f"below a node there is a dict, a list of names or nothing; got {_SHORT.repr(below)} below {node!r}"
            )
        for child, further in children:
            yield node, child
            stack.append((child, further))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, below in pairs:
        if name in found:
            raise ValueError(f"every node needs exactly one parent; {name!r} is given twice")
        found[name] = below
    return found
