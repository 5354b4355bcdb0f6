"""Images and labels in IDX files, the format of MNIST and of the sets that are made like it (LeCun, Cortes and Burges).

An IDX file begins with two zero bytes, a byte for the type of its numbers and a byte for the number of dimensions. A
size follows for each dimension, a big-endian integer of four bytes, and then come the numbers, the last index changing
fastest. Files may be compressed with gzip, whatever their names say.

Debian has Fashion-MNIST in this format: `apt-get install dataset-fashion-mnist` puts 70,000 images of 28 x 28 pixels
into `/usr/share/datasets/fashion-mnist`.
"""

import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.decoding import readable

DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the third byte of a file
MOST_DIMENSIONS = 4  # examples, height, width, channels
GZIP = b"\x1f\x8b"
PREFIXES = {"train": "train", "test": "t10k"}  # of the names of the files of a split: those of MNIST
AT_ONCE = 2**20  # bytes; a damaged file may declare far more than it has, so memory grows with what is read
CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    # Xiao et al. (2017), table 2, as TFDS writes them.
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}


def read_idx(path: str | os.PathLike[str]) -> Shaped[np.ndarray, "..."]:
    """Read the array of an IDX file, compressed with gzip or not.

    Args:
        path: the file.

    Returns:
        An array of one to four dimensions with the sizes and the type of the file, in the byte order of the machine.

    Raises:
        ValueError: if the file is damaged, is of another format, or is not as long as its sizes say.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "labels"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
        ...     read_idx(path).tolist()
        [5, 0, 4]

    Reference: LeCun, Cortes and Burges (1998), http://yann.lecun.com/exdb/mnist/.
    """
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise FileNotFoundError(f"an IDX file must exist; got no file {path}")
    with _opened(path) as stream:
        magic = _read(stream, 4, path)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= MOST_DIMENSIONS:
            raise ValueError(
                f"IDX file {path} must begin with two zero bytes, one of {', '.join(map(str, DTYPES))} for its type "
                f"and 1 to {MOST_DIMENSIONS} for its dimensions; got {list(magic) if magic else 'an empty file'}"
            )
        dtype, sizes = np.dtype(DTYPES[magic[2]]), _read(stream, 4 * magic[3], path)
        shape = tuple(np.frombuffer(sizes, ">u4").tolist()) if len(sizes) == 4 * magic[3] else ()
        if not shape or not all(shape):
            raise ValueError(
                f"IDX file {path} must have {magic[3]} sizes of four bytes, each at least 1; "
                f"got {shape or f'{len(sizes)} bytes'}"
            )
        length = math.prod(shape) * dtype.itemsize
        data, more = _read(stream, length, path), _read(stream, 1, path)
    if len(data) < length or more:
        got = f"{len(data):,}" if len(data) < length else "more"
        raise ValueError(f"IDX file {path} must hold {length:,} bytes of data for its sizes {shape}; got {got}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def load(folder: Path, split: str) -> LabelledArrays:
    """A split of a set of images in IDX files with MNIST's names.

    The files of the split "train" are `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and those of "test"
    begin with `t10k` instead. A dot may stand before `idx`, `.gz` may follow, and colour images have `idx4`.

    Args:
        folder: folder with the four files. If its name is that of MNIST or Fashion-MNIST (`known_set`), there are the
            ten classes of that set. The classes of any other set are 0 to the largest label of the training set.
        split: "train" or "test".

    Returns:
        Images (N, H, W, C) of one or three channels, uint8, with labels; the 60,000 training images of Fashion-MNIST
        take 0.5 s on a CPU core, and 47 MB.

    Raises:
        ValueError: if there is no such split, a file is damaged, there are not as many labels as images, or a label is
            no class.
        FileNotFoundError: if a file is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2])
        ...     _ = (Path(folder) / "train-images-idx3-ubyte").write_bytes(header + bytes([9, 8, 7, 6]))
        ...     _ = (Path(folder) / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 0]))
        ...     load(Path(folder), "train")
        LabelledArrays(2 examples of shape (1, 2, 1) uint8, 2 classes)
    """
    if split not in PREFIXES:
        raise ValueError(f"split of {folder} must be one of {', '.join(map(repr, PREFIXES))}; got {split!r}")
    images_file, labels_file = (_find(folder, split, kind) for kind in ("images", "labels"))
    class_names = CLASS_NAMES.get(known_set(folder) or "")
    if class_names is None:
        found = _labels(_find(folder, "train", "labels"))
        class_names = tuple(str(label) for label in range(found.max() + 1))
    labels = _labels(labels_file, len(class_names))
    images = _images(images_file)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_file} must hold an image for each label of {labels_file}; got {len(images)} images and "
            f"{len(labels)} labels"
        )
    return LabelledArrays(images, labels, len(class_names), class_names)


