"""Trees of WordNet: the format of its files, which hypernym is kept, and sentences for what is not in the format."""

import itertools
import re

import numpy as np
import pytest
from trees import real, write_wordnet

from nc_jax import hierarchy
from nc_jax.data import hierarchies

CLASSES = ("dog", "wolf", "cat", "crane.2", "crane", "Nile")


@pytest.fixture
def synsets(tmp_path):
    """Names of the synsets of a small WordNet in the folder tmp_path."""
    return write_wordnet(tmp_path)


def edges(tree):
    return {(tree.nodes[parent], node) for parent, node in zip(tree.parents[1:], tree.nodes[1:], strict=True)}


def test_the_tree_above_some_synsets_is_read_by_their_offsets(tmp_path, synsets):
    classes = [synsets[name] for name in CLASSES]
    tree = hierarchy.read_wordnet(tmp_path, classes)
    dog, wolf, cat, bird, machine, nile = classes
    assert edges(tree) == {
        ("physical_entity.n.01", "being.n.01"),
        ("being.n.01", "animal.n.01"),
        ("animal.n.01", "carnivore.n.01"),
        ("carnivore.n.01", "canine.n.01"),
        ("canine.n.01", dog),  # and no longer below the domestic animals, which are nearer to the root
        ("canine.n.01", wolf),
        ("animal.n.01", "domestic_animal.n.01"),
        ("domestic_animal.n.01", cat),  # which is as deep as the carnivores, and listed first
        ("animal.n.01", bird),
        ("physical_entity.n.01", "machine.n.01"),
        ("machine.n.01", machine),
        ("physical_entity.n.01", "river.n.01"),
        ("river.n.01", nile),
        ("entity.n.01", "physical_entity.n.01"),
    }
    again = hierarchy.read_wordnet(tmp_path, classes[::-1])
    assert (again.nodes, again.parents) == (tree.nodes, tree.parents), "the order of the classes plays no part"


def test_the_shallowest_hypernym_puts_a_dog_beside_a_cat(tmp_path, synsets):
    tree = hierarchy.read_wordnet(tmp_path, [synsets[name] for name in ("dog", "wolf", "cat")], parents="shallowest")
    assert {("domestic_animal.n.01", synsets["dog"]), ("domestic_animal.n.01", synsets["cat"])} < edges(tree)
    path = re.escape(str(tmp_path / "data.noun"))
    with pytest.raises(ValueError, match=rf"^{path}: .* second parent: 'domestic_animal.n.01' and 'canine.n.01'$"):
        hierarchy.read_wordnet(tmp_path, [synsets["dog"], synsets["wolf"]], parents="one")


@pytest.mark.parametrize("parents", ["deepest", "one"])
def test_a_hypernym_that_is_an_abstraction_is_left_out_if_there_is_another(tmp_path, synsets, parents):
    assert synsets["physical_entity"] == "n00001930"
    tree = hierarchy.read_wordnet(tmp_path, [synsets["wine"], synsets["crane"]], parents=parents)
    assert ("matter.n.01", synsets["wine"]) in edges(tree)
    assert "part.n.01" not in tree.nodes
    tree = hierarchy.read_wordnet(tmp_path, [synsets["sign"], synsets["crane"]], parents=parents)
    assert ("relation.n.01", synsets["sign"]) in edges(tree), "it has no other"


def test_synsets_have_readable_names_that_differ(tmp_path, synsets):
    names = hierarchy.synset_names(tmp_path, [synsets[name] for name in CLASSES])
    assert list(names.values()) == ["dog.n.01", "wolf.n.01", "cat.n.01", "crane.n.02", "crane.n.01", "nile.n.01"]


def test_a_synset_above_another_keeps_its_name(tmp_path, synsets):
    tree = hierarchy.read_wordnet(tmp_path, [synsets["canine"], synsets["wolf"], synsets["crane"]])
    assert (synsets["canine"], synsets["wolf"]) in edges(tree)
    assert synsets["canine"] not in tree.classes


def test_a_missing_file_says_where_wordnet_is_to_be_had(tmp_path, synsets):
    sentence = "the nouns of WordNet 3.0 must lie in {} (apt-get install wordnet-base puts them into /usr/share/wordnet"
    with pytest.raises(FileNotFoundError, match=re.escape(sentence.format(tmp_path / "x")) + ".* got no data.noun"):
        hierarchy.read_wordnet(tmp_path / "x", [synsets["dog"]])
    (tmp_path / "index.noun").unlink()
    with pytest.raises(FileNotFoundError, match=r"; got no index\.noun there$"):
        hierarchy.read_wordnet(tmp_path, [synsets["dog"]])


