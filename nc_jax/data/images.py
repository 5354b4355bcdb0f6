"""Images that are decoded when they are asked for, and cropped (at random or at the centre) or resized as a whole."""

from nc_jax.checks import check_at_least, checked_seed
from nc_jax.data.draws import draws_for, uniform
from nc_jax.extras import require

require("PIL", "data", __name__)

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import PIL.Image
from jaxtyping import Integer

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.batch import Batch
from nc_jax.data.decoding import decode, readable
from nc_jax.data.source import Decoding

READ_AT_ONCE = 1024  # records per call: 3 MB of Python objects for CIFAR; a whole set at once would be gigabytes
CENTRAL_SHARE = 224 / 256  # side of the central crop over the image's shorter side: He et al. (2016)
CROP_AREA = (0.08, 1.0)  # share of the image's area: Szegedy et al. (2015)
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height: Szegedy et al. (2015)
CROP_ATTEMPTS = 10  # torchvision, RandomResizedCrop


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """Random access to images that are decoded, one by one, when they are asked for.

    The crop of example i depends only on i, on the source's seed and on the seed given to `take`; not on what was read
    before, nor on the thread that reads. `nc_jax.streams.batches` and Grain (`grain.MapDataset.source`) accept an
    `ImageSource`.

    Attributes:
        records: stored examples, as dicts: `image` as encoded bytes (JPEG, PNG) or as an array, and `label`; `file` may
            name the file, for errors.
        channels: 1 (grey) or 3 (RGB); images of another kind are converted, as `nc_jax.data.decoding.decode` says.
        num_classes: number of classes K.
        class_names: K names.
        size: height and width to which images are resized after cropping; None leaves them as they are stored.
        seed: seed of a random crop for each example, for training; None crops the central square, for evaluation.
        stretch: resize the whole image instead of a crop, and ignore its aspect ratio.

    Raises:
        ValueError: if `size` or `seed` is out of its range, if there is a seed or a stretch without a size, or if there
            are both a seed and a stretch.
    """

    records: Sequence[Any]
    channels: int
    num_classes: int
    class_names: tuple[str, ...]
    size: int | None = None
    seed: int | None = None
    stretch: bool = False

    def __post_init__(self) -> None:
        check_at_least("size", self.size, optional=True)
        if self.seed is not None:
            object.__setattr__(self, "seed", checked_seed(self.seed))
        if self.seed is not None and self.size is None:
            raise ValueError(f"random crops need a size; got seed={self.seed} with size=None")
        if self.stretch and (self.size is None or self.seed is not None):
            raise ValueError(f"stretching needs a size and no seed; got size={self.size}, seed={self.seed}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self._example(operator.index(index), 0)

    def __repr__(self) -> str:
        size = "stored sizes" if self.size is None else f"{self.size}x{self.size}"
        return f"ImageSource({len(self)} images of {size}, {self.channels} channels, {self.num_classes} classes)"

    @property
    def decoding(self) -> Decoding | None:
        """How images become inputs; None where they are cropped at random."""
        return Decoding(self.channels, self.size, self.stretch) if self.seed is None else None

    def fingerprint(self) -> dict[str, Any]:
        """What decides the examples: see `nc_jax.training.fingerprint`."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "records"]
        settings = {name: getattr(self, name) for name in fields}
        if hasattr(self.records, "fingerprint"):
            return settings | {"records": self.records.fingerprint()}  # pyright: ignore[reportAttributeAccessIssue]
        return settings | {"images": len(self)}

    def take(self, indices: Integer[np.ndarray, " chosen"], seed: int = 0) -> Batch:
        """Decode a batch.

        Args:
            indices: example numbers in 0..N-1, of shape (M,).
            seed: seed of this visit, 0..2^64-1. Random crops depend on it, on the source's own seed and on the example
                number.

        Returns:
            M examples without padding: inputs (M, height, width, channels), uint8, and labels (M,), int32.

        Raises:
            ValueError: if the images do not have a common size, or an image cannot be decoded.
            IndexError: if an example number lies outside 0..N-1.

        Example:
            >>> records = [{"image": np.zeros((20, 30, 3), np.uint8), "label": 0}]
            >>> source = ImageSource(records, channels=3, num_classes=1, class_names=("black",), size=8)
            >>> source.take(np.array([0, 0])).inputs.shape
            (2, 8, 8, 3)
        """
        examples = [self._example(int(index), seed) for index in indices]
        shapes = sorted({example["image"].shape for example in examples})
        if len(shapes) != 1:
            got = " and ".join(map(str, shapes[:2])) or "no image"
            raise ValueError(f"images must have one size to make a batch (see `cropped`); got {got}")
        images = np.stack([example["image"] for example in examples])
        return Batch.of(images, np.array([example["label"] for example in examples], np.int32))

    def cropped(self, size: int, seed: int | None = None) -> "ImageSource":
        """The same images, cropped at the centre or at random and resized to another size.

        Args:
            size: height and width of the result in pixels.
            seed: None takes the central square, whose side is 7/8 of the shorter side. A seed takes, for each example,
                a random rectangle of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3.

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
        return dataclasses.replace(self, size=size, seed=seed, stretch=False)

    def stretched(self, size: int) -> "ImageSource":
        """The same images, resized without cropping. This changes the aspect ratio of images that are not square.

        Args:
            size: height and width of the result in pixels.

        Returns:
            A source over the same records.

        Raises:
            ValueError: if the size is below 1.

        Example:
            >>> records = [{"image": np.eye(3, 8, dtype=np.uint8)[..., None], "label": 0}]
            >>> source = ImageSource(records, channels=1, num_classes=1, class_names=("line",))
            >>> source.stretched(8)[0]["image"].shape
            (8, 8, 1)
        """
        return dataclasses.replace(self, size=size, seed=None, stretch=True)

    def in_memory(self, shape: tuple[int, ...]) -> LabelledArrays:
        """Decode all images, without cropping or resizing, into one array.

        Args:
            shape: common shape of the images: (height, width) or (height, width, channels).

        Returns:
            Inputs (N, height, width, channels), uint8, and labels (N,), int32.

        Raises:
            ValueError: if an image has another shape or cannot be decoded.

        Example:
            >>> records = [{"image": np.zeros((20, 30), np.uint8), "label": 0}]
            >>> source = ImageSource(records, channels=1, num_classes=1, class_names=("black",))
            >>> source.in_memory((20, 30)).inputs.shape
            (1, 20, 30, 1)
        """
        shape = shape if len(shape) == 3 else (*shape, 1)
        images = np.empty((len(self), *shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), READ_AT_ONCE):
            chosen = range(start, min(start + READ_AT_ONCE, len(self)))
            # TFDS's sources read many records in one call.
            many = getattr(self.records, "__getitems__", None)
            records = [self.records[index] for index in chosen] if many is None else many(chosen)
            for index, record in zip(chosen, records, strict=True):
                pixels = _pixels(self._decoded(record, index), self.channels)
                if pixels.shape != shape:
                    raise ValueError(
                        f"images must have one shape to come into memory, such as {shape} (a source of images, "
                        f"in_memory=False, can crop them to one); got {pixels.shape} of image {_name(record, index)}"
                    )
                images[index] = pixels
                labels[index] = record["label"]
        return LabelledArrays(images, labels, self.num_classes, self.class_names)

    def _example(self, index: int, visit: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}; got {index}")
        record = self.records[index]
        image = self._decoded(record, index)
        if self.size is not None:
            if self.stretch:
                box = (0.0, 0.0, float(image.width), float(image.height))
            elif self.seed is None:
                box = _central_box(*image.size)
            else:
                box = _random_box(*image.size, seed=self.seed, index=index, visit=visit)
            image = image.resize((self.size, self.size), PIL.Image.Resampling.BILINEAR, box=box)
        return {"image": _pixels(image, self.channels), "label": int(record["label"])}

    def _decoded(self, record: Any, index: int) -> PIL.Image.Image:
        with readable(f"image {_name(record, index)}"):
            return decode(record["image"], self.channels)


def _name(record: Any, index: int) -> str:
    return record.get("file", f"number {index}")


def _pixels(image: PIL.Image.Image, channels: int) -> np.ndarray:
    pixels = np.array(image)  # a copy: PIL's own memory is read-only
    return pixels[..., None] if channels == 1 else pixels


def _central_box(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height) * CENTRAL_SHARE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, *, seed: int, index: int, visit: int = 0) -> tuple[float, float, float, float]:
    draws = uniform(draws_for(seed, index, visit).random_raw((CROP_ATTEMPTS, 4)))
    areas = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * draws[:, 0])
    log_low, log_high = np.log(CROP_ASPECT)
    aspects = np.exp(log_low + (log_high - log_low) * draws[:, 1])
    widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fitting = np.flatnonzero((widths <= width) & (heights <= height) & (widths >= 1) & (heights >= 1))
    if not fitting.size:  # no attempt gave a rectangle inside the image: a very long image, or chance
        return _central_box(width, height)
    attempt = fitting[0]
    left = float((draws[attempt, 2] * (width - widths[attempt] + 1)) // 1)
    top = float((draws[attempt, 3] * (height - heights[attempt] + 1)) // 1)
    return left, top, left + float(widths[attempt]), top + float(heights[attempt])