def known_set(folder: Path) -> str | None:
    """The name that TFDS has for the set of a folder, which the folder's own name tells; None for any other set.

    Capitals, dashes and underscores do not count. Of torchvision's folders `FashionMNIST/raw`, the upper one has the
    name.

    Example:
        >>> known_set(Path("/usr/share/datasets/fashion-mnist")), known_set(Path("kmnist"))
        ('fashion_mnist', None)
    """
    folder = folder.absolute()
    name = folder.parent.name if folder.name == "raw" else folder.name
    plain = name.lower().replace("-", "").replace("_", "")
    return next((known for known in CLASS_NAMES if known.replace("_", "") == plain), None)


def holds_idx(folder: Path) -> bool:
    """Whether a folder has a file of training images under one of the names that `load` looks for."""
    return any(os.path.isfile(folder / name) for name in _names("train", "images"))


def _names(split: str, kind: str) -> list[str]:
    dimensions = (3, 4) if kind == "images" else (1,)
    return [
        f"{PREFIXES[split]}-{kind}{mark}idx{count}-ubyte{ending}"
        for count in dimensions
        for mark in "-."
        for ending in ("", ".gz")
    ]


def _find(folder: Path, split: str, kind: str) -> Path:
    names = _names(split, kind)
    for name in names:
        if os.path.isfile(folder / name):
            return folder / name
    fashion = known_set(folder) == "fashion_mnist"
    remedy = " (apt-get install dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist)"
    raise FileNotFoundError(
        f"{folder} must hold one of the files {', '.join(names)}; got none of them{remedy if fashion else ''}"
    )


def _images(path: Path) -> UInt8[np.ndarray, "examples height width channels"]:
    images = read_idx(path)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path} must hold bytes, of the sizes of examples, height and width, and of channels (1 or 3) where the "
            f"images have colours; got {images.dtype} of shape {images.shape}"
        )
    return images


def _labels(path: Path, num_classes: int | None = None) -> Int[np.ndarray, " examples"]:
    """Labels in 0..K-1; where K is None, a set has at most as many classes as examples."""
    labels = read_idx(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold integers in one dimension; got {labels.dtype} of shape {labels.shape}")
    labels = labels.astype(np.int32)
    end = len(labels) if num_classes is None else num_classes
    outside = np.flatnonzero((labels < 0) | (labels >= end))
    if outside.size:
        raise ValueError(f"labels of {path} must lie in 0..{end - 1}; got {labels[outside[0]]} at index {outside[0]}")
    return labels


def _opened(path: str | os.PathLike[str]) -> Any:
    with readable(f"IDX file {path}"):
        with open(path, "rb") as stream:
            zipped = stream.read(len(GZIP)) == GZIP
        return gzip.open(path) if zipped else open(path, "rb")


def _read(stream: Any, length: int, path: str | os.PathLike[str]) -> bytearray:
    """The next bytes, fewer where the file ends. At the end of a gzip file, its checksum is verified."""
    data = bytearray()
    with readable(f"IDX file {path}"):
        while len(data) < length and (piece := stream.read(min(AT_ONCE, length - len(data)))):
            data += piece
    return data
