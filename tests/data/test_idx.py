"""IDX files: what is read, through the door of all data sets, and a sentence for everything that is wrong with them."""

import gzip
import re
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import nearest_etf
from nc_jax.data import idx, sources
from nc_jax.study import main
from nc_jax.study.data import DataOptions, load
from nc_jax.training import read_metrics

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2], np.uint8)
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def stored(array):
    """The bytes of an IDX file, written from the description of the format."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def written(folder, images=PIXELS, labels=LABELS, names=TRAIN):
    """Write the two files of a split, compressed where a name ends so."""
    folder.mkdir(parents=True, exist_ok=True)
    for array, name in zip((images, labels), names, strict=True):
        (folder / name).write_bytes(gzip.compress(stored(array)) if name.endswith(".gz") else stored(array))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Twelve training and six test images of three classes, as some mirrors of MNIST have them."""
    written(tmp_path / "small")
    return written(tmp_path / "small", PIXELS[:6], LABELS[:6], [name + ".gz" for name in TEST])


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3), (1, 2, 2, 3)])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_array_comes_back_as_it_was_stored(tmp_path, dtype, shape, zipped):
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype) - np.dtype(dtype).type(3)
    path = tmp_path / "any name"  # the content says whether it is compressed
    path.write_bytes(gzip.compress(stored(array)) if zipped else stored(array))
    found = idx.read_idx(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_a_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "AT_ONCE", 7)
    (tmp_path / "images").write_bytes(gzip.compress(stored(PIXELS)))
    np.testing.assert_array_equal(idx.read_idx(tmp_path / "images"), PIXELS)


def test_the_door_leads_to_a_folder_below_the_data_and_anywhere(folder, tmp_path):
    for name, data_dir in ((f"idx:{folder}", None), ("idx:small", tmp_path)):
        assert sources.splits(name, data_dir) == ("train", "test")
        train, test = (sources.load(name, split, data_dir) for split in ("train", "test"))
        assert repr(train) == "LabelledArrays(12 examples of shape (5, 4, 1) uint8, 3 classes)"
        np.testing.assert_array_equal(train.inputs[..., 0], PIXELS)
        np.testing.assert_array_equal(test.inputs[..., 0], PIXELS[:6])
        np.testing.assert_array_equal(train.labels, LABELS)
        assert (test.num_classes, test.class_names) == (3, ("0", "1", "2"))


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_images_and_names_with_a_dot(tmp_path, ending, channels):
    images = np.random.default_rng(2).integers(0, 256, (12, 5, 4, channels), dtype=np.uint8)
    written(tmp_path, images, LABELS, [f"train-images.idx4-ubyte{ending}", f"train-labels.idx1-ubyte{ending}"])
    np.testing.assert_array_equal(idx.load(tmp_path, "train").inputs, images)


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion_mnist", "Fashion-MNIST", "FashionMNIST/raw"])
def test_a_known_set_has_its_ten_classes_and_its_normalisation(tmp_path, name):
    folder = written(tmp_path / name)
    train = idx.load(folder, "train")
    assert train.num_classes == 10
    assert (train.class_names[0], train.class_names[9]) == ("T-shirt/top", "Ankle boot")
    written(folder, names=TEST)
    black = load(DataOptions(f"idx:{folder}")).preprocess(jnp.zeros((1, 5, 4, 1), jnp.uint8))
    np.testing.assert_allclose(black, -0.2860 / 0.3530, rtol=1e-5)


def test_other_sets_are_scaled_only(folder):
    assert idx.known_set(Path("kmnist")) is None
    data = load(DataOptions(f"idx:{folder}", augmentation="shift", per_class=2, without_class=2), flat=True)
    assert (len(data.train), len(data.test), data.num_classes, data.size) == (4, 6, 3, 5)
    assert data.absent_classes == (2,)
    assert data.preprocess(jnp.full((1, 5, 4, 1), 255, jnp.uint8)).max() == 1


