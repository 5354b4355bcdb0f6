"""Folders of images: what is read, and the error messages for folders with a wrong layout."""

import errno
import os
import pathlib
import re
import shutil
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL import PngImagePlugin
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
        assert repr(source) == "ImageSource(3 images of 24x24, 3 channels, 2 classes)"
        assert source.take(np.arange(3)).inputs.shape == (3, 24, 24, 3)


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


def test_one_line_says_what_was_left_out_and_what_is_not_read_as_stored(birds, caplog):
    train = birds / "train"
    for name in ("owl/.DS_Store", "owl/._c.jpeg", "owl/Thumbs.db", "owl/README", "list.csv"):
        (train / name).write_bytes(b"\0")
    for name in ("__MACOSX", "owl/__MACOSX", "owl/night"):
        (train / name).mkdir()
    clear = np.dstack([smooth(20, 20), np.full((20, 20), 9, np.uint8)])
    (train / "owl" / "night" / "d.png").write_bytes(encoded(clear, "png"))
    frames = [PIL.Image.new("L", (9, 9), shade) for shade in (1, 2)]
    frames[0].save(train / "wren" / "c.gif", save_all=True, append_images=frames[1:])
    source = folders.load(birds, "train")
    assert [source.records.files[index].name for index in range(5)] == ["c.jpeg", "d.png", "a.jpg", "b.PNG", "c.gif"]
    assert caplog.messages == [
        f"5 images of {train} (train): left out beside them: 1 .db, 1 .txt, 1 beside the classes' folders, 5 hidden, "
        "1 without an ending; 1 in folders below those of their classes; 1 with transparency, laid over white; "
        "1 with several frames or pages, of which the first is read"
    ]
    caplog.clear()
    folders.load(birds, "val")
    assert caplog.messages == []


def test_names_of_classes_are_one_whatever_wrote_them(birds, caplog):
    (birds / "train" / "owl").rename(birds / "train" / "e\u0301toile")  # as macOS writes it
    shutil.copytree(birds / "train" / "wren", birds / "train" / "Wren")
    shutil.copytree(birds / "val" / "wren", birds / "val" / "\u00e9toile")
    assert folders.load(birds, "train").class_names == ("Wren", "wren", "\u00e9toile")
    assert "several classes are called 'wren' in large or small letters" in caplog.text
    assert [example["label"] for example in folders.load(birds, "val")] == [1, 2]
    (birds / "val" / "Etoile").mkdir()
    with pytest.raises(ValueError, match=r"'Etoile' is none$"):
        folders.load(birds, "val")
    (birds / "train" / "\u00e9toile").mkdir()
    with pytest.raises(ValueError, match=r"^every class must have one folder in .*; got"):
        folders.load(birds, "train")


def test_a_folder_without_splits_is_shared(birds, tmp_path):
    root = birds / "train"
    for number in range(9):
        (root / "owl" / f"{number}.png").write_bytes(encoded(smooth(20, 20, turn=number), "png"))
    assert sources.splits(str(root), test_share=0.2) == ("train", "test")
    train, test = (folders.load(root, split, test_share=0.2) for split in ("train", "test"))
    assert (train.records.labels, test.records.labels) == ([0] * 8 + [1], [0] * 2 + [1])  # a fifth of 10, one of 2
    assert not set(train.records.files) & set(test.records.files)
    again = folders.load(root, "test", test_share=0.2)
    assert again.records.files == test.records.files
    (root / "owl").rename(root / "train")  # a class may have that name
    assert folders.load(root, "train", test_share=0.5).class_names == ("train", "wren")
    shutil.rmtree(birds / "val")  # a training set alone is shared as well
    assert len(folders.load(birds, "test", test_share=0.2)) == 3


@pytest.mark.parametrize(
    ("sides", "size"), [((5, 6, 7), 6), ((31, 90, 33), 32), ((60, 60, 60), 56), ((100,), 96), ((300,), 224)]
)
def test_images_are_not_blown_up(tmp_path, sides, size):
    for number, side in enumerate(sides):
        for name in ("a", "b"):
            folder = tmp_path / "train" / name
            folder.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("1", (300, side)).save(folder / f"{number}.png")
    assert folders.usual_size(tmp_path) == size
    assert sources.load(str(tmp_path), "train").size == size
    assert sources.load(str(tmp_path), "train", image_size=12)[0]["image"].shape == (12, 12, 3)


def bomb(path):
    """A PNG whose header promises 3.6 thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (header, data)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def text_chunk(path):
    """A PNG with a chunk of text that unpacks to 3 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * 3_000_000, zip=True)
    PIL.Image.new("L", (2, 2)).save(path, pnginfo=info)


