"""Files of predictions, written batch after batch: rows for people and spreadsheets, or arrays for programs."""

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float

from nc_jax.files import replaced

ENDINGS = (".csv", ".npz", ".json")
TOP = 5  # classes of a row: what papers call top-5
DIGITS = 6  # of a probability; float32 has no more


class Part(NamedTuple):
    """What a model gives for a part of the inputs.

    Attributes:
        files: M names of the inputs.
        probabilities: shape (M, K).
        features: shape (M, d).
    """

    files: Sequence[str]
    probabilities: Float[np.ndarray, "part classes"]
    features: Float[np.ndarray, "part dim"]


def write_predictions(
    path: Path, parts: Iterable[Part], *, total: int, class_names: Sequence[str], about: dict[str, Any]
) -> None:
    """Write predictions as they come; the file gets its name when it is complete.

    A `.csv` file has the columns file, class and probability, and then class_2, probability_2 and so on for the
    next most probable classes. A `.json` file has the same as objects. A `.npz` file has the arrays "labels" (N,),
    "probabilities" (N, K), "features" (N, d), "files" (N,) and "class_names" (K,).

    Args:
        path: the file, which ends in one of `ENDINGS`.
        parts: the predictions, part after part.
        total: number N of inputs in all parts together.
        class_names: K names.
        about: what else a JSON file says, such as the run that the predictions come from.
    """
    writers = {".csv": _write_rows, ".json": _write_objects, ".npz": _write_arrays}
    with replaced(path) as file:
        writers[path.suffix](file, parts, total, class_names, about)


def top_classes(probabilities: Float[np.ndarray, "part classes"]) -> np.ndarray:
    """Return the most probable classes of each row, up to `TOP`, the first of equal ones first; shape (M, <= TOP)."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]


def _rows(parts: Iterable[Part], class_names: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the name of each input with its most probable classes and their probabilities."""
    for part in parts:
        chosen = top_classes(part.probabilities)
        shares = np.take_along_axis(part.probabilities, chosen, axis=1)
        for name, labels, values in zip(part.files, chosen.tolist(), shares.tolist(), strict=True):
            yield name, [(class_names[int(k)], f"{p:.{DIGITS}g}") for k, p in zip(labels, values, strict=True)]


def _write_rows(
    file: BinaryIO, parts: Iterable[Part], total: int, class_names: Sequence[str], about: dict[str, Any]
) -> None:
    del total, about
    # Names of files may hold any byte.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    rows = csv.writer(text, lineterminator="\n")
    places = range(2, min(TOP, len(class_names)) + 1)
    rows.writerow(
        ["file", "class", "probability", *(f"{name}_{n}" for n in places for name in ("class", "probability"))]
    )
    for name, top in _rows(parts, class_names):
        rows.writerow([name, *(cell for pair in top for cell in pair)])
    text.detach()


def _write_objects(
    file: BinaryIO, parts: Iterable[Part], total: int, class_names: Sequence[str], about: dict[str, Any]
) -> None:
    head = json.dumps(about | {"inputs": total, "class_names": list(class_names)}, indent=1)
    file.write(f'{head[:-2]},\n "predictions": ['.encode())
    before = "\n"
    for name, top in _rows(parts, class_names):
        (best, share), pairs = top[0], [[one, float(p)] for one, p in top]
        row = {"file": name, "class": best, "probability": float(share), "top": pairs}
        file.write(f"{before}  {json.dumps(row)}".encode())
        before = ",\n"
    file.write(b"\n ]\n}\n")


def _write_arrays(
    file: BinaryIO, parts: Iterable[Part], total: int, class_names: Sequence[str], about: dict[str, Any]
) -> None:
    del about
    files: list[str] = []
    # Features of a million images do not fit into memory, so they wait on the disk until all are there.
    with tempfile.TemporaryDirectory(dir=Path(file.name).parent, prefix=".features-", suffix=".part") as folder:
        arrays: dict[str, np.memmap] = {}
        for part in parts:
            found = {"labels": part.probabilities.argmax(axis=1).astype(np.int32)}
            found |= {"probabilities": part.probabilities, "features": part.features}
            rows = slice(len(files), len(files) + len(part.files))
            for name, values in found.items():
                if name not in arrays:
                    shape = (total, *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(Path(folder) / name, "w+", values.dtype, shape)
                arrays[name][rows] = values
            files += part.files
        names = {"files": np.array(files), "class_names": np.array(class_names)}
        np.savez(file, allow_pickle=False, **arrays, **names)
