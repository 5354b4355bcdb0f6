"""Characters: the list, its rule, and the trees over it."""

import itertools
import unicodedata

import numpy as np
import pytest

from nc_jax.data import characters

COUNT, EVERYWHERE = 1000, 338  # as the module says


def test_characters_are_distinct_named_and_covered():
    assert len(characters.CHARACTERS) == len(set(characters.CHARACTERS)) == COUNT
    covered = characters.coverage(characters.FACES)
    assert min(covered[character].sum() for character in characters.CHARACTERS) >= characters.FEWEST_FACES
    assert all(covered[character].all() for character in characters.CHARACTERS[:EVERYWHERE])
    assert all(unicodedata.name(character) for character in characters.CHARACTERS)


def test_no_two_characters_look_alike():
    # The list was chosen with Matplotlib 3.11.2; another FreeType may move a correlation a little.
    first = characters.CHARACTERS[:300]
    for font in characters.open_fonts(characters.REGULAR):
        having = [character for character in first if font.get_char_index(ord(character))]
        images = np.concatenate(
            [characters.shrunk(characters.draw_templates(character, [font], 28)) for character in having]
        )
        vectors = characters.standardised(images)
        assert np.triu(vectors @ vectors.T, 1).max() < characters.LOOK_ALIKE + 0.02


@pytest.mark.parametrize("pair", ["0O", "lI", "AА", "AΑ", "cC", "sS", "oO", "oο", "PР", "xX", "ωѡ"], ids=str)
def test_look_alikes_are_not_both_classes(pair):
    assert not set(pair) <= set(characters.CHARACTERS)


def test_the_list_is_what_the_selection_gives():
    assert characters.select_characters(limit=120) == characters.CHARACTERS[:120]


def test_the_script_tree_has_every_class_once():
    tree = characters.script_tree(100)
    assert {"digit", "Latin", "Greek", "Cyrillic"} <= set(tree) <= {"digit", "Latin", "Greek", "Cyrillic", "other"}
    leaves = [character for cases in tree.values() for below in cases.values() for character in below]
    assert sorted(leaves) == sorted(characters.CHARACTERS[:100])
    assert {"upper", "lower"} <= set(tree["Latin"])
    assert tree["digit"]["uncased"] == list("0123456789")
    assert "Ж" in tree["Cyrillic"]["upper"]


def test_the_script_tree_has_every_class_of_the_largest_set():
    tree = characters.script_tree(COUNT)
    assert sum(len(below) for cases in tree.values() for below in cases.values()) == COUNT


def test_shape_levels_are_nested_cuts():
    levels = characters.shape_levels(100)
    assert [len(set(level)) for level in levels] == [10, 35, 100]
    assert levels[-1] == list(range(100))
    for coarse, fine in itertools.pairwise(levels):
        assert len(set(zip(coarse, fine, strict=True))) == len(set(fine))  # each fine node has one parent
    assert all(isinstance(node, int) for level in levels for node in level)


def test_shape_levels_put_like_by_like():
    coarse, _ = characters.shape_levels(100, cuts=(10, 35))
    names = characters.CHARACTERS
    for pair in ("8B", "PR", "2Z", "5S", "1!", "Kκ", "mω"):
        assert coarse[names.index(pair[0])] == coarse[names.index(pair[1])], pair


@pytest.mark.parametrize("cuts", [(5, 2), (5, 11)], ids=str)
def test_cuts_must_be_possible(cuts):
    with pytest.raises(ValueError, match=r"cuts must be ascending numbers in 1\.\.10; got \(5, "):
        characters.shape_levels(10, cuts=cuts)
