"""Checkpoints by Orbax: written in the background, complete or absent, and verified when they are read."""

import logging
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from nc_jax.checks import check_at_least
from nc_jax.files import free_name
from nc_jax.training.fingerprint import content_of

Tree = TypeVar("Tree")
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class Checkpoints:
    """The checkpoints of one run, numbered by step. If a crash interrupts a write, the older checkpoints stay valid.

    A checkpoint holds its own step and a checksum of every array. It is independent of the number of devices.

    Args:
        directory: folder of the checkpoints, created if it does not exist.
        keep: number of checkpoints to keep; older ones are deleted.

    Raises:
        ValueError: if `keep` is below 1.
    """

    def __init__(self, directory: Path, *, keep: int = 2):  # the newest, and one to fall back on
        check_at_least("keep", keep)
        self.directory = directory.absolute()
        self._manager = _manager(self.directory, max_to_keep=keep, cleanup_tmp_directories=True)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, readable or not; None if there is none."""
        return next(steps_in(self.directory), None)

    def save(self, state: Any) -> None:
        """Copy the state and write it in the background. Does nothing if there is a checkpoint of the same step.

        Raises:
            CheckpointError: if this checkpoint, or the one before, cannot be written.
        """
        step = int(state.step)
        if step in {self._manager.latest_step(), *steps_in(self.directory)}:  # one being written, or one on the disk
            return
        # Copies, because the next step reuses the memory of the state. NumPy arrays, because a checkpoint of arrays on
        # devices can be read on as many devices only.
        arrays = jax.tree.map(np.array, jax.device_get(state))
        facts = {"step": step, "checksums": {name: _checksum(leaf) for name, leaf in leaves_by_name(arrays).items()}}
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts))
        self._guarded(lambda: self._manager.save(step, args=items, force=True))

    def restore(self, like: Tree) -> Tree | None:
        """Read the newest checkpoint that is sound, or return None if there is no checkpoint.

        A damaged checkpoint that is newer than a sound one is renamed, never deleted, and a warning names it.

        Args:
            like: a state of the same names, shapes and dtypes, usually a new one from `create_state`. The result lies
                on its devices.

        Raises:
            CheckpointError: if there are checkpoints, and none is sound.
            ValueError: if names or shapes in the checkpoint differ from those of `like`.
        """
        found, step, damaged = _newest(self._manager, self.directory)
        if found is None:
            return None
        expected = leaves_by_name(like)
        shapes, wanted = ({name: np.shape(leaf) for name, leaf in tree.items()} for tree in (found, expected))
        if shapes != wanted:
            name = sorted(set(shapes.items()) ^ set(wanted.items()))[0][0]
            there, here = (tree.get(name, "absent") for tree in (shapes, wanted))
            raise ValueError(
                "a checkpoint must have the shapes of the state that it is restored to; "
                f"{name} is {there} in {self.directory / str(step)} and {here} here"
            )
        self._set_aside(damaged)
        placed = [_placed(found[name], leaf) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(like), placed)

    def close(self) -> None:
        """Wait until all checkpoints are on disk, and end the background threads.

        Raises:
            CheckpointError: if a checkpoint could not be written.
        """
        try:
            self._guarded(self._manager.wait_until_finished)
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _guarded(self, write: Any) -> None:
        """Call a function that writes; explain in one sentence why it failed."""
        try:
            write()
        except Exception as error:  # Orbax raises errors of many kinds
            left = next(steps_in(self.directory), None)
            kept = "no checkpoint is left there" if left is None else f"the newest one there is of step {left}"
            raise CheckpointError(
                f"a checkpoint must be written to {self.directory}; got {_cause(error)} ({kept})"
            ) from error

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Rename damaged checkpoints, so that newer ones can take their numbers."""
        if not damaged:
            return
        if jax.process_count() > 1:  # every process must have read before one of them renames
            multihost_utils.sync_global_devices("damaged checkpoints are read")
        for step, cause in damaged.items():
            path = self.directory / str(step)
            if jax.process_index() == 0:
                aside = free_name(path.with_name(f"{path.name}.damaged"))
                path.rename(aside)
                _log.warning("checkpoint %s cannot be used (%s); it is now called %s", path, cause, aside.name)
        if jax.process_count() > 1:  # and none may list them before they are renamed
            multihost_utils.sync_global_devices("damaged checkpoints are renamed")
        self._manager.reload()


