"""Augmentation on the device: images in [0, 1], channels last, one random key per image.

Every function maps (key, image) to an image of the same shape and works under `jit`, `vmap` and `pmap`. `make` returns
the usual compositions by name, as functions of one image or a batch, as stored or in [0, 1]. Normalise after the
augmentation, because zero padding and the limits of colours refer to pixel values in [0, 1]. So a training step takes
both:

    StepOptions(augment=make("cifar"), preprocess=make_preprocess("cifar10"))
"""

from nc_jax.extras import require

require("dm_pix", "data", __name__)

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

pix: Any = dm_pix  # Any, because dm_pix's annotations (chex.Array) would also admit NumPy booleans

Augmentation = Callable[[PRNGKeyArray, Array], Array]


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of each channel over the training set, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# Over all pixels of the training split, as in public training code. (Another widely copied standard deviation of
# CIFAR-10, 0.2023, 0.1994, 0.2010, is computed for each image and then averaged over images.)
STATISTICS = {
    "mnist": PixelStatistics((0.1307,), (0.3081,)),  # PyTorch's MNIST example
    "fashion_mnist": PixelStatistics((0.2860,), (0.3530,)),
    "glyphs": PixelStatistics((0.1801,), (0.3279,)),  # training images of the default preset
    "svhn_cropped": PixelStatistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": PixelStatistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": PixelStatistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # released code of HAFrame
    "stl10": PixelStatistics((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "imagenet2012": PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision
    "places365_small": PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # those of ImageNet, as is usual
    # Folders of images with these names: released code of HAFrame, which uses ImageNet's values for tiered_imagenet.
    "fgvc_aircraft": PixelStatistics((0.4881, 0.5192, 0.5438), (0.2148, 0.2068, 0.2394)),
    "inaturalist19": PixelStatistics((0.454, 0.474, 0.367), (0.237, 0.230, 0.249)),
    "tiered_imagenet": PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def to_unit_range(images: Num[Array, "..."]) -> Float[Array, "..."]:
    """Convert bytes to float32 in [0, 1]; return floats unchanged.

    Args:
        images: uint8, or floats that are already in [0, 1].

    Returns:
        Floats of the same shape.

    Raises:
        ValueError: if the images are neither bytes nor floats.

    Example:
        >>> to_unit_range(jnp.array([0, 255], jnp.uint8)).tolist()
        [0.0, 1.0]
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8 or floating; got {images.dtype}")
    return images.astype(jnp.float32) / 255


def normalise(
    images: Float[Array, "... channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "... channels"]:
    r"""Shift and scale each channel: :math:`(x - \mu_c) / \sigma_c`.

    Args:
        images: channels last.
        mean: one number per channel; `STATISTICS` has those of the usual sets.
        std: standard deviation, one number > 0 per channel.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: if there is not one mean and one deviation per channel.

    Example:
        >>> normalise(jnp.full((1, 2, 2, 1), 0.5), (0.25,), (0.5,))[0, 0, 0].tolist()
        [0.5]
    """
    if not len(mean) == len(std) == images.shape[-1]:
        raise ValueError(
            f"mean and std must hold {images.shape[-1]} numbers, one per channel; got {len(mean)} and {len(std)}"
        )
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def make_preprocess(name: str) -> Callable[[Array], Array]:
    """Return the preprocessing of a data set's images for a network: scale to [0, 1], then normalise each channel.

    Args:
        name: name of the set, possibly with a variant ("glyphs/hard"), or path of a folder of images, of which only the
            last part counts. Images of a set without `STATISTICS` are scaled, but not normalised. Grey images that a
            folder has as colour images have the same statistics in each channel.

    Returns:
        A function of images (..., H, W, C), bytes or floats in [0, 1].

    Example:
        >>> round(float(make_preprocess("mnist")(jnp.zeros((1, 2, 2, 1), jnp.uint8))[0, 0, 0, 0]), 4)
        -0.4242
    """
    statistics = STATISTICS.get(name.partition("/")[0]) or STATISTICS.get(name.rpartition("/")[2])

    def preprocess(images: Array) -> Array:
        images = to_unit_range(images)
        if statistics is None:
            return images
        copies = images.shape[-1] if len(statistics.mean) == 1 else 1
        return normalise(images, statistics.mean * copies, statistics.std * copies)

    return preprocess


def random_shift(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    padding: int = 4,  # He et al. (2016), CIFAR
    mode: str = "constant",  # zeros, He et al. (2016); HAFrame's released code has "reflect"
) -> Float[Array, "height width channels"]:
    """Pad an image on all sides and crop it to its size at a random place.

    Args:
        key: random key.
        image: height, width, channels.
        padding: pixels on each side, >= 0.
        mode: how to fill the padding, a mode of `jax.numpy.pad`: "constant" (zeros), "reflect" and others.

    Returns:
        An image of the same shape, shifted by up to `padding` pixels each way.

    Raises:
        ValueError: if the padding is negative.

    Example:
        >>> random_shift(jax.random.key(0), jnp.ones((8, 8, 3))).shape
        (8, 8, 3)

    Reference: He et al. (2016), section 4.2.
    """
    if padding < 0:
        raise ValueError(f"padding must be at least 0; got {padding}")
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    return pix.random_crop(key, padded, image.shape)


def random_flip(
    key: PRNGKeyArray, image: Float[Array, "height width channels"]
) -> Float[Array, "height width channels"]:
    """Mirror an image left to right, or not, with equal probability.

    Args:
        key: random key.
        image: height, width, channels.

    Returns:
        An image of the same shape.

    Example:
        >>> image = jnp.arange(2.0).reshape(1, 2, 1)
        >>> sorted({tuple(random_flip(jax.random.key(seed), image).ravel().tolist()) for seed in range(8)})
        [(0.0, 1.0), (1.0, 0.0)]

    Reference: He et al. (2016), section 4.2.
    """
    return pix.random_flip_left_right(key, image)


def random_affine(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    rotation: float = 10.0,  # degrees; rotation, scale and shift have the defaults of `GlyphOptions`
    scale: float = 0.12,
    shift: float = 1.5,  # pixels
    mode: str = "nearest",
) -> Float[Array, "height width channels"]:
    """Rotate, scale and shift an image a little, about its centre, with bilinear interpolation.

    Args:
        key: random key.
        image: height, width, channels.
        rotation: largest angle in degrees; the angle is uniform in [-rotation, rotation].
        scale: largest logarithm of the scale factor, which is uniform in [-scale, scale].
        shift: largest shift in pixels; the shift on each axis is uniform in [-shift, shift].
        mode: values outside the image: "nearest" repeats its border, "constant" is zero.

    Returns:
        An image of the same shape.

    Example:
        >>> random_affine(jax.random.key(0), jnp.ones((8, 8, 1))).shape
        (8, 8, 1)
    """
    turn, log_scale, *moves = jax.random.uniform(key, (4,), image.dtype, -1, 1)
    angle, zoom = turn * jnp.deg2rad(rotation), jnp.exp(log_scale * scale)
    cosine, sine = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    matrix = jnp.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])  # maps a pixel to the place it comes from
    centre = (jnp.asarray(image.shape, image.dtype) - 1) / 2
    # In TF32, the default on recent GPUs, coordinates would be wrong by up to a hundredth of a pixel at size 28.
    with jax.default_matmul_precision("highest"):
        offset = centre - matrix @ (centre + shift * jnp.array([*moves, 0]))
        return pix.affine_transform(image, matrix, offset=offset, mode=mode)


def cutout(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    length: int = 16,  # DeVries and Taylor (2017), CIFAR-10; they take 8 for CIFAR-100
) -> Float[Array, "height width channels"]:
    """Set a square of an image to zero. Its centre is a random pixel, so parts of the square may lie outside the image.

    Args:
        key: random key.
        image: height, width, channels.
        length: side of the square in pixels, >= 0.

    Returns:
        An image of the same shape.

    Raises:
        ValueError: if the length is negative.

    Example:
        >>> int((cutout(jax.random.key(0), jnp.ones((32, 32, 1)), length=2) == 0).sum()) in (1, 2, 4)
        True

    Reference: DeVries and Taylor (2017).
    """
    if length < 0:
        raise ValueError(f"length must be at least 0; got {length}")
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    first = length // 2
    in_rows = jnp.abs(jnp.arange(height) - row + first - (length - 1) / 2) < length / 2
    in_columns = jnp.abs(jnp.arange(width) - column + first - (length - 1) / 2) < length / 2
    return jnp.where((in_rows[:, None] & in_columns)[..., None], 0, image)


def colour_jitter(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    brightness: float = 0.4,  # all four: released code of FNO, on ImageNet-LT
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Change brightness, contrast, saturation and hue of a colour image by random amounts, in this order.

    Args:
        key: random key.
        image: height, width, 3.
        brightness: the number added to all pixels is uniform in [-brightness, brightness].
        contrast: the contrast factor is uniform in [1 - contrast, 1 + contrast].
        saturation: the saturation factor is uniform in [1 - saturation, 1 + saturation].
        hue: the rotation of the hue, in full turns, is uniform in [-hue, hue].

    Returns:
        An image of the same shape in [0, 1].

    Raises:
        ValueError: if the image does not have three channels.

    Example:
        >>> colour_jitter(jax.random.key(0), jnp.full((8, 8, 3), 0.5)).shape
        (8, 8, 3)
    """
    if image.shape[-1] != 3:
        raise ValueError(f"colour_jitter needs three channels; got {image.shape[-1]}")
    keys = jax.random.split(key, 4)
    image = pix.random_brightness(keys[0], image, brightness)
    image = pix.random_contrast(keys[1], image, 1 - contrast, 1 + contrast)
    # Saturation is a ratio of pixel values, so clip them to their range first.
    image = pix.random_saturation(keys[2], jnp.clip(image, 0, 1), 1 - saturation, 1 + saturation)
    if hue:
        image = pix.random_hue(keys[3], image, hue)
    return jnp.clip(image, 0, 1)


def _none(key: PRNGKeyArray, image: Array) -> Array:
    del key
    return image


def _shift(key: PRNGKeyArray, image: Array) -> Array:
    # Half of the margin that MNIST and our glyphs leave around the ink. No flip: a mirrored digit is not a digit.
    return random_shift(key, image, padding=2)


def _cifar(key: PRNGKeyArray, image: Array, mode: str = "constant") -> Array:
    crop_key, flip_key = jax.random.split(key)
    return random_flip(flip_key, random_shift(crop_key, image, mode=mode))


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _none,
    "shift": _shift,
    "flip": random_flip,
    "cifar": _cifar,
    "cifar-reflect": partial(_cifar, mode="reflect"),
}


def make(name: str) -> Augmentation:
    """Return a common augmentation by name.

    Args:
        name: "none": nothing. "shift": a shift by up to 2 pixels, for digits and glyphs. "flip": a random flip, for
            photographs that were cropped at random. "cifar": a shift by up to 4 pixels and a random flip, for small
            photographs. "cifar-reflect": "cifar", but with the image mirrored at its borders instead of zeros.

    Returns:
        A function (key, images) -> floats in [0, 1] of the same shape. The images are bytes or floats in [0, 1]: one
        image (H, W, C) or a batch (N, H, W, C). The images of a batch get the keys `jax.random.split(key, N)`.

    Raises:
        ValueError: if there is no such augmentation.

    Example:
        >>> make("cifar")(jax.random.key(0), jnp.ones((2, 32, 32, 3))).shape
        (2, 32, 32, 3)

    Reference: He et al. (2016), section 4.2, for "cifar".
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"name must be one of {', '.join(map(repr, AUGMENTATIONS))}; got {name!r}")
    single = AUGMENTATIONS[name]

    def augment(key: PRNGKeyArray, images: Num[Array, "*batch height width channels"]) -> Array:
        images = to_unit_range(images)
        if images.ndim == 3:
            return single(key, images)
        return jax.vmap(single)(jax.random.split(key, len(images)), images)

    return augment
