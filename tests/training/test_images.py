"""Training on image sets in TFDS's format, loaded by name like the real ones: PNG in memory, JPEG decoded on demand."""

import os
import signal

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import encoded, written
from toy_training import NUM_CLASSES, NormalisedMLP, fit, make_trainer, rows_of

from nc_jax.data import augment, sources
from nc_jax.training import PreemptedError, StepOptions

FLOAT32_TRAINING = 1e-5
STEP = StepOptions(augment=augment.make("cifar"), preprocess=augment.make_preprocess("cifar10"))


def coloured(number, height, width):
    """Noisy images in a colour of their class, and labels."""
    generator = np.random.default_rng(number)
    hues = 128 + 70 * np.array([[1, 0, -1], [-1, 1, 0], [0, -1, 1], [1, 1, -1]])
    for index in range(number):
        pixels = hues[index % NUM_CLASSES] + generator.normal(0, 40, (height, width, 3))
        yield np.clip(pixels, 0, 255).astype(np.uint8), index % NUM_CLASSES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CIFAR-10 of PNG and an ImageNet of JPEG images, of four classes each."""
    folder = tmp_path_factory.mktemp("prepared")
    label = tfds.features.ClassLabel(num_classes=NUM_CLASSES)
    small = {"train": 60, "test": 20}
    splits = {
        split: [(encoded(image, "png"), k) for image, k in coloured(count, 32, 32)] for split, count in small.items()
    }
    written(folder, "cifar10", "3.0.2", tfds.features.Image(shape=(32, 32, 3)), label, splits)
    large = {"train": 60, "validation": 20}
    splits = {
        split: [(encoded(image, "jpeg"), k) for image, k in coloured(count, 40, 56)] for split, count in large.items()
    }
    written(folder, "imagenet2012", "5.1.0", tfds.features.Image(encoding_format="jpeg"), label, splits)
    return folder


def streamed(folder):
    """ImageNet's splits as experiments take them: random crops for training, central ones for evaluation."""
    train, test = (sources.load("imagenet2012", split, folder) for split in ("train", "validation"))
    return train.cropped(16, seed=0), test.cropped(16)


@pytest.mark.slow
def test_a_png_set_trains_on_the_device_and_streamed_alike(folder, tmp_path):
    train, test = (sources.load("cifar10", split, folder) for split in ("train", "test"))
    found = []
    for resident in (True, False):
        trainer = make_trainer(1, resident=resident, backbone=NormalisedMLP(), step=STEP)
        found.append(fit(trainer, train, test, tmp_path / str(resident)))
    chex.assert_trees_all_close(found[0], found[1], rtol=0, atol=FLOAT32_TRAINING)
    last = rows_of(tmp_path / "True")[-1]
    assert last["test/accuracy"] > 0.9
    # The test features have collapse metrics, too; their NC4 uses the class means of the training features.
    assert {"test/nc1", "test/nc2_means", "test/nc3", "test/nc4", "train/nc1"} <= last.keys()
    assert last["test/nc1"] != last["train/nc1"]


@pytest.mark.slow
def test_a_jpeg_set_that_was_interrupted_trains_as_the_unbroken_run(folder, tmp_path):
    """BatchNorm, random crops by four threads, augmentation: stopped in the middle of an epoch, on 1 of 8 devices."""
    trainer = make_trainer(1, backbone=NormalisedMLP(), step=STEP, threads=4)
    unbroken = fit(trainer, *streamed(folder), tmp_path / "unbroken")
    taken, original = [], trainer.step

    def interrupted(*arguments):
        taken.append(None)
        if len(taken) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    trainer.step = interrupted
    with pytest.raises(PreemptedError):
        fit(trainer, *streamed(folder), tmp_path / "broken")
    trainer.step = original
    resumed = fit(trainer, *streamed(folder), tmp_path / "broken")
    chex.assert_trees_all_equal(resumed, unbroken)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")

    on_eight = make_trainer(8, backbone=NormalisedMLP(), step=STEP, threads=2)
    shared = fit(on_eight, *streamed(folder), tmp_path / "eight")
    chex.assert_trees_all_close(shared.state.params, unbroken.state.params, rtol=0, atol=FLOAT32_TRAINING)
