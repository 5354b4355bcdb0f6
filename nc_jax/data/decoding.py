"""Image files: what their headers say, and their pixels in eight bits, upright and opaque."""

from nc_jax.extras import require

require("PIL", "data", __name__)

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

ENDINGS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The formats of these endings, and two that such files have after a wrong renaming. PIL knows more, some of which start
# other programs (EPS).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB"}  # PIL's names of grey and colour, by the number of channels
BACKGROUND = "white"  # behind transparent pixels: that of a browser's empty page
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes of grey images of 16 bits


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded.

    Attributes:
        width: in pixels, before a rotation that the camera asks for.
        height: in pixels, likewise.
        transparent: whether there may be transparent pixels.
        several: whether there are several frames or pages, of which the first one is decoded.
    """

    width: int
    height: int
    transparent: bool
    several: bool


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of an image file, and check what it says; this takes 60 microseconds on a CPU core.

    Raises:
        ValueError: if the file is not an image that `decode` takes, with its name and the reason.
    """
    with readable(f"image {path}"):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("no regular file")
        with _opened(path) as image:
            if min(image.size) < 1:
                raise ValueError(f"a size of {image.width} x {image.height} pixels")
            several = getattr(image, "is_animated", False)
            return Header(image.width, image.height, image.has_transparency_data, several)


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a ValueError of one sentence.

    Args:
        what: "image" and its path, for instance.
    """
    try:
        yield
    except Exception as error:  # on damaged bytes, PIL raises whatever its decoders meet
        raise ValueError(f"{what} must be readable; got {_because(error)}") from error


def decode(stored: bytes | np.ndarray, channels: int) -> PIL.Image.Image:
    """Decode an image into eight bits per channel.

    It is turned as its EXIF orientation says, 16 bits are divided by 257, and transparent pixels are laid over
    `BACKGROUND`. Of several frames or pages it is the first one.

    Args:
        stored: the bytes of a file, or pixels (height, width) or (height, width, channels).
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: if white is unknown, for pixels of 32 bits. Damaged bytes raise whatever PIL's decoders meet; see
            `readable`.

    Example:
        >>> ramp = np.array([[0, 257, 65535]], np.uint16)
        >>> np.asarray(decode(ramp, channels=1)).tolist()
        [[0, 1, 255]]
    """
    if isinstance(stored, np.ndarray):
        image = PIL.Image.fromarray(stored.reshape(stored.shape[:2]) if channels == 1 else stored)
    else:
        image = _opened(io.BytesIO(stored))
        image.load()
    sixteen = _has_sixteen_bits(image)
    PIL.ImageOps.exif_transpose(image, in_place=True)
    if sixteen:
        image = PIL.Image.fromarray(((np.asarray(image).astype(np.int32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, BACKGROUND), image)
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _opened(file: Any) -> Any:
    image = PIL.Image.open(file, formats=FORMATS)
    if image.mode in ("I", "F") and not _has_sixteen_bits(image):
        image.close()
        raise ValueError(f"pixels of mode {image.mode!r}, of which the white is unknown; 8 or 16 bits are read")
    return image


def _has_sixteen_bits(image: PIL.Image.Image) -> bool:
    # PIL opens a PGM of more than eight bits as 32-bit integers and scales it to 0..65535.
    return image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM")


def _because(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):  # whose own words hold the address of a buffer
        return "bytes of no known format of images"
    if isinstance(error, OSError) and error.strerror:  # the rest of its words is the name of the file
        return f"the error {error.strerror!r} of the file system"
    return str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
