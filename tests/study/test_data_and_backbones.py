"""Data sets and networks by name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prepared import encoded, smooth

from nc_jax.data.augment import AUGMENTATIONS
from nc_jax.data.hierarchies import BUNDLED, WORDNET
from nc_jax.models import MLP
from nc_jax.study import backbones
from nc_jax.study.backbones import BackboneOptions, make_backbone
from nc_jax.study.data import DataOptions, load


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def test_digits_come_flat_or_as_images(data_dir):
    flat, images = (load(DataOptions(data_dir=data_dir), flat=flat) for flat in (True, False))
    assert (flat.train.inputs.shape, images.train.inputs.shape) == ((1437, 64), (1437, 8, 8, 1))
    np.testing.assert_allclose(flat.train.inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(flat.test.inputs, images.test.inputs.reshape(360, 64))
    part = flat.held_out(np.arange(1437) % 4 == 0)
    assert (len(part.train), len(part.test)) == (1077, 360)
    for data in (flat, images):
        low, high = data.bounds
        assert low.shape == high.shape == data.train.inputs.shape[1:]
        np.testing.assert_allclose(high - low, 1, rtol=1e-6)
        both = np.concatenate([data.train.inputs, data.test.inputs])
        assert (both.min(axis=0) == low).all()  # every pixel is white in some image
        assert (both <= high).all()
        assert (both.max(axis=0) == high).any()


def test_glyphs_come_in_any_number_and_are_preprocessed_on_the_device():
    data = load(DataOptions("glyphs/low-data", num_classes=4, per_class=3, augmentation="shift"), seed=1)
    assert (data.train.inputs.shape, data.num_classes, data.size) == ((12, 28, 28, 1), 4, 28)
    assert data.bounds == (0.0, 1.0)
    image = jnp.asarray(data.train.inputs[0])
    assert data.augment(jax.random.key(0), image).shape == image.shape
    assert -1 < data.preprocess(image).min() < 0 < data.preprocess(image).max()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"augmentation": "shift"}, "digits have no augmentation"),
        ({"augmentation": "crop"}, "augmentation must be one of none, shift, "),
        ({"num_classes": 5}, "only the glyphs come with any number of classes"),
        ({"name": "cifar"}, "name must be one of"),
        ({"without_class": 10}, "without_class must lie in 0..9; got 10"),
        ({"tree": "cifar100"}, "'0' is no node"),
        ({"image_size": 8}, "image_size and test_share are for images in files; got image_size=8, test_share=None for"),
        ({"name": "glyphs", "test_share": 0.2}, "image_size and test_share are for images in files; got"),
    ],
)
def test_sets_that_cannot_be_had_are_refused(data_dir, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load(DataOptions(data_dir=data_dir, **options))


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes with five images each and no split."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "pets" / name / f"{number}.png").write_bytes(encoded(smooth(80, 90, turn=number), "png"))
    return DataOptions("pets", data_dir=str(tmp_path), test_share=0.2)


def test_a_folder_of_images_is_shared_and_brought_to_one_size(photographs, capsys):
    data = load(photographs)
    assert (len(data.train), len(data.test), data.size) == (8, 2, 80)
    small = load(dataclasses.replace(photographs, image_size=16), flat=True)
    assert [part.take(np.arange(2)).inputs.shape for part in (small.train, small.test)] == [(2, 16, 16, 3)] * 2
    assert capsys.readouterr().err == ""
    load(photographs, flat=True)
    sentence = "the MLP gets 19,200 inputs from images of shape (80, 80, 3), and its first layer has a weight for each "
    assert capsys.readouterr().err.startswith(sentence)
    with pytest.raises(FileNotFoundError, match=r"or --data.test-share 0.2, tests on a fifth of each class\)$"):
        load(dataclasses.replace(photographs, test_share=None))


def test_trees_that_people_have_are_taken_if_asked(photographs, tmp_path):
    (tmp_path / "tree.csv").write_text("parent,child\nany,pet\nany,cat\npet,cat\ncat,dog\n", encoding="utf-8")
    asked = dataclasses.replace(photographs, tree=str(tmp_path / "tree.csv"))
    with pytest.raises(
        ValueError, match=r"\(parents='shallowest', or --data.tree-parents shallowest, .*'cat' has a second"
    ):
        load(asked)
    asked = dataclasses.replace(asked, tree_parents="shallowest")
    with pytest.raises(
        ValueError, match=r"\(inner='leaf', or --data.tree-inner leaf, gives .*; 'cat' is an inner node$"
    ):
        load(asked)
    tree = load(dataclasses.replace(asked, tree_inner="leaf")).tree
    assert (tree.classes, tree.nodes) == (("cat", "dog"), ("any", "cat (all)", "dog", "cat"))


def test_a_training_set_alone_says_how_to_share_it(photographs, tmp_path):
    (tmp_path / "pets").rename(tmp_path / "train")
    with pytest.raises(ValueError, match=r"\(--data.test-share 0.2 tests on a fifth of each class\); got train$"):
        load(DataOptions(str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_every_network_takes_small_images(name):
    backbone = make_backbone(BackboneOptions(name, width_multiplier=1 / 4), size=32)
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), np.float32)
    features, _ = jax.eval_shape(lambda images: backbone.init_with_output(jax.random.key(0), images), images)
    assert (features.ndim, features.shape[0]) == (2, 2)


NECKS = {"norm": 12, "type1": 30, "type2": 7, "transformation": 12, "relu": 12, "mlp": 30}


@pytest.mark.parametrize(("neck", "dim"), NECKS.items())
def test_necks_stand_behind_any_network(neck, dim):
    options = BackboneOptions(hidden=(5,), dim=12, neck=neck, neck_dim=30)
    backbone = make_backbone(options, size=8, num_classes=7)
    features, _ = jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), jnp.zeros((2, 64))))
    assert features.shape == (2, dim)


@pytest.mark.slow
def test_the_neck_relu_makes_features_non_negative():
    backbone = make_backbone(BackboneOptions(hidden=(5,), dim=12, neck="relu"), size=8)
    images = jax.random.normal(jax.random.key(1), (9, 64))
    features, variables = backbone.init_with_output(jax.random.key(0), images)
    raw = MLP((5,), 12).apply({"params": variables["params"]["backbone"]}, images)
    np.testing.assert_array_equal(features, np.maximum(raw, 0))
    assert np.min(raw) < 0


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 4), (32, 4), (64, 8), (96, 16), (224, 16)])
def test_the_vits_patches_tile_every_set_of_images(size, patch):
    assert make_backbone(BackboneOptions("vit"), size=size).patch == patch
    assert size % patch == 0


def test_agd_gets_networks_of_matrices():
    backbone = make_backbone(BackboneOptions("resnet18", width_multiplier=1 / 16), size=16, only_matrices=True)
    variables = jax.eval_shape(lambda key: backbone.init(key, jnp.zeros((2, 16, 16, 1))), jax.random.key(0))
    assert min(leaf.ndim for leaf in jax.tree.leaves(variables["params"])) == 4
    for name in ("mlp", "vit"):
        with pytest.raises(ValueError, match='biases, for which "agd" has no rule'):
            make_backbone(BackboneOptions(name), size=16, only_matrices=True)


def test_networks_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"^a backbone must be one of mlp, resnet18, "):
        BackboneOptions("resnet19")
    with pytest.raises(ValueError, match=r"^widths must be at least 1"):
        BackboneOptions(hidden=(0,))
    with pytest.raises(ValueError, match=r"^final_dim narrows the last block of residual networks; got 'vgg11'"):
        BackboneOptions("vgg11", final_dim=3)


def test_the_help_names_what_there_is():
    said = DataOptions.__doc__ or ""
    assert all(name in said for name in (*AUGMENTATIONS, *BUNDLED, WORDNET))
