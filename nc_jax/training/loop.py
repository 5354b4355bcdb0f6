"""The training loop: one readable function that every experiment calls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from nc_jax.data import LabelledArrays, batches, eval_batches, steps_per_epoch
from nc_jax.metrics import ClassStatistics
from nc_jax.training.checkpoint import Checkpoints
from nc_jax.training.evaluate import Evaluation, make_evaluator
from nc_jax.training.logging import MetricsLog
from nc_jax.training.parallel import AXIS, Devices, check_divisible, data_parallel
from nc_jax.training.state import Model, TrainState, create_state
from nc_jax.training.step import StepMetrics, make_train_step


class NonFiniteError(FloatingPointError):
    """Training met a NaN or an infinity. The last good state has been saved."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step on all devices together.
        stratified: spread each class evenly over the batches of an epoch.
        checkpoint_every: epochs between checkpoints; the last epoch always ends with one.
        keep_checkpoints: how many of the newest are kept.
    """

    epochs: int
    batch_size: int
    stratified: bool = False
    checkpoint_every: int = 5  # a crash costs at most this many epochs; saving takes longer than a digits epoch does
    keep_checkpoints: int = 2  # the newest, and one to fall back on

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


class Trained(NamedTuple):
    """What training leaves: the state, and the class statistics of the training features in that state."""

    state: TrainState
    statistics: ClassStatistics


class Trainer:
    """A model's compiled steps. Runs that differ in the seed only share one, and compile once.

    Args:
        model: maps (inputs, labels, train=...) to a HeadOutput; its head sums over the axis `parallel.AXIS`.
        optimizer: an optax transformation.
        options: see `LoopOptions`.
        devices: None takes all local ones.

    Raises:
        ValueError: if the devices cannot share a batch equally.
    """

    def __init__(
        self,
        model: Model,
        optimizer: optax.GradientTransformation,
        options: LoopOptions,
        *,
        devices: Devices = None,
    ):
        self.devices = list(jax.local_devices() if devices is None else devices)
        check_divisible(options.batch_size, len(self.devices))
        self.model, self.optimizer, self.options = model, optimizer, options
        self.step = data_parallel(make_train_step(model, optimizer, axis_name=AXIS), devices=self.devices, donate=True)
        self.evaluate = make_evaluator(model, devices=self.devices)

    def init(self, train_set: LabelledArrays, seed: int) -> TrainState:
        """Return the initial state of a run."""
        return create_state(self.model, self.optimizer, jax.random.key(seed), train_set.features[:1])

    def fit(
        self,
        train_set: LabelledArrays,
        test_set: LabelledArrays,
        *,
        seed: int,
        run: str,
        directory: Path,
        log: MetricsLog,
        on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    ) -> Trained:
        """Train from the newest checkpoint, or from the start, to the last epoch.

        A run is a function of its options and seed: interrupted anywhere and called again, it ends in the same state.
        The log gets a line per epoch, the one of epoch 0 being the initial state's.

        Args:
            train_set: what to train on.
            test_set: what to test on, after every epoch.
            seed: of the initial state and of the order of examples.
            run: name of this run in the log and of its folder of checkpoints.
            directory: of the experiment's run.
            log: where the metrics go.
            on_epoch: called with the epoch and its metrics, for a progress bar.

        Returns:
            The final state and statistics.

        Raises:
            NonFiniteError: if a step gave a NaN or an infinity; the last good state is saved first.
        """
        options = self.options
        epoch_steps = steps_per_epoch(len(train_set), options.batch_size)
        with Checkpoints(directory / "checkpoints" / run, keep=options.keep_checkpoints) as checkpoints:
            state = self.init(train_set, seed)
            resumed = checkpoints.restore(state)
            if resumed is not None:
                state = resumed
                log.drop_after(run, int(state.step))
            epoch = int(state.step) // epoch_steps
            stream = batches(
                train_set,
                options.batch_size,
                seed=seed,
                stratified=options.stratified,
                start_step=epoch * epoch_steps,
                num_steps=(options.epochs - epoch) * epoch_steps,
            )
            evaluation = self._report(
                state, train_set, test_set, run, epoch, {}, log if resumed is None else None, on_epoch
            )
            while epoch < options.epochs:
                began = time.perf_counter()
                steps = []
                for _ in range(epoch_steps):
                    state, metrics = self.step(state, next(stream))
                    steps.append(metrics)
                trained = summarise(jax.device_get(steps))
                trained["seconds"] = time.perf_counter() - began
                if not trained["finite"]:
                    checkpoints.save(state)
                    raise NonFiniteError(
                        f"training needs finite numbers; {run} met a NaN or an infinity in epoch {epoch + 1}, "
                        f"and the last good state (step {int(state.step)}) is in {directory / 'checkpoints' / run}"
                    )
                epoch += 1
                evaluation = self._report(state, train_set, test_set, run, epoch, trained, log, on_epoch)
                if epoch % options.checkpoint_every == 0 or epoch == options.epochs:
                    checkpoints.save(state)
        return Trained(state, evaluation.statistics)

    def _report(self, state, train_set, test_set, run, epoch, trained, log, on_epoch) -> Evaluation:
        """Evaluate on both sets and tell the log, unless it has the line already, and the caller."""
        size = self.options.batch_size
        evaluation = self.evaluate(state, lambda: eval_batches(train_set, size), collapse=True)
        test = self.evaluate(state, lambda: eval_batches(test_set, size))
        metrics = {f"train/{name}": value for name, value in evaluation.metrics.items()}
        metrics |= {f"test/{name}": value for name, value in test.metrics.items()}
        metrics |= {f"step/{name}": float(value) for name, value in trained.items()}
        if log is not None:
            log.write(run, int(state.step), epoch, metrics)
        on_epoch(epoch, metrics)
        return evaluation


def summarise(steps: Sequence[StepMetrics]) -> dict[str, float]:
    """Summarise an epoch's steps: means, but the worst status and the largest inner gradient norm."""
    columns = {name: np.array([getattr(step, name) for step in steps]) for name in StepMetrics._fields}
    return {
        "loss": float(columns["loss"].mean()),
        "accuracy": float(columns["accuracy"].mean()),
        "grad_norm": float(columns["grad_norm"].mean()),
        "solve_status": int(columns["solve_status"].max()),
        "solve_grad_norm": float(columns["solve_grad_norm"].max()),
        "finite": bool(columns["finite"].all()),
    }
