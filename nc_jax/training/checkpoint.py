"""Checkpoints by Orbax: written in the background, complete or absent, the last few kept."""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nc_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, numbered by step. A write that a crash interrupts leaves the older ones untouched.

    Args:
        directory: created if it does not exist.
        keep: how many of the newest are kept.
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
        """Copy the state and write it in the background. Saving a step that is there already does nothing."""
        step = int(state.step)
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(_of_this_process(state)))

    def restore(self, like: TrainState) -> TrainState | None:
        """Read the newest checkpoint, or return None if there is none.

        Args:
            like: a state of the same shapes and dtypes (a fresh one).

        Raises:
            ValueError: if the checkpoint is not of a state with the names and shapes of `like`.
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
        """Read the newest checkpoint as nested dicts of arrays, whatever is in it: to take a part of it elsewhere.

        Raises:
            FileNotFoundError: if there is none.
        """
        step = self.latest_step
        if step is None:
            raise FileNotFoundError(f"there must be a checkpoint to read from; got none in {self._manager.directory}")
        found: Any = self._manager.restore(step, args=ocp.args.StandardRestore())
        return found

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _of_this_process(state: TrainState) -> TrainState:
    """With several processes, the state as NumPy arrays: each has all of it, and Orbax has the first one write it."""
    return state if jax.process_count() == 1 else jax.device_get(state)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(getattr(tree, "tree", tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
