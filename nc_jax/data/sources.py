"""One door to the data sets: the image sets of TensorFlow Datasets and our own embedded ones.

`load` reads what is on disk and never downloads: a set that has not been prepared is an error at once, whose sentence
holds the command that prepares it. (TFDS itself tries a download again and again for more than three minutes.)
`prepare` is the explicit door to the network. Reading needs no TensorFlow: records come out of ArrayRecord files in
TFDS's own format, and PIL decodes the images.
"""

import contextlib
import dataclasses
import http.client
import importlib.util
import io
import operator
import os
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from jaxtyping import Float, Integer

from nc_jax.data import digits, glyphs
from nc_jax.data.arrays import LabelledArrays

# Only the splits that have labels: STL-10's "unlabelled" and the "test" of ImageNet and Places are not for classifiers.
SPLITS = {
    "digits": ("train", "test"),
    "glyphs": ("train", "test"),
    "mnist": ("train", "test"),
    "fashion_mnist": ("train", "test"),
    "emnist": ("train", "test"),
    "svhn_cropped": ("train", "test", "extra"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("train", "test"),
    "imagenet2012": ("train", "validation"),
    "places365_small": ("train", "validation"),
}
# Variants are asked for as "emnist/letters"; the bare name means the first, as in TFDS.
CONFIGS = {
    "emnist": ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"),
    "glyphs": tuple(glyphs.PRESETS),
}
EMBEDDED = {"digits": digits.Digits, "glyphs": glyphs.Glyphs}
LARGE = ("imagenet2012", "places365_small")  # no common size, and 350 GB of pixels
IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

# Where TFDS 4.9.10 downloads from, to find out in three seconds whether it can.
HOMES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "emnist": "https://biometrics.nist.gov/cs_links/EMNIST/",
    "svhn_cropped": "http://ufldl.stanford.edu/housenumbers/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "stl10": "http://ai.stanford.edu/~acoates/stl10/",
    "places365_small": "http://data.csail.mit.edu/places/places365/",
}
REACH_TIMEOUT = 3.0  # seconds; a server that takes longer for its first line will not deliver gigabytes