@pytest.mark.parametrize("name", ["dog", "n123", "n123456789", "v00001740", "n0000174a"])
def test_what_is_no_name_of_a_synset_is_refused(tmp_path, synsets, name):
    with pytest.raises(ValueError, match=rf"^a noun of WordNet is named by n and eight digits, .*; got '{name}'$"):
        hierarchy.read_wordnet(tmp_path, [synsets["dog"], name])


DAMAGE = {
    "another version": (lambda text: b"  \n" + text, "must begin at byte .*, as in WordNet 3.0; got '   *' there$"),
    "Windows": (lambda text: text.replace(b"\n", b"\r\n"), "must begin at byte .*, as in WordNet 3.0; got"),
    "cut": (lambda text: text[:2500], "must begin at byte .*; got '' there$"),
    "a pointer less": (
        lambda text: text.replace(b" v 0201", b"_v_0201"),
        "must begin at byte .*; got '0000.* 05 n 0b Nile 0 Other_0",
    ),
    "no count": (lambda text: text.replace(b" 05 n 0b", b" 05 n 0x"), "must begin at byte .*; got"),
    "an adjective": (lambda text: text.replace(b" 05 n ", b" 05 a "), "must begin at byte .*; got"),
    "a target": (lambda text: re.sub(rb"@ 0000(....) n", rb"@ 000 \1 n", text), "must begin at byte .*; got"),
    "a letter": (lambda text: text.replace(b"Other", b"\xd6ther"), "must begin at byte .*; got"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused_by_its_line(tmp_path, synsets, case):
    damage, sentence = DAMAGE[case]
    path = tmp_path / "data.noun"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: the line of the noun n\d{{8}} {sentence}"):
        hierarchy.read_wordnet(tmp_path, [synsets[name] for name in CLASSES])


def test_hypernyms_in_a_circle_are_refused(tmp_path):
    synsets = write_wordnet(tmp_path, {"entity": [], "hen": ["egg", "entity"], "egg": ["hen"], "cat": ["entity"]})
    with pytest.raises(ValueError, match=r"data\.noun: every node must hang below the root 'entity.n.01'; .* cycle"):
        hierarchy.read_wordnet(tmp_path, [synsets["egg"], synsets["cat"]])


@pytest.mark.parametrize("line", [b"", b"animal n", b"animal n x 0 1 1 00000076", b"animal n 1 2 @ ~ 1 1 00000000  "])
def test_an_index_without_the_synset_is_refused(tmp_path, synsets, line):
    path = tmp_path / "index.noun"
    path.write_bytes(re.sub(rb"\nanimal .*", b"\n" + line, path.read_bytes()))
    number = synsets["animal"][1:]
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: the meanings of 'animal' must include {number}, "):
        hierarchy.read_wordnet(tmp_path, [synsets["dog"], synsets["crane.2"]])


def read_or_sentence(folder, classes):
    try:
        return hierarchy.read_wordnet(folder, classes)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(("file", "step"), [("data.noun", 23), ("index.noun", 5)])
def test_any_byte_may_be_wrong(tmp_path, synsets, file, step):
    """A tree whose classes are there, or a sentence that names the file: never another error."""
    whole = (tmp_path / file).read_bytes()
    classes = [synsets["dog"], synsets["cat"]]
    said = 0
    for place, bit in itertools.product(range(1900, len(whole), step), (0, 6)):
        (tmp_path / file).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        found = read_or_sentence(tmp_path, classes)
        if isinstance(found, hierarchy.LabelTree):
            assert set(classes) <= set(found.nodes)
        else:
            assert re.fullmatch(rf"{re.escape(str(tmp_path))}/(data|index)\.noun: .+", found), "one line"
            said += 1
    assert said > 20


def imagenet():
    """ImageNet's tree; a test that asks for it skips where WordNet is not installed."""
    try:
        return hierarchies.load("wordnet")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_imagenet_has_a_tree():
    tree = imagenet()
    assert (len(tree.classes), len(tree.nodes), tree.height) == (1000, 1375, 16)
    words = hierarchies.readable("wordnet", tree)
    assert words.classes[:2] == ("tench.n.01", "goldfish.n.01")
    assert {("dog.n.01", "poodle.n.01"), ("canine.n.02", "dog.n.01"), ("canine.n.02", "wolf.n.01")} < edges(words)


def test_distances_are_nearly_those_that_were_published():
    # Of the 184,528 pairs of the classes of tieredImageNet-H, 99.5 % have the distance that Bertinetto et al. (2020)
    # publish. They chose by hand between longest paths, and moved three classes of ImageNet.
    published = real("tiered_imagenet")
    imagenet()  # skips where WordNet is not installed
    ours = hierarchies.load("wordnet", published.classes).distances()
    pairs = np.triu_indices(len(ours), 1)
    assert np.mean(ours[pairs] == published.distances()[pairs]) == pytest.approx(0.995, abs=5e-4)
