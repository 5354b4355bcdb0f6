"""Decoding: what other programs store comes out in eight bits, upright and opaque."""

import io

import numpy as np
import PIL.Image
import pytest
from prepared import encoded, smooth

from nc_jax.data.decoding import decode, read_header
from nc_jax.data.images import ImageSource

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def stored(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "file_format"),
    [
        (PIL.Image.fromarray(RAMP), "png"),
        (PIL.Image.fromarray(RAMP), "tiff"),
        (PIL.Image.fromarray(RAMP.astype(">u2")), "tiff"),
        (PIL.Image.fromarray(RAMP.astype(np.int32)), "ppm"),
    ],
    ids=["png", "tiff", "big-endian tiff", "pgm"],
)
def test_sixteen_bits_are_scaled_to_eight(image, file_format):
    for channels in (1, 3):
        found = np.asarray(decode(stored(image, file_format), channels)).reshape(256, 256, channels)[..., -1]
        np.testing.assert_allclose(found, RAMP / 257, atol=0.5)


def test_an_array_of_sixteen_bits_is_scaled_too():
    (image,) = ImageSource([{"image": RAMP[..., None], "label": 0}], 1, 1, ("ramp",))
    np.testing.assert_allclose(image["image"][..., 0], RAMP / 257, atol=0.5)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (6, lambda image: np.rot90(image, -1)),
        (8, lambda image: np.rot90(image)),
    ],
)
@pytest.mark.parametrize("file_format", ["png", "tiff", "webp"])
def test_a_photograph_stands_upright(orientation, upright, file_format):
    pixels = smooth(20, 40)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "webp" else {}
    data = stored(PIL.Image.fromarray(pixels), file_format, exif=exif, **options)
    np.testing.assert_array_equal(decode(data, 3), upright(pixels))


def test_what_is_transparent_is_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 100, 0, 255)
    pixels[0, 1] = (200, 100, 0, 51)  # a fifth of the colour
    image = PIL.Image.fromarray(pixels)
    expected = [[[200, 100, 0], [244, 224, 204]], [[255] * 3, [255] * 3]]
    assert np.asarray(decode(stored(image, "png"), 3)).tolist() == expected
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 80, 80, 80])
    palette.putdata([0, 1])
    assert np.asarray(decode(stored(palette, "png", transparency=0), 1)).tolist() == [[255, 80]]
    grey = PIL.Image.fromarray(np.array([[[40, 255], [40, 0]]], np.uint8))
    assert np.asarray(decode(stored(grey, "png"), 1)).tolist() == [[40, 255]]


@pytest.mark.parametrize("file_format", ["bmp", "gif", "ppm", "tiff", "webp"])
def test_every_format_is_read_as_pil_reads_it(file_format, tmp_path):
    data = encoded(smooth(12, 17), file_format)
    (tmp_path / "image").write_bytes(data)
    assert read_header(tmp_path / "image") == (17, 12, False, False)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data, 3), expected)


def test_the_first_frame_of_a_film_is_read(tmp_path):
    frames = [PIL.Image.new("L", (6, 6), shade) for shade in (10, 200)]
    for file_format in ("gif", "tiff", "webp", "png"):
        path = tmp_path / f"film.{file_format}"
        options = {"lossless": True} if file_format == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert read_header(path).several
        np.testing.assert_array_equal(decode(path.read_bytes(), 1), np.full((6, 6), 10))