BROKEN = {
    "text": (lambda path: path.write_text("no image"), "bytes of no known format of images"),
    "empty": (lambda path: path.write_bytes(b""), "bytes of no known format of images"),
    "half a header": (lambda path: path.write_bytes(encoded(smooth(9, 9), "png")[:20]), ""),
    "bomb": (bomb, "DecompressionBombError: Image size (3600000000 pixels) exceeds limit"),
    "text chunk": (text_chunk, "Decompressed data too large"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "the error 'No such file or directory' of the file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "the error 'Too many levels of symbolic links'"),
    "pipe": (os.mkfifo, "no regular file"),
    "32 bits": (
        lambda path: PIL.Image.new("F", (4, 4)).save(path, "tiff"),
        "pixels of mode 'F', of which the white is unknown; 8 or 16 bits are read",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_found_when_the_set_is_loaded(birds, kind):
    damage, reason = BROKEN[kind]
    damage(birds / "train" / "owl" / "z.png")
    sentence = f"image {birds}/train/owl/z.png must be readable; got {reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        sources.load(str(birds), "train")


def test_a_file_that_breaks_later_is_named(birds):
    whole = encoded(smooth(64, 64), "jpeg")
    (birds / "train" / "owl" / "c.jpeg").write_bytes(whole[: len(whole) // 2])
    source = folders.load(birds, "train")  # the header is whole
    sentence = f"image {birds}/train/owl/c.jpeg must be readable; got image file is truncated"
    for read in (
        lambda: source[0],
        lambda: source.cropped(8).take(np.arange(3)),
        lambda: source.in_memory((64, 64, 3)),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            read()
    (birds / "train" / "owl" / "c.jpeg").unlink()
    with pytest.raises(ValueError, match=r"must be readable; got the error 'No such file or directory' of the file"):
        source.take(np.arange(1))


MISTAKES = [
    (lambda root: folders.load(root, "dev"), "split of {root} must be one of 'train', 'val'; got 'dev'"),
    (
        lambda root: (root / "val" / "kite").mkdir() or folders.load(root, "val"),
        "every class of {root}/val must be one of train; 'kite' is none",
    ),
    (
        lambda root: (root / "val" / "Wren").mkdir() or folders.load(root, "val"),
        "every class of {root}/val must be one of train; 'Wren' is none (did you mean 'wren'?)",
    ),
    (
        lambda root: (
            (root / "train" / "kite").mkdir()
            or (root / "train" / "kite" / "a.heic").touch()
            or folders.load(root, "train")
        ),
        "{root}/train/kite must hold images (.bmp, .gif, .jfif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp); "
        "got none, but 1 .heic",
    ),
    (
        lambda root: shutil.rmtree(root / "val" / "wren") or folders.load(root, "val"),
        "{root}/val must hold images (.bmp, .gif, .jfif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp); got none",
    ),
    (
        lambda root: (root / "train" / "owl").rename(root / "owls") and folders.load(root, "train"),
        "{root}/train must hold a folder for each class, two at least; got 1",
    ),
    (
        lambda root: (root / "train" / "owl" / "a.png").mkdir() or folders.load(root, "train"),
        "image {root}/train/owl/a.png must be a file; got a folder",
    ),
    (
        lambda root: (root / "train" / "owl" / "more").symlink_to(root / "train") or folders.load(root, "train"),
        "a link must not lead back to a folder above it; got {root}/train/owl/more/owl",
    ),
    (
        lambda root: (root / "train" / "caf\udce9").mkdir() or folders.load(root, "train"),
        "the name of a class must be text in UTF-8 on one line; got 'caf\\udce9' in {root}/train",
    ),
    (
        lambda root: folders.load(root, "train", test_share=0.2),
        "test_share is for folders without a split to test on; got test_share=0.2 for {root}, which has 'val' beside",
    ),
    (
        lambda root: folders.load(root / "train", "train", test_share=0.2),
        "a class must have two images at least to share with the test set; 'owl' has one",
    ),
    (lambda root: folders.load(root, "train", test_share=1.0), "test_share must lie between 0 and 1; got 1.0"),
    (
        lambda root: sources.load(str(root), "train", in_memory=True),
        "images must have one shape to come into memory, such as (25, 25, 3) (a source of images, in_memory=False, can "
        "crop them to one); got (20, 50, 3) of image {root}/train/wren/a.jpg",
    ),
    (
        lambda root: sources.load(str(root), "val", in_memory=True, image_size=8),
        "image_size is for folders of images and for imagenet2012 and places365_small, not in memory; got image_size=8",
    ),
    (lambda root: sources.load(str(root), "val", image_size=0), "size must be at least 1, or None"),
    (lambda root: folders.load(root, "val").take(np.arange(0)), "images must have one size to make a batch"),
]


@pytest.mark.parametrize(("call", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(birds, call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(root=birds))}"):
        call(birds)


def test_a_folder_that_may_not_be_read_is_named(birds, monkeypatch):
    def iterdir(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
    sentence = f"folder {birds} must be readable; got the error 'Permission denied' of the file system"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        folders.load(birds, "train")


def test_a_folder_without_splits_says_what_to_do(birds):
    sentence = (
        f"images must lie in {birds}/val/<split>/<class>/<file>, a split being train; got none (where they lie in "
        f"{birds}/val/<class>/<file>, test_share=0.2, or --data.test-share 0.2, tests on a fifth of each class)"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        folders.load(birds / "val", "train")
    with pytest.raises(FileNotFoundError, match=f"^a folder of images must exist; got {birds}/more$"):
        folders.load(birds / "more", "train")
