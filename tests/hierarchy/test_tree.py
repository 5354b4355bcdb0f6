"""Trees: what is refused, and distances against the definition and against two real hierarchies."""

import json
from pathlib import Path

import numpy as np
import pytest
from trees import UNEVEN, real

from nc_jax.data import hierarchies
from nc_jax.hierarchy import LabelTree

FACTS = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())["dataset_hierarchy_facts"]


def ancestors(tree: LabelTree, name: str) -> list[int]:
    """Node numbers from the leaf to the root, one by one."""
    path = [tree.nodes.index(name)]
    while tree.parents[path[-1]] >= 0:
        path.append(tree.parents[path[-1]])
    return path


@pytest.mark.parametrize("rule", ["depth", "height"])
def test_distances_follow_their_definition_in_an_uneven_tree(rule):
    tree = LabelTree.from_edges(UNEVEN)
    assert tree.classes == ("a", "b", "c", "d", "e")
    depths = {node: len(ancestors(tree, tree.nodes[node])) - 1 for node in range(len(tree.nodes))}
    expected = np.zeros((5, 5), int)
    for i, one in enumerate(tree.classes):
        for j, other in enumerate(tree.classes):
            common = next(node for node in ancestors(tree, one) if node in ancestors(tree, other))
            below = [depths[n] for n in range(len(tree.nodes)) if common in ancestors(tree, tree.nodes[n])]
            expected[i, j] = 0 if i == j else 3 - depths[common] if rule == "depth" else max(below) - depths[common]
    np.testing.assert_array_equal(tree.distances(rule), expected)


def test_the_two_rules_differ_where_leaves_are_not_equally_deep():
    tree = LabelTree.from_edges([*UNEVEN, ("y", "f")])
    one, other = tree.classes.index("d"), tree.classes.index("f")
    assert (tree.distances("depth")[one, other], tree.distances("height")[one, other]) == (2, 1)


@pytest.mark.parametrize(("name", "facts"), [("inaturalist19", "inat19"), ("tiered_imagenet", "tiered")])
def test_real_hierarchies_have_the_published_distances(name, facts):
    tree, known = real(name), FACTS[facts]
    distances = tree.distances()
    values, counts = np.unique(distances[np.triu_indices(len(distances), 1)], return_counts=True)
    assert {str(v): int(c) for v, c in zip(values, counts, strict=True)} == known["pair_hist"]
    assert (len(tree.classes), tree.height) == (known["K"], known["H"])
    if name == "inaturalist19":
        assert [row.max() + 1 for row in tree.levels()] == known["nodes_per_level"]
    else:
        assert len(tree.nodes) == known["internal_plus_leaf_nodes"]


def test_a_caterpillar_of_two_thousand_classes_takes_seconds_not_hours():
    edges = [(f"n{i}", child) for i in range(1999) for child in (f"c{i}", f"n{i + 1}")]
    distances = LabelTree.from_edges(edges).distances()
    assert distances.max() == 1999
    assert distances[0, 1:].min() == 1999  # c0 hangs from the root


def test_class_order_and_shuffling_permute_the_distances():
    tree = LabelTree.from_edges(UNEVEN)
    order = ("e", "c", "a", "d", "b")
    places = [tree.classes.index(name) for name in order]
    np.testing.assert_array_equal(tree.ordered(order).distances(), tree.distances()[np.ix_(places, places)])
    shuffled = tree.shuffled(1)
    assert shuffled.classes == tree.classes
    assert not np.array_equal(shuffled.distances(), tree.distances())
    assert np.array_equal(np.sort(shuffled.distances().ravel()), np.sort(tree.distances().ravel()))


def test_membership_and_levels_repeat_a_shallow_leaf():
    tree = LabelTree.from_edges(UNEVEN)
    assert tree.membership[0].tolist() == [1] * 5
    assert tree.membership[tree.nodes.index("z")].tolist() == [0, 1, 1, 0, 0]
    assert tree.levels().tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 2, 3], [0, 1, 2, 3, 4]]


