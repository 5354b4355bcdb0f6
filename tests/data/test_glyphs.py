"""Rendered characters: the class list, determinism, what each distortion does, hierarchies, refusals."""

import dataclasses
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.ndimage

from nc_jax.data import characters, glyphs
from nc_jax.data.glyphs import GlyphOptions

STILL = GlyphOptions(train_images=40, test_images=1, rotation=0.0, scale=0.0, shear=0.0, shift=0.0, noise=0.0)


def clean(**options):
    return dataclasses.replace(STILL, **options)


@pytest.fixture(scope="module")
def small():
    return glyphs.load("train", num_classes=12)


def test_a_set_is_bytes_class_by_class(small):
    assert repr(small) == "LabelledArrays(720 examples of shape (28, 28, 1) uint8, 12 classes)"
    np.testing.assert_array_equal(small.labels, np.repeat(np.arange(12), 60))
    assert small.class_names == tuple("0123456789AB")


@pytest.mark.parametrize(("preset", "train", "test"), [("default", 60, 40), ("low-data", 20, 40), ("hard", 60, 40)])
def test_presets_have_their_sizes(preset, train, test):
    assert len(glyphs.load("train", 2, preset=preset)) == 2 * train
    assert len(glyphs.load("test", 2, preset=preset)) == 2 * test


def test_less_is_the_beginning_of_more(small):
    few = glyphs.load("train", num_classes=5, preset="low-data")
    expected = small.inputs.reshape(12, 60, 28, 28, 1)[:5, :20]
    np.testing.assert_array_equal(few.inputs.reshape(expected.shape), expected)
    np.testing.assert_array_equal(glyphs.load("test", 3).inputs, glyphs.load("test", 3, preset="low-data").inputs)


def test_seeds_splits_classes_and_images_differ():
    sets = [glyphs.load(split, 4, seed=seed).inputs for split in ("train", "test") for seed in (0, 1, 2**64 - 1)]
    images = np.concatenate(sets)
    assert len({image.tobytes() for image in images}) == len(images)


def test_threads_change_nothing(small):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: glyphs.load("train", num_classes=12).inputs, range(4)))
    for images in found:
        np.testing.assert_array_equal(images, small.inputs)


def test_the_ink_is_bright_centred_and_of_one_size():
    for size in (28, 64):
        images = glyphs.render("train", 20, size, options=STILL).inputs[..., 0]
        for image in images:
            rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            assert abs(extent - size * 20 / 28) <= 2  # its ends share a pixel with the background
            assert abs(rows[0] - (size - 1 - rows[-1])) <= 1
            assert abs(columns[0] - (size - 1 - columns[-1])) <= 1
        assert images.max() == 255
        assert (images == 0).mean() > 0.5


@pytest.mark.slow
def test_every_face_occurs_about_as_often():
    images = glyphs.render("train", 3, options=clean(train_images=4000)).inputs.reshape(3, 4000, -1)
    for of_class in images:
        _, counts = np.unique(of_class, axis=0, return_counts=True)
        assert len(counts) == len(characters.FACES)
        assert np.abs(counts - 250).max() < 5 * 16  # binomial, 4000 draws at 1/16: standard deviation 15.3


def moments(images):
    """Mass, centre and second moments, whose root is a size."""
    weights = images[..., 0] / images[..., 0].sum((1, 2), keepdims=True)
    grid = np.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    centre = np.stack([np.einsum("nij,i->n", weights, grid), np.einsum("nij,j->n", weights, grid)], axis=1)
    return centre


@pytest.mark.parametrize("size", [28, 56])
def test_a_shift_is_within_its_range(size):
    still = moments(glyphs.render("train", 2, size, options=STILL).inputs.astype(float))
    moved = moments(glyphs.render("train", 2, size, options=clean(shift=1.5)).inputs.astype(float)) - still
    limit = 1.5 * size / 28
    assert np.abs(moved).max() < limit + 0.05
    assert (np.ptp(moved, axis=0) > 1.6 * limit).all()


