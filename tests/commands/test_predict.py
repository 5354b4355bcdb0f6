"""`nc-jax predict`: new images get what evaluation gave; what does not fit is one sentence."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import PIL.Image
import pytest
from toy_training import NormalisedMLP, blobs, fit, make_trainer

from nc_jax.commands import main
from nc_jax.data import LabelledArrays, augment, folders
from nc_jax.training import StepOptions, load_run

FLOAT32 = 1e-5  # the stored program and evaluation round sums of 192 products in different orders
NAMES = ("blue, dark", "green", "red", "white")
STEP = StepOptions(preprocess=augment.make_preprocess("cifar10"))


def write_images(root, *, seed: int, each: int, size: tuple[int, int] | None = None) -> None:
    """Noisy images in a colour of their class, of several sizes and formats; some in a folder below that of a class."""
    generator = np.random.default_rng(seed)
    colours = 128 + 25 * np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, -1], [1, 1, 1]])
    for label, name in enumerate(NAMES):
        folder = root / name / "more"
        folder.mkdir(parents=True)
        for number in range(each):
            height, width = size or generator.integers(12, 40, 2)
            pixels = colours[label] + generator.normal(0, 60, (height, width, 3)) + generator.normal(0, 30, 3)
            place = folder if number % 3 else folder.parent
            PIL.Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(
                place / f"{number}.{('png', 'jpg')[number % 2]}"
            )


@pytest.fixture(scope="module")
def trainer():
    """One program for all runs on images of 8 x 8 pixels in colour."""
    return make_trainer(1, resident=False, backbone=NormalisedMLP(), step=STEP)


@pytest.fixture(scope="module", params=["crop", "stretch"])
def photos(request, trainer, tmp_path_factory):
    """A run that was trained on images of all sizes, and its own evaluation of the test images."""
    root = tmp_path_factory.mktemp(request.param)
    write_images(root / "images" / "train", seed=0, each=12)
    write_images(root / "images" / "test", seed=1, each=6)
    train, test = (folders.load(root / "images", split) for split in ("train", "test"))
    if request.param == "crop":
        train, test = train.cropped(8, seed=0), test.cropped(8)
    else:
        train, test = train.stretched(8), test.stretched(8)
    trained = fit(trainer, train, test, root / "run")
    found = [
        (np.asarray(o.logits)[b.mask], np.asarray(o.features)[b.mask]) for o, b in trainer.outputs(trained.state, test)
    ]
    logits, features = (np.concatenate(part) for part in zip(*found, strict=True))
    labels = np.array(test.records.labels)  # pyright: ignore[reportAttributeAccessIssue]
    accuracy = trained.test.metrics["accuracy"]
    return SimpleNamespace(root=root, test=test, logits=logits, features=features, labels=labels, accuracy=accuracy)


def predict(*words) -> None:
    main(["predict", *map(str, words)])


@pytest.mark.slow
def test_a_folder_of_images_gets_what_evaluation_gave(photos, tmp_path):
    predict(photos.root / "run", photos.root / "images" / "test", "--out", tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz") as found:
        assert tuple(found["class_names"]) == NAMES
        assert [photos.root / "images" / "test" / name for name in found["files"]] == photos.test.records.files
        np.testing.assert_allclose(found["probabilities"], jax.nn.softmax(photos.logits), rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(found["features"], photos.features, rtol=FLOAT32, atol=FLOAT32)
        np.testing.assert_array_equal(found["labels"], photos.logits.argmax(axis=1))
        right = np.mean(found["labels"] == photos.labels)
    assert 0.3 < right < 1, "the test would not see it if images were exchanged"
    assert right == pytest.approx(photos.accuracy)
    assert [path.name for path in tmp_path.iterdir()] == ["found.npz"]


@pytest.mark.slow
def test_images_are_decoded_as_in_evaluation_to_the_bit(photos):
    run = load_run(photos.root / "run")
    every = np.arange(len(photos.labels))
    inputs = run.images(photos.test.records.files).take(every).inputs
    np.testing.assert_array_equal(inputs, photos.test.take(every).inputs)


@pytest.mark.slow
def test_rows_and_objects_hold_the_most_probable_classes(photos, tmp_path):
    for ending in ("csv", "json"):
        predict(photos.root / "run", photos.root / "images" / "test", "--out", tmp_path / f"found.{ending}")
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    document = json.loads((tmp_path / "found.json").read_text())
    probabilities = np.asarray(jax.nn.softmax(photos.logits))
    assert document["class_names"] == list(NAMES)
    assert (document["step"], document["inputs"]) == (6, len(rows))
    assert len(rows) == len(document["predictions"]) == len(photos.labels)
    for row, said, values in zip(rows, document["predictions"], probabilities, strict=True):
        order = np.argsort(-values)
        assert [row[name] for name in ("class", "class_2", "class_3", "class_4")] == [NAMES[k] for k in order]
        assert [one for one, _ in said["top"]] == [NAMES[k] for k in order]
        assert float(row["probability"]) == pytest.approx(values[order[0]], abs=FLOAT32)
        assert float(row["probability_4"]) == pytest.approx(values[order[3]], abs=FLOAT32)
        assert (said["file"], said["class"], said["probability"]) == (
            row["file"],
            row["class"],
            float(row["probability"]),
        )


@pytest.mark.slow
def test_one_image_and_an_array_are_read(photos, tmp_path):
    file, first = photos.test.records.files[3], photos.test.take(np.arange(5)).inputs
    predict(photos.root / "run" / "checkpoints" / "run", file, "--out", tmp_path / "one.csv")
    np.save(tmp_path / "five.npy", first)
    np.savez(tmp_path / "two.npz", labels=np.zeros(2), inputs=first[3:])
    predict(photos.root / "run", tmp_path / "five.npy", "--run", "run", "--out", tmp_path / "five.npz")
    predict(photos.root / "run", tmp_path / "two.npz", "--out", tmp_path / "two.csv")
    rows = []
    for name in ("one", "two"):
        with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
            rows += list(csv.DictReader(lines))
    assert [row["file"] for row in rows] == [file.name, "0", "1"]
    best = photos.logits[3].argmax()
    for row in rows[:2]:
        assert row["class"] == NAMES[best]
        assert float(row["probability"]) == pytest.approx(float(jax.nn.softmax(photos.logits[3])[best]), abs=FLOAT32)
    with np.load(tmp_path / "five.npz") as found:
        assert found["files"].tolist() == ["0", "1", "2", "3", "4"]
        np.testing.assert_allclose(found["features"], photos.features[:5], rtol=FLOAT32, atol=FLOAT32)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A run that was trained on vectors."""
    root = tmp_path_factory.mktemp("vectors")
    fit(make_trainer(1, epochs=1), blobs(100), blobs(40, seed=1), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def pixels(trainer, tmp_path_factory):
    """A run that was trained on images in memory."""
    root = tmp_path_factory.mktemp("pixels")
    inputs = np.random.default_rng(0).integers(0, 255, (48, 8, 8, 3), np.uint8)
    arrays = LabelledArrays(inputs, np.arange(48) % 4, 4, NAMES)
    fit(trainer, arrays, arrays, root / "run")
    PIL.Image.fromarray(inputs[5]).save(root / "five.png")
    return SimpleNamespace(root=root, inputs=inputs)


@pytest.mark.slow
def test_images_of_a_run_in_memory_are_taken_as_they_are_stored(pixels, tmp_path):
    predict(pixels.root / "run", pixels.root / "five.png", "--out", tmp_path / "five.npz")
    with np.load(tmp_path / "five.npz") as found:
        expected = load_run(pixels.root / "run").outputs(pixels.inputs[5:6])["features"]
        np.testing.assert_allclose(found["features"], expected, rtol=FLOAT32, atol=FLOAT32)


REFUSED = {
    "images for vectors": (
        "five.png",
        "got one of inputs of shape (6) and dtype float32, which takes arrays of such",
    ),
    "shape": ("wide.npy", "inputs must have shape (N, 6), N >= 1; got (3, 7)"),
    "bytes": ("bytes.npy", "inputs must have the dtype float32 of the training set; got uint8"),
    "not finite": ("nan.npy", "inputs must be finite; got NaN or an infinity for 1"),
    "damaged": ("damaged.npy", "damaged.npy must be readable; got"),
    "several arrays": ("several.npz", "must be readable; got 2 arrays (a, b), of which none is called inputs"),
    "absent": ("nothing.npy", "an image, a folder of images or an array is needed; got no nothing.npy"),
    "a folder without images": ("empty", "empty must hold images (.bmp, "),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(what, vectors, pixels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(pixels.root / "five.png", "five.png")
    np.save("wide.npy", np.zeros((3, 7), np.float32))
    np.save("bytes.npy", np.zeros((3, 6), np.uint8))
    np.save("nan.npy", np.array([[0.0] * 6, [np.nan] * 6], np.float32))
    np.savez("several.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "empty").mkdir()
    name, sentence = REFUSED[what]
    with pytest.raises(SystemExit) as stop:
        predict(vectors, name, "--out", "found.csv")
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert sentence in said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".features", "found"))]


def test_images_of_another_size_and_wider_numbers_are_refused(pixels, tmp_path, capsys):
    PIL.Image.new("RGB", (9, 8)).save(tmp_path / "wide.png")
    np.save(tmp_path / "wide.npy", np.zeros((1, 8, 8, 3), np.uint16))
    for name, sentence in (
        ("wide.png", "must have the 8 x 8 pixels of those that the run was trained on; got 9 x 8 of "),
        ("wide.npy", "inputs must have the dtype uint8 of the training set; got uint16"),
    ):
        with pytest.raises(SystemExit):
            predict(pixels.root / "run", tmp_path / name, "--out", tmp_path / "found.csv")
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "x.npy", "--out", "found.csv"], "nowhere must hold a run; got none"),
        (["run", "x.npy", "--run", "other", "--out", "found.csv"], "must hold the run other; got run"),
        (["run", "x.npy", "--out", "found.txt"], "must end in .csv or .npz or .json; got found.txt"),
        (["run", "x.npy", "--out", "x.npz"], "a new file needs a name that does not exist yet; got x.npz"),
        (["run", "x.npy"], "must name settings that exist and values that fit; these are missing: --out"),
    ],
)
def test_a_mistake_in_the_words_is_one_sentence(words, sentence, vectors, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(vectors)
    np.save("x.npy", np.zeros((1, 6), np.float32))
    (tmp_path / "x.npz").touch()
    with pytest.raises(SystemExit) as stop:
        predict(*words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_does_not_say_how_it_decoded_takes_arrays_only(photos, tmp_path, capsys):
    shutil.copytree(photos.root / "run" / "checkpoints" / "run", tmp_path / "old")
    stored = json.loads((tmp_path / "old" / "run.json").read_text())
    assert stored.pop("decoding")["size"] == 8
    (tmp_path / "old" / "run.json").write_text(json.dumps(stored))
    with pytest.raises(SystemExit):
        predict(tmp_path / "old", photos.root / "images" / "test", "--out", tmp_path / "found.csv")
    assert "image files need a run whose run.json says how it decoded images" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", photos.test.take(np.arange(2)).inputs)
    predict(tmp_path / "old", tmp_path / "x.npy", "--out", tmp_path / "found.csv")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_an_experiment_on_a_folder_predicts_its_test_images_as_it_evaluated_them(tmp_path):
    write_images(tmp_path / "images" / "train", seed=0, each=12)
    write_images(tmp_path / "images" / "test", seed=1, each=6)
    words = ["run", "nearest_etf", "smoke", "--methods", "nearest", "--seeds", "1", "--data.name", "images"]
    words += ["--data.image-size", "16", "--backbone.name", "resnet18", "--backbone.width-multiplier", "0.0625"]
    words += ["--data.data-dir", str(tmp_path), "--workdir", "run"]
    for command in (words, ["predict", "run", "images/test", "--out", "found.npz"]):
        done = subprocess.run([sys.executable, "-m", "nc_jax", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        names = [NAMES.index(name.partition("/")[0]) for name in found["files"]]
        right = np.mean(found["labels"] == names)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert right == pytest.approx(summary["cases"][""]["nearest"]["test/accuracy"][0])
