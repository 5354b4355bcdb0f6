"""Every format gives the same tree, and what is not in the format is refused with its place."""

import json

import networkx
import numpy as np
import pytest
import scipy.cluster.hierarchy

from nc_jax import hierarchy

EDGES = [("all", "pet"), ("all", "car"), ("pet", "cat"), ("pet", "dog")]
DISTANCES = [[0, 2, 2], [2, 0, 1], [2, 1, 0]]


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_all_formats_agree(tmp_path):
    nested = {"all": {"pet": ["cat", "dog"], "car": {}}}
    lines = "# a comment\n\n" + "".join(f"{parent} {child}\n" for parent, child in EDGES)
    trees = [
        hierarchy.from_nested(nested),
        hierarchy.read_json(written(tmp_path / "tree.json", json.dumps(nested))),
        hierarchy.read_parent_child(written(tmp_path / "tree.txt", lines)),
        hierarchy.read_parent_child(written(tmp_path / "tabs.txt", lines.replace(" ", "\t").replace("#\t", "# "))),
        hierarchy.read_levels(written(tmp_path / "tree.tsv", "kind\tclass\npet\tcat\npet\tdog\n\tcar\n")),
        hierarchy.from_networkx(networkx.DiGraph(EDGES)),
    ]
    for tree in trees:
        assert tree.classes == ("car", "cat", "dog")
        assert tree.distances().tolist() == DISTANCES
    assert set(hierarchy.to_networkx(trees[0]).edges) == set(EDGES)


def test_several_tops_get_a_root_and_names_may_have_blanks(tmp_path):
    assert hierarchy.from_nested({"a": None, "b": ["c d"]}).nodes == ("root", "a", "b", "c d")
    assert hierarchy.read_parent_child(written(tmp_path / "t", "r\tlarge carnivores\n")).classes == (
        "large carnivores",
    )


def test_equal_labels_of_different_levels_are_different_nodes():
    tree = hierarchy.from_levels([("A", "A"), ("A", "B")], ("family", "variant"))
    assert tree.classes == ("A", "B")


WRONG = {
    "not an object": ("json", "[1]", "an object of objects; got list"),
    "a number below": ("json", '{"a": 3}', "got 3 below 'a'"),
    "key twice": ("json", '{"a": {"b": null, "b": null}}', "'b' is given twice"),
    "three names": ("txt", "a b c\n", "got 'a b c' in line 1"),
    "second parent": ("tsv", "x\ty\tclass\na\tc\t1\nb\tc\t2\n", "'y:c' has a second parent: 'x:a' and 'x:b'"),
    "class twice": ("tsv", "x\tclass\na\t1\nb\t1\n", "'1' has two"),
    "no class": ("tsv", "x\tclass\na\t\n", "the last not empty"),
    "no line": ("tsv", "x\tclass\n", "got 1 lines"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_in_the_wrong_format_says_where(case, tmp_path):
    suffix, text, sentence = WRONG[case]
    readers = {"json": hierarchy.read_json, "txt": hierarchy.read_parent_child, "tsv": hierarchy.read_levels}
    with pytest.raises(ValueError, match=sentence):
        readers[suffix](written(tmp_path / f"tree.{suffix}", text))


def test_an_undirected_graph_is_refused():
    with pytest.raises(ValueError, match="directed"):
        hierarchy.from_networkx(networkx.Graph(EDGES))


def test_a_linkage_becomes_a_binary_tree_or_cuts():
    points = np.array([[0.0], [1.0], [10.0], [11.5], [50.0]])
    linkage = scipy.cluster.hierarchy.ward(points)
    names = tuple("abcde")
    assert (
        hierarchy.from_linkage(linkage, names).distances().tolist()
        == [
            [0, 2, 3, 3, 4],
            [2, 0, 3, 3, 4],
            [3, 3, 0, 2, 4],
            [3, 3, 2, 0, 4],
            [4, 4, 4, 4, 0],
        ]
        or hierarchy.from_linkage(linkage, names).distances()[0, 4] == hierarchy.from_linkage(linkage, names).height
    )
    cut = hierarchy.from_linkage(linkage, names, cuts=(2, 3, 5))
    assert cut.distances()[0].tolist() == [0, 1, 2, 2, 3]
    assert hierarchy.cut_linkage(linkage, 3) == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match=r"in 1\.\.5; got 6"):
        hierarchy.cut_linkage(linkage, 6)
    with pytest.raises(ValueError, match="has 3 rows; got 4"):
        hierarchy.from_linkage(linkage, names[:4])


def test_a_dendrogram_is_drawn(tmp_path):
    hierarchy.draw_dendrogram(hierarchy.from_nested({"a": ["x_$", "y"], "b": None}), tmp_path / "tree.png", title="t")
    assert (tmp_path / "tree.png").stat().st_size > 1000
