"""Tables of numbers from data files of R: a data frame with one column of classes, as in `rda:FILE`.

Debian has sets of the UCI repository in this format. `apt-get install r-cran-mlbench` puts Shuttle (58,000 examples of
9 numbers, in 7 classes of 45,586 to 10), Letter, Vowel and Satellite into `MLBENCH`. The library rdata reads the files
and runs no code of theirs.
"""

import functools
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.clients import ClientArrays
from nc_jax.data.decoding import readable
from nc_jax.data.parts import share_of_each_class
from nc_jax.extras import require

RDA = "rda:"  # before the path of a file
MLBENCH = Path("/usr/lib/R/site-library/mlbench/data")
FILES = {
    "shuttle": "Shuttle.rda",
    "letter": "LetterRecognition.rda",
    "vowel": "Vowel.rda",
    "satellite": "Satellite.rda",
}
LABEL = "Class"  # the name of the column of classes in most tables of mlbench
TEST_SHARE = 0.25  # of each class; a quarter, as learning rates are judged on a quarter of a training set
SPLIT_SEED = 0  # which examples are tested on belongs to the data, and not to a run

_log = logging.getLogger(__name__)


def is_table(name: str) -> bool:
    """Whether the name of a data set is that of a table: a key of `FILES`, or "rda:" and a path."""
    return name.startswith(RDA) or name in FILES


def load(name: str, split: str, root: Path, *, test_share: float | None = None) -> LabelledArrays:
    """A split of a table, as vectors of standardised numbers.

    The classes are the levels of the factor `Class`, or of the last factor if there is none of that name; levels
    without an example are no classes. Numbers and logical values are features. So are the other factors: an ordered one
    is a number, which its levels name or else count from 0, and one without an order is an indicator (0 or 1) for each
    level. Columns of text are left out, and so are rows with a missing value; a line in the log, a warning, says how
    many.

    Of every feature, the mean of the training part is subtracted, and the rest is divided by the training part's
    standard deviation. A feature that is constant in the training part is 0 everywhere.

    Args:
        name: a key of `FILES`, or "rda:" and the path of a file of R, from `root` or from here.
        split: "train" or "test".
        root: folder in which the files are looked for first.
        test_share: share of each class that is tested on, at least one example and not all of them, the same ones
            always; None is `TEST_SHARE`. A class with one example has it in the training part.

    Returns:
        Inputs (N, D), float32, with the names of the levels as class names.

    Raises:
        ValueError: if there is no such split, the file is damaged, holds no data frame or several, or the frame has no
            classes or no features.
        FileNotFoundError: if there is no such file.
        MissingExtraError: if rdata is not installed.

    Reference: Leisch and Dimitriadou, mlbench: machine learning benchmark problems (R package).
    """
    arrays, _ = _part(name, split, root, test_share, None)
    return arrays


def load_clients(name: str, split: str, root: Path, *, groups: str, test_share: float | None = None) -> ClientArrays:
    """A split of a table whose rows belong to groups, such as speakers: every group is a client of federated learning.

    The column of groups is no feature, because it would tell the client. The share that is tested on is taken of each
    class of each group, so a client has training examples of every class that it is tested on. Everything else is as in
    `load`.

    Args:
        name: as for `load`.
        split: "train" or "test".
        root: as for `load`.
        groups: name of the column that says to which group a row belongs: a factor, text, or numbers.
        test_share: share of each class of each group, at least one example and not all of them; None is `TEST_SHARE`. A
            class with one example in a group has it in the training part.

    Returns:
        Inputs (N, D), float32, with the group of each example as its client. Clients are numbered in the order of the
        levels of a factor, or in ascending order of numbers or text, in both splits alike.

    Raises:
        ValueError: if there is no such column, or as for `load`.
        FileNotFoundError: as for `load`.
        MissingExtraError: as for `load`.
    """
    arrays, clients = _part(name, split, root, test_share, groups)
    assert clients is not None
    return ClientArrays.of(arrays, *clients, empty=split == "test")


def _part(
    name: str, split: str, root: Path, test_share: float | None, groups: str | None
) -> tuple[LabelledArrays, tuple[Int[np.ndarray, " examples"], int] | None]:
    """Return a split of a table and, if a column of groups is named, the group of each example and their number."""
    if split not in ("train", "test"):
        raise ValueError(f"split of {name} must be one of 'train', 'test'; got {split!r}")
    if test_share is not None and not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1; got {test_share}")
    path = _found(name, root)
    inputs, labels, class_names, of_group, said = _numbers(path, path.stat().st_mtime_ns, groups)
    if said and split == "train":  # said once
        _log.warning("%s examples of %s: %s", len(labels), path, said)
    share = TEST_SHARE if test_share is None else test_share
    tested = share_of_each_class(labels, share, seed=SPLIT_SEED, groups=of_group)
    train = inputs[~tested]
    moves = train.max(axis=0) > train.min(axis=0)  # rounding errors may leave a constant a standard deviation above 0
    scale = np.where(moves, 1 / np.where(moves, train.std(axis=0), 1), 0)
    chosen = tested if split == "test" else ~tested
    standard = ((inputs[chosen] - train.mean(axis=0)) * scale).astype(np.float32)
    arrays = LabelledArrays(standard, labels[chosen], len(class_names), class_names)
    return arrays, None if of_group is None else (of_group[chosen], int(of_group.max()) + 1)


