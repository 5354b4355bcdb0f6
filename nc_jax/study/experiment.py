"""An experiment is a claim, some presets, and what it measures and draws beside the usual; `run` does the rest."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nc_jax.methods import Method, method
from nc_jax.solvers import Status, describe
from nc_jax.study import heat_maps, plots
from nc_jax.study.comparison import (
    Found,
    Measure,
    Results,
    Watching,
    compare,
    mean_confusion,
    nothing,
    silent,
    told,
    watch_nothing_of,
)
from nc_jax.study.data import Data
from nc_jax.study.progress import say
from nc_jax.study.report import Report
from nc_jax.study.runs import open_run
from nc_jax.study.settings import Comparison, Group, expand, slug
from nc_jax.study.tables import Column, comparison_tables, named
from nc_jax.study.trainers import check, data_of
from nc_jax.study.verdict import verdicts
from nc_jax.training import read_metrics


class Scene(NamedTuple):
    """A finished case, for those who draw it.

    Attributes:
        case: name of the case; "" where there is one only.
        results: results of all cases.
        directory: directory of the pictures.
        log: lines of metrics.jsonl, of all runs.
        columns: metrics of the tables.
    """

    case: str
    results: Results
    directory: Path
    log: list[dict[str, Any]]
    columns: Sequence[Column]

    @property
    def rows(self) -> dict[str, list[Found]]:
        """What each seed of each row reached."""
        return self.results.rows[self.case]

    @property
    def groups(self) -> list[Group]:
        """The runs behind each row."""
        return self.results.groups[self.case]

    @property
    def data(self) -> Data:
        """What the first row was trained on."""
        return data_of(self.groups[0].settings)

    @property
    def looks(self) -> dict[str, plots.Look]:
        """How each row is drawn."""
        known = {group.label: (group.variant, method(group.method).title) for group in self.groups}
        return plots.looks({label: known.get(label, ("", label)) for label in self.rows})

    def found(self, name: str) -> dict[str, list[Any]]:
        """Return what the seeds of each row found under a name; rows and seeds without it are left out."""
        found = {label: [run[name] for run in runs if name in run] for label, runs in self.rows.items()}
        return {label: values for label, values in found.items() if values}

    def path(self, name: str) -> Path:
        """Return the path of a picture."""
        return self.groups[0].settings.picture(self.directory, name)


# Draws, and returns the path of what it has drawn; None where it draws nothing.
Picture = Callable[[Scene], Path | None]


def curves(scene: Scene) -> Path | None:
    """Draw the metrics that have a panel against the epochs, mean and standard deviation over seeds."""
    panels = [(column.key, column.panel, column.scale) for column in scene.columns if column.panel is not None]
    if not panels:
        return None
    path = scene.path("convergence")
    plots.curves(path, scene.log, scene.results.runs(scene.case), panels, look=scene.looks)
    return path


def summary_picture(scene: Scene) -> Path | None:
    """Draw the metrics of the table that are tested: seeds, means and intervals of every row."""
    values = scene.results.values(scene.case)
    tested = [c for c in scene.columns if c.test != "none" and any(c.key in numbers for numbers in values.values())]
    if len(values) < 2 or not tested:
        return None
    panels = {c.title: {row: numbers.get(c.key, ()) for row, numbers in values.items()} for c in tested}
    caption = "a faint point is a seed; the mean with its 95 % interval over seeds"
    path = scene.path("summary")
    plots.points(path, panels, look=scene.looks, caption=caption, scales={c.title: c.scale for c in tested})
    return path


def confusions(scene: Scene) -> Path | None:
    """Draw the confusion matrix of every row on the test set, summed over its seeds."""
    found = {label: mean_confusion(runs) for label, runs in scene.rows.items()}
    matrices = {label: matrix for label, matrix in found.items() if matrix is not None}
    if not matrices:
        return None
    path = scene.path("confusion")
    heat_maps.confusion(path, matrices, scene.data.class_names)
    return path


def _any(settings: Comparison) -> None:
    del settings


def _no_notes(scene: Scene) -> list[str]:
    del scene
    return []


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is an experiment's own.

    Attributes:
        name: name of the experiment's module.
        columns: the metrics in its tables and plots.
        baseline: name of the method that the others are compared with; None is the first row of each case.
        rivals: names of the methods that the verdict compares it with; empty takes all of them.
        pairs: methods, each with one that it is compared with, within each variant of the settings. They take the place
            of the baseline.
        interval: show 95 % intervals of the mean instead of standard deviations.
        measure: finds out about a finished run what `nc_jax.study.comparison.usual` does not.
        watching: finds out further numbers at every evaluation, which the log keeps.
        score: name of the number that decides between learning rates; less is better.
        pictures: what is drawn of each case.
        notes: sentences about a case.
        after: called when all seeds of a group are done.
        check: raises a ValueError for settings of a group that this experiment cannot measure.
    """

    name: str
    columns: tuple[Column, ...]
    baseline: str | None = None
    rivals: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    interval: bool = False
    measure: Measure = nothing
    watching: Watching = watch_nothing_of
    score: str = "test/error"
    pictures: tuple[Picture, ...] = (curves, summary_picture, confusions)
    notes: Callable[[Scene], list[str]] = _no_notes
    after: Callable[[Group, list[Found]], None] = silent
    check: Callable[[Comparison], None] = _any