WRONG = {
    "no edge": ([], "at least one edge"),
    "two roots": ([("r", "a"), ("q", "b")], "got 2, among them 'r' and 'q'"),
    "second parent": ([("r", "a"), ("r", "x"), ("x", "a")], "'a' has a second parent: 'r' and 'x'"),
    "twice": ([("r", "a"), ("r", "a")], "'a' has the same edge twice"),
    "own parent": ([("r", "a"), ("a", "a")], "own parent; got 'a'"),
    "only a cycle": ([("a", "b"), ("b", "a")], "needs a root; 'b' is on a cycle"),
    "a cycle beside the tree": ([("r", "a"), ("x", "y"), ("y", "x")], "below the root 'r'; 'y' is on a cycle"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_tree_is_refused_by_name(case):
    edges, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        LabelTree.from_edges(edges)


def longest_and_shortest(edges, node, root="0"):
    """Numbers of edges on the longest and on the shortest path from the root, by trying all."""
    if node == root:
        return 0, 0
    above = [longest_and_shortest(edges, parent, root) for parent, child in edges if child == node]
    return 1 + max(long for long, _ in above), 1 + min(short for _, short in above)


@pytest.mark.parametrize("seed", range(20))
def test_of_several_parents_the_deepest_or_the_shallowest_is_kept(seed):
    rng = np.random.default_rng(seed)
    edges = [
        (str(parent), str(node))
        for node in range(1, 14)
        for parent in rng.choice(node, min(node, rng.integers(1, 4)), replace=False)
    ]
    rng.shuffle(edges)
    edges = [tuple(map(str, edge)) for edge in edges]
    for place, parents in enumerate(("deepest", "shallowest")):
        tree = LabelTree.from_edges(edges, parents=parents)
        best = max if parents == "deepest" else min
        for node, parent in zip(tree.nodes[1:], tree.parents[1:], strict=True):
            above = [up for up, child in edges if child == node]
            # Python's max and min take the first of equal ones, as it is promised.
            assert tree.nodes[parent] == best(above, key=lambda up: longest_and_shortest(edges, up)[place])
            assert tree.depths[tree.nodes.index(node)] == longest_and_shortest(edges, node)[place]


def test_a_pruned_tree_counts_decisions():
    chains = [("top", "r"), ("r", "e"), ("r", "v"), ("v", "w"), ("w", "x"), ("x", "a"), ("x", "y"), ("y", "b")]
    tree = LabelTree.from_edges([*chains, ("top2", "top"), ("y", "c")]).ordered("ecba")
    pruned = tree.pruned()
    assert (pruned.nodes, pruned.parents) == (("r", "e", "x", "a", "y", "b", "c"), (-1, 0, 0, 2, 2, 4, 4))
    assert (pruned.classes, pruned.height) == (("e", "c", "b", "a"), 3)
    assert pruned.pruned().nodes == pruned.nodes
    line = LabelTree.from_edges([("r", "x"), ("x", "a")]).pruned()
    assert (line.nodes, line.parents, line.classes) == (("r", "a"), (-1, 0), ("a",))


def test_nodes_may_get_other_names():
    tree = LabelTree.from_edges(UNEVEN).ordered("ecabd")
    renamed = tree.renamed({"a": "ant", "x": "animal", "unknown": "no node"})
    assert renamed.classes == ("e", "c", "ant", "b", "d")
    assert renamed.nodes[renamed.parents[renamed.nodes.index("ant")]] == "animal"
    np.testing.assert_array_equal(renamed.distances(), tree.distances())
    with pytest.raises(ValueError, match=r"^every node has a name of its own; 'b' would be that of two$"):
        tree.renamed({"a": "b"})


def test_a_class_at_an_inner_node_gets_a_leaf_of_its_own():
    classes = (*"abcdexz",)
    tree = LabelTree.from_edges(UNEVEN).with_leaves(classes).ordered(classes)
    at = dict(zip(tree.classes, tree.distances(), strict=True))
    assert [at["x"][tree.classes.index(name)] for name in "abzd"] == [2, 2, 2, 3]  # z is below x, d is not
    assert at["z"][tree.classes.index("b")] == 1
    assert {"x (all)", "z (all)"} < set(tree.nodes)
    same = LabelTree.from_edges(UNEVEN)
    assert same.with_leaves("abcde").nodes == same.nodes
    with pytest.raises(ValueError, match=r"takes another name; 'x \(all\)' is there already$"):
        LabelTree.from_edges([*UNEVEN, ("y", "x (all)")]).with_leaves(["x"])


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ("abcdx", "'x' is an inner node"),
        ("abcdq", "'q' is no node"),
        ("abcd", "'e' is none"),
        ("abcdee", "'e' is named twice"),
    ],
)
def test_classes_must_be_the_leaves(classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        LabelTree.from_edges(UNEVEN).ordered(tuple(classes))


def test_bundled_trees_have_the_classes_of_their_sets():
    assert hierarchies.load("digits", tuple("0123456789")).height == 3
    cifar = hierarchies.load("cifar100")
    assert (len(cifar.classes), cifar.height) == (100, 2)
    assert np.all((cifar.distances() == 1).sum(axis=0) == 4)
    with pytest.raises(ValueError, match=r"must be one of cifar100, digits, .*, wordnet, or a file; got 'trees'$"):
        hierarchies.load("trees")
    with pytest.raises(ValueError, match=r"^inner must be one of 'refuse', 'leaf'; got 'drop'$"):
        hierarchies.load("digits", inner="drop")
    with pytest.raises(ValueError, match="class names"):
        hierarchies.load("glyphs/shape")


def test_glyph_trees_are_in_the_order_of_the_labels():
    from nc_jax.data import characters

    names = tuple(characters.CHARACTERS[:40])
    shape, script = (hierarchies.load(f"glyphs/{kind}", names) for kind in ("shape", "script"))
    assert shape.classes == script.classes == names
    fine = np.array(characters.shape_levels(40, (10, 35))[1])
    np.testing.assert_array_equal(shape.distances() <= 1, fine[:, None] == fine)
    assert script.distances()[names.index("0"), names.index("9")] == 1
    assert script.distances()[names.index("0"), names.index("A")] == 3
