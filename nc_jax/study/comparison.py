"""Comparisons: every group trained with every seed, as rows on disk that resume."""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nc_jax.streams import Stream
from nc_jax.study.config import fingerprint
from nc_jax.study.data import Data
from nc_jax.study.ledger import Ledger
from nc_jax.study.programs import shared_programs
from nc_jax.study.progress import Progress
from nc_jax.study.settings import Comparison, Group, expand
from nc_jax.study.trainers import SPLITS, data_of, epochs_of, held_out_parts, make_stream, make_trainer, of_run
from nc_jax.training import MetricsLog, NonFiniteError, Trained, Trainer, read_metrics
from nc_jax.training.running import Watch, watch_nothing

# A process that keeps the programs of more groups than this may run out of memory maps, of which Linux allows 65,530.
KEPT_PROGRAMS = 4
MOST_IN_ROWS = 100  # classes up to which a row holds the whole confusion matrix


class Run(NamedTuple):
    """A finished run, for what an experiment measures beside the usual.

    Attributes:
        group: the group (row of the table) of the run.
        seed: seed of the run.
        name: name of the run in the log.
        trainer: the compiled steps that trained it.
        trained: the final state and its evaluations.
        data: the data set that it was trained on.
        history: the lines of the log that belong to it.
        stream: which examples made up which step.
    """

    group: Group
    seed: int
    name: str
    trainer: Trainer
    trained: Trained
    data: Data
    history: list[dict[str, Any]]
    stream: Stream


Found = dict[str, Any]  # what a run reached: numbers by name, and whatever pictures need
Measure = Callable[[Run], Found]
# (compiled steps, data set of the run, settings) -> what the training loop asks for further numbers of the log.
Watching = Callable[[Trainer, Data, Comparison], Watch]


