"""Your own images in folders, one folder per class: `<root>/<split>/<class>/<file>`, or `<root>/<class>/<file>`.

A class's images may lie in folders below its own. Files and folders that are hidden (a dot begins their name) or that
macOS adds (`__MACOSX`) are skipped, and so is every file that is no image. One line in the log, a warning, says what
was left out, and what is not read as it is stored.
"""

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from nc_jax.data.decoding import BACKGROUND, ENDINGS, read_header, readable
from nc_jax.data.images import ImageSource
from nc_jax.data.parts import share_of_each_class

# Common names of the split to test on, in the order of preference.
TEST_SPLITS = ("test", "validation", "val")
SPLIT_SEED = 0  # which images are tested on belongs to the data, as for the digits, and not to a run
LARGEST = 224  # side of the images of most networks: He et al. (2016)
SAMPLE = 1000  # images whose sizes decide on one size for all: a median over so many is within a few per cent

_log = logging.getLogger(__name__)


class FolderRecords(Sequence[dict[str, Any]]):
    """Image files with labels, read when they are asked for.

    Attributes:
        files: image files of the examples, sorted by class and name.
        labels: class numbers of the examples, in the same order.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int]):
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the examples: their number, and a hash of the names and sizes of the files and their labels."""
        found = hashlib.sha1(usedforsecurity=False)
        for path, label in zip(self.files, self.labels, strict=True):
            found.update(f"{path.name}/{path.stat().st_size}/{label}/".encode("utf-8", "surrogateescape"))
        return {"images": len(self.files), "files": found.hexdigest()}

    def __getitem__(self, index: Any) -> Any:
        file = self.files[index]
        with readable(f"image {file}"):
            return {"image": file.read_bytes(), "label": self.labels[index], "file": str(file)}


