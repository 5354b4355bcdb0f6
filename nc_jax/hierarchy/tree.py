"""A label tree: a tree of names that is checked when it is made, and integer arrays that describe it."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

DistanceRule = Literal["depth", "height"]
Parents = Literal["one", "shallowest", "deepest"]
# Control characters, halves of characters, and the mark at the beginning of a file that was joined to another one.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LabelTree:
    """A rooted tree whose leaves are the classes.

    `from_edges` and the readers of `nc_jax.hierarchy` make a tree and check it. Two trees are equal only if they are
    the same object.

    Raises:
        ValueError: if a parent does not come before its children, or the classes are not the leaves.

    Attributes:
        nodes: names of all nodes; the root is first, and ancestors are before their descendants.
        parents: for each node, the number of its parent; -1 for the root.
        classes: names of the leaves. All results per class have this order: sorted, unless `ordered` has changed it.

    Example:
        >>> tree = LabelTree.from_edges([("any", "pet"), ("any", "car"), ("pet", "cat"), ("pet", "dog")])
        >>> tree.classes, tree.height
        (('car', 'cat', 'dog'), 2)
        >>> tree.distances().tolist()
        [[0, 2, 2], [2, 0, 1], [2, 1, 0]]
    """

    nodes: tuple[str, ...]
    parents: tuple[int, ...]
    classes: tuple[str, ...]

    def __post_init__(self):
        first, *others = self.parents or (None,)
        if first != -1 or not all(0 <= parent < node for node, parent in enumerate(others, start=1)):
            raise ValueError(f"parents must be -1 for the root and come before their children; got {self.parents}")
        inner = set(others)
        leaves = [node for number, node in enumerate(self.nodes) if number not in inner]
        if len(self.nodes) != len(self.parents) or sorted(leaves) != sorted(self.classes):
            raise ValueError(
                f"a tree needs a parent for each node, and its leaves as classes; got {len(self.nodes)} nodes, "
                f"{len(self.parents)} parents and {len(self.classes)} classes"
            )

    @classmethod
    def from_edges(cls, edges: Iterable[tuple[str, str]], *, parents: str = "one") -> "LabelTree":
        """Make a tree from (parent, child) pairs and check it. The leaves, sorted by name, are the classes.

        Args:
            edges: at least one pair of names, the parent first.
            parents: what becomes of a node with several parents, which a taxonomy may have. "one": it is refused.
                "shallowest": it keeps the parent that is nearest to the root. "deepest": it keeps the parent that is
                farthest from the root, counted along the longest path. Of equal ones it keeps that of the first edge.
                A node that all its children leave is left out.

        Raises:
            ValueError: if there is no edge, a name is empty or holds control characters, a node is its own parent or
                has two parents, an edge is given twice, there are several roots, or some nodes form a cycle. The
                message names the node.

        Example:
            >>> edges = [("any", "pet"), ("any", "food"), ("food", "meat"), ("pet", "hen"), ("meat", "hen")]
            >>> LabelTree.from_edges([*edges, ("food", "bread")], parents="shallowest").nodes  # the hen is a pet
            ('any', 'pet', 'food', 'hen', 'bread')
        """
        if parents not in get_args(Parents):
            raise ValueError(f"parents must be one of {', '.join(map(repr, get_args(Parents)))}; got {parents!r}")
        parents_of: dict[str, list[str]] = {}
        children: dict[str, list[str]] = {}
        for parent, child in edges:
            _check_edge(parent, child)
            known = parents_of.setdefault(child, [])
            if parent in known:
                raise ValueError(f"every node needs exactly one parent; {child!r} has the same edge twice: {parent!r}")
            if known and parents == "one":
                raise ValueError(
                    f"every node needs exactly one parent (parents='shallowest', or --data.tree-parents shallowest, "
                    f"keeps the one nearest to the root); {child!r} has a second parent: {known[0]!r} and {parent!r}"
                )
            known.append(parent)
            children.setdefault(parent, []).append(child)
        if not parents_of:
            raise ValueError("a label tree needs at least one edge; got none")
        roots = [node for node in children if node not in parents_of]
        if not roots:
            raise ValueError(f"a label tree needs a root; {next(iter(parents_of))!r} is on a cycle or below one")
        if len(roots) > 1:
            raise ValueError(f"a label tree has one root; got {len(roots)}, among them {roots[0]!r} and {roots[1]!r}")
        best = max if parents == "deepest" else min
        parent_of, depth = {roots[0]: ""}, {roots[0]: 0}
        for node in _parents_first(roots[0], parents_of, children)[1:]:
            parent_of[node] = best(parents_of[node], key=depth.__getitem__)  # of equal ones, the first
            depth[node] = depth[parent_of[node]] + 1
        order = [roots[0]]
        for node in order:  # the list grows during the loop: breadth first, so ancestors come first
            order += [child for child in children.get(node, ()) if parent_of[child] == node]
        leaves = sorted(node for node in order if node not in children)
        above = _with_ancestors(leaves, parent_of)  # without nodes whose children have all kept other parents
        nodes = [node for node in order if node in above]
        numbers = {node: number for number, node in enumerate(nodes)}
        return cls(tuple(nodes), (-1, *(numbers[parent_of[node]] for node in nodes[1:])), tuple(leaves))

    def __repr__(self) -> str:
        return f"LabelTree({len(self.classes)} classes, {len(self.nodes)} nodes, height {self.height})"

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise a ValueError that names a wrong class, unless the leaves are exactly these classes."""
        leaves = set(self.classes)
        for name in classes:
            if name not in leaves:
                if name not in self.nodes:
                    raise ValueError(f"every class must be a leaf of the tree; {name!r} is no node")
                raise ValueError(
                    "every class must be a leaf of the tree (inner='leaf', or --data.tree-inner leaf, gives a leaf to "
                    f"every class that is an inner node); {name!r} is an inner node"
                )
        extra = leaves.difference(classes)
        if extra:
            raise ValueError(f"every leaf of the tree must be a class; {min(extra)!r} is none")
        if len(classes) != len(leaves):
            twice = next(name for place, name in enumerate(classes) if name in classes[:place])
            raise ValueError(f"every class has one leaf; {twice!r} is named twice")

    def with_leaves(self, classes: Sequence[str]) -> "LabelTree":
        """Return a tree in which every one of these classes that is an inner node has a leaf of its own.

        The leaf is a child of the node and has its name, and the node is called "... (all)": where dogs and poodles are
        classes, a dog of no known breed is a leaf beside the poodles, below "dog (all)".

        Args:
            classes: names of classes; those that are no inner nodes change nothing.

        Raises:
            ValueError: if the new name of a node is that of another one.

        Example:
            >>> tree = LabelTree.from_edges([("pet", "cat"), ("pet", "dog"), ("dog", "poodle")])
            >>> tree.with_leaves(["dog"]).nodes
            ('pet', 'cat', 'dog (all)', 'poodle', 'dog')
        """
        chosen = set(classes).difference(self.classes)
        names = {node: f"{node} (all)" if node in chosen else node for node in self.nodes}
        if len(set(names.values())) < len(names):
            twice = next(name for node, name in names.items() if name != node and name in names)
            raise ValueError(f"the node above a leaf of its own takes another name; {twice!r} is there already")
        pairs = zip(self.parents[1:], self.nodes[1:], strict=True)
        edges = [(names[self.nodes[parent]], names[node]) for parent, node in pairs]
        return LabelTree.from_edges(edges + [(names[node], node) for node in self.nodes if node in chosen])

    def ordered(self, classes: Sequence[str]) -> "LabelTree":
        """Return the same tree with its classes in another order, usually the order of a data set's labels.

        Args:
            classes: names of all leaves, in the new order.

        Raises:
            ValueError: if the names are not exactly the names of the leaves. The message names a wrong class.
        """
        self.check_classes(classes)
        return dataclasses.replace(self, classes=tuple(classes))

    def pruned(self) -> "LabelTree":
        """Return the tree without the inner nodes that have one child, which decide nothing.

        Every distance then counts decisions between groups of classes. Of a chain of such nodes, the first node with
        several children is left, and it takes the place of the chain.

        Example:
            >>> tree = LabelTree.from_edges([("any", "being"), ("being", "pet"), ("pet", "cat"), ("pet", "dog")])
            >>> tree.pruned().nodes, tree.pruned().height
            (('pet', 'cat', 'dog'), 1)

        Reference: the trees of Bertinetto et al., Making better mistakes (2020), have no such node.
        """
        kept = np.bincount(self.parents[1:], minlength=len(self.nodes)) != 1
        kept[0] |= len(self.classes) == 1  # the one leaf needs a root
        numbers = np.cumsum(kept) - 1  # of the nodes that are left
        above = np.full(len(self.nodes), -1)  # for each node, the number of the lowest one left among its ancestors
        for node, parent in enumerate(self.parents[1:], start=1):
            above[node] = numbers[parent] if kept[parent] else above[parent]
        nodes = tuple(node for node, left in zip(self.nodes, kept, strict=True) if left)
        return LabelTree(nodes, tuple(above[kept].tolist()), self.classes)

    def renamed(self, names: Mapping[str, str]) -> "LabelTree":
        """Return the same tree with other names, such as words for codes.

        Args:
            names: for each node to be renamed, its new name; other nodes keep theirs.

        Raises:
            ValueError: if two nodes would have the same name.

        Example:
            >>> LabelTree.from_edges([("pet", "n1"), ("pet", "n2")]).renamed({"n1": "dog", "n2": "cat"}).classes
            ('dog', 'cat')
        """
        nodes = tuple(names.get(node, node) for node in self.nodes)
        if len(set(nodes)) < len(nodes):
            twice = next(name for place, name in enumerate(nodes) if name in nodes[:place])
            raise ValueError(f"every node has a name of its own; {twice!r} would be that of two")
        return LabelTree(nodes, self.parents, tuple(names.get(name, name) for name in self.classes))

    def shuffled(self, seed: int) -> "LabelTree":
        """Return a tree of the same shape with the classes assigned to the leaves at random, as a control.

        Args:
            seed: seed of the random permutation.

        Example:
            >>> tree = LabelTree.from_edges([("r", "x"), ("r", "c"), ("x", "a"), ("x", "b")])
            >>> sorted(tree.shuffled(0).distances().ravel()) == sorted(tree.distances().ravel())
            True
        """
        order = np.random.default_rng(seed).permutation(len(self.classes))
        renamed = dict(zip(self.classes, (self.classes[place] for place in order), strict=True))
        nodes = tuple(renamed.get(node, node) for node in self.nodes)
        return dataclasses.replace(self, nodes=nodes)

    @cached_property
    def depths(self) -> Int[np.ndarray, " nodes"]:
        """Number of edges from the root to each node."""
        depths = np.zeros(len(self.nodes), np.int32)
        for node, parent in enumerate(self.parents[1:], start=1):
            depths[node] = depths[parent] + 1
        return depths

    @cached_property
    def heights(self) -> Int[np.ndarray, " nodes"]:
        """Number of edges from each node to the deepest leaf below it."""
        heights = np.zeros(len(self.nodes), np.int32)
        for node in range(len(self.nodes) - 1, 0, -1):
            heights[self.parents[node]] = max(heights[self.parents[node]], heights[node] + 1)
        return heights

    @property
    def height(self) -> int:
        """Height H of the tree: the depth of the deepest leaf."""
        return int(self.heights[0])

    @cached_property
    def leaves(self) -> Int[np.ndarray, " classes"]:
        """For each class, the number of its node; shape (K,)."""
        numbers = {node: number for number, node in enumerate(self.nodes)}
        return np.array([numbers[name] for name in self.classes], np.int32)

    @cached_property
    def membership(self) -> Float[np.ndarray, "nodes classes"]:
        """For each node and class: 1 if the class is the node or is below it, otherwise 0; shape (nodes, K)."""
        members = np.zeros((len(self.nodes), len(self.classes)), np.float32)
        members[self.leaves, np.arange(len(self.classes))] = 1
        for node in range(len(self.nodes) - 1, 0, -1):
            members[self.parents[node]] += members[node]
        return members

    def levels(self) -> Int[np.ndarray, "levels classes"]:
        """Return, for each level, the node to which each class belongs: labels for a classifier per level.

        The node of a class at level l = 1..H (coarsest first) is its ancestor at depth l, or the class itself if its
        leaf is less deep. So the nodes of the last level are the classes, in their order.

        Returns:
            Shape (H, K). The nodes of each level are numbered 0, 1, ... in the order of their first class.

        Example:
            >>> tree = LabelTree.from_edges([("r", "x"), ("r", "c"), ("x", "a"), ("x", "b")])
            >>> tree.levels().tolist()
            [[0, 0, 1], [0, 1, 2]]
        """
        at = self.leaves.copy()
        parents = np.array(self.parents)
        rows = []
        for depth in range(self.height, 0, -1):
            at = np.where(self.depths[at] > depth, parents[at], at)
            _, first, numbers = np.unique(at, return_index=True, return_inverse=True)
            rows.append(np.argsort(np.argsort(first))[numbers])
        return np.stack(rows[::-1]).astype(np.int32)

    def distances(
        self,
        rule: DistanceRule = "depth",  # reproduces the distances of all four data sets of Liang and Davis (2023)
    ) -> Int[np.ndarray, "classes classes"]:
        r"""Distances between all classes, from their lowest common ancestors.

        .. math:: \text{depth: } d_{ij} = H - \operatorname{depth}(\operatorname{lca}(i, j)), \qquad
            \text{height: } d_{ij} = \operatorname{height}(\operatorname{lca}(i, j))

        H is the height of the tree, and lca the lowest common ancestor of classes i and j. Both rules agree if all
        leaves have the same depth, and both give ultrametric distances. Only "depth" gives the same distance to all
        pairs whose common ancestor has the same depth.

        Args:
            rule: "depth" or "height".

        Returns:
            Integers in edges, shape (K, K), zero on the diagonal, in the order of `classes`. Time and memory grow
            as K^2 for every tree: 4 s for K = 10,000.

        Raises:
            ValueError: if the rule is unknown.

        Reference: Bertinetto et al., Making better mistakes (2020), who describe the distance as the height of the
        lowest common ancestor. The distances that they and Liang and Davis (2023) publish follow the rule "depth".
        """
        if rule not in get_args(DistanceRule):
            raise ValueError(f"rule must be one of {', '.join(map(repr, get_args(DistanceRule)))}; got {rule!r}")
        values = self.height - self.depths if rule == "depth" else self.heights
        # In depth-first order, the leaves below a node are contiguous. The lowest common ancestor of a child's leaves
        # and the leaves of its earlier siblings is their parent. So every pair is written once, for any depth.
        sizes = np.zeros(len(self.nodes), np.int64)
        sizes[self.leaves] = 1
        for node in range(len(self.nodes) - 1, 0, -1):
            sizes[self.parents[node]] += sizes[node]
        starts, filled = np.zeros_like(sizes), np.zeros_like(sizes)
        lower = np.zeros((len(self.classes),) * 2, np.int32)
        for node, parent in enumerate(self.parents[1:], start=1):
            first = starts[parent]
            starts[node] = first + filled[parent]
            filled[parent] += sizes[node]
            lower[starts[node] : starts[node] + sizes[node], first : starts[node]] = values[parent]
        places = starts[self.leaves]
        return np.maximum(lower, lower.T)[np.ix_(places, places)]


def _check_edge(parent: str, child: str) -> None:
    for name in (parent, child):
        if not name.strip() or _NO_TEXT.search(name):
            raise ValueError(f"the name of a node must be text on one line, and not empty; got {parent!r} -> {child!r}")
    if parent == child:
        raise ValueError(f"a node cannot be its own parent; got {parent!r} -> {child!r}")


def _parents_first(
    root: str, parents_of: Mapping[str, Sequence[str]], children: Mapping[str, Sequence[str]]
) -> list[str]:
    """List nodes whose parents are all listed already; where there is a cycle, some are left (Kahn, 1962)."""
    missing = {node: len(above) for node, above in parents_of.items()}
    order = [root]
    for node in order:  # the list grows during the loop
        for child in children.get(node, ()):
            missing[child] -= 1
            if not missing[child]:
                order.append(child)
    lost = next((node for node, count in missing.items() if count), None)
    if lost is not None:
        raise ValueError(f"every node must hang below the root {root!r}; {lost!r} is on a cycle or below one")
    return order


def _with_ancestors(leaves: Sequence[str], parent_of: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for node in leaves:
        while node and node not in found:
            found.add(node)
            node = parent_of[node]
    return found
