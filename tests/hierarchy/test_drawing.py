"""Dendrograms: the names that are written, and room for them."""

import pytest

from nc_jax import hierarchy

NESTED = {"food": {"pome_fruit": ["apple", "$pear$"], "stone fruit": {"drupes with small stones": ["cherry"]}}}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_classes_and_groups_have_their_names(tmp_path, drawn):
    hierarchy.draw_dendrogram(hierarchy.from_nested(NESTED), tmp_path / "tree.png", title="$t$")
    groups = ["pome fruit", "stone fruit", "drupes with small stones"]
    assert texts(drawn[0]) == ["apple", "$pear$", "cherry", *groups]
    assert (tmp_path / "tree.png").stat().st_size > 1000


def test_a_name_ends_before_the_next_level_begins(tmp_path, drawn):
    nested = {"root": {"a" * 60: {"b" * 60: {"c" * 60: ["x", "y"]}}}}
    hierarchy.draw_dendrogram(hierarchy.from_nested(nested), tmp_path / "tree.png")
    drawn[0].draw_without_rendering()  # saving has another resolution
    (axis,) = drawn[0].axes
    names = [text.get_window_extent().transformed(axis.transData.inverted()) for text in axis.texts[2:]]
    lines = [line.get_xdata() for line in axis.lines[:3]]
    for name, line in zip(names, lines, strict=True):
        assert line[0] < name.x0 < name.x1 < line[-1]


def test_the_groups_of_a_clustering_have_no_names(tmp_path, drawn):
    merges = [(0, 1, 1.0, 2), (2, 3, 1.0, 2), (4, 5, 2.0, 4)]
    for cuts in (None, (2, 4)):
        hierarchy.draw_dendrogram(hierarchy.from_linkage(merges, "abcd", cuts), tmp_path / "tree.png")
    assert [sorted(texts(figure)) for figure in drawn] == [["a", "b", "c", "d"]] * 2


def test_of_many_classes_the_largest_groups_are_opened_first(tmp_path, drawn):
    nested = {
        "small": ["s1", "s2"],
        "large": {"half": [f"h{number}" for number in range(7)], "rest": ["r1", "r2"]},
        "alone": None,
    }
    tree = hierarchy.from_nested(nested)
    found = {}
    for rows in (12, 11, 5, 4, 3, 2):
        hierarchy.draw_dendrogram(tree, tmp_path / "tree.svg", rows=rows)
        found[rows] = texts(drawn[-1])
    assert len(found[12]) == 12 + 4, "all classes, and all groups"
    assert found[11] == ["s1", "s2", *nested["large"]["half"], "rest (2 classes)", "alone", "small", "large", "half"]
    assert found[5] == ["s1", "s2", "half (7 classes)", "rest (2 classes)", "alone", "small", "large"]
    assert found[4] == ["small (2 classes)", "half (7 classes)", "rest (2 classes)", "alone", "large"]
    assert found[3] == ["small (2 classes)", "large (9 classes)", "alone"]
    assert found[2] == ["root (12 classes)"]
    with pytest.raises(ValueError, match=r"^a drawing needs at least 1 row; got 0$"):
        hierarchy.draw_dendrogram(tree, tmp_path / "tree.svg", rows=0)


def test_words_of_wordnet_are_written_without_their_number(tmp_path, drawn):
    tree = hierarchy.LabelTree.from_edges([("any.n.02", "great_dane.n.01"), ("any.n.02", "b.n.1")])
    hierarchy.draw_dendrogram(tree, tmp_path / "tree.svg")
    assert texts(drawn[0]) == ["great dane", "b.n.1"]
