"""Your own images in folders, one folder per class: `<root>/<split>/<class>/<file>`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nc_jax.data.images import ImageSource

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Common names of the split to test on, in the order of preference.
TEST_SPLITS = ("test", "validation", "val")


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
        return {
            "image": self.files[index].read_bytes(),
            "label": self.labels[index],
            "file": str(self.files[index]),
        }


def splits(root: Path) -> tuple[str, ...]:
    """Names of the splits in a folder: "train" first, then splits named in `TEST_SPLITS`, then others.

    Raises:
        FileNotFoundError: if the folder does not exist or has no subfolder "train".
    """
    if not (root / "train").is_dir():
        raise FileNotFoundError(f"images must lie in {root}/<split>/<class>/<file>, a split being train; got none")
    found = _folders(root)
    first = ("train", *TEST_SPLITS)
    return tuple([name for name in first if name in found] + [name for name in found if name not in first])


def load(root: Path, split: str) -> ImageSource:
    """A split of a folder of images, in colour (three channels) and in their own sizes.

    Args:
        root: folder with one subfolder per split. Each split has one subfolder per class, with image files in it. The
            classes are the subfolders of "train", sorted by name.
        split: one of `splits(root)`.

    Raises:
        ValueError: if there is no such split.
        FileNotFoundError: if the folder does not exist or has no subfolder "train".
        RuntimeError: if there are fewer than two classes, if a class has no images in "train", or if another split has
            a class that "train" does not have.

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
    known = splits(root)
    if split not in known:
        raise ValueError(f"split of {root} must be one of {', '.join(map(repr, known))}; got {split!r}")
    classes = _folders(root / "train")
    if len(classes) < 2:
        raise RuntimeError(f"{root / 'train'} must hold a folder for each class, two at least; got {len(classes)}")
    unknown = set(_folders(root / split)).difference(classes)
    if unknown:
        raise RuntimeError(f"every class of {root / split} must be one of train; {min(unknown)!r} is none")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / split / name
        images = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
        if split == "train" and not images:
            raise RuntimeError(f"{folder} must hold images ({', '.join(ENDINGS)}); got none")
        files += images
        labels += [label] * len(images)
    return ImageSource(FolderRecords(files, labels), 3, len(classes), tuple(classes))


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
