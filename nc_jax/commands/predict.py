"""Predict: the classes, probabilities and features that a trained run gives to new images, or to an array.

Usage: nc-jax predict RUN INPUT [--run NAME] --out FILE

RUN is the directory of a run, or the folder of one run's checkpoints. If the directory holds several runs (seeds,
methods), --run names one: nearest-seed0, for instance. INPUT is an image, a folder of images, which may lie in folders
below it, or a .npy or .npz file with an array of inputs like those that the run was trained on. Images are decoded as
the run decoded those that it was tested on; if those were in memory, new images must have their size.

FILE ends in
  .csv   file, class, probability, and the next four classes with theirs
  .json  the same as objects
  .npz   the arrays labels, probabilities, features, files and class_names
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from nc_jax.files import check_new_file
from nc_jax.study.cli import parse
from nc_jax.study.predicted import ENDINGS, Part, write_predictions
from nc_jax.study.progress import Progress

ARRAYS = (".npy", ".npz")
IN_NPZ = "inputs"  # the array of an .npz file that holds several


@dataclasses.dataclass(frozen=True)
class Config:
    """What to predict, and from which run.

    Attributes:
        directory: directory of a run, or folder of one run's checkpoints.
        input: an image, a folder of images, or an array in a .npy or .npz file (there "inputs", if it holds several).
        out: file to write, which must not exist yet; its ending says what it holds.
        run: name of the run in the directory; None if there is only one.
    """

    directory: tyro.conf.Positional[Path]
    input: tyro.conf.Positional[Path]
    out: Path
    run: str | None = None


def main(words: Sequence[str]) -> None:
    """Write the predictions of a run."""
    config = parse(Config, words, header=__doc__)
    check_new_file(config.out, ENDINGS)
    if not config.input.exists():
        raise FileNotFoundError(f"an image, a folder of images or an array is needed; got no {config.input}")
    from nc_jax.training import load_run  # with all that reads a run

    run = load_run(config.directory, config.run)
    if config.input.suffix in ARRAYS and config.input.is_file():
        total, chunks = _from_array(run, config.input)
    else:
        total, chunks = _from_images(run, config.input)
    with Progress(total, "inputs") as progress:
        parts = _predicted(run, chunks, progress)
        about = {"run": str(config.directory), "name": config.run, "step": run.step}
        write_predictions(config.out, parts, total=total, class_names=run.class_names, about=about)
    print(f"predictions for {total:,} inputs by the run after step {run.step:,} are in {config.out}")


def _predicted(run: Any, chunks: Iterator[tuple[list[str], np.ndarray]], progress: Progress) -> Iterator[Part]:
    from nc_jax.training.runs import predictions_of

    for names, inputs in chunks:
        found = run.outputs(inputs)
        for what, values in (("inputs", inputs), ("logits", found["logits"]), ("features", found["features"])):
            finite = np.isfinite(values).reshape(len(names), -1).all(axis=1)
            if not finite.all():
                raise ValueError(f"{what} must be finite; got NaN or an infinity for {names[int(finite.argmin())]}")
        yield Part(names, predictions_of(found["logits"], run.class_names).probabilities, found["features"])
        progress.advance(len(names), names[-1])


def _from_array(run: Any, path: Path) -> tuple[int, Iterator[tuple[list[str], np.ndarray]]]:
    """Return the number of inputs in a file, and the inputs in chunks, named by their numbers."""
    from nc_jax.data.decoding import readable
    from nc_jax.training.runs import BATCH

    with readable(f"array {path}"):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                names = file.files
                if IN_NPZ not in names and len(names) != 1:
                    raise ValueError(f"{len(names)} arrays ({', '.join(names)}), of which none is called {IN_NPZ}")
                array = file[IN_NPZ if IN_NPZ in names else names[0]]
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    run.check_inputs(array.shape, array.dtype)
    starts = range(0, len(array), BATCH)
    return len(array), (
        ([str(number) for number in range(start, min(start + BATCH, len(array)))], array[start : start + BATCH])
        for start in starts
    )


def _from_images(run: Any, path: Path) -> tuple[int, Iterator[tuple[list[str], np.ndarray]]]:
    """Return the number of images, and their decoded pixels in chunks, named by their paths below the folder."""
    from nc_jax.data import folders
    from nc_jax.data.decoding import read_header
    from nc_jax.streams import eval_batches
    from nc_jax.training.runs import BATCH

    files = folders.images_in(path) if path.is_dir() else [path]
    source = run.images(files)
    if source.size is None:
        height, width = run.facts.input_shape[:2]
        for file in files:
            header = read_header(file)
            # A camera may ask for a quarter turn.
            if (header.width, header.height) not in ((width, height), (height, width)):
                raise ValueError(
                    f"images must have the {width} x {height} pixels of those that the run was trained on; "
                    f"got {header.width} x {header.height} of {file}"
                )
    elif not path.is_dir():
        read_header(path)
    names = [str(file.relative_to(path)) if path.is_dir() else file.name for file in files]
    return len(files), _decoded(eval_batches(source, min(BATCH, len(files)), threads=_cores()), names)


def _decoded(batches: Any, names: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    start = 0
    for batch in batches:
        pixels = batch.inputs[batch.mask]
        yield names[start : start + len(pixels)], pixels
        start += len(pixels)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
