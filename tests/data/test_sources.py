"""Data sets by name: prepared folders in TFDS's format, crops, and the error messages when something is missing."""

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import encoded, smooth, written

from nc_jax.data import LabelledArrays, glyphs, servers, sources
from nc_jax.data import images as image_sources
from nc_jax.data.images import ImageSource
from nc_jax.extras import MissingExtraError
from nc_jax.streams import batches
from nc_jax.training.fingerprint import describe

CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path, pixels):
    """CIFAR-10 with 8 training and 4 test images."""
    examples = [(encoded(image, "png"), index % 10) for index, image in enumerate(pixels)]
    return written(
        tmp_path,
        "cifar10",
        "3.0.2",
        tfds.features.Image(shape=(32, 32, 3)),
        tfds.features.ClassLabel(names=CIFAR_NAMES),
        {"train": examples[:8], "test": examples[8:]},
    )


SHAPES = [(40, 60), (90, 30), (24, 24)]


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet with three images of different sizes: one colour image, one grey and one CMYK."""
    modes = [None, "L", "CMYK"]
    examples = [(encoded(smooth(*shape), "jpeg", mode), 7) for shape, mode in zip(SHAPES, modes, strict=True)]
    return written(
        tmp_path,
        "imagenet2012",
        "5.1.0",
        tfds.features.Image(encoding_format="jpeg"),
        tfds.features.ClassLabel(num_classes=1000),
        {"train": examples},
    )


def test_a_png_set_comes_into_memory_byte_by_byte(cifar10, tmp_path, pixels):
    train, test = (sources.load("cifar10", split, tmp_path) for split in ("train", "test"))
    assert repr(train) == "LabelledArrays(8 examples of shape (32, 32, 3) uint8, 10 classes)"
    np.testing.assert_array_equal(np.concatenate([train.inputs, test.inputs]), pixels)
    assert [*train.labels.tolist(), *test.labels.tolist()] == [index % 10 for index in range(12)]
    assert train.class_names == CIFAR_NAMES


def test_grey_images_keep_a_channel_and_variants_have_names(tmp_path):
    image = smooth(28, 28, channels=1)
    written(
        tmp_path,
        "emnist",
        "3.1.0",
        tfds.features.Image(shape=(28, 28, 1)),
        tfds.features.ClassLabel(num_classes=37),
        {"train": [(encoded(image, "png"), 26)]},
        config="letters",
    )
    letters = sources.load("emnist/letters", "train", tmp_path)
    np.testing.assert_array_equal(letters.inputs, image[None])
    assert (letters.labels.tolist(), letters.num_classes) == ([26], 37)
    with pytest.raises(FileNotFoundError, match="tfds build emnist/byclass"):
        sources.load("emnist", "train", tmp_path)


def test_a_set_of_many_reads_is_in_order(tmp_path, monkeypatch, cifar10, pixels):
    monkeypatch.setattr(image_sources, "READ_AT_ONCE", 3)
    np.testing.assert_array_equal(sources.load("cifar10", "train", tmp_path).inputs, pixels[:8])


def test_the_newest_version_is_read(tmp_path, cifar10):
    image, label = tfds.features.Image(shape=(32, 32, 3)), tfds.features.ClassLabel(num_classes=10)
    written(tmp_path, "cifar10", "3.0.10", image, label, {"train": [(encoded(smooth(32, 32), "png"), 9)]})
    assert sources.load("cifar10", "train", tmp_path).labels.tolist() == [9]


def test_sets_of_one_size_that_stay_on_disk_have_fingerprints_of_their_own(tmp_path, cifar10):
    image, label = tfds.features.Image(shape=(32, 32, 3)), tfds.features.ClassLabel(names=CIFAR_NAMES)
    examples = [(encoded(smooth(32, 32), "png"), 9)] * 8
    written(tmp_path / "other", "cifar10", "3.0.2", image, label, {"train": examples[:4], "test": examples[:4]})
    written(tmp_path / "newer", "cifar10", "3.0.10", image, label, {"train": examples})
    read = [(tmp_path, "train"), (tmp_path, "train"), (tmp_path / "newer", "train")]
    read += [(tmp_path / "other", "train"), (tmp_path / "other", "test")]
    said = [describe(sources.load("cifar10", split, root, in_memory=False), "set") for root, split in read]
    assert said[0] == said[1] != said[2]  # versions
    assert said[3] != said[4]  # splits


def test_large_sets_are_decoded_when_asked(imagenet, tmp_path):
    source = sources.load("imagenet2012", "train", tmp_path)
    assert repr(source) == "ImageSource(3 images of 224x224, 3 channels, 1000 classes)"
    assert [example["image"].shape for example in source] == [(224, 224, 3)] * 3
    assert {(example["image"].dtype, example["label"]) for example in source} == {(np.dtype(np.uint8), 7)}


@pytest.mark.parametrize("index", range(3), ids=["colour", "grey", "CMYK"])
def test_a_jpeg_is_decoded_to_three_channels(imagenet, tmp_path, index):
    stored = sources.load("imagenet2012", "train", tmp_path)
    found = ImageSource(stored.records, 3, 1000, stored.class_names)[index]["image"]
    expected = smooth(*SHAPES[index]).astype(float)
    if index == 1:  # luma of ITU-R 601, which JPEG stores
        expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1)
    # JPEG at quality 95 is off by a few levels, more where it halves the resolution of colour.
    assert np.abs(found - expected).mean() < 3


def test_any_set_may_be_a_source(cifar10, tmp_path, pixels):
    source = sources.load("cifar10", "test", tmp_path, in_memory=False)
    assert len(source) == 4
    assert (source.num_classes, source.class_names) == (10, CIFAR_NAMES)
    np.testing.assert_array_equal([example["image"] for example in source], pixels[8:])
    picked = grain.MapDataset.source(source).shuffle(seed=0)[0]
    assert picked["image"].shape == (32, 32, 3)


def test_images_of_many_sizes_stay_out_of_memory(imagenet, tmp_path):
    sentence = "images must have one size to come into memory; got imagenet2012 with shape (None, None, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sources.load("imagenet2012", "train", tmp_path, in_memory=True)


def plain(*images):
    """A source of images in memory."""
    records = [{"image": image, "label": 0} for image in images]
    return ImageSource(records, channels=images[0].shape[-1], num_classes=1, class_names=("all",))


def test_the_central_crop_is_the_middle_seven_eighths():
    image = np.random.default_rng(0).integers(0, 256, (80, 112, 3), dtype=np.uint8)
    np.testing.assert_array_equal(plain(image).cropped(70)[0]["image"], image[5:75, 21:91])  # 7/8 of 80 is 70


def test_random_crops_depend_on_seed_and_index_alone():
    source = plain(*[smooth(60, 80, turn=index) for index in range(6)] * 2)
    one, other = source.cropped(16, seed=1), source.cropped(16, seed=2)
    expected = [one[index]["image"] for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: one[index]["image"], reversed(range(12))))
    np.testing.assert_array_equal(found[::-1], expected)
    assert not any(np.array_equal(other[index]["image"], expected[index]) for index in range(12))
    assert not any(np.array_equal(expected[index], expected[index + 6]) for index in range(6))


def test_a_batch_is_a_function_of_indices_and_seed():
    source = plain(*[smooth(60, 80, turn=index) for index in range(6)]).cropped(16, seed=1)
    indices = np.array([4, 0, 4])
    batch = source.take(indices)
    assert (batch.inputs.shape, batch.labels.dtype) == ((3, 16, 16, 3), np.int32)
    np.testing.assert_array_equal(batch.inputs, [source[index]["image"] for index in indices])
    np.testing.assert_array_equal(source.take(indices, seed=5).inputs, source.take(indices, seed=5).inputs)
    assert not np.array_equal(source.take(indices, seed=5).inputs, batch.inputs)
    central = source.cropped(16)
    np.testing.assert_array_equal(central.take(indices, seed=5).inputs, central.take(indices).inputs)


def test_the_pipeline_takes_a_source():
    source = plain(*[smooth(20 + index, 30, turn=index) for index in range(5)]).cropped(8, seed=3)
    first, second = ([*batches(source, 2, seed=1, num_steps=6, prefetch=count)] for count in (0, 2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    assert [batch.labels.tolist() for batch in first[:3]] == [[0, 0], [0, 0], [0, -1]]


def test_images_of_many_sizes_make_no_batch():
    sentence = "images must have one size to make a batch (see `cropped`); got (20, 30, 3) and (21, 30, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        plain(smooth(20, 30), smooth(21, 30)).take(np.arange(2))


def test_random_crops_keep_their_promises():
    boxes = np.array([image_sources._random_box(500, 375, seed=0, index=index) for index in range(4000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 500).all()
    assert (boxes[:, 3] <= 375).all()
    assert np.array_equal(boxes, np.rint(boxes))
    shares, aspects = widths * heights / (500 * 375), widths / heights
    slack = 0.02  # whole pixels
    assert 0.08 - slack < shares.min() < 0.1
    assert shares.max() > 0.95
    assert (aspects > 3 / 4 * (1 - slack)).all()
    assert (aspects < 4 / 3 * (1 + slack)).all()
    assert abs(np.median(boxes[:, 0] / (500 - widths + 1)) - 0.5) < 0.05


def test_a_panorama_falls_back_to_its_centre():
    assert image_sources._random_box(100000, 1, seed=0, index=0) == image_sources._central_box(100000, 1)


REFUSED = [
    (
        lambda folder: sources.load("cifar", "train", folder),
        "name must be one of 'digits', 'glyphs', 'mnist', 'fashion_mnist', 'emnist', 'svhn_cropped', 'cifar10', "
        "'cifar100', 'stl10', 'imagenet2012', 'places365_small', 'shuttle', 'letter', 'vowel', 'satellite', "
        "or a folder of images here or in ",
    ),
    (
        lambda folder: sources.load("emnist/all", "train", folder),
        "name must be one of 'emnist/byclass', 'emnist/bymerge', 'emnist/balanced', 'emnist/letters', "
        "'emnist/digits', 'emnist/mnist'; got 'emnist/all'",
    ),
    (lambda folder: sources.load("mnist/plain", "train", folder), "name must be plain 'mnist'; got 'mnist/plain'"),
    (
        lambda folder: sources.load("stl10", "unlabelled", folder),
        "split of stl10 must be one of 'train', 'test'; got 'unlabelled'",
    ),
    (
        lambda folder: sources.load("cifar10", "train", folder, test_share=0.2),
        "test_share is for folders of images and tables; got test_share=0.2 for cifar10",
    ),
    (lambda folder: sources.splits("cifar10", folder, test_share=0.2), "test_share is for folders of images"),
    (
        lambda folder: sources.load("cifar10", "train", folder, image_size=8),
        "image_size is for folders of images and for imagenet2012 and places365_small, not in memory; "
        "got image_size=8 for cifar10",
    ),
    (lambda folder: sources.prepare("cifar", folder), "name must be one of"),
    (lambda folder: plain(smooth(4, 4)).cropped(0), "size must be at least 1, or None; "),
    (
        lambda folder: plain(smooth(4, 4)).cropped(2, seed=-1),
        "seed must be a whole number in 0..2^64-1",
    ),
    (
        lambda folder: ImageSource([], 3, 1, ("all",), seed=1),
        "random crops need a size; got seed=1 with size=None",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_refuses_with_one_sentence(tmp_path, call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"^index must lie in 0..1; got {index}$"):
        plain(smooth(4, 4), smooth(4, 4))[index]


@pytest.mark.parametrize("name", [name for name in sources.SPLITS if name not in sources.EMBEDDED])
def test_a_missing_set_is_an_error_at_once_that_says_how_to_prepare_it(tmp_path, monkeypatch, name):
    def ask(*arguments, **options):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(servers.urllib.request, "urlopen", ask)
    folder = tmp_path / "my data"
    with pytest.raises(FileNotFoundError) as caught:
        sources.load(name, "train", folder)
    full_name = "emnist/byclass" if name == "emnist" else name
    assert f"`tfds build {full_name} --data_dir '{folder}' --file_format array_record`" in str(caught.value)
    if name == "imagenet2012":
        assert f"ILSVRC2012_img_val.tar into {folder / 'downloads' / 'manual'} and" in str(caught.value)
    assert not folder.exists()


def test_the_environment_says_where_sets_are(tmp_path, monkeypatch, cifar10):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(sources.load("cifar10", "test")) == 4


def test_another_format_is_refused_with_the_command_that_converts(tmp_path, cifar10):
    file = cifar10 / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "tfrecord"}))
    sentence = (
        f"cifar10/3.0.2 in {tmp_path} must be stored as array_record (run `tfds convert_format "
        f"--dataset_version_dir={cifar10} --out_file_format=array_record`); got tfrecord"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sources.load("cifar10", "train", tmp_path)


def test_a_split_that_was_not_prepared_is_named(tmp_path, imagenet):
    sentence = f"imagenet2012/5.1.0 in {tmp_path} must hold the split 'validation'; got 'train'"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sources.load("imagenet2012", "validation", tmp_path)


DAMAGE = {
    "no metadata": lambda folder: (folder / "dataset_info.json").unlink(),
    "cut metadata": lambda folder: (folder / "dataset_info.json").write_text("{"),
    "no features": lambda folder: (folder / "features.json").unlink(),
    "no records": lambda folder: next(folder.glob("*train*")).unlink(),
    "cut records": lambda folder: next(folder.glob("*train*")).write_bytes(b""),
    "other records": lambda folder: next(folder.glob("*test*")).replace(next(folder.glob("*train*"))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_one_sentence(tmp_path, cifar10, damage):
    damage(cifar10)
    sentence = f"cifar10/3.0.2 in {tmp_path} must be readable (delete that folder and prepare it again); got "
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        sources.load("cifar10", "train", tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        sources.load("cifar10", "train", tmp_path, in_memory=False).take(np.arange(8))


def test_our_own_sets_come_through_the_same_door(tmp_path):
    vectors = sources.load("digits", "test", tmp_path)
    images = sources.load("digits", "test", tmp_path, in_memory=False)
    assert isinstance(vectors, LabelledArrays)
    np.testing.assert_array_equal(images[5]["image"].ravel() / 16, vectors.inputs[5])


@pytest.mark.slow
def test_glyphs_on_disk_are_the_rendered_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(glyphs.PRESETS, "low-data", glyphs.GlyphOptions(train_images=2, test_images=1))
    for split in ("train", "test"):
        stored, rendered = sources.load("glyphs/low-data", split, tmp_path), glyphs.load(split, preset="low-data")
        np.testing.assert_array_equal(stored.inputs, rendered.inputs)
        np.testing.assert_array_equal(stored.labels, rendered.labels)
        assert stored.class_names == rendered.class_names


@pytest.mark.slow
def test_reading_needs_no_tensorflow(tmp_path, cifar10):
    program = (
        "import sys; from nc_jax.data import sources\n"
        "print(sources.load('cifar10', 'train', sys.argv[1]), 'tensorflow' in sys.modules)"
    )
    # TFDS asks protobuf 6 for what protobuf 7 calls by another name (pyproject.toml).
    strict = ["-W", "error", "-W", "ignore:label() is deprecated:DeprecationWarning"]
    command = [sys.executable, *strict, "-c", program, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert output == "LabelledArrays(8 examples of shape (32, 32, 3) uint8, 10 classes) False\n"


def test_preparing_what_is_there_does_nothing(tmp_path, cifar10):
    assert sources.prepare("cifar10", tmp_path) == cifar10


CLOSED = "http://127.0.0.1:9/"  # the discard port: nobody listens


def test_preparing_without_a_connection_says_who_must_answer(tmp_path, monkeypatch):
    monkeypatch.setitem(servers.HOMES, "cifar10", CLOSED)
    with pytest.raises(ConnectionError, match=f"^{CLOSED} must answer within 3 s for cifar10 to be downloaded; got no"):
        sources.prepare("cifar10", tmp_path)


def test_a_server_that_hangs_is_given_up(monkeypatch):
    def hang(*arguments, **options):
        done.wait()
        raise OSError("given up")

    done = threading.Event()
    monkeypatch.setattr(servers, "REACH_TIMEOUT", 0.05)
    monkeypatch.setattr(servers.urllib.request, "urlopen", hang)
    assert not servers.answers(CLOSED)
    done.set()


def test_preparing_imagenet_asks_for_its_archives(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"must be in {tmp_path / 'downloads' / 'manual'}")):
        sources.prepare("imagenet2012", tmp_path)


def test_preparing_without_tensorflow_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "answers", lambda url: True)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    sentence = "preparing mnist needs tensorflow; install it by: pip install 'nc_jax[datasets]'"
    with pytest.raises(MissingExtraError, match=f"^{re.escape(sentence)}$"):
        sources.prepare("mnist", tmp_path)
