"""The training loop, `Trainer.fit`, that every experiment calls."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nc_jax.data import Batch, ExampleSource, LabelledArrays
from nc_jax.heads import HeadOutput
from nc_jax.metrics import ClassStatistics
from nc_jax.streams import Epochs, Stream, eval_batches, local_rows, locate, read
from nc_jax.training.checkpoint import Checkpoints
from nc_jax.training.evaluate import Evaluation, Source, make_evaluated, make_evaluator, make_outputs
from nc_jax.training.logging import MetricsLog
from nc_jax.training.parallel import AXIS, Devices, check_divisible, data_parallel, replicate
from nc_jax.training.preemption import PreemptedError, Preemption
from nc_jax.training.resident import ResidentSet, fits, resident_steps
from nc_jax.training.state import Model, TrainState, create_state
from nc_jax.training.step import StepOptions, make_train_step
from nc_jax.training.summary import EpochTotals


class NonFiniteError(FloatingPointError):
    """Training produced a NaN or an infinity. The last finite state has been saved."""


@dataclass(frozen=True)
class LoopOptions:
    """How long to train, and what happens between the steps.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step on all devices of all processes together.
        stratified: spread each class evenly over the batches of an epoch. This needs the labels in memory.
        checkpoint_every: number of epochs between two checkpoints. A checkpoint is always written after the last epoch.
        keep_checkpoints: number of checkpoints to keep; older ones are deleted.
        evaluate_every: number of epochs between two evaluations. The last epoch is always evaluated.
        slow_metrics: evaluate also "vci", "rank_means" and "effective_rank_means" (see `nc_jax.training.Evaluation`),
            which decompose d x d matrices for features of dimension d: 0.1 s at d = 512, 24 s at d = 2048 on two CPU
            cores.
        resident: keep the training and test sets on the devices and run every epoch as one compiled program. (On a CPU,
            networks with convolutions still run step by step, which is faster there.) None does this in a single
            process for sets of at most 256 MiB of inputs. The results do not depend on this setting.
        threads: number of threads that read and decode examples, for sets that are not resident on the devices.
        devices: number of local devices to use; None uses all.

    Raises:
        ValueError: if epochs, batch_size, checkpoint_every, keep_checkpoints, evaluate_every or threads is below 1.
    """

    epochs: int = 20
    batch_size: int = 128
    stratified: bool = False
    checkpoint_every: int = 5  # not 1: writing a checkpoint takes longer than an epoch on the digits
    keep_checkpoints: int = 2  # the newest, and one to fall back on
    evaluate_every: int = 1
    slow_metrics: bool = False
    resident: bool | None = None
    threads: int = 1
    devices: int | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every", "keep_checkpoints", "evaluate_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


class Trained(NamedTuple):
    """What training returns: the final state, and its evaluation on the training set and on the test set."""

    state: TrainState
    train: Evaluation
    test: Evaluation

    @property
    def statistics(self) -> ClassStatistics:
        """Class statistics of the training features."""
        return self.train.statistics


class Trainer:
    """A model with its compiled steps. Share one `Trainer` between runs that differ in the seed: it compiles once.

    Args:
        model: maps (inputs, labels, train=..., mask=...) to a `HeadOutput`.
        optimizer: an optax transformation.
        options: length of the training, and what happens between its steps.
        step: what a training step does besides gradient and optimiser.
        devices: local devices to use; None takes the first `options.devices` of them.
        initialise: (params, key) -> params, replaces the initial parameters that the model has drawn; None keeps them.

    Raises:
        ValueError: if `options.devices` exceeds the number of local devices, or if the batch size is not a multiple of
            the number of devices of all processes times `step.accumulate`.
    """

    def __init__(
        self,
        model: Model,
        optimizer: optax.GradientTransformation,
        options: LoopOptions,
        *,
        step: StepOptions = StepOptions(),
        devices: Devices = None,
        initialise: Callable[[Any, Any], Any] | None = None,
    ):
        local = jax.local_devices()
        if options.devices is not None and not 1 <= options.devices <= len(local):
            raise ValueError(f"devices must lie in 1..{len(local)}, the local ones; got {options.devices}")
        self.initialise = initialise
        self.devices = list(local[: options.devices] if devices is None else devices)
        parts, total = step.accumulate, len(self.devices) * jax.process_count()
        check_divisible(options.batch_size, total, parts)
        self.model, self.optimizer, self.options, self.step_options = model, optimizer, options, step
        self._init = jax.jit(model.init)
        pure_step = make_train_step(model, optimizer, axis_name=AXIS, options=step)
        self.step = data_parallel(pure_step, devices=self.devices, donate=True, parts=parts)
        self.segment = resident_steps(
            lambda state, _, batch: pure_step(state, batch), devices=self.devices, donate=True, parts=parts
        )
        output_of = make_evaluated(model, step)
        self.evaluate = make_evaluator(output_of, devices=self.devices, slow=options.slow_metrics)
        self._outputs = make_outputs(output_of)

    def init(self, train_set: ExampleSource, seed: int) -> TrainState:
        """Return the initial state of a run, on the devices; the first training example gives the input's shape."""
        inputs: Any = train_set.take(np.zeros(1, np.int64)).inputs
        if self.step_options.preprocess is not None:
            inputs = self.step_options.preprocess(jnp.asarray(inputs))
        state = create_state(
            self.model,
            self.optimizer,
            jax.random.key(seed),
            inputs,
            average=self.step_options.average_decay is not None,
            initialise=self.initialise,
            init=self._init,
            extensions=self.step_options.extensions,
            num_classes=train_set.num_classes,
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
        stream: Stream | None = None,
        on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    ) -> Trained:
        """Train from the newest checkpoint, or from the start, to the end of the stream.

        A run is a function of its options and seed. If it is interrupted anywhere and `fit` is called again with the
        same arguments, it ends in the same state. The log gets one line for every evaluated epoch (segment of the
        stream); the line of epoch 0 describes the initial state.

        Args:
            train_set: the training examples.
            test_set: the examples on which every evaluation tests.
            seed: determines the initial state and the order of the examples.
            run: name of this run in the log, and of the folder of its checkpoints in the subfolder "checkpoints".
            directory: directory of the experiment.
            log: receives the metrics.
            stream: which examples make up which step; None uses every example once per epoch.
            on_epoch: called as on_epoch(epoch, metrics) after every evaluation, to show progress.

        Returns:
            The final state and its evaluations.

        Raises:
            NonFiniteError: if a step produced a NaN or an infinity. The last finite state is saved first.
            PreemptedError: if the process received SIGTERM. The state after the current step is saved first; for a
                resident set, the state after the current epoch.
            ValueError: if `options.resident` is True but a set is not in memory or there are several processes.
        """
        options = self.options
        folder = directory / "checkpoints" / run
        stream = self.stream(train_set) if stream is None else stream
        total_steps, segments = stream.ends[-1], len(stream.ends)
        writer = log if jax.process_index() == 0 else None
        sources = self._source(train_set), self._source(test_set)
        with Checkpoints(folder, keep=options.keep_checkpoints) as checkpoints, Preemption() as preemption:
            state = self.init(train_set, seed)
            resumed = checkpoints.restore(state)
            if resumed is not None:
                state = resumed
            if writer is not None:
                # A run that was killed before its first checkpoint starts again: remove all the lines that it wrote.
                writer.drop_after(run, -1 if resumed is None else int(state.step))
            evaluations = None
            if int(state.step) in (0, total_steps):
                epoch = 0 if int(state.step) == 0 else segments
                evaluations = self._report(
                    state, sources, run, epoch, {}, writer if resumed is None else None, on_epoch
                )
            batches = None
            while int(state.step) < total_steps:
                began, stopping = time.perf_counter(), False
                segment, done = locate(stream, int(state.step))
                end = stream.ends[segment]
                if isinstance(sources[0], ResidentSet):
                    plan = stream.plan(seed, segment)
                    state = self.segment(state, None, sources[0].content, local_rows(plan, slice(done, None)))
                    stopping = preemption.requested(end)
                else:
                    batches = batches or self._read(train_set, stream, seed, int(state.step))
                    for step in range(int(state.step), end):
                        state, _ = self.step(state, next(batches))
                        stopping = preemption.requested(step + 1)
                        if stopping:
                            break
                trained = jax.device_get(state.totals).summary()
                trained["seconds"] = time.perf_counter() - began
                if not trained["finite"]:
                    state = state.replace(totals=replicate(EpochTotals.zero(), self.devices))
                    checkpoints.save(state)
                    raise NonFiniteError(
                        f"training needs finite numbers; {run} met a NaN or an infinity in epoch {segment + 1}, "
                        f"and the last good state (step {int(state.step)}) is in {folder}"
                    )
                last = segment + 1 == segments
                if int(state.step) == end:
                    state = state.replace(totals=replicate(EpochTotals.zero(), self.devices))
                    if (segment + 1) % options.evaluate_every == 0 or last:
                        evaluations = self._report(state, sources, run, segment + 1, trained, writer, on_epoch)
                if stopping or (segment + 1) % options.checkpoint_every == 0 or last:
                    checkpoints.save(state)
                if stopping and int(state.step) < total_steps:
                    raise PreemptedError(f"{run} was asked to stop; step {int(state.step)} is saved in {folder}")
        assert evaluations is not None, "the last epoch ends with one"
        return Trained(state, *evaluations)

    def stream(self, train_set: ExampleSource) -> Epochs:
        """Return the stream that `fit` uses by default: every example once per epoch."""
        options = self.options
        return Epochs(train_set, options.batch_size, options.epochs, options.stratified)

    def outputs(self, state: TrainState, examples: ExampleSource) -> Iterator[tuple[HeadOutput, Batch]]:
        """Apply the model to every example once, in order, on one device.

        Yields:
            The head's output and the batch. The last batch may end with padding, for which `Batch.mask` is False.
        """
        return self._outputs(state, eval_batches(examples, self.options.batch_size, threads=self.options.threads))

    def _source(self, examples: ExampleSource) -> Source:
        """Return where examples are read from: a set on the devices, or a function that reads batches."""
        resident, alone = self.options.resident, jax.process_count() == 1
        if resident and not (alone and isinstance(examples, LabelledArrays)):
            raise ValueError(
                f"resident sets must be in memory, in a single process; got {examples!r} in {jax.process_count()}"
            )
        if alone and isinstance(examples, LabelledArrays) and (fits(examples) if resident is None else resident):
            return ResidentSet(examples, self.options.batch_size, devices=self.devices)
        return lambda: eval_batches(examples, self.options.batch_size, threads=self.options.threads, **_share())

    def _read(self, train_set: ExampleSource, stream: Stream, seed: int, start: int) -> Iterator[Batch]:
        return read(
            train_set,
            stream,
            seed=seed,
            start_step=start,
            parts=self.step_options.accumulate,
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
    ) -> tuple[Evaluation, Evaluation]:
        """Evaluate on both sets, write a line to the log (`log` None: write nothing) and call `on_epoch`."""
        evaluation = self.evaluate(state, sources[0], collapse=True)
        test = self.evaluate(state, sources[1], collapse=True, centres=evaluation.statistics)
        metrics = {f"train/{name}": value for name, value in evaluation.metrics.items()}
        metrics |= {f"test/{name}": value for name, value in test.metrics.items()}
        metrics |= {f"step/{name}": float(value) for name, value in trained.items()}
        if log is not None:
            log.write(run, int(state.step), epoch, metrics)
        on_epoch(epoch, metrics)
        return evaluation, test


def _share() -> dict[str, Any]:
    """Return the arguments of `read` that select this process's part of every batch."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