READ_AT_ONCE = 1024  # records per call: 3 MB of CIFAR as Python objects, where a whole set would be gigabytes
IMAGE_SIZE = 224  # of the large sets' crops: He et al. (2016)
CENTRAL_SHARE = 224 / 256  # the centre of an image whose shorter side is 256: He et al. (2016)
CROP_AREA = (0.08, 1.0)  # share of the image's area: Szegedy et al. (2015)
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height: Szegedy et al. (2015)
CROP_ATTEMPTS = 10  # torchvision, RandomResizedCrop
MODES = {1: "L", 3: "RGB"}  # PIL's names


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """Random access to images that are decoded, one by one, when they are asked for.

    What example i looks like depends on (seed, i) alone, whatever was read before and by whichever thread. `batches`
    and Grain (`grain.MapDataset.source`) take an `ImageSource` as it is.

    Attributes:
        records: examples as stored: `image` as encoded bytes (JPEG, PNG) or as an array, and `label`.
        channels: 1 or 3; images that are stored otherwise are converted.
        num_classes: K.
        class_names: K names.
        size: height and width to which images are cropped and resized; None leaves them as they are stored.
        seed: None crops the central square, for evaluation; a seed draws a random crop for each example, for training.

    Raises:
        ValueError: if size or seed are out of their ranges, or there is a seed without a size.
    """

    records: Sequence[Any]
    channels: int
    num_classes: int
    class_names: tuple[str, ...]
    size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1, or None for images as they are stored; got {self.size}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in 0..2^64-1, or be None for central crops; got {self.seed}")
        if self.seed is not None and self.size is None:
            raise ValueError(f"random crops need a size; got seed={self.seed} with size=None")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self._example(operator.index(index), 0)

    def __repr__(self) -> str:
        size = "stored sizes" if self.size is None else f"{self.size}x{self.size}"
        return f"ImageSource({len(self)} images of {size}, {self.channels} channels, {self.num_classes} classes)"

    def take(self, indices: Integer[np.ndarray, " chosen"], seed: int = 0) -> dict[str, np.ndarray]:
        """Decode a batch, as `batches` asks for it.

        Args:
            indices: example numbers in 0..N-1, of shape (M,).
            seed: of this visit, 0..2^64-1: random crops depend on it, on the source's own seed and on the example.

        Returns:
            `features` (M, height, width, channels), uint8, and `labels` (M,), int32.

        Raises:
            ValueError: if the images have no common size.

        Example:
            >>> records = [{"image": np.zeros((20, 30, 3), np.uint8), "label": 0}]
            >>> source = ImageSource(records, channels=3, num_classes=1, class_names=("black",), size=8)
            >>> source.take(np.array([0, 0]))["features"].shape
            (2, 8, 8, 3)
        """
        examples = [self._example(int(index), seed) for index in indices]
        shapes = {example["image"].shape for example in examples}
        if len(shapes) > 1:
            raise ValueError(
                f"images must have one size to make a batch (see `cropped`); got {_listed(sorted(shapes))}"
            )
        return {
            "features": np.stack([example["image"] for example in examples]),
            "labels": np.array([example["label"] for example in examples], np.int32),
        }

    def cropped(self, size: int, seed: int | None = None) -> "ImageSource":
        """The same images in another size, from the centre or at random.

        Args:
            size: height and width.
            seed: None for the centre: the square of 7/8 of the shorter side, resized. A seed for a random rectangle
                of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, resized.

        Returns:
            A source over the same records.

        Raises:
            ValueError: if size or seed are out of their ranges.

        Example:
            >>> records = [{"image": np.zeros((20, 30, 3), np.uint8), "label": 0}]
            >>> source = ImageSource(records, channels=3, num_classes=1, class_names=("black",))
            >>> source[0]["image"].shape, source.cropped(8, seed=1)[0]["image"].shape
            ((20, 30, 3), (8, 8, 3))

        Reference: central crop as in He et al. (2016), random crop as in Szegedy et al. (2015).
        """
        return dataclasses.replace(self, size=size, seed=seed)

    def _example(self, index: int, visit: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}; got {index}")
        record = self.records[index]
        image = _decode(record["image"], self.channels)
        if self.size is not None:
            box = _central_box(*image.size)
            if self.seed is not None:
                box = _random_box(*image.size, seed=self.seed, index=index, visit=visit)
            image = image.resize((self.size, self.size), PIL.Image.Resampling.BILINEAR, box=box)
        return {"image": _pixels(image, self.channels), "label": int(record["label"])}


