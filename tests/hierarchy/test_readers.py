"""Every format gives the same tree, and what is not in the format is refused with its place."""

import json
import re

import networkx
import numpy as np
import pytest
import scipy.cluster.hierarchy

from nc_jax import hierarchy

EDGES = [("all", "pet"), ("all", "car"), ("pet", "cat"), ("pet", "dog")]
DISTANCES = [[0, 2, 2], [2, 0, 1], [2, 1, 0]]


FORMATS = {
    "json": (hierarchy.read_json, '{"root": {"drink": ["caf\u00e9",\n"bar"], "walk": ["park"]}}\n'),
    "txt": (hierarchy.read_parent_child, "root drink\nroot walk\ndrink caf\u00e9\ndrink bar\nwalk park\n"),
    "tsv": (hierarchy.read_levels, "kind\tplace\ndrink\tcaf\u00e9\ndrink\tbar\nwalk\tpark\n"),
    "csv": (hierarchy.read_levels, "kind,place\ndrink,caf\u00e9\ndrink,bar\nwalk,park\n"),
}


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
        hierarchy.read_levels(written(tmp_path / "tree.csv", 'kind, class\npet, cat\n"pet",dog\n,car\n\n')),
        hierarchy.read_levels(written(tmp_path / "edges.csv", "Parent,Child\n" + lines.replace(" ", ",")[13:])),
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


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "changed",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\r"),
        lambda data: data.replace("caf\u00e9".encode(), "cafe\u0301".encode()),
    ],
    ids=["byte order mark", "Windows", "old macOS", "decomposed"],
)
def test_files_of_any_editor_give_the_same_tree(tmp_path, suffix, changed):
    read, text = FORMATS[suffix]
    (tmp_path / f"tree.{suffix}").write_bytes(changed(text.encode()))
    tree = read(tmp_path / f"tree.{suffix}")
    assert (tree.nodes[0], tree.classes) == ("root", ("bar", "caf\u00e9", "park"))


def test_quotation_marks_are_part_of_a_name_between_tabs_and_not_between_commas(tmp_path):
    tabs = written(tmp_path / "t.tsv", 'kind\tclass\nx\ta\nx\t"b\ny\tc\ny\td, "e"\n')
    assert hierarchy.read_levels(tabs).classes == ('"b', "a", "c", 'd, "e"')
    commas = written(tmp_path / "t.csv", 'kind,class\nx,a\nx,"b, or ""c"""\n')
    assert hierarchy.read_levels(commas).classes == ("a", 'b, or "c"')
    separator = written(tmp_path / "t", "r\ta\u2028b\tc\n".replace("b\tc", "b"))
    assert hierarchy.read_parent_child(separator).classes == ("a\u2028b",)


def test_a_node_with_several_parents_keeps_the_shallowest(tmp_path):
    text = "r\tfood\nfood\tmeat\nmeat\then\nr\tpet\npet\then\nfood\tbread\n"
    path = written(tmp_path / "tree.txt", text)
    tree = hierarchy.read_parent_child(path, parents="shallowest")
    assert tree.nodes == ("r", "food", "pet", "bread", "hen")  # no class is below meat
    assert tree.distances().tolist() == [[0, 2], [2, 0]]
    for read in (hierarchy.from_nested, lambda nested, **options: hierarchy.read_json(path, **options)):
        nested = {"r": {"food": {"meat": ["hen"], "bread": None}, "pet": ["hen"]}}
        written(path, json.dumps(nested))
        assert read(nested, parents="shallowest").classes == ("bread", "hen")
        with pytest.raises(ValueError, match=r"'hen' has a second parent: '\w+' and '\w+'$"):
            read(nested)
    path = written(tmp_path / "loop.txt", "r a\na b\nb c\nc a\nb d\n")
    with pytest.raises(ValueError, match=r"every node must hang below the root 'r'; 'a' is on a cycle or below one$"):
        hierarchy.read_parent_child(path, parents="shallowest")
    with pytest.raises(ValueError, match=r"^parents must be one of 'one', 'shallowest', 'deepest'; got 'any'$"):
        hierarchy.LabelTree.from_edges([("a", "b")], parents="any")


WRONG = {
    "not an object": ("json", "[1]", "an object of objects; got list"),
    "a number below": ("json", '{"a": 3}', "got 3 below 'a'"),
    "key twice": ("json", '{"a": {"b": null, "b": null}}', "'b' is given twice"),
    "broken": ("json", '{"a": ["b"', "must be valid JSON; got Expecting ',' delimiter: line 1 column 11"),
    "deep": ("json", '{"a":' * 100_000 + "null" + "}" * 100_000, "must be less than about 1,000 levels deep"),
    "an empty name": ("json", '{"a": {"": null}}', "must be text on one line, and not empty; got 'a' -> ''"),
    "half a character": ("json", '{"a": {"\\ud800": null}}', "and not empty; got 'a' -> '\\ud800'"),
    "Latin-1": ("txt", b"r caf\xe9\n", "must be text in UTF-8; got the byte 0xe9 at position 5, in line 1"),
    "UTF-16": ("txt", "r a\n".encode("utf-16"), "must be text in UTF-8; got the byte 0xff at position 0"),
    "zero": ("txt", "r a\0b\n", "must be text on one line, and not empty; got 'r' -> 'a\\x00b'"),
    "three names": ("txt", "a b c\n", "if the names have none; commas are for .csv files); got 'a b c' in line 1"),
    "commas": ("txt", "parent,child\n", "separated by a tab (or by blanks, if the names have none; commas are for"),
    "commas and blanks": ("txt", "\npet, cat\n", "got 'pet, cat' in line 2"),
    "a comment or an edge": ("txt", "#1\tcat\n", "must begin with '# ', and a name that begins with '#' needs a .csv"),
    "no edge": ("txt", "# nothing\n", "a label tree needs at least one edge; got none"),
    "second parent": ("tsv", "x\ty\tclass\na\tc\t1\nb\tc\t2\n", "'y:c' has a second parent: 'x:a' and 'x:b'"),
    "class twice": ("tsv", "x\tclass\na\t1\nb\t1\n", "'1' has two"),
    "no class": ("tsv", "x\tclass\na\t\n", "the last not empty"),
    "no line": ("tsv", "x\tclass\n", "got 1 lines"),
    "a class named root": ("tsv", "x\tclass\na\troot\n", "no class may be called 'root'"),
    "an open quotation": ("csv", 'x,class\na,b\na,"c\n', "must be valid CSV; got unexpected end of data"),
    "a name of two lines": ("csv", 'x,class\na,b\na,"c\nd"\n', "must be text on one line, and not empty"),
    "a column too many": (
        "csv",
        "x,class\na,b\na,b,c\n",
        "each row holds 2 labels, the last not empty; got ['a', 'b', 'c']",
    ),
    "an edge of three": (
        "csv",
        "parent,child\na,b\na,b,c\n",
        "each line holds a parent and a child; got ['a', 'b', 'c']",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_in_the_wrong_format_says_where(case, tmp_path):
    suffix, text, sentence = WRONG[case]
    path = tmp_path / f"tree.{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(sentence)}"):
        FORMATS[suffix][0](path)


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
