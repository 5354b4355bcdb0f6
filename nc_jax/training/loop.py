"""The training loop: one readable function that every experiment calls."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nc_jax.data import ExampleSource, LabelledArrays, batches, eval_batches, steps_per_epoch
from nc_jax.metrics import ClassStatistics
from nc_jax.models import HeadOutput
from nc_jax.training.checkpoint import Checkpoints
from nc_jax.training.evaluate import Evaluation, Source, make_evaluator, make_outputs
from nc_jax.training.logging import MetricsLog
from nc_jax.training.parallel import AXIS, Devices, check_divisible, data_parallel, replicate
from nc_jax.training.preemption import PreemptedError, Preemption
from nc_jax.training.resident import ResidentSet, fits, resident_steps
from nc_jax.training.state import Model, TrainState, create_state
from nc_jax.training.step import Batch, StepOptions, make_train_step
from nc_jax.training.summary import EpochTotals


class NonFiniteError(FloatingPointError):
    """Training met a NaN or an infinity. The last good state has been saved."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step on all devices of all processes together.
        stratified: spread each class evenly over the batches of an epoch.
        checkpoint_every: epochs between checkpoints; the last epoch always ends with one.
        keep_checkpoints: how many of the newest are kept.
        evaluate_every: epochs between evaluations; the last epoch always ends with one.
        slow_metrics: evaluate also the metrics that decompose d x d matrices (0.1 s at d = 512, 24 s at d = 2048 on two
            CPU cores), see `nc_jax.training.Evaluation`.
        resident: keep the sets on the devices and run every epoch as one program (on a CPU not for networks with
            convolutions, see `nc_jax.training.resident`); None does so for sets that are small
            (`nc_jax.training.resident.LIMIT`), in a single process. The result is the same.
        threads: that read, and decode, the examples of sets that are not resident.
        step: what a step does, see `nc_jax.training.StepOptions`.

    Raises:
        ValueError: if a number is below 1.
    """

    epochs: int
    batch_size: int
    stratified: bool = False
    checkpoint_every: int = 5  # a crash costs at most this many epochs; saving takes longer than a digits epoch does
    keep_checkpoints: int = 2  # the newest, and one to fall back on
    evaluate_every: int = 1
    slow_metrics: bool = False
    resident: bool | None = None
    threads: int = 1
    step: StepOptions = field(default_factory=StepOptions)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every", "keep_checkpoints", "evaluate_every", "threads"):
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
        initialise: see `create_state`.

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
        initialise: Callable[[Any, Any], Any] | None = None,
    ):
        self.initialise = initialise
        self.devices = list(jax.local_devices() if devices is None else devices)
        parts, total = options.step.accumulate, len(self.devices) * jax.process_count()
        check_divisible(options.batch_size, total * parts)
        self.model, self.optimizer, self.options = model, optimizer, options
        self._init = jax.jit(model.init)
        step = make_train_step(model, optimizer, axis_name=AXIS, options=options.step)
        self.step = data_parallel(step, devices=self.devices, donate=True, parts=parts)
        self.epoch = resident_steps(
            lambda state, _, batch: step(state, batch), devices=self.devices, donate=True, parts=parts
        )
        self.evaluate = make_evaluator(
            model, devices=self.devices, preprocess=options.step.preprocess, slow=options.slow_metrics
        )
        self._outputs = make_outputs(model, preprocess=options.step.preprocess)

    def init(self, train_set: ExampleSource, seed: int) -> TrainState:
        """Return the initial state of a run."""
        features: Any = train_set.take(np.zeros(1, np.int64))["features"]
        if self.options.step.preprocess is not None:
            features = self.options.step.preprocess(jnp.asarray(features))
        average = self.options.step.average_decay is not None
        state = create_state(
            self.model,
            self.optimizer,
            jax.random.key(seed),
            features,
            average=average,
            initialise=self.initialise,
            init=self._init,
        )
        return replicate(state, self.devices)

    def fit(
        self,
        train_set: ExampleSource,
        test_set: ExampleSource,
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
            PreemptedError: if SIGTERM came; the state after the current step (of a resident set: epoch) is saved first.
        """
        options = self.options
        folder = directory / "checkpoints" / run
        epoch_steps = steps_per_epoch(len(train_set), options.batch_size)
        total_steps = options.epochs * epoch_steps
        writer = log if jax.process_index() == 0 else None
        sources = self._source(train_set), self._source(test_set)
        with Checkpoints(folder, keep=options.keep_checkpoints) as checkpoints, Preemption() as preemption:
            state = self.init(train_set, seed)
            resumed = checkpoints.restore(state)
            if resumed is not None:
                state = resumed
            if writer is not None:
                # A run that was killed before its first checkpoint has lines, too, and starts again.
                writer.drop_after(run, -1 if resumed is None else int(state.step))
            evaluation = None
            if int(state.step) in (0, total_steps):
                evaluation = self._report(
                    state,
                    sources,
                    run,
                    int(state.step) // epoch_steps,
                    {},
                    writer if resumed is None else None,
                    on_epoch,
                )
            stream = None
            while int(state.step) < total_steps:
                began, stopping = time.perf_counter(), False
                epoch, done = divmod(int(state.step), epoch_steps)
                if isinstance(sources[0], ResidentSet):
                    order = sources[0].shuffled(seed, epoch, stratified=options.stratified)
                    state = self.epoch(state, None, sources[0].content, order[done:])
                    stopping = preemption.requested((epoch + 1) * epoch_steps)
                else:
                    stream = stream or self._stream(train_set, seed, int(state.step), total_steps)
                    for step in range(epoch * epoch_steps + done, (epoch + 1) * epoch_steps):
                        state, _ = self.step(state, next(stream))
                        stopping = preemption.requested(step + 1)
                        if stopping:
                            break
                trained = jax.device_get(state.totals).summary()
                trained["seconds"] = time.perf_counter() - began
                if not trained["finite"]:
                    state = state.replace(totals=replicate(EpochTotals.zero(), self.devices))
                    checkpoints.save(state)
                    raise NonFiniteError(
                        f"training needs finite numbers; {run} met a NaN or an infinity in epoch {epoch + 1}, "
                        f"and the last good state (step {int(state.step)}) is in {folder}"
                    )
                if int(state.step) == (epoch + 1) * epoch_steps:
                    state = state.replace(totals=replicate(EpochTotals.zero(), self.devices))
                    if (epoch + 1) % options.evaluate_every == 0 or epoch + 1 == options.epochs:
                        evaluation = self._report(state, sources, run, epoch + 1, trained, writer, on_epoch)
                if stopping or (epoch + 1) % options.checkpoint_every == 0 or epoch + 1 == options.epochs:
                    checkpoints.save(state)
                if stopping and int(state.step) < total_steps:
                    raise PreemptedError(f"{run} was asked to stop; step {int(state.step)} is saved in {folder}")
        assert evaluation is not None, "the last epoch ends with one"
        return Trained(state, evaluation.statistics)

    def outputs(self, state: TrainState, examples: ExampleSource) -> Iterator[tuple[HeadOutput, jax.Array]]:
        """Apply the model to every example once, in order, on one device.

        Yields:
            The head's output and the labels of a batch; padding, at the end, has labels -1.
        """
        return self._outputs(state, eval_batches(examples, self.options.batch_size, threads=self.options.threads))

    def _source(self, examples: ExampleSource) -> Source:
        """Where evaluation, and training on small sets, read a set from."""
        resident, alone = self.options.resident, jax.process_count() == 1
        if resident and not (alone and isinstance(examples, LabelledArrays)):
            raise ValueError(
                f"resident sets must be in memory, in a single process; got {examples!r} in {jax.process_count()}"
            )
        if alone and isinstance(examples, LabelledArrays) and (fits(examples) if resident is None else resident):
            return ResidentSet(examples, self.options.batch_size, devices=self.devices)
        return lambda: eval_batches(examples, self.options.batch_size, threads=self.options.threads, **_share())

    def _stream(self, train_set: ExampleSource, seed: int, start: int, stop: int) -> Iterator[Batch]:
        return batches(
            train_set,
            self.options.batch_size,
            seed=seed,
            stratified=self.options.stratified,
            start_step=start,
            num_steps=stop - start,
            parts=self.options.step.accumulate,
            threads=self.options.threads,
            **_share(),
        )

    def _report(
        self,
        state: TrainState,
        sources: tuple[Source, Source],
        run: str,
        epoch: int,
        trained: dict[str, float],
        log: MetricsLog | None,
        on_epoch: Callable[[int, dict[str, float]], None],
    ) -> Evaluation:
        """Evaluate on both sets and tell the log, unless it has the line already, and the caller."""
        evaluation = self.evaluate(state, sources[0], collapse=True)
        test = self.evaluate(state, sources[1], collapse=True, centres=evaluation.statistics)
        metrics = {f"train/{name}": value for name, value in evaluation.metrics.items()}
        metrics |= {f"test/{name}": value for name, value in test.metrics.items()}
        metrics |= {f"step/{name}": float(value) for name, value in trained.items()}
        if log is not None:
            log.write(run, int(state.step), epoch, metrics)
        on_epoch(epoch, metrics)
        return evaluation


def _share() -> dict[str, Any]:
    """Which part of every batch this process reads."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