def run(experiment: Experiment, config: Comparison) -> dict[str, Any]:
    """Train all that is to be compared; write and show tables and pictures.

    Args:
        experiment: what this experiment has of its own.
        config: the settings; with `resume`, those of the run are used.

    Returns:
        What summary.json holds: "cases", by case, row and metric a number per seed; "learning_rates"; "verdicts" and
        "notes", sentences by case; "directory".

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        NonFiniteError: if all training diverges.
    """
    if config.resume is None:
        groups = [group for case in expand(config).values() for group in case]
        for group in groups:
            experiment.check(group.settings)
        check(config)
        for one in _methods(groups):
            if one.caution:
                say(f"{one.title}: {one.caution}")
    with open_run(experiment.name, config) as (directory, config):
        return finish(experiment, config, directory)


def finish(experiment: Experiment, config: Comparison, directory: Path) -> dict[str, Any]:
    """Do what `run` does once the run's directory exists."""
    results = compare(
        config,
        directory,
        measure=experiment.measure,
        watching=experiment.watching,
        score=experiment.score,
        after=experiment.after,
    )
    if jax.process_index() > 0:  # the log, and what is made from it, are the first process's
        return {}
    log = read_metrics(directory / "metrics.jsonl")
    summary: dict[str, Any] = {
        "experiment": experiment.name,
        "preset": config.preset,
        "cases": {},
        "class_accuracy": {},
        "learning_rates": results.rates,
        "verdicts": {},
        "notes": {},
        "directory": str(directory),
    }
    report = Report(directory, f"{experiment.name}, preset {config.preset}")
    for case in results.rows:
        below = directory / slug(case) if len(results.rows) > 1 else directory
        below.mkdir(exist_ok=True)
        columns = named(experiment.columns, results.groups[case][0].settings.target_accuracy)
        scene = Scene(case, results, below, log, columns)
        values, base = results.values(case), _baseline(experiment, scene)
        pairs = _pairs(experiment, scene)
        rivals = _rivals(experiment, scene)
        if base is None:
            compared = [pair for pair in pairs if pair[0] in rivals]
        else:
            compared = [(base, rival) for rival in rivals if rival != base]
        against = {first: [other for one, other in compared if one == first] for first, _ in compared}
        said = [line for first, others in against.items() for line in verdicts(values, columns, first, others)]
        notes = _usual_notes(scene) + experiment.notes(scene)
        if case:
            report.heading(case)
        report.say(said)
        report.tables(
            comparison_tables(values, columns, base, pairs=pairs, what=_what(scene), interval=experiment.interval)
        )
        report.say(notes)
        for picture in experiment.pictures:
            report.picture(picture(scene))
        summary["cases"][case] = values
        summary["class_accuracy"][case] = {
            label: [run.get("class_accuracy") for run in runs] for label, runs in scene.rows.items()
        }
        summary["verdicts"][case], summary["notes"][case] = said, notes
    report.write(summary)
    return summary


def _baseline(experiment: Experiment, scene: Scene) -> str | None:
    if len(scene.rows) < 2 or experiment.pairs:
        return None
    if experiment.baseline is None:
        return scene.groups[0].label
    return next((group.label for group in scene.groups if group.method == experiment.baseline), None)


def _pairs(experiment: Experiment, scene: Scene) -> list[tuple[str, str]]:
    labels = {(group.variant, group.method): group.label for group in scene.groups}
    return [
        (labels[variant, first], labels[variant, second])
        for variant in dict.fromkeys(group.variant for group in scene.groups)
        for first, second in experiment.pairs
        if (variant, first) in labels and (variant, second) in labels
    ]


def _rivals(experiment: Experiment, scene: Scene) -> list[str]:
    chosen = [group.label for group in scene.groups if group.method in experiment.rivals]
    return chosen or list(scene.rows)


def _what(scene: Scene) -> str:
    settings = scene.groups[0].settings
    parts = (settings.data.name, settings.data.tree and f"tree {settings.data.tree}", settings.backbone.name)
    unit = "epochs" if settings.federated.clients is None else "rounds"
    return ", ".join([*filter(None, parts), f"{settings.loop.epochs} {unit}"])


def _methods(groups: Sequence[Group]) -> list[Method]:
    return [method(name) for name in dict.fromkeys(group.method for group in groups)]


def _usual_notes(scene: Scene) -> list[str]:
    notes = []
    runs = [run for row in scene.rows.values() for run in row]
    worst = max((run["solve_status"] for run in runs if "solve_status" in run), default=0)
    if any("nearest" in group.method for group in scene.groups) or worst != Status.CONVERGED:
        notes.append(f"Inner solves of the nearest heads, worst of all steps: {describe(worst)}.")
    for label, runs in scene.rows.items():
        diverged = sum(bool(run.get("diverged")) for run in runs)
        if diverged:
            notes.append(f"{label}: {diverged} of {len(runs)} runs diverged and are left out.")
    notes += [f"{one.title}: {one.caution}." for one in _methods(scene.groups) if one.caution]
    chosen = {group.label: scene.results.chosen[group.name] for group in scene.groups}
    if any(chosen.values()):
        words = "; ".join(f"{label} {told(one)}" for label, one in chosen.items() if one)
        notes.append(f"Chosen on held-out quarters of the training set: {words}.")
    absent = scene.data.absent_classes
    if absent:
        notes.append(f"Classes without a training example, left out of all NC metrics: {list(absent)}.")
    return notes