def read_checkpoint(directory: Path) -> dict[str, Any]:
    """Read the newest sound checkpoint of a run as nested dicts of NumPy arrays. Nothing in the folder is changed.

    Args:
        directory: folder of the checkpoints of a run.

    Returns:
        The fields of `TrainState` by name. Tuples in it are dicts, too, with the keys "0", "1" and so on.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CheckpointError: if there are checkpoints, and none is sound.
    """
    if next(steps_in(directory), None) is None:
        raise FileNotFoundError(f"there must be a checkpoint to read from; got none in {directory}")
    with _manager(directory.absolute(), read_only=True) as manager:
        found, _, damaged = _newest(manager, directory.absolute())
    for step, cause in damaged.items():
        _log.warning("checkpoint %s cannot be used (%s)", directory / str(step), cause)
    nested: dict[str, Any] = {}
    for name, leaf in (found or {}).items():
        *above, last = name.split("/")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = leaf
    return nested


class _DamagedError(Exception):
    """A checkpoint cannot be read, or is not what was written."""


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports every file, and failures with all their causes
    _silence_readers()
    handlers = {"state": ocp.StandardCheckpointHandler(), "facts": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, item_handlers=handlers, options=ocp.CheckpointManagerOptions(**options))


def steps_in(directory: Path) -> Iterator[int]:
    """Yield the steps that have a checkpoint, the newest first."""
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    steps = {int(name) for name in names if name.isascii() and name.isdigit()}
    yield from sorted((step for step in steps if str(step) in names), reverse=True)


def _newest(manager: Any, directory: Path) -> tuple[dict[str, np.ndarray] | None, int, dict[int, str]]:
    """Return the arrays of the newest sound checkpoint by name, its step, and what is wrong with newer ones."""
    damaged: dict[int, str] = {}
    for step in steps_in(directory):
        try:
            return _read(manager, step), step, damaged
        except _DamagedError as error:
            damaged[step] = str(error)
    if damaged:
        causes = "; ".join(f"{step}: {cause}" for step, cause in damaged.items())
        raise CheckpointError(f"one of the checkpoints in {directory} must be sound to go on; got {causes}")
    return None, 0, damaged


def _read(manager: Any, step: int) -> dict[str, np.ndarray]:
    items = ocp.args.Composite(state=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore())
    try:
        found = manager.restore(step, args=items)
        leaves, facts = leaves_by_name(jax.tree.map(np.asarray, found["state"])), found["facts"]
        written, checksums = facts["step"], facts["checksums"]
    except Exception as error:  # Orbax raises errors of many kinds
        raise _DamagedError(_cause(error)) from error
    if written != step:
        raise _DamagedError(f"it is a copy of step {written}")
    here = {name: _checksum(leaf) for name, leaf in leaves.items()}
    if here != checksums:
        name = next(name for name in {**checksums, **here} if here.get(name) != checksums.get(name))
        raise _DamagedError(f"{name} is not what was written")
    return leaves


def _silence_readers() -> None:
    """Keep quiet about the reads that are still under way when one of them fails.

    Orbax ends its event loop after the first failure. Each of the other reads then reports an error of its own when it
    ends, in a thread of TensorStore, where no one can catch it.
    """
    report = sys.unraisablehook
    if getattr(report, "silences_readers", False):
        return

    def hook(unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            report(unraisable)

    hook.silences_readers = True  # pyright: ignore[reportFunctionMemberAccess]
    sys.unraisablehook = hook


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree under the names that they have in a checkpoint, such as "params/head/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _placed(array: np.ndarray, like: Any) -> Any:
    """Return the array on the devices of `like`, in its dtype."""
    return jax.device_put(array, like.sharding) if isinstance(like, jax.Array) else array


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(content_of(array), zlib.crc32(f"{array.dtype} {array.shape}".encode()))


def _cause(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
