"""What is stored with a run beside its checkpoints, and how a run is read back without its program.

The folder of a run's checkpoints also holds run.json (what decides the run, its classes and its inputs) and
model.stablehlo (the model as evaluation runs it, with its preprocessing, as a program of any batch size).
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float, Int

from nc_jax.data import Batch, Decoding
from nc_jax.files import free_name, write_atomically
from nc_jax.training.checkpoint import leaves_by_name, read_checkpoint, steps_in
from nc_jax.training.evaluate import Evaluated
from nc_jax.training.fingerprint import Fingerprint, difference
from nc_jax.training.state import TrainState

if TYPE_CHECKING:
    from nc_jax.data.images import ImageSource

FACTS, PROGRAM = "run.json", "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")  # on which a stored model runs
BATCH = 256  # inputs that a stored model takes at once, so that a large array of images needs little memory

_log = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What a model says about N inputs.

    Attributes:
        labels: predicted classes, shape (N,).
        probabilities: softmax of the logits, shape (N, K).
        class_names: K names.
    """

    labels: Int[np.ndarray, " examples"]
    probabilities: Float[np.ndarray, "examples classes"]
    class_names: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the predicted classes, N of them."""
        return tuple(self.class_names[label] for label in self.labels)


def predictions_of(logits: Float[np.ndarray, "examples classes"], class_names: tuple[str, ...]) -> Predictions:
    """Turn logits into predictions."""
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1))
    return Predictions(np.argmax(logits, axis=-1), probabilities, class_names)


class Facts(NamedTuple):
    """What run.json holds.

    Attributes:
        steps: number of steps that the run was last asked for.
        class_names: K names.
        input_shape: shape of one stored input, before preprocessing.
        input_dtype: dtype of the stored inputs.
        fingerprint: what decides the run, see `nc_jax.training.fingerprint`.
        decoding: how image files became inputs in evaluation; None for inputs that are no images, and in runs that
            were trained before this was written down.
    """

    steps: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    input_dtype: str
    fingerprint: Fingerprint
    decoding: Decoding | None = None


def read_facts(folder: Path) -> Facts | None:
    """Read run.json from the folder of a run's checkpoints; None if there is none.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / FACTS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        shape, names = tuple(found["input_shape"]), tuple(found["class_names"])
        decoding = Decoding(**found["decoding"]) if found.get("decoding") else None
        return Facts(found["steps"], names, shape, found["input_dtype"], dict(found["fingerprint"]), decoding)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must describe a run; got {type(error).__name__}: {error}") from None


def check_same_run(run: str, folder: Path, here: Facts) -> None:
    """Refuse to go on with a run that other settings have begun.

    Args:
        run: name of the run.
        folder: folder of its checkpoints.
        here: what this program is about to train.

    Raises:
        ValueError: if the folder holds a run with another fingerprint, or checkpoints without a description.
    """
    stored = read_facts(folder)
    way_out = "give the run another name, or restart it (restart=True, --restart)"
    if stored is None:
        if next(steps_in(folder), None) is not None:
            raise ValueError(
                f"checkpoints must come with a {FACTS} that describes the run; {folder} has none: {way_out}"
            )
        return
    changed = difference(stored.fingerprint, here.fingerprint)
    if changed:
        raise ValueError(f"run {run!r} in {folder} was begun with other settings: {changed}; {way_out}")


def describe_run(run: str, folder: Path, here: Facts, program: bytes | None) -> None:
    """Write run.json and the model beside the checkpoints of a run, and say if the run is to be longer than before."""
    stored = read_facts(folder)
    if stored is not None and stored.steps != here.steps:
        _log.warning("run %r was planned for %d steps, and now ends after %d", run, stored.steps, here.steps)
    if stored != here:
        decoding = None if here.decoding is None else here.decoding._asdict()
        write_atomically(folder / FACTS, json.dumps(here._asdict() | {"decoding": decoding}, indent=2) + "\n")
    if program is not None and not (folder / PROGRAM).exists():
        write_atomically(folder / PROGRAM, program)


def supersede(folder: Path) -> None:
    """Move the checkpoints of a run that starts anew into the folder "superseded", beside the folder of all runs."""
    if folder.exists():
        place = free_name(folder.parent.parent / "superseded" / folder.name)
        place.parent.mkdir(exist_ok=True)
        folder.rename(place)
        _log.warning("the checkpoints of run %r so far are now in %s", folder.name, place)


def make_program(output_of: Evaluated, state: TrainState) -> Callable[..., dict[str, Any]]:
    """Return the model in evaluation as a function of arrays by name.

    Args:
        output_of: the model in evaluation.
        state: a state of the model.

    Returns:
        A function (arrays of a checkpoint by name, stored inputs (N, ...)) -> {"logits": (N, K), "features": (N, d)}.
    """
    parts = output_of.parts(state)
    names, treedef = list(leaves_by_name(parts)), jax.tree.structure(parts)

    def program(arrays: dict[str, Any], inputs: Any) -> dict[str, Any]:
        here = jax.tree.unflatten(treedef, [arrays[name] for name in names])
        size = inputs.shape[0]
        output = output_of(here, Batch(inputs, jnp.zeros(size, jnp.int32), jnp.ones(size, bool)))
        return {"logits": output.logits, "features": output.features}

    return program


def exported(program: Callable[..., dict[str, Any]], arrays: dict[str, Any], example: np.ndarray) -> bytes | None:
    """Return a program from `make_program` in portable form; None, with a warning, for a model that has no such form.

    Args:
        program: the program.
        arrays: its first argument, arrays by name.
        example: one stored input, shape (1, ...).
    """
    (batch,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(_shape_of, arrays)
    inputs = jax.ShapeDtypeStruct((batch, *example.shape[1:]), jnp.asarray(example).dtype)
    try:
        return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(shapes, inputs).serialize())
    except Exception as error:  # a model may do anything, and training does not need this
        cause = str(error).strip().partition("\n")[0]
        _log.warning("the model cannot be stored with the run, so load_run will not find it (%s)", cause)
        return None