def load(
    name: str, split: str, data_dir: str | Path | None = None, *, in_memory: bool | None = None
) -> LabelledArrays | ImageSource:
    """A split of a named data set, from disk.

    Images keep the bytes and the orientation that TFDS stores (EMNIST's are transposed). The digits in memory are what
    `digits.load` gives: vectors in [0, 1], not bytes.

    Args:
        name: one of `SPLITS`, possibly with one of its `CONFIGS`: "cifar10", "emnist/letters", "glyphs/hard".
        split: one of the set's `SPLITS`.
        data_dir: root folder of prepared sets; None is the TFDS default, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        in_memory: True gives `LabelledArrays`, False an `ImageSource`; None decides by the set: a source for the
            `LARGE` ones, which crops to 224 x 224 from the centre (see `ImageSource.cropped` for training).

    Returns:
        Images (N, H, W, C), uint8, with labels; or the source of such images.

    Raises:
        ValueError: if there is no such set or split, or the images have no common size and are wanted in memory.
        FileNotFoundError: if the set has not been prepared; the sentence says how to.
        RuntimeError: if the prepared files are damaged, lack the split, or have a format without random access.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load("digits", "test", folder)
        LabelledArrays(360 examples of shape (64,) float32, 10 classes)
    """
    base, config = _parse(name)
    if split not in SPLITS[base]:
        raise ValueError(f"split of {base} must be one of {_listed(SPLITS[base])}; got {split!r}")
    if base == "digits" and in_memory is not False:
        return digits.load(split, data_dir)
    root = _root(data_dir)
    if base in EMBEDDED:
        _prepare_embedded(base, config, root)
    folder = _newest_version(base, config, root)
    if folder is None:
        raise FileNotFoundError(
            f"{name} must be prepared in {root / base}: {_how_to_prepare(base, config, root)}; got no such set"
        )
    with _damage_in_one_sentence(folder, root):
        builder = tfds.builder_from_directory(folder)
    info = builder.info
    _check_readable(info, split, folder, root)
    with _damage_in_one_sentence(folder, root):
        # Decoding is ours: TFDS leaves grey and CMYK images as they are where the set promises three channels.
        features: Any = info.features
        encoded = isinstance(features["image"], tfds.features.Image)
        decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
        records = builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
        label, shape = features["label"], features["image"].shape
        channels = shape[2] if len(shape) == 3 else 1
        source = ImageSource(records, channels, label.num_classes, tuple(label.names))
    if in_memory is None:
        in_memory = base not in LARGE
    if not in_memory:
        return source.cropped(IMAGE_SIZE) if base in LARGE else source
    if None in shape:
        raise ValueError(f"images must have one size to come into memory; got {base} with shape {shape}")
    with _damage_in_one_sentence(folder, root):
        return _read(source, shape)


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Download a data set and prepare it in the format that `load` reads, unless it is there.

    Args:
        name: as in `load`.
        data_dir: as in `load`.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: if there is no such set.
        FileNotFoundError: if ImageNet's archives, which one has to fetch oneself, are not there.
        ConnectionError: if the set's server does not answer within three seconds.
        RuntimeError: if TensorFlow, which TFDS needs for preparing images, is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prepare("digits", folder).name
        '1.0.0'
    """
    base, config = _parse(name)
    root = _root(data_dir)
    if base in EMBEDDED:
        _prepare_embedded(base, config, root)
    folder = _newest_version(base, config, root)
    if folder is not None:
        return folder
    if base in HOMES and not _answers(HOMES[base]):
        raise ConnectionError(
            f"{HOMES[base]} must answer within {REACH_TIMEOUT:g} s for {base} to be downloaded; got no answer"
        )
    manual = root / "downloads" / "manual"
    if base == "imagenet2012" and not any((manual / archive).exists() for archive in IMAGENET_ARCHIVES):
        raise FileNotFoundError(
            f"{' or '.join(IMAGENET_ARCHIVES)} must be in {manual} "
            f"(register on https://image-net.org/download-images); got neither"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise RuntimeError(
            f"TensorFlow must be installed to prepare {base} (pip install 'nc_jax[datasets]'); got no such module"
        )
    full_name = f"{base}/{config}" if config else base
    tfds.builder(full_name, data_dir=root, file_format="array_record").download_and_prepare()
    folder = _newest_version(base, config, root)
    assert folder is not None  # else download_and_prepare has raised
    return folder


def _parse(name: str) -> tuple[str, str | None]:
    base, _, config = name.partition("/")
    if base not in SPLITS:
        raise ValueError(f"name must be one of {_listed(SPLITS)}; got {name!r}")
    configs = CONFIGS.get(base, ())
    if config and config not in configs:
        allowed = _listed(f"{base}/{variant}" for variant in configs) if configs else f"plain {base!r}"
        raise ValueError(f"name must be {'one of ' if configs else ''}{allowed}; got {name!r}")
    return base, (config or configs[0]) if configs else None


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names))


def _root(data_dir: str | Path | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _newest_version(base: str, config: str | None, root: Path) -> Path | None:
    # Not `tfds.builder`: it imports all of TFDS's hundreds of builders first, and knows but one version.
    folders = [path for path in (root / base / (config or "")).glob("*.*.*") if tfds.core.Version.is_valid(path.name)]
    return max(folders, key=lambda path: tfds.core.Version(path.name), default=None)


def _prepare_embedded(base: str, config: str | None, root: Path) -> None:
    options = {"config": config} if config else {}
    if _newest_version(base, config, root) is None:
        digits.prepare_quietly(EMBEDDED[base](data_dir=root, file_format="array_record", **options))


def _how_to_prepare(base: str, config: str | None, root: Path) -> str:
    full_name = f"{base}/{config}" if config else base
    command = f"`tfds build {full_name} --data_dir {shlex.quote(str(root))} --file_format array_record`"
    if base == "imagenet2012":
        archives = " and ".join(IMAGENET_ARCHIVES)
        command = f"put {archives} into {root / 'downloads' / 'manual'} and run {command}"
    else:
        command = f"run {command}"
    return f"{command}, with TensorFlow (pip install 'nc_jax[datasets]')"


def _check_readable(info: tfds.core.DatasetInfo, split: str, folder: Path, root: Path) -> None:
    where = f"{folder.relative_to(root)} in {root}"
    formats = {file_format.value for file_format in info.available_file_formats()}
    if "array_record" not in formats:
        raise RuntimeError(
            f"{where} must be stored as array_record (run `tfds convert_format --dataset_version_dir="
            f"{shlex.quote(str(folder))} --out_file_format=array_record`); got {', '.join(sorted(formats))}"
        )
    if split not in info.splits:
        raise RuntimeError(f"{where} must hold the split {split!r}; got {_listed(info.splits)}")


def _read(source: ImageSource, shape: tuple[int, ...]) -> LabelledArrays:
    shape = shape if len(shape) == 3 else (*shape, 1)
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), READ_AT_ONCE):
        chosen = range(start, min(start + READ_AT_ONCE, len(source)))
        # TFDS's sources read many records in one call.
        for index, record in zip(chosen, source.records.__getitems__(chosen), strict=True):  # pyright: ignore[reportAttributeAccessIssue]
            images[index] = _pixels(_decode(record["image"], source.channels), source.channels)
            labels[index] = record["label"]
    return LabelledArrays(images, labels, source.num_classes, source.class_names)


def _decode(stored: bytes | np.ndarray, channels: int) -> PIL.Image.Image:
    if isinstance(stored, np.ndarray):
        image = PIL.Image.fromarray(stored.reshape(stored.shape[:2]) if channels == 1 else stored)
    else:
        image = PIL.Image.open(io.BytesIO(stored))
    return image.convert(MODES[channels])


def _pixels(image: PIL.Image.Image, channels: int) -> np.ndarray:
    pixels = np.array(image)  # a copy: PIL's own memory is read-only
    return pixels[..., None] if channels == 1 else pixels


def _central_box(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height) * CENTRAL_SHARE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, *, seed: int, index: int, visit: int = 0) -> tuple[float, float, float, float]:
    draws = _uniform(seed, index, visit, (CROP_ATTEMPTS, 4))
    areas = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * draws[:, 0])
    log_low, log_high = np.log(CROP_ASPECT)
    aspects = np.exp(log_low + (log_high - log_low) * draws[:, 1])
    widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fitting = np.flatnonzero((widths <= width) & (heights <= height) & (widths >= 1) & (heights >= 1))
    if not fitting.size:  # a panorama, or bad luck
        return _central_box(width, height)
    attempt = fitting[0]
    left = float((draws[attempt, 2] * (width - widths[attempt] + 1)) // 1)
    top = float((draws[attempt, 3] * (height - heights[attempt] + 1)) // 1)
    return left, top, left + float(widths[attempt]), top + float(heights[attempt])


def _uniform(seed: int, index: int, visit: int, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    # The raw stream, as in the pipeline: NumPy promises it for all versions. Each number has its own word of Philox.
    raw = np.random.Philox(key=seed + (index << 64), counter=visit << 192).random_raw(shape)
    return (raw >> np.uint64(11)) * 2.0**-53


def _answers(url: str) -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_TIMEOUT).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer
        except (OSError, http.client.HTTPException):
            pass

    # In a thread, because the timeout of a socket does not bound the look-up of the server's name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACH_TIMEOUT)
    return answered.is_set()


@contextlib.contextmanager
def _damage_in_one_sentence(folder: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # TFDS, protobuf, ArrayRecord and PIL each raise their own kind on a damaged file
        raise RuntimeError(
            f"{folder.relative_to(root)} in {root} must be readable (delete that folder and prepare it again); "
            f"got {type(error).__name__}: {error}"
        ) from error
