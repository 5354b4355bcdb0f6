"""The training loop, `Trainer.fit`, that every experiment calls."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from nc_jax.checks import check_at_least
from nc_jax.data import Batch, ExampleSource, LabelledArrays, check_fit, class_names_of, decoding_of
from nc_jax.files import exclusive
from nc_jax.heads import HeadOutput
from nc_jax.metrics import ClassStatistics
from nc_jax.streams import Epochs, Stream, eval_batches, read
from nc_jax.training.checkpoint import Checkpoints, leaves_by_name
from nc_jax.training.evaluate import Evaluated, Evaluation, Source, make_evaluator
from nc_jax.training.fingerprint import describe
from nc_jax.training.logging import MetricsLog
from nc_jax.training.outputs import make_outputs
from nc_jax.training.parallel import AXIS, Devices, check_divisible, data_parallel, replicate, replicated
from nc_jax.training.preemption import Preemption
from nc_jax.training.resident import ResidentSet, belongs_on_devices, resident_steps, without_loops
from nc_jax.training.running import Running, Watch, unreported, watch_nothing
from nc_jax.training.runs import (
    Facts,
    Predictions,
    check_same_run,
    describe_run,
    exported,
    make_program,
    predictions_of,
    supersede,
)
from nc_jax.training.state import Model, TrainState, create_state, key_of
from nc_jax.training.step import StepMaker, StepOptions, make_train_step
from nc_jax.training.summary import EpochTotals

# Examples that an evaluation sees at once, at least: batches of ten would take it ten times as long.
EVALUATED_TOGETHER = 256


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
        ValueError: if epochs, batch_size, checkpoint_every, keep_checkpoints, evaluate_every or threads is not a whole
            number of at least 1.
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
            check_at_least(name, getattr(self, name))
        check_at_least("devices", self.devices, optional=True)


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
        rounds: makes every step a round of federated learning (`nc_jax.federated.Rounds`), with `optimizer` and `step`
            for the local steps of clients. Their batches are those of the stream, so `options.batch_size` counts in
            evaluation only. None: plain steps.

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
        rounds: StepMaker | None = None,
    ):
        local = jax.local_devices()
        if options.devices is not None and not 1 <= options.devices <= len(local):
            raise ValueError(f"devices must lie in 1..{len(local)}, the local ones; got {options.devices}")
        self.initialise = initialise
        self.devices = list(local[: options.devices] if devices is None else devices)
        self.rounds = rounds
        # Clients cut the batches of their local steps themselves.
        self._parts = parts = step.accumulate if rounds is None else 1
        if rounds is None:
            check_divisible(options.batch_size, self._all_devices, parts)
        else:
            rounds.check(self._all_devices)
        self.evaluated_together = -(-EVALUATED_TOGETHER // options.batch_size) * options.batch_size
        self.model, self.optimizer, self.options, self.step_options = model, optimizer, options, step
        self._init = jax.jit(model.init)
        self.no_steps = jax.jit(EpochTotals.zero, out_shardings=replicated(self.devices))
        make_step = make_train_step if rounds is None else rounds.make_step
        pure_step = make_step(model, optimizer, axis_name=AXIS, options=step)
        self.step = data_parallel(pure_step, devices=self.devices, donate=True, parts=parts)
        pieces = None
        if rounds is not None and self._all_devices == 1:  # a round has a loop, over the local steps of clients
            pieces = rounds.make_pieces(model, optimizer, options=step)
            self.step = without_loops(self.step, pieces, self.devices)
        self.segment = resident_steps(
            lambda state, _, batch: pure_step(state, batch),
            devices=self.devices,
            donate=True,
            parts=parts,
            pieces=pieces,
        )
        self._output_of = Evaluated(model, step)
        self.evaluate = make_evaluator(self._output_of, devices=self.devices, slow=options.slow_metrics)
        self._outputs = make_outputs(self._output_of)
        # Number of classes of the model and its stored form, by shape and dtype of the inputs.
        self._programs: dict[Any, tuple[int, bytes | None]] = {}

    def init(self, train_set: ExampleSource, seed: int) -> TrainState:
        """Return the initial state of a run, on the devices; the first training example gives the input's shape.

        Raises:
            ValueError: if the seed is not a whole number in 0..2^64-1.
        """
        inputs: Any = train_set.take(np.zeros(1, np.int64)).inputs
        if self.step_options.preprocess is not None:
            inputs = self.step_options.preprocess(jnp.asarray(inputs))
        state = create_state(
            self.model,
            self.optimizer if self.rounds is None else self.rounds.server(),
            key_of(seed),
            inputs,
            average=self.step_options.average_decay is not None,
            initialise=self.initialise,
            init=self._init,
            extensions=self.step_options.extensions,
        )
        if self.rounds is not None:
            state = self.rounds.begin(state, train_set, self.optimizer)
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
        restart: bool = False,
        on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
        watch: Watch = watch_nothing,
    ) -> Trained:
        """Train from the newest sound checkpoint, or from the start, to the end of the stream.

        A run is a function of its options and seed. If it is interrupted anywhere and `fit` is called again with the
        same arguments, it ends in the same state. A run belongs to everything that decides it: seed, model, optimiser,
        step options, stream and data. With other ones, `fit` refuses to go on. More epochs continue a run, as long as
        nothing else depends on their number. The log gets one line for every evaluated epoch (segment of the stream);
        the line of epoch 0 describes the initial state.

        Args:
            train_set: the training examples.
            test_set: the examples on which every evaluation tests.
            seed: determines the initial state and the order of the examples, in 0..2^64-1.
            run: name of this run in the log, and of the folder of its checkpoints in the subfolder "checkpoints".
            directory: directory of the experiment.
            log: receives the metrics.
            stream: which examples make up which step; None uses every example once per epoch.
            restart: start anew. What the run has saved so far is moved to the subfolder "superseded".
            on_epoch: called as on_epoch(epoch, metrics) after every evaluation, to show progress.
            watch: called as watch(state, evaluation on the training set, evaluation on the test set) after every
                evaluation. It returns further numbers by name, which the log keeps with the others.

        Returns:
            The final state and its evaluations.

        Raises:
            BusyError: if another process trains this run.
            CheckpointError: if a checkpoint cannot be written, or there are checkpoints and none is sound.
            NonFiniteError: if a step produced a NaN or an infinity. The last finite state is saved first.
            PreemptedError: if the process received SIGTERM. The state after the current step is saved first; for a
                resident set, the state after at most about half a second of steps.
            ValueError: if the devices cannot share the stream's batches equally; if the rounds of clients are not those
                of the stream; if the run was begun with other settings or has been trained for more steps than are
                asked for; if the two sets or the model do not fit each other; if the seed is out of its range; if
                `options.resident` is True but a set is not in memory or there are several processes.
            UnequalDevicesError: if the devices hold different states after the first step.
        """
        options, folder = self.options, directory / "checkpoints" / run
        stream = self.stream(train_set) if stream is None else stream
        self.check_stream(stream)
        if self.rounds is not None:
            self.rounds.check_stream(stream, train_set)
        state = self.init(train_set, seed)
        facts, program = self._facts(state, train_set, test_set, stream, seed)
        sources = self._sources(train_set, test_set)
        writer = log if jax.process_index() == 0 else None
        with contextlib.ExitStack() as stack:
            if writer is not None:
                folder.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(folder.parent / f".{run}.lock", f"run {run!r} in {directory}"))
                if restart:
                    supersede(folder)
            if restart and jax.process_count() > 1:
                multihost_utils.sync_global_devices("the old checkpoints are out of the way")
            check_same_run(run, folder, facts)
            checkpoints = stack.enter_context(Checkpoints(folder, keep=options.keep_checkpoints))
            found = checkpoints.restore(state)
            state = state if found is None else found
            step = int(state.step)
            if step > facts.steps:
                raise ValueError(
                    f"run {run!r} must be asked for at least the {step} steps that it has been trained for; got "
                    f"{facts.steps}, which is {len(stream.ends)} epochs (give it another name, or restart it)"
                )
            if writer is not None:
                describe_run(run, folder, facts, program)
                # The lines after the checkpoint will be written again; before the first checkpoint, all of them.
                writer.rewind(run, -1 if found is None else step - unreported(state, stream))
            running = Running(
                trainer=self,
                stream=stream,
                seed=seed,
                train_set=train_set,
                sources=sources,
                run=run,
                folder=folder,
                log=writer,
                on_epoch=on_epoch,
                watch=watch,
                checkpoints=checkpoints,
                preemption=stack.enter_context(Preemption()),
                state=state,
            )
            evaluations = running.to_the_end(resumed=found is not None)
        return Trained(running.state, *evaluations)

    def stream(self, train_set: ExampleSource) -> Epochs:
        """Return the stream that `fit` uses by default: every example once per epoch."""
        options = self.options
        return Epochs(train_set, options.batch_size, options.epochs, options.stratified)

    def check_stream(self, stream: Stream) -> None:
        """Raise a ValueError unless the devices can share the stream's batches equally."""
        check_divisible(stream.batch_size, self._all_devices, self._parts)

    def outputs(self, state: TrainState, examples: ExampleSource) -> Iterator[tuple[HeadOutput, Batch]]:
        """Apply the model to every example once, in order, on one device.

        Yields:
            The head's output and the batch. The last batch may end with padding, for which `Batch.mask` is False.
        """
        return self._outputs(state, eval_batches(examples, self.evaluated_together, threads=self.options.threads))

    def predict(self, state: TrainState, examples: ExampleSource | Any) -> Predictions:
        """Classify examples, or new inputs.

        Args:
            state: a trained state.
            examples: a set of examples, or stored inputs of shape (N, ...), like those of the training set.

        Returns:
            Labels (N,) and probabilities (N, K). Without a set, the class names are the class numbers; `load_run` knows
            the names of the training set.

        Raises:
            ValueError: if there is no example.
        """
        named = isinstance(examples, ExampleSource)
        source = examples if named else LabelledArrays(examples, np.zeros(len(examples), np.int32), 1)
        found = [batch.without_padding(output.logits) for output, batch in self.outputs(state, source)]
        logits = np.concatenate(found)
        names = class_names_of(examples) if named else tuple(map(str, range(logits.shape[1])))
        return predictions_of(logits, names)

    @property
    def _all_devices(self) -> int:
        """Number of devices of all processes."""
        return len(self.devices) * jax.process_count()

    def _sources(self, *sets: ExampleSource) -> list[Source]:
        """Return where sets of examples are read from: from the devices, or by functions that read batches."""
        kept: Any = [one for one in sets if belongs_on_devices(one, self.options.resident)]
        placed = ResidentSet.side_by_side(kept, self.evaluated_together, devices=self.devices)
        there = dict(zip(map(id, kept), placed, strict=True))
        how = {"threads": self.options.threads, **_share()}
        return [there.get(id(one)) or partial(eval_batches, one, self.evaluated_together, **how) for one in sets]

    def read(self, train_set: ExampleSource, stream: Stream, seed: int, start: int) -> Iterator[Batch]:
        """Read this process's share of the batches of a stream, from step `start` on."""
        return read(
            train_set,
            stream,
            seed=seed,
            start_step=start,
            parts=self._parts,
            threads=self.options.threads,
            **_share(),
        )

    def _facts(
        self, state: TrainState, train_set: ExampleSource, test_set: ExampleSource, stream: Stream, seed: int
    ) -> tuple[Facts, bytes | None]:
        """Return what describes a run, and the stored form of its model; refuse sets and models that do not fit."""
        example = check_fit(train_set, test_set)
        known = example.shape[1:], example.dtype
        if known not in self._programs:
            program = make_program(self._output_of, state)
            arrays = leaves_by_name(self._output_of.parts(state))
            logits = jax.eval_shape(program, arrays, example)["logits"]
            self._programs[known] = logits.shape[-1], exported(program, arrays, example)
        num_classes, stored = self._programs[known]
        if num_classes != train_set.num_classes:
            raise ValueError(
                f"the head must have the {train_set.num_classes} classes of the training set; got {num_classes}"
            )
        decides = {
            "seed": seed,
            "training set": train_set,
            "test set": test_set,
            "stream": stream,
            "model": self.model,
            "optimizer": self.optimizer,
            "step": self.step_options,
            "initialise": self.initialise,
        }
        if self.rounds is not None:
            decides["rounds"] = self.rounds
        facts = Facts(
            steps=stream.ends[-1],
            class_names=class_names_of(train_set),
            input_shape=example.shape[1:],
            input_dtype=str(example.dtype),
            fingerprint=describe(decides),
            decoding=decoding_of(test_set),
        )
        return facts, stored


def _share() -> dict[str, Any]:
    """Return the arguments of `read` that select this process's part of every batch."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