@dataclass(frozen=True)
class LoadedRun:
    """A trained model that was read back.

    Attributes:
        arrays: parameters and other arrays of the model, by name, such as "params/head/kernel".
        model: (arrays, stored inputs (N, ...)) -> {"logits": (N, K), "features": (N, d)}, preprocessing included. A
            JAX function, which can be differentiated and compiled further.
        facts: steps, class names, shape and dtype of the inputs, and what decided the run.
        step: number of steps after which the arrays were saved.
    """

    arrays: dict[str, np.ndarray]
    model: Callable[..., dict[str, Any]]
    facts: Facts
    step: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.facts.class_names

    def outputs(self, inputs: Any) -> dict[str, np.ndarray]:
        """Apply the model to stored inputs, such as images in bytes.

        Args:
            inputs: shape (N, ...) and dtype of the inputs that the run was trained on, see `facts`.

        Returns:
            "logits", shape (N, K), and "features", shape (N, d).

        Raises:
            ValueError: if inputs have another shape or another kind of number, or whole numbers of more bits.
        """
        inputs = np.asarray(inputs)
        self.check_inputs(inputs.shape, inputs.dtype)
        dtype = np.dtype(self.facts.input_dtype)
        inputs = jnp.asarray(inputs, jnp.asarray(np.zeros(0, dtype)).dtype)
        parts = [self.model(self.arrays, inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    def check_inputs(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise a ValueError unless an array of this shape and dtype holds inputs like those of the training set."""
        wanted, known = self.facts.input_shape, np.dtype(self.facts.input_dtype)
        if shape[1:] != wanted or len(shape) != len(wanted) + 1 or not shape[0]:
            raise ValueError(f"inputs must have shape (N, {', '.join(map(str, wanted))}), N >= 1; got {shape}")
        dtype = np.dtype(dtype)
        # Bytes of an image in 16 bits, say, would lose their upper half.
        if dtype.kind != known.kind or (dtype.kind != "f" and not np.can_cast(dtype, known)):
            raise ValueError(f"inputs must have the dtype {known} of the training set; got {dtype}")

    def images(self, files: Sequence[Path]) -> "ImageSource":
        """Return image files as a set, decoded as evaluation decoded those of the run.

        Args:
            files: N image files of any size; of the inputs' size, if those were in memory in training.

        Returns:
            A set of N examples with the label 0. Its `take` reads inputs for `outputs` and `predict`.

        Raises:
            ValueError: if the inputs of the run are no images, or it does not say how it decoded them.
        """
        from nc_jax.data.folders import FolderRecords
        from nc_jax.data.images import ImageSource

        decoding, shape = self.facts.decoding, self.facts.input_shape
        if decoding is None:
            raise ValueError(
                f"image files need a run whose {FACTS} says how it decoded images; got one of inputs of shape "
                f"({', '.join(map(str, shape))}) and dtype {self.facts.input_dtype}, which takes arrays of such inputs"
            )
        records = FolderRecords(files, [0] * len(files))
        names = self.class_names
        return ImageSource(records, decoding.channels, len(names), names, size=decoding.size, stretch=decoding.stretch)

    def predict(self, inputs: Any) -> Predictions:
        """Classify stored inputs; arguments and errors as those of `outputs`."""
        return predictions_of(self.outputs(inputs)["logits"], self.class_names)


def load_run(directory: Path | str, run: str | None = None) -> LoadedRun:
    """Read a trained model back, with its newest sound checkpoint. The program that trained it is not needed.

    Args:
        directory: directory of an experiment, or folder of the checkpoints of one run.
        run: name of the run; None if there is only one.

    Returns:
        The model, its arrays, the class names, and what the inputs look like.

    Raises:
        FileNotFoundError: if there is no such run, no checkpoint, or no stored model.
        ValueError: if there are several runs and none is named, or if a file is damaged.
        CheckpointError: if no checkpoint is sound.

    Example:
        >>> run = load_run("runs/nearest_etf/20260101-120000-default", "nearest-seed0")  # doctest: +SKIP
        >>> run.predict(images).names  # doctest: +SKIP
    """
    folder = _folder_of(Path(directory), run)
    facts = read_facts(folder)
    if facts is None or not (folder / PROGRAM).exists():
        raise FileNotFoundError(f"a run is read back from {FACTS} and {PROGRAM}; got {folder}, without")
    arrays = leaves_by_name(read_checkpoint(folder))
    try:
        program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    except Exception as error:  # flatbuffers and JAX raise errors of many kinds
        raise ValueError(f"{folder / PROGRAM} must be a stored model; got {type(error).__name__}: {error}") from None
    wanted = jax.tree.unflatten(program.in_tree, program.in_avals)[0][0]
    return LoadedRun({name: arrays[name] for name in wanted}, jax.jit(program.call), facts, int(arrays["step"]))


def _folder_of(directory: Path, run: str | None) -> Path:
    if run is None and (directory / FACTS).exists():
        return directory
    names = sorted(path.parent.name for path in (directory / "checkpoints").glob(f"*/{FACTS}"))
    if run is None and len(names) > 1:
        raise ValueError(f"the run must be named, since {directory} has several; got none of {', '.join(names)}")
    if not names or run not in {None, *names}:
        wanted = "a run" if run is None else f"the run {run}"
        raise FileNotFoundError(f"{directory} must hold {wanted}; got {', '.join(names) or 'none'}")
    return directory / "checkpoints" / (run or names[0])


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
