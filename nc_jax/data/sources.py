"""Data sets by name: of TensorFlow Datasets (TFDS), embedded ones, folders of images or IDX files, tables of numbers.

`load` reads from disk and never downloads. If a set has not been prepared, `load` raises an error at once, with the
command that prepares the set. (TFDS itself would retry the download for more than three minutes.) `prepare` downloads.
Reading does not need TensorFlow: TFDS reads the records from ArrayRecord files, and PIL decodes the images.
"""

from nc_jax.extras import require

require("tensorflow_datasets", "data", __name__)

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from nc_jax.data import digits, folders, glyphs, idx, lists, servers, tables
from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.images import ImageSource

# Only splits that have labels: not "unlabelled" of STL-10, nor "test" of ImageNet and Places.
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
# Variants, which are named like "emnist/letters". The name alone means the first variant, as in TFDS.
CONFIGS = {
    "emnist": ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"),
    "glyphs": tuple(glyphs.PRESETS),
}
EMBEDDED = {"digits": digits.Digits, "glyphs": glyphs.Glyphs}
IDX = "idx:"  # before the path of a folder of IDX files, as MNIST has them
LARGE = ("imagenet2012", "places365_small")  # images without a common size, 350 GB of pixels
IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
IMAGE_SIZE = 224  # side of the crops of large sets: He et al. (2016)


class _Records(Sequence[Any]):
    """The records of a prepared set; damage that is met when they are read is one sentence."""

    def __init__(self, records: Any, folder: Path, root: Path):
        self.records, self.folder, self.root = records, folder, root

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        with _damage_in_one_sentence(self.folder, self.root):
            return self.records.__getitems__(indices)

    def fingerprint(self) -> dict[str, str]:
        """Which set and split these records are: see `nc_jax.training.fingerprint`."""
        return {"name": self.records.dataset_info.full_name, "split": str(self.records.split)}


def load(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    in_memory: bool | None = None,
    test_share: float | None = None,
    image_size: int | None = None,
) -> LabelledArrays | ImageSource:
    """A split of a named data set, from disk.

    Images keep the bytes that TFDS stores (the images of EMNIST are transposed). The digits are an exception: in memory
    they are vectors in [0, 1], as `digits.load` returns them.

    Args:
        name: a key of `SPLITS`, possibly with one of its `CONFIGS` ("cifar10", "emnist/letters", "glyphs/hard"); or a
            folder of images in the layout of `nc_jax.data.folders`, as a path from `data_dir` or from here; or "idx:"
            and the path of a folder of IDX files, for which see `nc_jax.data.idx`; or a table of numbers, which is a
            key of `nc_jax.data.tables.FILES`, or "rda:" and the path of a file of R.
        split: one of `splits(name)`.
        data_dir: root folder of prepared sets; None is the TFDS default, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        in_memory: True returns `LabelledArrays`, False an `ImageSource`. None returns an `ImageSource` for folders and
            for the `LARGE` sets, and arrays for all other sets. An `ImageSource` of a folder or a large set crops
            squares at the centre; use `ImageSource.cropped` for random crops in training.
        test_share: for folders of images without a split to test on, and for tables, which share of each class to test
            on; see `nc_jax.data.folders.load` and `nc_jax.data.tables.load`.
        image_size: side of those squares in pixels. None is 224 for large sets, and for a folder of images the size
            that `nc_jax.data.folders.usual_size` finds. Images in memory, and sets with images of one size, keep it.

    Returns:
        Images (N, H, W, C), uint8, with labels; or a source of such images; or the numbers of a table (N, D), float32.

    Raises:
        ValueError: if there is no such set or split; if images without a common size are to be in memory; if there is a
            `test_share` or an `image_size` where it has no meaning; if IDX files or tables are to stay out of memory;
            if files are damaged, lack the split, or have a format without random access.
        FileNotFoundError: if the set has not been prepared; the message says how to prepare it. Or if there are no IDX
            files in the folder, or no such table.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load("digits", "test", folder)
        LabelledArrays(360 examples of shape (64,) float32, 10 classes)
    """
    if tables.is_table(name):
        _refuse_size(image_size, name)
        if in_memory is False:
            raise ValueError(f"a table is read into memory; got in_memory=False for {name}")
        return tables.load(name, split, root_of(data_dir), test_share=test_share)
    if name.startswith(IDX):
        _refuse_share(test_share, name)
        _refuse_size(image_size, name)
        if in_memory is False:
            raise ValueError(f"IDX files are read into memory; got in_memory=False for {name}")
        return idx.load(_below_or_here(name.removeprefix(IDX), root_of(data_dir)), split)
    if not _is_named(name):
        found = _folder(name, data_dir)
        source = folders.load(found, split, test_share=test_share)
        if in_memory:
            _refuse_size(image_size, f"{name} in memory")
            return source.in_memory(source[0]["image"].shape)
        return source.cropped(folders.usual_size(found, test_share=test_share) if image_size is None else image_size)
    base, config = _parse(name)
    _refuse_share(test_share, name)
    if base not in LARGE or in_memory:
        _refuse_size(image_size, name)
    if split not in SPLITS[base]:
        raise ValueError(f"split of {base} must be one of {_listed(SPLITS[base])}; got {split!r}")
    if base == "digits" and in_memory is not False:
        return digits.load(split, data_dir)
    root = root_of(data_dir)
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
        # Skip TFDS's decoding: it does not convert grey and CMYK images to the three channels that the set declares.
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
        source = dataclasses.replace(source, records=_Records(records, folder, root))
        return source.cropped(IMAGE_SIZE if image_size is None else image_size) if base in LARGE else source
    if None in shape:
        raise ValueError(f"images must have one size to come into memory; got {base} with shape {shape}")
    with _damage_in_one_sentence(folder, root):
        return source.in_memory(shape)


