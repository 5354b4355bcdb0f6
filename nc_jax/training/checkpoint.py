"""Checkpoints by Orbax: written in the background, either complete or absent; only the newest few are kept."""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nc_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, numbered by step. If a crash interrupts a write, the older checkpoints stay valid.

    Args:
        directory: folder of the checkpoints, created if it does not exist.
        keep: number of checkpoints to keep; older ones are deleted.

    Raises:
        ValueError: if `keep` is below 1.
    """

    def __init__(self, directory: Path, *, keep: int = 2):  # the newest, and one to fall back on
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file at level INFO
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Copy the state and write it in the background. Does nothing if the newest checkpoint is of the same step."""
        step = int(state.step)
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(_of_this_process(state)))

    def restore(self, like: TrainState) -> TrainState | None:
        """Read the newest checkpoint, or return None if there is none.

        Args:
            like: a state of the same names, shapes and dtypes, usually a new one from `create_state`.

        Raises:
            ValueError: if names or shapes in the checkpoint differ from those of `like`.
        """
        step = self.latest_step
        if step is None:
            return None
        expected, found = _shapes(like), _shapes(self._manager.item_metadata(step))
        if found != expected:
            name = sorted(set(found.items()) ^ set(expected.items()))[0][0]
            there, here = (shapes.get(name, "absent") for shapes in (found, expected))
            raise ValueError(
                "a checkpoint must have the shapes of the state that it is restored to; "
                f"{name} is {there} in {self._manager.directory / str(step)} and {here} here"
            )
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _of_this_process(like))
        restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
        return restored

    def read(self) -> dict[str, Any]:
        """Read the newest checkpoint as nested dicts of arrays. Use it to take parts of a state into another model.

        Raises:
            FileNotFoundError: if there is no checkpoint.
        """
        step = self.latest_step
        if step is None:
            raise FileNotFoundError(f"there must be a checkpoint to read from; got none in {self._manager.directory}")
        found: Any = self._manager.restore(step, args=ocp.args.StandardRestore())
        return found

    def close(self) -> None:
        """Wait until all checkpoints are on disk, and end the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _of_this_process(state: TrainState) -> TrainState:
    """Return the state; with several processes as NumPy arrays, because each holds all of it and only one writes."""
    return state if jax.process_count() == 1 else jax.device_get(state)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(getattr(tree, "tree", tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
