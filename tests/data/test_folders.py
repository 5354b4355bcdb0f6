"""Folders of images: what is read, and the error messages for folders with a wrong layout."""

import re

import numpy as np
import pytest
from prepared import encoded, smooth

from nc_jax.data import folders, sources
from nc_jax.data.images import ImageSource


@pytest.fixture
def birds(tmp_path):
    """Two classes with 2 + 1 training and 1 + 0 validation images, of different sizes, one grey."""
    files = {
        "train/wren/b.PNG": ("png", smooth(30, 40)),
        "train/wren/a.jpg": ("jpeg", smooth(20, 50, channels=1)),
        "train/owl/c.jpeg": ("jpeg", smooth(25, 25)),
        "val/wren/d.png": ("png", smooth(64, 32)),
    }
    for name, (kind, pixels) in files.items():
        path = tmp_path / "birds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels, kind))
    (tmp_path / "birds" / "train" / "owl" / "notes.txt").write_text("no image")
    (tmp_path / "birds" / "train" / ".cache").mkdir()
    return tmp_path / "birds"


def test_classes_are_the_sorted_folders_of_the_training_set(birds):
    train, test = (folders.load(birds, split) for split in ("train", "val"))
    assert (train.class_names, train.num_classes, test.class_names) == (("owl", "wren"), 2, ("owl", "wren"))
    assert [example["label"] for example in train] == [0, 1, 1]
    assert [example["image"].shape for example in train] == [(25, 25, 3), (20, 50, 3), (30, 40, 3)]
    np.testing.assert_array_equal(train[2]["image"], smooth(30, 40))
    assert [example["label"] for example in test] == [1]


def test_the_door_finds_a_folder_below_the_data_and_anywhere(birds, tmp_path):
    assert sources.splits("birds", tmp_path) == sources.splits(str(birds)) == ("train", "val")
    for source in (sources.load("birds", "train", tmp_path), sources.load(str(birds), "train")):
        assert repr(source) == "ImageSource(3 images of 224x224, 3 channels, 2 classes)"
        assert source.take(np.arange(3)).inputs.shape == (3, 224, 224, 3)


def test_images_of_one_size_come_into_memory(birds, tmp_path):
    found = sources.load("birds", "val", tmp_path, in_memory=True)
    np.testing.assert_array_equal(found.inputs, smooth(64, 32)[None])


def test_a_stretched_image_is_the_whole_one():
    # Two colours that meet away from the centre: a central crop contains other shares of them than the whole image.
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :16] = 255
    source = ImageSource([{"image": image, "label": 0}], 3, 1, ("all",))
    whole = source.stretched(32)[0]["image"]
    assert abs(whole.mean() / 255 - 16 / 128) < 0.01
    np.testing.assert_array_equal(source.cropped(32)[0]["image"], 0)
    np.testing.assert_array_equal(source.stretched(32).cropped(32)[0]["image"], 0)
    with pytest.raises(ValueError, match=r"^stretching needs a size and no seed; got"):
        ImageSource([], 3, 1, ("all",), stretch=True)


def test_splits_to_test_on_come_second(birds):
    for name in ("extra", "test"):
        (birds / name).mkdir()
    assert folders.splits(birds) == ("train", "test", "val", "extra")


MISTAKES = [
    (lambda root: folders.load(root, "dev"), ValueError, "split of {root} must be one of 'train', 'val'; got 'dev'"),
    (lambda root: folders.load(root / "val", "train"), FileNotFoundError, "images must lie in {root}/val/<split>/"),
    (
        lambda root: (root / "val" / "kite").mkdir() or folders.load(root, "val"),
        RuntimeError,
        "every class of {root}/val must be one of train; 'kite' is none",
    ),
    (
        lambda root: (root / "train" / "kite").mkdir() or folders.load(root, "train"),
        RuntimeError,
        "{root}/train/kite must hold images (.jpg, .jpeg, .png, .bmp, .webp); got none",
    ),
    (
        lambda root: (root / "train" / "owl").rename(root / "owls") and folders.load(root, "train"),
        RuntimeError,
        "{root}/train must hold a folder for each class, two at least; got 1",
    ),
    (
        lambda root: (root / "train" / "owl" / "c.jpeg").write_bytes(b"half") and folders.load(root, "train")[0],
        RuntimeError,
        "image {root}/train/owl/c.jpeg must be readable; got UnidentifiedImageError",
    ),
]


@pytest.mark.parametrize(("call", "kind", "sentence"), MISTAKES, ids=[sentence[:40] for _, _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(birds, call, kind, sentence):
    with pytest.raises(kind, match=f"^{re.escape(sentence.format(root=birds))}"):
        call(birds)