def test_a_scale_is_within_its_range():
    still = glyphs.render("train", 4, options=STILL).inputs.astype(float)
    scaled = glyphs.render("train", 4, options=clean(scale=0.12)).inputs.astype(float)
    ratio = 0.5 * np.log(scaled.sum((1, 2, 3)) / still.sum((1, 2, 3)))  # ink grows with the square
    assert np.abs(ratio).max() < 0.13
    assert np.ptp(ratio) > 0.2


def test_rotation_and_shear_are_those_of_an_independent_warp():
    """Against scipy.ndimage, on the images without distortion."""
    options = clean(rotation=20.0, shear=0.2, train_images=6)
    still = glyphs.render("train", 3, 112, options=dataclasses.replace(STILL, train_images=6)).inputs[..., 0]
    found = glyphs.render("train", 3, 112, options=options).inputs[..., 0]
    for label, index in itertools.product(range(3), range(6)):
        stream = np.random.Philox(key=(2 * label) << 64).random_raw((6, 6 + 112 * 112 // 4))
        draws = 2 * ((stream[index, :6] >> np.uint64(11)) * 2.0**-53) - 1
        angle, shear = np.deg2rad(20) * draws[1], 0.2 * draws[3]
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.linalg.inv(rotation @ np.array([[1, 0], [shear, 1]]))
        centre = np.full(2, 111 / 2)
        place = 6 * label + index
        expected = scipy.ndimage.affine_transform(
            still[place].astype(float), matrix, offset=centre - matrix @ centre, order=1
        )
        # The oracle samples the image, we the template of twice its resolution: edges differ, shapes do not.
        assert np.abs(found[place] - expected).mean() < 4


def test_noise_has_its_deviation():
    options = clean(noise=0.05, train_images=60)
    images = glyphs.render("train", 2, options=options).inputs / 255
    background = images[:, :2].ravel()  # rows above the ink, where half of the noise is below 0 and cut off
    assert (background == 0).mean() == pytest.approx(0.5 + 0.0156, abs=0.02)  # and what rounds to 0
    assert background[background > 0].std() == pytest.approx(0.05 * np.sqrt(1 - 2 / np.pi), rel=0.05)


def test_noise_changes_no_geometry():
    mild, hard = (glyphs.load("test", 5, preset=preset).inputs.astype(float) for preset in ("default", "hard"))
    # The same numbers times 0.05 or 0.08: the difference is 0.03 of the noise, mostly.
    assert np.abs(mild - hard).mean() < 0.03 * 255


@pytest.mark.slow
def test_class_means_are_means_of_the_undistorted_faces():
    means = characters.class_means(3)
    assert means.shape == (3, 28, 28)
    assert 0 <= means.min() < means.max() <= 1
    still = glyphs.render("train", 3, options=clean(train_images=4000)).inputs.reshape(3, 4000, 28, 28) / 255
    # Each of 16 faces comes 250 times, with a standard deviation of 15.
    np.testing.assert_allclose(still.mean(1), means, atol=0.03)


@pytest.mark.slow
def test_the_nearest_class_mean_classifies_most():
    """The accuracy of a nearest-mean classifier is that once measured; a fault of the rendering would change it."""
    test = glyphs.load("test")
    train = glyphs.load("train")
    means = np.stack([train.inputs[train.labels == label].mean(0).ravel() for label in range(100)])
    features = test.inputs.reshape(len(test), -1).astype(float)
    nearest = ((means**2).sum(1) - 2 * features @ means.T).argmin(1)
    assert (nearest == test.labels).mean() == pytest.approx(0.631, abs=0.02)  # measured


REFUSED = [
    (lambda: glyphs.load("validation"), "split must be one of 'train', 'test'; got 'validation'"),
    (lambda: glyphs.load("train", preset="easy"), "preset must be one of 'default', 'low-data', 'hard'; got 'easy'"),
    (
        lambda: glyphs.load("train", 5000),
        f"num_classes must lie in 2..{len(characters.CHARACTERS)}, the characters that do not look alike; got 5000",
    ),
    (lambda: glyphs.load("train", size=4), "size must be at least 8; got 4"),
    (lambda: glyphs.load("train", seed=-1), "seed must be a whole number in 0..2^64-1; got -1"),
    (lambda: GlyphOptions(noise=-0.1), "noise must be at least 0; got -0.1"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