def load_lists(
    name: str,
    train_list: str | Path,
    test_list: str | Path,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
) -> tuple[ImageSource, ImageSource]:
    """The images that two lists of files name, for training and for testing.

    Args:
        name: folder of the images, as a path from `data_dir` or from here.
        train_list: file with a line for each image to train on; see `nc_jax.data.lists.load`.
        test_list: file with a line for each image to test on.
        data_dir: as for `load`.
        image_size: side of the central squares to which images are cropped, in pixels. None is the size that
            `nc_jax.data.folders.usual_side` finds for the training images.

    Raises:
        ValueError: if the name is not that of a folder of images, or a list cannot be used.
        FileNotFoundError: if there is no such list.
    """
    if name.startswith(IDX) or tables.is_table(name) or _is_named(name):
        raise ValueError(f"lists name images in a folder, which must be given by its path; got {name!r}")
    found = lists.load(_folder(name, data_dir), Path(train_list), Path(test_list))
    records: Any = found[0].records
    size = folders.usual_side(records.files) if image_size is None else image_size
    return found[0].cropped(size), found[1].cropped(size)


def splits(name: str, data_dir: str | Path | None = None, *, test_share: float | None = None) -> tuple[str, ...]:
    """Names of the splits of a set that have labels. The first is for training, the second for testing.

    Args:
        name: name of a data set or folder of images, as for `load`.
        data_dir: root folder below which folders of images are looked for; None is the TFDS default.
        test_share: as for `load`.

    Raises:
        ValueError: if there is no such set, or a `test_share` of a set that has a split to test on.
        FileNotFoundError: if a folder of images has no subfolder "train".

    Example:
        >>> splits("imagenet2012")
        ('train', 'validation')
    """
    if tables.is_table(name):
        return ("train", "test")
    if name.startswith(IDX):
        _refuse_share(test_share, name)
        return tuple(idx.PREFIXES)
    if not _is_named(name):
        return folders.splits(_folder(name, data_dir), test_share=test_share)
    _refuse_share(test_share, name)
    return SPLITS[_parse(name)[0]]


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Download a data set and prepare it in the format that `load` reads, unless it is already prepared.

    Args:
        name: a key of `SPLITS`, possibly with one of its `CONFIGS`.
        data_dir: root folder of prepared sets; None is the TFDS default, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: if there is no such set.
        FileNotFoundError: if the archives of ImageNet, which you must download yourself, are missing.
        ConnectionError: if the set's server does not answer within three seconds.
        MissingExtraError: if TensorFlow, which TFDS needs for preparing images, is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prepare("digits", folder).name
        '1.0.0'
    """
    base, config = _parse(name)
    root = root_of(data_dir)
    if base in EMBEDDED:
        _prepare_embedded(base, config, root)
    folder = _newest_version(base, config, root)
    if folder is not None:
        return folder
    home = servers.HOMES.get(base)
    if home is not None and not servers.answers(home):
        raise ConnectionError(
            f"{home} must answer within {servers.REACH_TIMEOUT:g} s for {base} to be downloaded; got no answer"
        )
    manual = root / "downloads" / "manual"
    if base == "imagenet2012" and not any((manual / archive).exists() for archive in IMAGENET_ARCHIVES):
        raise FileNotFoundError(
            f"{' or '.join(IMAGENET_ARCHIVES)} must be in {manual} "
            f"(register on https://image-net.org/download-images); got neither"
        )
    require("tensorflow", "datasets", f"preparing {base}")
    full_name = f"{base}/{config}" if config else base
    tfds.builder(full_name, data_dir=root, file_format="array_record").download_and_prepare()
    folder = _newest_version(base, config, root)
    assert folder is not None  # else download_and_prepare has raised
    return folder


def known_name(name: str) -> str:
    """The name of a set without what says where and how it is stored; `nc_jax.data.augment.STATISTICS` has such names.

    Args:
        name: name of a data set, as for `load`.

    Returns:
        For a folder of IDX files, the set that `nc_jax.data.idx.known_set` knows, or else its path; any other name as
        it is.

    Example:
        >>> known_name("idx:/usr/share/datasets/fashion-mnist"), known_name("glyphs/hard")
        ('fashion_mnist', 'glyphs/hard')
    """
    if not name.startswith(IDX):
        return name
    path = name.removeprefix(IDX)
    return idx.known_set(Path(path)) or path


def _refuse_share(test_share: float | None, name: str) -> None:
    if test_share is not None:
        raise ValueError(f"test_share is for folders of images and tables; got test_share={test_share:g} for {name}")


def _refuse_size(image_size: int | None, name: str) -> None:
    if image_size is not None:
        raise ValueError(
            f"image_size is for folders of images and for {' and '.join(LARGE)}, not in memory; "
            f"got image_size={image_size} for {name}"
        )


def _is_named(name: str) -> bool:
    return name.partition("/")[0] in SPLITS


def _folder(name: str, data_dir: str | Path | None) -> Path:
    root = root_of(data_dir)
    folder = _below_or_here(name, root)
    if not folder.is_dir():
        raise ValueError(
            f"name must be one of {_listed((*SPLITS, *tables.FILES))}, or a folder of images here or in {root}; "
            f"got {name!r}"
        )
    if idx.holds_idx(folder):
        raise ValueError(f"a folder of IDX files must be named with {IDX!r} before it; got {name!r}")
    return folder


def _below_or_here(path: str, root: Path) -> Path:
    return root / path if (root / path).is_dir() else Path(path).expanduser()


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


def root_of(data_dir: str | Path | None) -> Path:
    """Return the folder in which data sets are looked for; None takes that of TFDS."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _newest_version(base: str, config: str | None, root: Path) -> Path | None:
    # Look at folders instead of calling `tfds.builder`, which would import hundreds of builders and know one version.
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
        raise ValueError(
            f"{where} must be stored as array_record (run `tfds convert_format --dataset_version_dir="
            f"{shlex.quote(str(folder))} --out_file_format=array_record`); got {', '.join(sorted(formats))}"
        )
    if split not in info.splits:
        raise ValueError(f"{where} must hold the split {split!r}; got {_listed(info.splits)}")


@contextlib.contextmanager
def _damage_in_one_sentence(folder: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # on a damaged file, TFDS, protobuf, ArrayRecord and PIL raise exceptions of their own
        raise ValueError(
            f"{folder.relative_to(root)} in {root} must be readable (delete that folder and prepare it again); "
            f"got {type(error).__name__}: {error}"
        ) from error