def _found(name: str, root: Path) -> Path:
    if name.startswith(RDA):
        given = Path(name.removeprefix(RDA)).expanduser()
        path = next((path for path in (root / given, given) if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"a file of R must exist here or in {root}; got {str(given)!r}")
        return path
    places = [folder / FILES[name] for folder in (root, MLBENCH)]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{name} must lie in {' or in '.join(map(str, places))} (apt-get install r-cran-mlbench puts it into the "
            "latter); got neither"
        )
    return path


@functools.lru_cache(maxsize=1)  # both splits come from one file, and Shuttle takes 1.3 s to be parsed
def _numbers(
    path: Path, modified: int, groups: str | None
) -> tuple[
    Float[np.ndarray, "examples features"],
    Int[np.ndarray, " examples"],
    tuple[str, ...],
    Int[np.ndarray, " examples"] | None,
    str,
]:
    """Return features and labels of all examples, names of classes, groups, and what was done with the rest."""
    del modified
    frame = _frame(path)
    factors = [name for name in frame.columns if hasattr(frame[name], "cat")]
    if not factors:
        raise ValueError(f"{path} must have a factor, whose levels are the classes; got {', '.join(frame.columns)}")
    target = LABEL if LABEL in factors else factors[-1]
    others = [name for name in frame.columns if name != target]
    if groups is not None and groups not in others:
        raise ValueError(f"groups must be a column of {path}, one of {', '.join(others)}; got {groups!r}")
    columns, left_out = [], Counter[str]()
    for name, column in frame.items():
        if name in (target, groups):
            continue
        part = _features(column)
        if part is None:
            left_out["columns of text"] += 1
        else:
            columns.append(part)
    if not columns:
        used_up = repr(target) if groups is None else f"{target!r} and {groups!r}"
        raise ValueError(f"{path} must have columns of numbers or factors besides {used_up}; got none")
    inputs, codes = np.hstack(columns), frame[target].cat.codes.to_numpy()
    infinite = np.isinf(inputs).any(axis=1)
    if infinite.any():
        raise ValueError(f"numbers of {path} must be finite; got an infinity in row {infinite.argmax() + 1}")
    whole = ~np.isnan(inputs).any(axis=1) & (codes >= 0)
    group_codes = None if groups is None else _group_codes(frame[groups])
    if group_codes is not None:
        whole &= group_codes >= 0
    left_out["rows with a missing value"] += int((~whole).sum())
    inputs, codes = inputs[whole], codes[whole]
    used, labels = np.unique(codes, return_inverse=True)
    if len(used) < 2:
        raise ValueError(f"{path} must have examples of two classes at least in {target!r}; got {len(used)}")
    names = tuple(str(frame[target].cat.categories[code]) for code in used)
    said = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    of_group = None if group_codes is None else np.unique(group_codes[whole], return_inverse=True)[1]
    return inputs, labels.astype(np.int32), names, of_group, f"left out: {said}" if said else ""


def _group_codes(column: Any) -> Int[np.ndarray, " examples"]:
    """Return the number of the group of each row, -1 where it is missing."""
    codes = column.cat.codes if hasattr(column, "cat") else column.factorize(sort=True)[0]
    return np.asarray(codes, np.int64)


def _features(column: Any) -> Float[np.ndarray, "examples features"] | None:
    """Return what a column says in numbers, NaN where it says nothing; None for text."""
    if not hasattr(column, "cat"):
        if column.dtype.kind not in "biuf":
            return None
        return column.to_numpy(np.float64, na_value=np.nan)[:, None]
    codes = column.cat.codes.to_numpy()
    if column.cat.ordered:
        values = _values(list(column.cat.categories))
    else:
        used = np.unique(codes[codes >= 0])
        values = np.eye(len(column.cat.categories))[:, used]
    return np.where((codes >= 0)[:, None], values[codes], np.nan)


def _values(levels: list[Any]) -> Float[np.ndarray, "levels 1"]:
    try:
        return np.array([float(level) for level in levels])[:, None]
    except ValueError:
        return np.arange(len(levels), dtype=np.float64)[:, None]


def _frame(path: Path) -> Any:
    """Return the one data frame of a file."""
    require("rdata", "tables", "a table of R")
    import rdata  # with pandas

    with readable(f"file of R {path}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes of R that only decide how R prints an object
        found = rdata.read_rda(path, default_encoding="utf-8")
    frames = {name: value for name, value in found.items() if hasattr(value, "columns")}
    if len(frames) != 1:
        raise ValueError(f"{path} must hold one data frame; got {', '.join(frames) or 'none'}")
    return next(iter(frames.values()))
