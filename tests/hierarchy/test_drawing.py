"""Dendrograms: the names that are written, and room for them."""

from nc_jax import hierarchy

NESTED = {"food": {"pome_fruit": ["apple", "$pear$"], "stone fruit": {"drupes with small stones": ["cherry"]}}}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_classes_and_groups_have_their_names(tmp_path, drawn):
    hierarchy.draw_dendrogram(hierarchy.from_nested(NESTED), tmp_path / "tree.png", title="$t$")
    groups = ["pome fruit", "stone fruit", "drupes with small stones"]
    assert texts(drawn[0]) == ["$pear$", "apple", "cherry", *groups]
    assert (tmp_path / "tree.png").stat().st_size > 1000


def test_a_name_ends_before_the_next_level_begins(tmp_path, drawn):
    nested = {"root": {"a" * 60: {"b" * 60: {"c" * 60: ["x", "y"]}}}}
    hierarchy.draw_dendrogram(hierarchy.from_nested(nested), tmp_path / "tree.png")
    drawn[0].draw_without_rendering()  # saving has another resolution
    (axis,) = drawn[0].axes
    for text, depth in zip(axis.texts[2:], (1, 2, 3), strict=True):
        right = text.get_window_extent().transformed(axis.transData.inverted()).x1
        assert right < depth


def test_the_groups_of_a_clustering_have_no_names(tmp_path, drawn):
    merges = [(0, 1, 1.0, 2), (2, 3, 1.0, 2), (4, 5, 2.0, 4)]
    for cuts in (None, (2, 4)):
        hierarchy.draw_dendrogram(hierarchy.from_linkage(merges, "abcd", cuts), tmp_path / "tree.png")
    assert [sorted(texts(figure)) for figure in drawn] == [["a", "b", "c", "d"]] * 2


def test_many_classes_are_drawn_without_names(tmp_path, drawn):
    tree = hierarchy.from_nested({"root": [str(number) for number in range(121)]})
    hierarchy.draw_dendrogram(tree, tmp_path / "tree.svg")
    assert texts(drawn[0]) == []