class Results(NamedTuple):
    """What a comparison found.

    Attributes:
        rows: what each seed reached, in the order of the seeds, by case and row of the table.
        groups: the runs behind each row, by case.
        chosen: what each group has chosen on held-out examples, by the name of its run without the seed: settings by
            dotted name, none if nothing is chosen.
    """

    rows: dict[str, dict[str, list[Found]]]
    groups: dict[str, list[Group]]
    chosen: dict[str, dict[str, float]]

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each group, by the same name."""
        every = itertools.chain(*self.groups.values())
        return {one.name: one.at(self.chosen[one.name]).settings.optimizer.learning_rate for one in every}

    def values(self, case: str) -> dict[str, dict[str, list[float]]]:
        """Return the numbers of a case, by row and metric, one per seed; NaN where a run diverged."""
        found: dict[str, dict[str, list[float]]] = {}
        for label, runs in self.rows[case].items():
            names = dict.fromkeys(name for run in runs for name, value in run.items() if _is_number(value))
            found[label] = {name: [float(run.get(name, math.nan)) for run in runs] for name in names}
        return found

    def runs(self, case: str) -> dict[str, list[str]]:
        """Return the names of the runs behind each row."""
        return {group.label: [group.run(seed) for seed in range(group.settings.seeds)] for group in self.groups[case]}


def nothing(run: Run) -> Found:
    """Measure nothing besides the usual."""
    del run
    return {}


def watch_nothing_of(trainer: Trainer, data: Data, settings: Comparison) -> Watch:
    """Add no numbers to the log."""
    del trainer, data, settings
    return watch_nothing


def silent(group: Group, found: list[Found]) -> None:
    """Say nothing."""
    del group, found


def compare(
    config: Comparison,
    directory: Path,
    *,
    measure: Measure = nothing,
    watching: Watching = watch_nothing_of,
    score: str = "test/error",
    after: Callable[[Group, list[Found]], None] = silent,
) -> Results:
    """Train every group with every seed, and go on where an earlier attempt stopped.

    Args:
        config: the settings, which say what to compare.
        directory: directory of the run.
        measure: finds out about a finished run what `usual` does not. A value under "also" holds further rows of
            the table: numbers by name, by label.
        watching: finds out further numbers at every evaluation.
        score: name of the number that decides between learning rates; less is better.
        after: called when all seeds of a group are done.

    Returns:
        What `usual` and `measure` found of each run.

    Raises:
        NonFiniteError: if every run diverges, or training diverges at every learning rate.
    """
    groups = expand(config)
    every = list(itertools.chain(*groups.values()))
    epochs = {group.name: epochs_of(group) for group in every}
    total = sum((g.settings.seeds + len(g.settings.candidates()) * SPLITS) * epochs[g.name] for g in every)
    found: dict[str, list[Found]] = {}
    chosen: dict[str, dict[str, float]] = {}
    with shared_programs(), Session(directory, total, measure, watching) as session:
        for number, group in enumerate(every, start=1):
            data, settings = data_of(group.settings), group.settings
            chosen[group.name] = session.choose(group, data, score, epochs[group.name])
            trained = group.at(chosen[group.name])
            build = functools.cache(functools.partial(make_trainer, trained, data))
            found[group.name] = [
                session.train(trained, data, build, seed, group.run(seed), epochs[group.name])
                for seed in range(settings.seeds)
            ]
            after(group, found[group.name])
            build.cache_clear()
            if number % KEPT_PROGRAMS == 0:
                jax.clear_caches()
    runs = [run for one in found.values() for run in one]
    if all(run["diverged"] for run in runs):
        raise NonFiniteError(runs[0]["diverged"])
    rows: dict[str, dict[str, list[Found]]] = {case: {} for case in groups}
    for group in every:
        runs = found[group.name]
        rows[group.case][group.label] = runs
        for label in dict.fromkeys(label for run in runs for label in run.get("also", {})):
            rows[group.case][label] = [run.get("also", {}).get(label, {}) for run in runs]
    return Results(rows, groups, chosen)


class Session:
    """The training of a comparison: its log, its ledger, its progress. Use it in a `with` block.

    A row of results.jsonl is a finished run. A run that diverges is a row as well, without numbers.

    Args:
        directory: directory of the run.
        total: epochs of all runs together, for the progress.
        measure: finds out about a finished run what `usual` does not.
        watching: finds out further numbers at every evaluation.
    """

    def __init__(self, directory: Path, total: int, measure: Measure = nothing, watching: Watching = watch_nothing_of):
        self.directory, self.measure, self.watching = directory, measure, watching
        self.ledger = Ledger(directory / "results.jsonl")
        self.log, self.bar = MetricsLog(directory), Progress(total, "epochs")

    def __enter__(self) -> "Session":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)
        self.log.close()

    def train(self, group: Group, data: Data, build: Callable[[], Trainer], seed: int, name: str, epochs: int) -> Found:
        """Return what a run reached: out of the ledger, or by training it.

        Args:
            group: the group (row of the table) of the run.
            data: the data set to train on.
            build: () -> the compiled steps; called if something is to be trained.
            seed: seed of the run.
            name: name of the run in the log.
            epochs: epochs of the run, those of all tasks together, for the progress.
        """
        seen = 0

        def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
            nonlocal seen
            self.bar.advance(max(epoch - seen, 0), f"{name}, test accuracy {metrics['test/accuracy']:.3f}")
            seen = max(epoch, seen)

        def compute() -> Found:
            self.bar.advance(0, f"{name}: compiling, and the first epoch")
            trainer, own = build(), of_run(data, group.settings, seed)
            stream = make_stream(group, own)
            options: Any = {"seed": seed, "run": name, "directory": self.directory, "log": self.log}
            options |= {"stream": stream, "restart": group.settings.restart, "on_epoch": on_epoch}
            options["watch"] = self.watching(trainer, own, group.settings)
            try:
                trained = trainer.fit(own.train, own.test, **options)
            except NonFiniteError as error:
                return {"diverged": str(error)}
            history = [row for row in read_metrics(self.log.path) if row["run"] == name]
            run = Run(group, seed, name, trainer, trained, own, history, stream)
            return usual(run) | self.measure(run)

        key = {"case": group.case, "variant": group.variant, "method": group.method, "seed": seed, "run": name}
        key["settings"] = decides(group.settings, data)
        # Of several processes the first one writes; all train.
        found = self.ledger.once(key, compute, write=jax.process_index() == 0)
        self.bar.advance(epochs - seen, name)
        return found

    def choose(self, group: Group, data: Data, score: str, epochs: int) -> dict[str, float]:
        """Return the candidate settings with the best score on examples held out of the training set.

        Each candidate trains on three quarters of the training set and is judged on the last one, for `SPLITS` draws of
        it. A candidate with which training diverges is the worst.

        Args:
            group: the group whose candidates are tried.
            data: the data set; only its training set is used.
            score: name of the number that decides; less is better.
            epochs: epochs of a run, for the progress.

        Raises:
            NonFiniteError: if training diverges with every candidate.
        """
        candidates, scores = group.settings.candidates(), []
        if not candidates:
            return {}
        parts = held_out_parts(data, group.settings)
        for candidate in candidates:
            tried, name = group.at(candidate), f"{group.name}-{told(candidate, '', '-')}"
            build = functools.cache(functools.partial(make_trainer, tried, parts[0]))
            found = [
                self.train(tried, part, build, split, f"{name}-split{split}", epochs)
                for split, part in enumerate(parts)
            ]
            values = [math.inf if run["diverged"] or math.isnan(run[score]) else run[score] for run in found]
            scores.append(statistics.fmean(values))
            # A process cannot hold the programs of all rates of all methods: LLVM runs out of memory maps.
            build.cache_clear()
            jax.clear_caches()
        best = int(np.argmin(scores))
        if not math.isfinite(scores[best]):
            tried = "; ".join(told(candidate) for candidate in candidates)
            raise NonFiniteError(f"training of {group.label} must converge with one of the settings {tried}; got none")
        return candidates[best]


def decides(settings: Comparison, data: Data) -> str:
    """Return a hash of all that decides a run besides its method and its seed.

    Where the data and the tree lie does not: a run may be moved, and two trees of one file name are two trees.
    """
    of_data = dataclasses.replace(settings.data, tree=None, data_dir=None)
    tree = None if data.tree is None else (data.tree.nodes, data.tree.parents)
    content = (data.class_names, len(data.train), len(data.test), tree)
    settings = dataclasses.replace(settings, data=of_data)
    return fingerprint(settings.fingerprint("methods", "seeds", "rates", "radii", "cases", "grid"), content)


def usual(run: Run) -> Found:
    """Return what every comparison wants to know of a run.

    Returns:
        The final metrics ("train/loss", "test/accuracy", ...); "accuracy_epoch_1"; "epochs_to_target", NaN where it was
        not reached; "seconds_per_epoch", the median; "solve_status", the worst of all steps; for every class
        "class_accuracy", and for up to `MOST_IN_ROWS` classes "confusion" and "class_names", as the data set numbers
        them; and "diverged", "" unless it did.
    """
    history = sorted(run.history, key=lambda row: row["epoch"])
    trained = [row for row in history if row["epoch"] > 0]
    target, seconds = run.group.settings.target_accuracy, [row["step/seconds"] for row in trained]
    test = run.trained.test
    found: Found = {
        "diverged": "",
        **{f"train/{name}": value for name, value in run.trained.train.metrics.items()},
        **{f"test/{name}": value for name, value in run.trained.test.metrics.items()},
        "test/error": 1 - run.trained.test.metrics["accuracy"],
        "accuracy_epoch_1": next((row["test/accuracy"] for row in trained if row["epoch"] == 1), math.nan),
        "epochs_to_target": next((row["epoch"] for row in history if row["test/accuracy"] >= target), math.nan),
        "seconds_per_epoch": statistics.median([s for s in seconds if math.isfinite(s)] or [math.nan]),
        "solve_status": max((int(row["step/solve_status"]) for row in trained), default=0),
    }
    if test.confusion is not None and test.class_accuracy is not None:
        found["class_accuracy"] = run.data.as_numbered(np.asarray(test.class_accuracy)).tolist()
        if len(test.confusion) <= MOST_IN_ROWS:
            found["confusion"] = run.data.as_numbered(np.asarray(test.confusion)).tolist()
            found["class_names"] = run.data.as_numbered(np.asarray(run.data.class_names)).tolist()
    return found


def mean_confusion(runs: Sequence[Found]) -> np.ndarray | None:
    """Return the sum of the runs' confusion matrices; None where there are none."""
    matrices = [run["confusion"] for run in runs if "confusion" in run]
    return np.sum(np.array(matrices), axis=0) if matrices else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def told(candidate: Mapping[str, float], space: str = " ", between: str = ", ") -> str:
    """Return candidate settings in words, such as "rate 0.1, radius 2"."""
    return between.join(
        f"{name.rpartition('_')[2].rpartition('.')[2]}{space}{value:g}" for name, value in candidate.items()
    )
