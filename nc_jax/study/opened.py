"""Directories of runs as they are found: finished or not, whole or damaged, of any experiment."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nc_jax.study.compared import RESULTS, Saved, names_of, results_of, settings_of
from nc_jax.study.report import SUMMARY, Part, read_summary
from nc_jax.study.runs import SETTINGS, read_document
from nc_jax.training import read_metrics

SHOWN = 5  # directories in a sentence
PICTURES = (".png", ".svg")


class Opened(NamedTuple):
    """A run on disk.

    Attributes:
        saved: its settings and the results that it has so far; no results where an experiment has none by method and
            seed.
        document: what config.json holds.
        log: lines of metrics.jsonl; none where an experiment writes none.
        parts: what the run said when it was finished; none before.
        pictures: the pictures in its directory, in the order in which the run shows them.
        finished: whether the run came to its end.
        troubles: a sentence for everything that is damaged.
    """

    saved: Saved
    document: dict[str, Any]
    log: list[dict[str, Any]]
    parts: list[Part]
    pictures: list[Path]
    finished: bool
    troubles: list[str]

    @property
    def name(self) -> str:
        """Name of the run beside other runs."""
        return self.saved.name


def open_runs(directories: Sequence[Path]) -> list[Opened]:
    """Read runs, whatever there is of them.

    Args:
        directories: directories of the runs.

    Raises:
        FileNotFoundError: if a directory is not that of a run.
        ValueError: if the settings of a run are damaged, two directories are the same, or there is none.
    """
    if not directories:
        raise ValueError("at least one run's directory is needed; got none")
    for directory in directories:
        if not (directory / SETTINGS).is_file():
            found = those_below(directory, SETTINGS) or ", without"
            raise FileNotFoundError(f"the directory of a run has a {SETTINGS}; got {directory}{found}")
    return [_open(path, name) for path, name in zip(directories, names_of(directories), strict=True)]


def those_below(directory: Path, file: str) -> str:
    """Return the end of a sentence, which names the directories below one that have a file; "" if there are none."""
    below = sorted(str(path.parent) for path in directory.glob(f"**/{file}"))
    more = ", ..." if len(below) > SHOWN else ""
    return f", below which are {', '.join(below[:SHOWN])}{more}" if below else ""


def _open(directory: Path, name: str) -> Opened:
    document = read_document(directory / SETTINGS)
    troubles: list[str] = []
    results, names, log, parts = {}, {}, [], []
    with _noted(troubles):
        results, names = results_of(directory) if (directory / RESULTS).is_file() else ({}, {})
    with _noted(troubles):
        log = read_metrics(directory)
    finished = (directory / SUMMARY).is_file()
    with _noted(troubles):
        parts = _parts(directory / SUMMARY) if finished else []
    said = [directory / part.content for part in parts if part.kind == "picture"]
    # A run that is not finished may have pictures that no summary names.
    there = said or sorted(path for path in (*directory.glob("*"), *directory.glob("*/*")) if path.suffix in PICTURES)
    inside = [path for path in there if path.resolve().is_relative_to(directory.resolve())]
    saved = Saved(name, directory, document["experiment"], settings_of(document), results, names)
    return Opened(saved, document, log, parts, inside, finished, troubles)


def _parts(path: Path) -> list[Part]:
    try:
        return read_summary(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} must hold the text and the tables of a run; got a damaged file") from None


@contextlib.contextmanager
def _noted(troubles: list[str]) -> Iterator[None]:
    """Note what is wrong with a file, and go on without it."""
    try:
        yield
    except (ValueError, OSError) as error:
        troubles.append(str(error))
