"""Images that lists of files name, as ImageNet-LT and Places-LT are published: lines of a path and a class number.

The images themselves lie in a folder of yours, to which the paths of the lists are relative.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nc_jax.data.decoding import readable
from nc_jax.data.folders import FolderRecords, remarks
from nc_jax.data.images import ImageSource

_log = logging.getLogger(__name__)


class _Listed(NamedTuple):
    """What a list says: a path, a label and a line number for each image."""

    file: Path
    paths: list[str]
    labels: list[int]
    lines: list[int]


def load(root: Path, train_list: Path, test_list: Path) -> tuple[ImageSource, ImageSource]:
    r"""The images of a list to train on and of a list to test on, in colour and in their own sizes.

    A class is called like the folder of its training images if they lie in one folder, and every class in another one;
    otherwise it is called by its number. The header of every image is checked: 10,000 small files take 0.9 s on a CPU
    core.

    Args:
        root: folder of the images.
        train_list: text file in UTF-8 with a line `path label` for each image. Labels are numbers from 0 on, without
            gaps; paths count from `root`, also if they begin with a slash, and may contain blanks. Empty lines are
            skipped. The list is looked for here, and then in `root`.
        test_list: another such file. Its labels are among those of `train_list`.

    Returns:
        Training set and test set. Their records know the labels, so class counts are known without reading an image.

    Raises:
        ValueError: if a line is no path and label, an image is missing or cannot be read, a class has no training
            image, or there are fewer than two classes.
        FileNotFoundError: if there is no such list.

    Example:
        >>> import tempfile, PIL.Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("cat", "dog"):
        ...         (Path(root) / name).mkdir()
        ...         PIL.Image.new("RGB", (30, 20)).save(Path(root) / name / "one.png")
        ...     for name in ("train.txt", "test.txt"):
        ...         _ = (Path(root) / name).write_text("cat/one.png 0\ndog/one.png 1\n")
        ...     load(Path(root), Path(root) / "train.txt", Path(root) / "test.txt")[0]
        ImageSource(2 images of stored sizes, 3 channels, 2 classes)

    Reference: Liu et al. (2019), ImageNet-LT and Places-LT.
    """
    train, test = (_read(root, path) for path in (train_list, test_list))
    used = sorted(set(train.labels))
    num_classes = len(used)
    gap = next((number for number, label in enumerate(used) if number != label), None)
    if gap is not None:
        raise ValueError(f"labels of {train.file} must be 0, 1, ... without gaps; got none of {gap} but {used[-1]}")
    if num_classes < 2:
        raise ValueError(f"{train.file} must have two classes at least; got the label 0 only")
    unknown = next((place for place, label in enumerate(test.labels) if label >= num_classes), None)
    if unknown is not None:
        raise ValueError(
            f"every label of {test.file} must be one of {train.file}, 0..{num_classes - 1}; got {test.labels[unknown]} "
            f"in line {test.lines[unknown]}"
        )
    names = _names(train, num_classes)
    found = []
    for listed in (train, test):
        files = _files(root, listed)
        said = remarks(files)
        if said:
            _log.warning("%s images of %s: %s", len(files), listed.file, "; ".join(said))
        found.append(ImageSource(FolderRecords(files, listed.labels), 3, num_classes, names))
    return found[0], found[1]


def _read(root: Path, path: Path) -> _Listed:
    path = path.expanduser()
    path = path if path.is_file() or not (root / path).is_file() else root / path
    if not path.is_file():
        raise FileNotFoundError(f"a list of images must be a file here or in {root}; got {str(path)!r}")
    with readable(f"list {path}"):
        text = path.read_text(encoding="utf-8-sig")
    found = _Listed(path, [], [], [])
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        words = line.strip().rsplit(maxsplit=1)
        if len(words) != 2 or not (words[1].isascii() and words[1].isdigit()):
            raise ValueError(
                f"each line of {path} must be the path of an image and its label, a number; "
                f"got {line.strip()[:80]!r} in line {number}"
            )
        found.paths.append(words[0])
        found.labels.append(int(words[1]))
        found.lines.append(number)
    if not found.paths:
        raise ValueError(f"{path} must have a line for each image; got none")
    return found


def _files(root: Path, listed: _Listed) -> Sequence[Path]:
    files = [root / path.lstrip("/") for path in listed.paths]
    missing = [place for place, file in enumerate(files) if not file.is_file()]
    if missing:
        raise ValueError(
            f"{listed.file} must name images in {root}; {len(missing)} of {len(files)} are not there, the first being "
            f"{listed.paths[missing[0]]!r} in line {listed.lines[missing[0]]}"
        )
    return files


def _names(train: _Listed, num_classes: int) -> tuple[str, ...]:
    pairs = {(label, Path(path).parent.name) for path, label in zip(train.paths, train.labels, strict=True)}
    folders = dict(pairs)
    if len(pairs) == num_classes == len(set(folders.values())) and all(folders.values()):
        return tuple(folders[label] for label in range(num_classes))
    return tuple(map(str, range(num_classes)))
