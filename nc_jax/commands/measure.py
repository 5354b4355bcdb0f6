"""Measure neural collapse of features that are stored in files, of any framework.

Usage: nc-jax measure FEATURES LABELS [--weight FILE] [--layers NAME=FILE ...] [--out FOLDER]

FEATURES are the outputs of the last hidden layer, an array (N, d), LABELS the classes 0..K-1 of the N examples. Both,
and the weight of the classifier, may be .npy, .npz, .safetensors or .pt files, or folders of such files, whose rows are
joined in the order of the names. FILE:NAME names one of several arrays in a file. The data are read twice, piece by
piece, so they need not fit into memory.

Examples:
  nc-jax measure features.npy labels.npy --weight head.pt --out report
  nc-jax measure dump.npz:features dump.npz:labels
  nc-jax measure shards/ labels.npy --weight model.safetensors:fc.weight
  nc-jax measure last.npy labels.npy --layers conv1=conv1.npy conv2=conv2.npy --out depth
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nc_jax.checks import check_label_range, check_label_shape
from nc_jax.commands.measure_page import LAST, page_of, show
from nc_jax.commands.stored_arrays import Stored, arrays_at, find_array, listed, split_name
from nc_jax.files import write_atomically
from nc_jax.metrics import Measurement
from nc_jax.metrics.measurement import chunk_rows, number_of_classes
from nc_jax.study.cli import parse
from nc_jax.study.environment import environment
from nc_jax.study.progress import Progress

_NAMED = tyro.conf.Positional
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        features: features of all examples, an array (N, d).
        labels: their classes 0..K-1, integers (N,); rows with the label -1 do not count.
        weight: class vectors of the classifier, an array (K, d) or (d, K). Of a file with one matrix and one vector,
            such as the state dictionary of an nn.Linear, the vector is the bias; of a name such as fc.weight, fc.bias.
        bias: bias of the classifier, an array (K,).
        rows: each row of the weight is a class vector, as in PyTorch. Needed only if K = d.
        columns: each column of the weight is a class vector, as in Flax. Needed only if K = d.
        layers: earlier layers for the same labels, first to last, as NAME=FILE, or as a FILE whose arrays are layers.
        out: folder to write report.json and report.html into, which must not exist yet, or be empty. None: only print.
    """

    features: Annotated[_NAMED[str], tyro.conf.arg(metavar="FEATURES")]
    labels: Annotated[_NAMED[str], tyro.conf.arg(metavar="LABELS")]
    weight: str | None = None
    bias: str | None = None
    rows: Flag = False
    columns: Flag = False
    layers: tuple[str, ...] = ()
    out: Path | None = None


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Class vectors as columns, shape (d, K), the bias (K,) or None, and sentences about where they come from."""

    frame: np.ndarray
    bias: np.ndarray | None
    notes: tuple[str, ...]


def main(words: Sequence[str]) -> None:
    """Measure, print and write."""
    options = parse(Options, words, header=__doc__)
    if options.out is not None and options.out.exists() and not _is_empty(options.out):
        raise ValueError(f"--out must name a folder that does not exist yet; got {options.out}")
    features, stored = find_array(options.features), find_array(options.labels)
    if (len(features.shape), len(stored.shape)) == (1, 2):
        raise ValueError(f"features of shape (N, d) come first and labels second; got {features} and {stored}")
    labels = stored.read()
    check_label_shape(labels)
    _check_features(features, len(labels))
    classifier = find_classifier(options, features.shape[1])
    layers = find_layers(options.layers, len(labels))
    if classifier is None:
        num_classes = number_of_classes(labels)
        notes = [f"The number of classes is taken to be {num_classes}, the largest label plus one."]
    else:
        num_classes, notes = classifier.frame.shape[1], list(classifier.notes)
    check_label_range(labels, num_classes)
    frame, bias = (None, None) if classifier is None else (classifier.frame, classifier.bias)
    measurement = Measurement(num_classes, features.shape[1], frame, bias)
    with contextlib.ExitStack() as stack:
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)  # a command that was killed has left it empty
            stack.callback(_remove_if_empty, options.out)
        with Progress(2 * len(labels) * (1 + len(layers)), "rows") as progress:
            by_layer = {
                name: _read_twice(Measurement(num_classes, layer.shape[1]), name, layer, labels, progress).report(
                    geometry=False
                )
                for name, layer in layers.items()
            }
            report = _read_twice(measurement, features.name, features, labels, progress).report()
        report = dataclasses.replace(report, notes=(*notes, *report.notes))
        said = "--out FOLDER writes all numbers (report.json) and one page with pictures (report.html)."
        if options.out is not None:  # before anything is printed: `| head` must not cost the files
            of = {"features": features.name, "labels": options.labels, "weight": options.weight}
            content = of | report.to_json() | {"layers": {name: one.to_json() for name, one in by_layer.items()}}
            text = json.dumps(content | {"environment": environment()}, indent=1, allow_nan=False)
            write_atomically(options.out / "report.json", text + "\n")
            write_atomically(options.out / "report.html", page_of(features.name, report, by_layer))
            said = f"all numbers are in {options.out / 'report.json'}, pictures in {options.out / 'report.html'}"
        show(report, by_layer)
        print(f"\n{said}")


def find_classifier(options: Options, dim: int) -> Classifier | None:
    """Read the classifier that a command line names.

    Args:
        options: the command line.
        dim: dimension of the features.

    Raises:
        ValueError: if there is no such weight or bias, several to choose from, or their shapes do not fit.
    """
    if options.weight is None:
        if options.bias is not None:
            raise ValueError(
                f"--bias goes with --weight, which names the class vectors; got --bias {options.bias} alone"
            )
        if options.rows or options.columns:
            raise ValueError("--rows and --columns say what --weight holds; got no --weight")
        return None
    path, name = split_name(options.weight)
    arrays = arrays_at(path)
    matrices = {key: array for key, array in arrays.items() if len(array.shape) == 2}
    if name is None:
        if len(matrices) != 1:
            fitting = [array for array in matrices.values() if dim in array.shape] or matrices.values()
            raise ValueError(f"--weight must name one matrix of {path} as {path}:NAME; got {listed(fitting)}")
        name = next(iter(matrices))
        vectors = [array for array in arrays.values() if len(array.shape) == 1]
        found = vectors[0] if len(vectors) == 1 else None
    else:
        found = arrays.get(bias_beside(name))
    if name not in matrices:
        raise ValueError(f"{path} must hold a matrix {name!r}; got {listed(matrices.values())}")
    weight = matrices[name]
    frame = as_columns(weight, dim, rows=options.rows, columns=options.columns)
    stored = found if options.bias is None else find_array(options.bias)
    notes = [f"The classifier is {weight}, {'no bias' if stored is None else f'with the bias {stored}'}."]
    if stored is None:
        return Classifier(frame, None, tuple(notes))
    if stored.shape != (frame.shape[1],):
        raise ValueError(f"the bias must have shape ({frame.shape[1]},), one entry per class; got {stored}")
    return Classifier(frame, stored.read(), tuple(notes))


def bias_beside(weight: str) -> str:
    """Return the name that the bias beside a weight has in a state dictionary.

    Example:
        >>> bias_beside("fc.weight"), bias_beside("head/kernel")
        ('fc.bias', 'head/bias')
    """
    for word in ("weight", "kernel"):
        if weight.endswith(word):
            return weight.removesuffix(word) + "bias"
    return ""


def as_columns(weight: Stored, dim: int, *, rows: bool, columns: bool) -> np.ndarray:
    """Read a weight as class vectors in columns, whose orientation its shape tells unless it is square.

    Args:
        weight: the matrix.
        dim: dimension of the features.
        rows: its rows are class vectors.
        columns: its columns are class vectors.

    Raises:
        ValueError: if it does not fit the features, or is square and nothing says what it holds.
    """
    in_columns, in_rows = (weight.shape[place] == dim for place in (0, 1))
    if rows and columns:
        raise ValueError("the weight must have class vectors as rows or as columns; got --rows and --columns")
    wanted = (
        f"({dim}, classes)" if columns else f"(classes, {dim})" if rows else f"(classes, {dim}) or ({dim}, classes)"
    )
    if not (in_columns or in_rows) or (rows and not in_rows) or (columns and not in_columns):
        raise ValueError(f"the weight must have shape {wanted} for features of {dim} dimensions; got {weight}")
    if in_columns and in_rows and not (rows or columns):
        raise ValueError(
            f"a square weight must come with --rows (each row is a class, as in PyTorch) or --columns (as in Flax); "
            f"got {weight}"
        )
    return np.ascontiguousarray(weight.read().T) if rows or not in_columns else weight.read()


def find_layers(words: Sequence[str], number: int) -> dict[str, Stored]:
    """Return the layers that a command line names, first to last.

    Args:
        words: NAME=FILE, or a file (or folder) whose matrices are layers.
        number: N; in a file of several arrays, those with N rows are the layers.

    Raises:
        ValueError: if a file has no layer, or one with another number of rows, or two layers have the same name.
    """
    layers: dict[str, Stored] = {}
    for word in words:
        name, equals, place = word.partition("=")
        if equals and not Path(word).exists():
            found = {name: find_array(place)}
            _check_features(found[name], number)
        else:
            found = _layers_in(word, number)
        for name, layer in found.items():
            if name in layers or name == LAST:
                taken = "the name of the features of the last layer" if name == LAST else f"{layers[name]}, too"
                raise ValueError(
                    f"layers must have names of their own; got {name!r} for {layer}, which is {taken}: name it by "
                    "NAME=FILE"
                )
            layers[name] = layer
    return layers


def _layers_in(word: str, number: int) -> dict[str, Stored]:
    """Return the layers of a file or folder by their names in it; a single array is called after the file."""
    path, only = split_name(word)
    arrays = arrays_at(path)
    found = {key or path.stem: array for key, array in arrays.items() if only in (None, key)}
    found = {key: array for key, array in found.items() if len(array.shape) == 2 and array.shape[0] == number}
    if not found:
        raise ValueError(
            f"layers must have shape ({number}, dim), one row for each label; got {listed(arrays.values())}"
        )
    return found


def _check_features(features: Stored, number: int) -> None:
    if len(features.shape) > 2:
        raise ValueError(
            f"features must have shape (N, d); got {features}: make one row of each example, by a mean over places"
        )
    if len(features.shape) != 2 or features.shape[0] != number:
        raise ValueError(f"features must have shape ({number}, d), one row for each label; got {features}")


def _read_twice(
    measurement: Measurement, name: str, features: Stored, labels: np.ndarray, progress: Progress
) -> Measurement:
    for take, what in ((measurement.first_pass, "first"), (measurement.second_pass, "second")):
        start = 0
        for piece in features.pieces(chunk_rows(features.shape[1], measurement.num_classes)):
            take(piece, labels[start : start + len(piece)])
            start += len(piece)
            progress.advance(len(piece), f"{what} pass over {name}")
    progress.advance(0, f"computing the numbers of {name}")
    return measurement


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
