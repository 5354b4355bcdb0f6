"""Augmentation: what it keeps and changes, random keys, jit and vmap, and what is refused."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.data import augment

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 300)
SINGLE = {
    "shift": augment.random_shift,
    "flip": augment.random_flip,
    "affine": augment.random_affine,
    "cutout": lambda key, image: augment.cutout(key, image, length=4),
    "colour": lambda key, image: augment.colour_jitter(key, image, hue=0.1),
}
functions = pytest.mark.parametrize("function", SINGLE.values(), ids=SINGLE.keys())
names = pytest.mark.parametrize("name", augment.AUGMENTATIONS)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (6, 12, 12, 3))


def over(function, images, key=KEY):
    return jax.vmap(function)(jax.random.split(key, len(images)), images)


@pytest.mark.slow
@functions
def test_every_image_of_a_batch_gets_what_its_key_says(images, function):
    # Compiled and mapped, or one by one: the same to the rounding of float32.
    found = jax.jit(lambda images: over(function, images))(images)
    one_by_one = [function(key, image) for key, image in zip(jax.random.split(KEY, 6), images, strict=True)]
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    np.testing.assert_allclose(found, jnp.stack(one_by_one), atol=1e-5)


@pytest.mark.slow
@functions
def test_the_key_decides(function):
    same = jnp.broadcast_to(jax.random.uniform(jax.random.key(2), (12, 12, 3)), (8, 12, 12, 3))
    found = over(function, same)
    assert len({array.tobytes() for array in np.asarray(found)}) > 1
    np.testing.assert_array_equal(found, over(function, same))
    assert not np.array_equal(found, over(function, same, jax.random.key(9)))


@pytest.mark.slow
@functions
def test_the_range_of_pixels_is_kept(images, function):
    found = over(function, images)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1 + 1e-6


@pytest.mark.slow
def test_a_shift_moves_by_at_most_its_padding_and_fills_with_zeros():
    image = jnp.zeros((9, 9, 1)).at[4, 4].set(1)
    shifted = over(lambda key, image: augment.random_shift(key, image, padding=2), jnp.stack([image] * 300))
    places = {tuple(place) for place in np.argwhere(np.asarray(shifted))[:, 1:3].tolist()}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    full = over(lambda key, image: augment.random_shift(key, image, padding=2), jnp.ones((200, 9, 9, 1)))
    assert float(full.min()) == 0
    reflected = augment.random_shift(KEYS[0], jnp.ones((9, 9, 1)), padding=2, mode="reflect")
    np.testing.assert_array_equal(reflected, 1)


@pytest.mark.slow
def test_half_of_the_images_are_mirrored(images):
    flipped = over(augment.random_flip, jnp.broadcast_to(images[0], (1000, 12, 12, 3)))
    mirrored = (flipped == images[0, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == images[0]).all((1, 2, 3))).all()
    assert abs(int(mirrored.sum()) - 500) < 5 * 16  # standard deviation sqrt(1000 / 4)


@pytest.mark.slow
def test_an_affine_map_without_strength_is_the_identity(images):
    found = augment.random_affine(KEY, images[0], rotation=0.0, scale=0.0, shift=0.0)
    np.testing.assert_allclose(found, images[0], atol=1e-6)


@pytest.mark.slow
def test_an_affine_map_turns_scales_and_shifts_about_the_centre():
    # A blob away from the centre, and its centre of mass before and after.
    rows, columns = np.mgrid[:41, :41]
    blob = jnp.exp(-((rows - 20.0) ** 2 + (columns - 30.0) ** 2) / 8)[..., None].astype(jnp.float32)

    def place(image):
        weights = np.asarray(image[..., 0], np.float64) / float(image.sum())
        return complex((weights * (columns - 20)).sum(), (weights * (rows - 20)).sum())

    def places(rotation=0.0, scale=0.0, shift=0.0):
        mapped = jax.jit(lambda images: over(partial(augment.random_affine, **strengths), images))
        strengths = dict(rotation=rotation, scale=scale, shift=shift)
        return [place(image) for image in np.asarray(mapped(jnp.stack([blob] * 60)))]

    turned, scaled, shifted = places(rotation=30.0), places(scale=0.3), places(shift=3.0)
    np.testing.assert_allclose(np.abs(turned), 10, atol=0.02)
    assert 25 < np.abs(np.angle(turned, deg=True)).max() < 30.1
    np.testing.assert_allclose(np.imag(scaled), 0, atol=0.02)
    assert (np.abs(np.log(np.real(scaled) / 10)) < 0.305).all()
    assert np.ptp(np.real(scaled)) > 3
    moves = np.array(shifted) - 10
    assert 2.5 < np.abs(np.real(moves)).max() < 3.02
    assert 2.5 < np.abs(np.imag(moves)).max() < 3.02


@pytest.mark.parametrize("length", [1, 4, 5])
def test_cutout_removes_one_square(length):
    for image in over(lambda key, image: augment.cutout(key, image, length=length), jnp.ones((40, 12, 9, 2))):
        removed = np.argwhere(np.asarray(image)[..., 0] == 0)
        height, width = removed.max(0) - removed.min(0) + 1
        assert height <= length
        assert width <= length
        assert len(removed) == height * width
    single = over(lambda key, image: augment.cutout(key, image, length=1), jnp.ones((200, 3, 3, 1)))
    assert len({tuple(place) for place in np.argwhere(np.asarray(single) == 0)[:, 1:].tolist()}) == 9


def test_cutout_of_nothing_changes_nothing(images):
    np.testing.assert_array_equal(augment.cutout(KEY, images[0], length=0), images[0])


@pytest.mark.slow
def test_colour_jitter_without_strength_is_the_identity(images):
    found = augment.colour_jitter(KEY, images[0], brightness=0.0, contrast=0.0, saturation=0.0)
    np.testing.assert_allclose(found, images[0], atol=1e-6)


def test_saturation_alone_keeps_grey():
    grey = jnp.broadcast_to(jnp.linspace(0, 1, 12)[:, None], (12, 12))[..., None].repeat(3, axis=-1)
    found = augment.colour_jitter(KEY, grey, brightness=0.0, contrast=0.0, saturation=0.9, hue=0.5)
    np.testing.assert_allclose(found, grey, atol=1e-6)


@pytest.mark.slow
@names
def test_make_takes_one_image_or_a_batch(images, name):
    function = augment.make(name)
    batch = jax.jit(function)(KEY, images)
    assert batch.shape == images.shape
    keys = jax.random.split(KEY, 6)
    np.testing.assert_array_equal(batch, jax.vmap(function)(keys, images))
    np.testing.assert_array_equal(batch[2], function(keys[2], images[2]))


@pytest.mark.slow
def test_each_name_does_what_it_says(images):
    same = jnp.broadcast_to(images[0], (100, 12, 12, 3))
    np.testing.assert_array_equal(augment.make("none")(KEY, images), images)
    shifted = np.asarray(augment.make("shift")(KEY, same))
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[row : row + 12, column : column + 12].tobytes() for row in range(5) for column in range(5)}
    assert {image.tobytes() for image in shifted} <= windows
    padded = np.pad(images[0], ((4, 4), (4, 4), (0, 0)))
    windows = [padded[row : row + 12, column : column + 12] for row in range(9) for column in range(9)]
    allowed = {window.tobytes() for window in windows} | {window[:, ::-1].tobytes() for window in windows}
    found = {image.tobytes() for image in np.asarray(augment.make("cifar")(KEY, same))}
    assert found <= allowed
    assert len(found) > 50


def test_normalised_images_have_zero_mean_and_unit_deviation(images):
    mean, std = (tuple(np.asarray(f(images, (0, 1, 2))).tolist()) for f in (jnp.mean, jnp.std))
    found = augment.normalise(images, mean, std)
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("name", augment.STATISTICS)
def test_statistics_are_those_of_pixels(name):
    mean, std = augment.STATISTICS[name]
    assert len(mean) == len(std) == (1 if name in ("mnist", "fashion_mnist", "glyphs") else 3)
    most = np.sqrt(np.array(mean) * (1 - np.array(mean)))  # for pixels in [0, 1]
    assert (np.array(std) > 0).all()
    assert (np.array(std) <= most).all()


def test_bytes_become_floats_and_floats_stay():
    images = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(augment.to_unit_range(jnp.asarray(images)), images / 255, atol=1e-7)
    half = jnp.ones(3, jnp.bfloat16)
    assert augment.to_unit_range(half) is half


def test_stored_images_are_augmented_in_the_unit_range_and_then_normalised(images):
    stored = np.asarray(images * 255).astype(np.uint8)
    key, mean, std = jax.random.key(3), *augment.STATISTICS["cifar10"]
    found = augment.make_preprocess("cifar10")(augment.make("cifar")(key, jnp.asarray(stored)))
    expected = (augment.make("cifar")(key, jnp.asarray(stored, jnp.float32) / 255) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    grey = augment.make_preprocess("emnist/letters")(jnp.asarray(stored[..., :1]))
    np.testing.assert_allclose(grey, stored[..., :1] / 255, atol=1e-7)


def test_grey_images_stored_in_colour_are_normalised_as_grey_ones(images):
    preprocess = augment.make_preprocess("pictures/mnist")  # a folder of images, which is read in colour
    np.testing.assert_array_equal(preprocess(images)[..., :1], preprocess(images[..., :1]))


REFUSED = [
    (lambda: augment.make("crop"), "name must be one of 'none', 'shift', 'flip', 'cifar', 'cifar-reflect'; got 'crop'"),
    (lambda: augment.random_shift(KEY, jnp.ones((4, 4, 1)), padding=-1), "padding must be at least 0; got -1"),
    (lambda: augment.cutout(KEY, jnp.ones((4, 4, 1)), length=-1), "length must be at least 0; got -1"),
    (lambda: augment.to_unit_range(jnp.ones(3, jnp.int32)), "images must be uint8 or floating; got int32"),
    (
        lambda: augment.normalise(jnp.ones((1, 2, 2, 3)), (0.5,), (0.5,)),
        "mean and std must hold 3 numbers, one per channel; got 1 and 1",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