def splits(root: Path, *, test_share: float | None = None) -> tuple[str, ...]:
    """Names of the splits in a folder: "train" first, then splits named in `TEST_SPLITS`, then others.

    Args:
        root: the folder.
        test_share: as for `load`.

    Raises:
        FileNotFoundError: if the folder does not exist, or has no subfolder "train" and there is no `test_share`.
        ValueError: if there are both a `test_share` and a split to test on.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"a folder of images must exist; got {root}")
    has_train = (root / "train").is_dir()
    if test_share is None:
        if not has_train:
            raise FileNotFoundError(
                f"images must lie in {root}/<split>/<class>/<file>, a split being train; got none (where they lie in "
                f"{root}/<class>/<file>, test_share=0.2, or --data.test-share 0.2, tests on a fifth of each class)"
            )
        found = _names(root)
        first = ("train", *TEST_SPLITS)
        return tuple([name for name in first if name in found] + [name for name in found if name not in first])
    others = [name for name in _names(root) if name != "train"]
    if _classes_in(root, test_share) != root and others:
        raise ValueError(
            f"test_share is for folders without a split to test on; got test_share={test_share:g} for {root}, which "
            f"has {', '.join(map(repr, others))} beside 'train'"
        )
    return ("train", "test")


def load(root: Path, split: str, *, test_share: float | None = None) -> ImageSource:
    """A split of a folder of images, in colour (three channels) and in their own sizes.

    The header of every file is checked: 10,000 small files take 0.9 s on a CPU core, and more threads take longer.

    Args:
        root: folder with one subfolder per split. Each split has one subfolder per class, with image files in it or
            below it. The classes are the subfolders of "train", sorted by name; names are normalised (Unicode NFC).
        split: one of `splits(root)`.
        test_share: None for such a folder. A number between 0 and 1 is for a folder without a split to test on,
            `<root>/<class>/<file>` or `<root>/train/<class>/<file>`: this share of the images of each class, at least
            one, is the split "test", the others are "train". They depend on the sorted file names only.

    Raises:
        ValueError: if there is no such split, there are fewer than two classes, a class has no images in "train" or
            only one to share, another split has a class that "train" does not have or no image, two classes have the
            same name, a link leads back to a folder above it, or a file is not an image that can be read.
        FileNotFoundError: if the folder does not exist or has no subfolder "train".

    Example:
        >>> import tempfile, PIL.Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("cat", "dog"):
        ...         folder = Path(root) / "train" / name
        ...         folder.mkdir(parents=True)
        ...         PIL.Image.new("RGB", (30, 20)).save(folder / "one.png")
        ...     load(Path(root), "train")
        ImageSource(2 images of stored sizes, 3 channels, 2 classes)
    """
    if test_share is not None and not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1; got {test_share}")
    known = splits(root, test_share=test_share)
    if split not in known:
        raise ValueError(f"split of {root} must be one of {', '.join(map(repr, known))}; got {split!r}")
    base = _classes_in(root, test_share)
    classes = _folders(base)
    if len(classes) < 2:
        raise ValueError(f"{base} must hold a folder for each class, two at least; got {len(classes)}")
    folder = base if test_share is not None else root / split
    left_out: Counter[str] = Counter()
    found = _found(folder, classes, left_out)
    empty = next((name for name in classes if not found[name]), None)
    if empty is not None and folder == base:
        raise _without_images(folder / classes[empty])
    if not any(found.values()):
        raise _without_images(folder)
    examples = [(file, label) for label, images in enumerate(found.values()) for file in images]
    if test_share is not None:
        tested = _held_out([label for _, label in examples], tuple(classes), test_share)
        examples = [example for example, test in zip(examples, tested, strict=True) if test == (split == "test")]
        left_out = left_out if split == "train" else Counter()  # said once
    records = FolderRecords([file for file, _ in examples], [label for _, label in examples])
    said = _said(records.files, folder, classes, left_out)
    if said:
        _log.warning("%s images of %s (%s): %s", len(records), folder, split, said)
    return ImageSource(records, 3, len(classes), tuple(classes))


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and below it, sorted by name, without those that are hidden.

    The header of every file is checked, as in `load`, and a line in the log says what was left out.

    Raises:
        ValueError: if there is no image, a link leads back to a folder above it, or a file is not an image that can be
            read.
    """
    files = _images(folder, left_out := Counter[str](), ())
    if not files:
        raise _without_images(folder)
    said = [f"left out beside them: {_counted(left_out)}"] if left_out.total() else []
    said += remarks(files)
    if said:
        _log.warning("%s images of %s: %s", len(files), folder, "; ".join(said))
    return files


def usual_size(root: Path, *, test_share: float | None = None) -> int:
    """A size for all images of a folder: the median of the shorter sides of its training images, at most 224 pixels.

    It is rounded down to a multiple of 16 (of 8 below 64), so that the patches of a vision transformer tile the images.

    Args:
        root: the folder.
        test_share: as for `load`; then the images to test on count, too.

    Raises:
        ValueError: if there is no image, or a file is not an image that can be read.
    """
    base = _classes_in(root, test_share)
    found = _found(base, _folders(base), Counter())
    files = [file for images in found.values() for file in images]
    if not files:
        raise _without_images(base)
    return usual_side(files)


def usual_side(files: Sequence[Path]) -> int:
    """A size for images in files, found as `usual_size` does.

    Raises:
        ValueError: if a file is not an image that can be read.
    """
    chosen = {int(place) for place in np.linspace(0, len(files) - 1, SAMPLE)}
    headers = [read_header(files[place]) for place in sorted(chosen)]
    side = min(int(np.median([min(header.width, header.height) for header in headers])), LARGEST)
    return max(side - side % (16 if side >= 64 else 8), min(side, 8))


def remarks(files: Iterable[Path]) -> list[str]:
    """Check the header of every image, and say what is not read as it is stored; nothing where all is.

    Raises:
        ValueError: if a file is not an image that can be read.
    """
    headers = [read_header(file) for file in files]
    several, transparent = (sum(getattr(header, name) for header in headers) for name in ("several", "transparent"))
    found = [f"{transparent} with transparency, laid over {BACKGROUND}"] if transparent else []
    return found + ([f"{several} with several frames or pages, of which the first is read"] if several else [])


