"""Trees of WordNet by name: the folder, the classes of ImageNet, and what becomes of classes that are inner nodes."""

import re

import pytest
from trees import write_wordnet

from nc_jax.data import hierarchies


@pytest.fixture
def synsets(tmp_path):
    """Names of the synsets of a small WordNet in the folder tmp_path."""
    return write_wordnet(tmp_path)


def test_a_tree_of_wordnet_has_the_order_of_the_labels_and_no_node_with_one_child(tmp_path, synsets):
    classes = tuple(synsets[name] for name in ("wolf", "crane", "dog", "crane.2"))
    tree = hierarchies.load(f"wordnet:{tmp_path}", classes)
    assert tree.classes == classes
    assert sorted(set(tree.nodes) - set(classes)) == ["animal.n.01", "canine.n.01", "physical_entity.n.01"]
    assert tree.distances().tolist() == [[0, 3, 1, 2], [3, 0, 3, 3], [1, 3, 0, 2], [2, 3, 2, 0]]
    readable = hierarchies.readable(f"wordnet:{tmp_path}", tree)
    assert readable.classes == ("wolf.n.01", "crane.n.01", "dog.n.01", "crane.n.02")
    assert hierarchies.readable("digits", tree) is tree


def test_parents_other_than_the_deepest_can_be_asked_for(tmp_path, synsets):
    classes = tuple(synsets[name] for name in ("wolf", "dog", "cat"))
    near = hierarchies.load(f"wordnet:{tmp_path}", classes, parents="shallowest").distances()
    far = hierarchies.load(f"wordnet:{tmp_path}", classes).distances()
    assert (near[0, 1], near[1, 2]) == (2, 1)
    assert (far[0, 1], far[1, 2]) == (1, 2)
    with pytest.raises(ValueError, match="has a second parent"):
        hierarchies.load(f"wordnet:{tmp_path}", classes, parents="one")


def test_a_class_above_another_gets_a_leaf_if_asked(tmp_path, synsets):
    name, classes = f"wordnet:{tmp_path}", (synsets["canine"], synsets["wolf"], synsets["crane"])
    with pytest.raises(ValueError, match=f"'{classes[0]}' is an inner node$"):
        hierarchies.load(name, classes)
    tree = hierarchies.load(name, classes, inner="leaf")
    assert tree.distances().tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]
    words = {"physical_entity.n.01", "canine.n.01 (all)", "canine.n.01", "wolf.n.01", "crane.n.01"}
    assert set(hierarchies.readable(name, tree).nodes) == words


def test_without_wordnet_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hierarchies, "WORDNET_FOLDER", str(tmp_path / "none"))
    sentence = f"the nouns of WordNet 3.0 must lie in {tmp_path / 'none'} (apt-get install wordnet-base "
    with pytest.raises(FileNotFoundError, match="^" + re.escape(sentence)):
        hierarchies.load("wordnet")


def test_the_classes_of_imagenet_are_known_without_its_images():
    names = hierarchies.imagenet_synsets()
    assert len(set(names)) == 1000
    assert list(names) == sorted(names), "as in a folder of images"
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)
