"""An experiment is a claim, some presets, and what it measures and draws beside the usual; `run` does the rest."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nc_jax.solvers import Status, describe
from nc_jax.study import heat_maps, plots
from nc_jax.study.cli import open_run
from nc_jax.study.comparison import Found, Measure, Results, compare, mean_confusion, nothing, silent
from nc_jax.study.data import Data
from nc_jax.study.settings import Comparison, Group, slug
from nc_jax.study.tables import Column, Table, comparison_tables, markdown_table, show_table
from nc_jax.study.trainers import check, data_of
from nc_jax.training import read_metrics
from nc_jax.training.logging import write_atomically


class Scene(NamedTuple):
    """A finished case, for those who draw it.

    Attributes:
        case: its name; "" where there is one only.
        results: of all cases.
        directory: where its pictures go.
        log: lines of metrics.jsonl, of all runs.
        columns: of its tables.
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
    def data(self) -> Data:
        """What the first row was trained on."""
        return data_of(self.results.groups[self.case][0].settings)


Picture = Callable[[Scene], str]  # draws into the scene's directory; returns the name of the file, "" without one


def curves(scene: Scene) -> str:
    """Draw the metrics that have a panel against the epochs, mean and standard deviation over seeds."""
    panels = [(column.key, column.panel, column.scale) for column in scene.columns if column.panel is not None]
    plots.curves(scene.directory / "convergence.png", scene.log, scene.results.runs(scene.case), panels)
    return "convergence.png"


def confusions(scene: Scene) -> str:
    """Draw the confusion matrix of every row on the test set, summed over its seeds."""
    found = {label: mean_confusion(runs) for label, runs in scene.rows.items()}
    matrices = {label: matrix for label, matrix in found.items() if matrix is not None}
    if not matrices:
        return ""
    heat_maps.confusion(scene.directory / "confusion.png", matrices, scene.data.class_names)
    return "confusion.png"


def _no_notes(scene: Scene) -> list[str]:
    del scene
    return []


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is an experiment's own.

    Attributes:
        name: of its module.
        columns: the metrics in its tables and plots.
        baseline: name of the method that the others are compared with; None is the first row of each case.
        interval: show 95 % intervals of the mean instead of standard deviations.
        measure: what to find out about a finished run besides the usual.
        score: which number decides between learning rates; less is better.
        pictures: of each case.
        notes: sentences about a case.
        after: called when all seeds of a group are done.
    """

    name: str
    columns: tuple[Column, ...]
    baseline: str | None = None
    interval: bool = False
    measure: Measure = nothing
    score: str = "test/error"
    pictures: tuple[Picture, ...] = (curves, confusions)
    notes: Callable[[Scene], list[str]] = _no_notes
    after: Callable[[Group, list[Found]], None] = silent


def run(experiment: Experiment, config: Comparison) -> dict[str, Any]:
    """Train all that is to be compared; write and show tables and pictures.

    Args:
        experiment: what is its own.
        config: the settings; with `resume`, those of the run are used.

    Returns:
        What summary.json holds: "cases", by case, row and metric a number per seed; "learning_rates"; "notes", by
        case; "directory".

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        NonFiniteError: if all training diverges.
    """
    if config.resume is None:
        check(config)
    directory, config = open_run(experiment.name, config)
    return finish(experiment, config, directory)


def finish(experiment: Experiment, config: Comparison, directory: Path) -> dict[str, Any]:
    """Do what `run` does once the run's directory exists."""
    results = compare(config, directory, measure=experiment.measure, score=experiment.score, after=experiment.after)
    if jax.process_index() > 0:  # the log, and what is made from it, are the first process's
        return {}
    log = read_metrics(directory / "metrics.jsonl")
    summary: dict[str, Any] = {
        "experiment": experiment.name,
        "preset": config.preset,
        "cases": {},
        "class_accuracy": {},
        "learning_rates": results.rates,
        "notes": {},
        "directory": str(directory),
    }
    text = f"# {experiment.name}, preset {config.preset}\n"
    for case in results.rows:
        below = directory / slug(case) if len(results.rows) > 1 else directory
        below.mkdir(exist_ok=True)
        scene = Scene(case, results, below, log, experiment.columns)
        values = results.values(case)
        base = _baseline(experiment, scene)
        tables = comparison_tables(values, experiment.columns, base, interval=experiment.interval)
        title = _title(scene, experiment)
        text += f"\n## {case}\n" if case else ""
        for number, table in enumerate(tables):
            shown = Table(title if number == 0 else table.title, table.columns, table.rows)
            show_table(shown)
            text += f"\n{shown.title}\n\n{markdown_table(shown)}"
        notes = _usual_notes(scene) + experiment.notes(scene)
        for note in notes:
            print(note)
        text += "".join(f"\n{note}\n" for note in notes)
        for picture in experiment.pictures:
            name = picture(scene)
            if name:
                text += f"\n![{name.partition('.')[0]}]({(below / name).relative_to(directory)})\n"
        summary["cases"][case] = values
        summary["class_accuracy"][case] = {
            label: [run.get("class_accuracy") for run in runs] for label, runs in scene.rows.items()
        }
        summary["notes"][case] = notes
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")
    return summary


def _baseline(experiment: Experiment, scene: Scene) -> str | None:
    groups = scene.results.groups[scene.case]
    if len(scene.rows) < 2:
        return None
    if experiment.baseline is None:
        return groups[0].label
    return next((group.label for group in groups if group.method == experiment.baseline), None)


def _title(scene: Scene, experiment: Experiment) -> str:
    settings = scene.results.groups[scene.case][0].settings
    spread = "half width of the 95 % interval" if experiment.interval else "standard deviation"
    what = ", ".join(filter(None, (settings.data.name, settings.data.tree and f"tree {settings.data.tree}")))
    return (
        f"{what}, {settings.backbone.name}, {settings.loop.epochs} epochs, {settings.seeds} seeds: mean ± {spread}; "
        "differences with the p value of a paired t test"
    )


def _usual_notes(scene: Scene) -> list[str]:
    notes = []
    runs = [run for row in scene.rows.values() for run in row]
    worst = max((run["solve_status"] for run in runs if "solve_status" in run), default=0)
    if any("nearest" in group.method for group in scene.results.groups[scene.case]) or worst != Status.CONVERGED:
        notes.append(f"Inner solves of the nearest heads, worst of all steps: {describe(worst)}.")
    for label, runs in scene.rows.items():
        diverged = sum(bool(run.get("diverged")) for run in runs)
        if diverged:
            notes.append(f"{label}: {diverged} of {len(runs)} runs diverged and are left out.")
    rates = {
        group.label: scene.results.rates[group.name]
        for group in scene.results.groups[scene.case]
        if group.settings.rates
    }
    if rates:
        chosen = ", ".join(f"{label} {rate:g}" for label, rate in rates.items())
        notes.append(f"Learning rates, chosen on held-out quarters of the training set: {chosen}.")
    absent = scene.data.absent_classes
    if absent:
        notes.append(f"Classes without a training example, left out of all NC metrics: {list(absent)}.")
    return notes
