"""One call of `Trainer.fit`: the steps between two reports, what is saved when, and how a run ends early."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nc_jax.data import Batch
from nc_jax.streams import Plan, Stream, locate
from nc_jax.training.checkpoint import Checkpoints
from nc_jax.training.evaluate import Evaluation, Source
from nc_jax.training.logging import MetricsLog
from nc_jax.training.parallel import check_equal_on_devices
from nc_jax.training.preemption import PreemptedError, Preemption, StopRequestedError
from nc_jax.training.resident import ResidentSet, padded
from nc_jax.training.state import TrainState

# Steps of a resident set run in pieces, and the host looks between two of them whether to stop. The first piece has so
# many steps, which is a whole epoch of a small set; the next ones as many as take half a second. Schedulers give 30 s.
FIRST_PACE = 8
PACE_SECONDS = 0.5

MOST_NAMED = 10  # clients in a warning

_log = logging.getLogger(__name__)


# (state, evaluation on the training set, evaluation on the test set) -> further numbers for the log, by name.
Watch = Callable[[TrainState, Evaluation, Evaluation], dict[str, float]]


def watch_nothing(state: TrainState, train: Evaluation, test: Evaluation) -> dict[str, float]:
    """Add no numbers to the log."""
    del state, train, test
    return {}


class NonFiniteError(FloatingPointError):
    """Training produced a NaN or an infinity. The last finite state has been saved."""


@dataclass
class Running:
    """A run that is being trained. All that changes is `state`, and what is saved and logged of it.

    The totals in the state say where a run stands: they are zero after the report of an epoch. A run that ends between
    the last step of an epoch and its report therefore starts with the report when it goes on.

    Attributes:
        trainer: the compiled steps.
        stream: which examples make up which step.
        seed: seed of the stream.
        train_set: the training examples.
        sources: where the training examples and the test examples are read from.
        run: name of the run.
        folder: folder of its checkpoints.
        log: receives the metrics; None in all processes but the first.
        on_epoch: called after every evaluation.
        watch: called after every evaluation, for further numbers.
        checkpoints: the checkpoints in the folder.
        preemption: tells when to stop.
        state: the state to go on from.
    """

    trainer: Any
    stream: Stream
    seed: int
    train_set: Any
    sources: Sequence[Source]
    run: str
    folder: Path
    log: MetricsLog | None
    on_epoch: Callable[[int, dict[str, float]], None]
    watch: Watch
    checkpoints: Checkpoints
    preemption: Preemption
    state: TrainState
    _batches: Iterator[Batch] | None = None
    _pace: int = FIRST_PACE
    _checked: bool = False
    _dropped: Any = None  # in how many rounds each client was left out, as of the last warning; None without clients

    def to_the_end(self, *, resumed: bool) -> tuple[Evaluation, Evaluation]:
        """Train the rest of the stream, and return the last evaluations on the training set and on the test set.

        Args:
            resumed: whether the state comes from a checkpoint.

        Raises:
            NonFiniteError: if a step produced a NaN or an infinity.
            PreemptedError: if the process was asked to stop.
        """
        evaluations, began, segments = None, math.nan, len(self.stream.ends)
        self._warn_of_clients()  # of none, because it counts from here
        try:
            if self.step == 0 or (self.step == self.stream.ends[-1] and not self.unreported):
                # A finished run is evaluated for its result, not for its log.
                evaluations = self._report({}, 0 if self.step == 0 else segments, write=not resumed)
            while True:
                if self.unreported:
                    epoch = self.stream.ends.index(self.step) + 1
                    trained = self._summary(epoch) | {"seconds": time.perf_counter() - began}
                    last = epoch == segments
                    if epoch % self.trainer.options.evaluate_every == 0 or last:
                        evaluations = self._report(trained, epoch)
                    self._reset_totals()
                    if epoch % self.trainer.options.checkpoint_every == 0 or last:
                        self._save()
                if self.step == self.stream.ends[-1]:
                    assert evaluations is not None, "the last epoch ends with one"
                    return evaluations
                self.preemption.check()
                segment, done = locate(self.stream, self.step)
                began = math.nan if done else time.perf_counter()  # nobody knows how long the steps before a stop took
                self._train_segment()
                # A step that is not finite keeps the old state, its number too.
                if self.step != self.stream.ends[segment]:
                    self._summary(segment + 1)
        except StopRequestedError:
            segment, _ = locate(self.stream, max(self.step - 1, 0))
            self._summary(segment + 1)
            self._save()
            raise PreemptedError(f"{self.run} was asked to stop; step {self.step} is saved in {self.folder}") from None

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return int(self.state.step)

    @property
    def unreported(self) -> bool:
        """Whether an epoch has ended whose report is not written yet."""
        return unreported(self.state, self.stream)

    def _train_segment(self) -> None:
        """Train to the end of the current epoch."""
        start = self.step
        segment, done = locate(self.stream, start)
        if isinstance(self.sources[0], ResidentSet):
            plan = self.stream.plan(self.seed, segment)
            self._train_resident(self.sources[0], padded(plan), done, len(plan.index))
            return
        batches = self._batches or self.trainer.read(self.train_set, self.stream, self.seed, start)
        self._batches = batches
        for step in range(start, self.stream.ends[segment]):
            self.state, _ = self.trainer.step(self.state, next(batches))
            self._after(step + 1)

    def _train_resident(self, source: ResidentSet, plan: Plan, done: int, rows: int) -> None:
        """Train the rows done..rows-1 of a plan, in pieces of about `PACE_SECONDS`."""
        start = self.step - done
        while done < rows:
            began, ahead = time.perf_counter(), min(done + self._pace, rows)
            self.state = self.trainer.segment(self.state, None, source.content, plan, done, ahead)
            if ahead < rows:
                jax.block_until_ready(self.state.step)
                seconds = time.perf_counter() - began
                self._pace = max(int(self._pace * min(PACE_SECONDS / seconds, 2)), 1)
            done = ahead
            self._after(start + done)

    def _after(self, step: int) -> None:
        """After a step: see that all devices agree (once), and whether to stop."""
        if not self._checked:
            check_equal_on_devices(self.state)
            self._checked = True
        self.preemption.check(step)

    def _summary(self, epoch: int) -> dict[str, float]:
        """Return what the steps of an epoch reported. If they were not all finite, save the state and raise."""
        trained = jax.device_get(self.state.totals).summary()
        if not trained["finite"]:
            self._reset_totals()
            self._save()
            lacking = trained["without_class"]
            met = f"{lacking} labels that are no class" if lacking else "a NaN or an infinity"
            # One finite client is enough for a round; the step of the server's optimiser must be finite, too.
            where = f"epoch {epoch}"
            if self._dropped is not None:
                where = f"round {epoch}, from all of its clients or in the step of the server"
            raise NonFiniteError(
                f"training needs finite numbers and labels that are classes; {self.run} met {met} in {where}, "
                f"and the last good state (step {self.step}) is in {self.folder}"
            )
        return trained

    def _warn_of_clients(self) -> None:
        """Say which clients were left out of rounds since the last time, or since the run began to train."""
        if self.state.clients is None:
            return
        dropped = np.array(jax.device_get(self.state.clients.dropped))  # a copy, because steps donate their state
        new = dropped - (dropped if self._dropped is None else self._dropped)
        self._dropped = dropped
        clients = np.flatnonzero(new).tolist()
        said = [f"client {one} in {new[one]} round{'s' * int(new[one] > 1)}" for one in clients[:MOST_NAMED]]
        if len(clients) > MOST_NAMED:
            said.append(f"{len(clients) - MOST_NAMED} more")
        if said:
            _log.warning(
                "%s left out clients that sent a NaN or an infinity, or had labels that are no class: %s",
                self.run,
                ", ".join(said),
            )

    def _report(self, trained: dict[str, float], epoch: int, *, write: bool = True) -> tuple[Evaluation, Evaluation]:
        """Evaluate on both sets, write a line to the log and call `on_epoch`."""
        self._warn_of_clients()
        train, test = (_interruptible(source, self.preemption) for source in self.sources)
        evaluation = self.trainer.evaluate(self.state, train, collapse=True)
        tested = self.trainer.evaluate(self.state, test, collapse=True, centres=evaluation.statistics)
        metrics = {f"train/{name}": value for name, value in evaluation.metrics.items()}
        metrics |= {f"test/{name}": value for name, value in tested.metrics.items()}
        metrics |= {f"step/{name}": float(value) for name, value in trained.items()}
        metrics |= self.watch(self.state, evaluation, tested)
        if self.log is not None and write:
            self.log.write(self.run, self.step, epoch, metrics)
        self.on_epoch(epoch, metrics)
        return evaluation, tested

    def _reset_totals(self) -> None:
        self.state = self.state.replace(totals=self.trainer.no_steps())

    def _save(self) -> None:
        if self.log is not None:
            self.log.sync()  # a checkpoint must not be newer than the lines before it
        self.checkpoints.save(self.state)


def unreported(state: TrainState, stream: Stream) -> bool:
    """Return whether the state is that of an ended epoch whose report is not written yet."""
    return int(state.totals.steps) > 0 and int(state.step) in stream.ends


def _interruptible(source: Source, preemption: Preemption) -> Source:
    """Let the reading of an evaluation stop when the process is asked to."""
    if isinstance(source, ResidentSet):
        return source  # soon over

    def batches() -> Iterable[Batch]:
        for batch in source():
            preemption.check()
            yield batch

    return batches