WHOLE = stored(PIXELS)
DAMAGE = {
    "empty": (
        b"",
        "must begin with two zero bytes, one of 8, 9, 11, 12, 13, 14 for its type and 1 to 4 for its "
        "dimensions; got an empty file",
    ),
    "magic": (
        b"PK\3\4" + WHOLE[4:],
        "must begin with two zero bytes, one of 8, 9, 11, 12, 13, 14 for its type and "
        "1 to 4 for its dimensions; got [80, 75, 3, 4]",
    ),
    "type": (b"\0\0\x0a\3" + WHOLE[4:], "must begin with two zero bytes, one of"),
    "no dimension": (b"\0\0\x08\0" + WHOLE[4:], "must begin with two zero bytes, one of"),
    "five dimensions": (b"\0\0\x08\5" + WHOLE[4:], "must begin with two zero bytes, one of"),
    "cut header": (WHOLE[:9], "must have 3 sizes of four bytes, each at least 1; got 5 bytes"),
    "no image": (stored(PIXELS[:0]), "must have 3 sizes of four bytes, each at least 1; got (0, 5, 4)"),
    "cut": (WHOLE[:-1], "must hold 240 bytes of data for its sizes (12, 5, 4); got 239"),
    "trailing": (WHOLE + b"\0", "must hold 240 bytes of data for its sizes (12, 5, 4); got more"),
    "endless": (
        WHOLE[:4] + b"\xff" * 12 + WHOLE[16:],
        f"must hold {(2**32 - 1) ** 3:,} bytes of data for its sizes (4294967295, 4294967295, 4294967295); got 240",
    ),
    "cut gzip": (gzip.compress(WHOLE)[:-9], "must be readable; got EOFError: Compressed file ended before"),
    "checksum": (gzip.compress(WHOLE)[:-8] + b"\0" * 8, "must be readable; got CRC check failed"),
    "no gzip": (gzip.compress(WHOLE) + b"more", "must be readable; got Not a gzipped file"),
    "three sizes for two": (
        stored(PIXELS[0]),
        "must hold bytes, of the sizes of examples, height and width, and of "
        "channels (1 or 3) where the images have colours; got uint8 of shape (5, 4)",
    ),
    "four channels": (stored(PIXELS[None]), "must hold bytes, of the sizes of examples, height and width, and of"),
    "no bytes": (stored(PIXELS.astype(np.int16)), "must hold bytes, of the sizes of examples, height and width, and"),
    "fewer images": (stored(PIXELS[1:]), "must hold an image for each label of {labels}; got 11 images and 12 labels"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_images_are_one_sentence(folder, name):
    images, labels = (folder / file for file in TRAIN)
    content, sentence = DAMAGE[name]
    images.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{images} {sentence.format(labels=labels)}")):
        sources.load(f"idx:{folder}", "train")


@pytest.mark.parametrize(
    ("split", "labels", "sentence"),
    [
        (TRAIN, LABELS.reshape(3, 4), "{file} must hold integers in one dimension; got uint8 of shape (3, 4)"),
        (TRAIN, LABELS.astype(np.float32), "{file} must hold integers in one dimension; got float32 of shape (12,)"),
        (TRAIN, LABELS + np.uint8(10), "labels of {file} must lie in 0..11; got 12 at index 2"),
        (TRAIN, LABELS.astype(np.int8) - np.int8(1), "labels of {file} must lie in 0..11; got -1 at index 0"),
        (TEST, LABELS[:6] + np.uint8(1), "labels of {file} must lie in 0..2; got 3 at index 2"),
    ],
)
def test_wrong_labels_are_one_sentence(folder, split, labels, sentence):
    (folder / (TEST[1] + ".gz")).unlink()
    written(folder, PIXELS[: len(labels)], labels, split)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(file=folder / split[1]))}$"):
        idx.load(folder, "test" if split is TEST else "train")


def test_missing_files_are_named_with_what_to_do(folder, tmp_path):
    (folder / TRAIN[0]).unlink()
    names = ", ".join(
        f"train-images{mark}idx{count}-ubyte{end}" for count in (3, 4) for mark in "-." for end in ("", ".gz")
    )
    sentence = f"{folder} must hold one of the files {names}; got none of them"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        sources.load(f"idx:{folder}", "train")
    remedy = r"\(apt-get install dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist\)$"
    with pytest.raises(FileNotFoundError, match=remedy):
        load(DataOptions("idx:fashion-mnist", data_dir=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=f"^an IDX file must exist; got no file {re.escape(str(folder))}$"):
        idx.read_idx(folder)


MISTAKES = [
    (lambda name: sources.load(name, "val"), "split of {folder} must be one of 'train', 'test'; got 'val'"),
    (lambda name: sources.load(name, "train", in_memory=False), "IDX files are read into memory; got in_memory=False"),
    (lambda name: load(DataOptions(name, test_share=0.2)), "test_share is for folders of images and tables; got"),
    (lambda name: load(DataOptions(name, image_size=8)), "image_size is for folders of images and for"),
    (lambda name: load(DataOptions(name, num_classes=2)), "only the glyphs come with any number of classes"),
    (lambda name: load(DataOptions(name[4:])), "a folder of IDX files must be named with 'idx:' before it; got "),
]


@pytest.mark.parametrize(("call", "sentence"), MISTAKES, ids=[sentence[:30] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(folder, call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(folder=folder))}"):
        call(f"idx:{folder}")


@pytest.mark.parametrize("zipped", [False, True])
def test_random_damage_gives_a_sentence_or_an_array_of_the_same_size(tmp_path, zipped):
    """Two hundred files: bits flipped, ends cut, bytes inserted or appended."""
    rng, path = np.random.default_rng(3), tmp_path / "images"
    whole = gzip.compress(WHOLE, mtime=0) if zipped else WHOLE
    refused = []
    for _ in range(200):
        data = bytearray(whole)
        where = int(rng.integers(0, len(data) if rng.random() < 0.5 else 24))  # half of them in the header
        damage = rng.choice(["flip", "cut", "insert", "append"])
        if damage == "flip":
            data[where] ^= 1 << int(rng.integers(8))
        elif damage == "cut":
            del data[where:]
        else:
            where = where if damage == "insert" else len(data)
            data[where:where] = rng.bytes(int(rng.integers(1, 9)))
        path.write_bytes(data)
        try:
            found = idx.read_idx(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert (found.shape, found.dtype.itemsize) == (PIXELS.shape, 1)  # one bit makes bytes signed
    assert len(refused) > 100
    assert all(sentence.startswith(f"IDX file {path} must ") for sentence in refused)


@pytest.mark.slow
def test_an_experiment_trains_on_a_folder(tmp_path):
    rng = np.random.default_rng(4)
    images, labels = rng.integers(0, 60, (96, 8, 8), dtype=np.uint8), np.arange(96, dtype=np.uint8) % 4
    images[np.arange(96), labels] += 180  # the class is the row that is bright
    folder = written(tmp_path / "rows", images, labels)
    written(folder, images[:48], labels[:48], TEST)
    flags = ["smoke", "--data.name", f"idx:{folder}", "--methods", "nearest", "--seeds", "1", "--loop.epochs", "8"]
    flags += ["--loop.devices", "1", "--loop.batch-size", "32", "--workdir", str(tmp_path / "run")]
    main(nearest_etf.run_comparison, nearest_etf.PRESETS, flags)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["test/accuracy"] > 0.9