def _classes_in(root: Path, test_share: float | None) -> Path:
    """Return the folder that holds a folder for each class. A class may be called "train", too."""
    train = root / "train"
    return train if test_share is None or (train.is_dir() and _names(train)) else root


def _inside(folder: Path) -> list[Path]:
    with readable(f"folder {folder}"):
        return sorted(folder.iterdir())


def _names(folder: Path) -> list[str]:
    return [path.name for path in _inside(folder) if path.is_dir() and not _hidden(path.name)]


def _folders(folder: Path) -> dict[str, str]:
    """Return the names of the folders in a folder, by their normalised names, which are the names of the classes."""
    found: dict[str, str] = {}
    for name in _names(folder):
        # macOS writes "é" as two characters, most other programs as one.
        normal = unicodedata.normalize("NFC", name)
        if not normal.isprintable() and any(unicodedata.category(sign) in ("Cc", "Cs") for sign in normal):
            raise ValueError(f"the name of a class must be text in UTF-8 on one line; got {name!r} in {folder}")
        if normal in found:
            raise ValueError(f"every class must have one folder in {folder}; got {found[normal]!r} and {name!r}")
        found[normal] = name
    return dict(sorted(found.items()))


def _found(folder: Path, classes: Iterable[str], left_out: Counter[str]) -> dict[str, list[Path]]:
    """Return the image files of each class, and count what else there is."""
    found: dict[str, list[Path]] = {name: [] for name in classes}
    there = _folders(folder)
    for name in there:
        if name not in found:
            similar = next((f" (did you mean {other!r}?)" for other in found if other.lower() == name.lower()), "")
            raise ValueError(f"every class of {folder} must be one of train; {name!r} is none{similar}")
        found[name] = _images(folder / there[name], left_out, ())
    for path in _inside(folder):
        if not path.is_dir():
            left_out["beside the classes' folders"] += not _hidden(path.name)
        elif _hidden(path.name):
            left_out["hidden"] += 1
    return found


def _images(folder: Path, left_out: Counter[str], above: tuple[Path, ...]) -> list[Path]:
    """Return the image files in a folder and below it, and count what else there is."""
    here = folder.resolve()
    if here in above:
        raise ValueError(f"a link must not lead back to a folder above it; got {folder}")
    found = []
    for path in _inside(folder):
        named_image = path.suffix.lower() in ENDINGS
        if _hidden(path.name):
            left_out["hidden"] += 1
        elif path.is_dir():
            if named_image:
                raise ValueError(f"image {path} must be a file; got a folder")
            found += _images(path, left_out, (*above, here))
        elif named_image:
            found.append(path)
        else:
            left_out[path.suffix.lower() or "without an ending"] += 1
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _held_out(labels: Sequence[int], classes: Sequence[str], share: float) -> Bool[np.ndarray, " examples"]:
    """Choose the examples to test on: this share of each class, but one at least and not all."""
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        name = classes[int(counts.argmin())]
        raise ValueError(f"a class must have two images at least to share with the test set; {name!r} has one")
    return share_of_each_class(np.asarray(labels), share, seed=SPLIT_SEED)


def _said(files: Sequence[Path], folder: Path, classes: Iterable[str], left_out: Counter[str]) -> str:
    """Check the files; say what was left out, and what is not read as it is stored; "" if there is nothing to say."""
    nested = sum(file.parent.parent != folder for file in files)
    alike = Counter(name.casefold() for name in classes)
    parts = [f"left out beside them: {_counted(left_out)}"] if left_out.total() else []
    parts += [f"{nested} in folders below those of their classes"] if nested else []
    parts += remarks(files)
    parts += [f"several classes are called {name!r} in large or small letters" for name in alike if alike[name] > 1]
    return "; ".join(parts)


def _without_images(folder: Path) -> ValueError:
    _images(folder, left_out := Counter[str](), ())
    others = f", but {_counted(left_out)}" if left_out.total() else ""
    return ValueError(f"{folder} must hold images ({', '.join(ENDINGS)}); got none{others}")


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)
