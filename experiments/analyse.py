"""What do finished runs say? Statistics and all curves of one run; of several, what differs between them.

Claim     None. It reads what other experiments have written.
Command   python -m experiments.analyse RUN                 (statistics over seeds and every curve; seconds)
          python -m experiments.analyse RUN OTHER_RUN ...   (differences of settings and of results, seed by seed)
Expected  of one run a table of statistics; of several first the settings that differ, then a sentence and tables for
          each method with a paired test over the seeds that the runs have in common
Writes    runs/analyse/<time>-<name>/, or --workdir: config.json, summary.md, summary.json, curves; the runs stay as
          they are
Data      directories of runs of other experiments, runs/nearest_etf/20261126-130000-default for instance.
"""

import dataclasses
import importlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from nc_jax.study import Table, plots
from nc_jax.study.cli import parse
from nc_jax.study.compared import columns_of, common_rows, compared, label, load, settings_table
from nc_jax.study.ends import one_sentence
from nc_jax.study.opened import those_below
from nc_jax.study.report import Report
from nc_jax.study.runs import new_directory, read_document
from nc_jax.study.saved_curves import Curves, curves_of, group_names, panels_of, row_of, with_mismatch
from nc_jax.study.settings import slug
from nc_jax.study.tables import Column
from nc_jax.training import read_metrics


@dataclasses.dataclass(frozen=True)
class Config:
    """What to analyse.

    Attributes:
        runs: directories of finished runs. The first one is what the others are compared with.
        metrics: names of metrics; empty takes those that the experiment's own tables or curves show.
        epoch: of one run, the epoch whose numbers go into the table; None takes the last one.
        unit: what the curves are drawn against.
        workdir: directory of the analysis, which must not exist yet. None makes runs/analyse/<time>-<name>.
        picture_format: file format of the pictures.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    metrics: tuple[str, ...] = ()
    epoch: int | None = None
    unit: Literal["epoch", "step"] = "epoch"
    workdir: Path | None = None
    picture_format: Literal["png", "pdf", "svg"] = "png"


def run(config: Config) -> dict[str, Any]:
    """Analyse one run, or compare several; show and write tables and curves.

    Returns:
        What summary.json holds: of one run "statistics", by metric and row; of several "settings" that differ,
        "verdicts", and the "directory".

    Raises:
        ValueError: if there is no run, or the logs do not have the epoch or a metric.
        FileNotFoundError: if a directory is not that of a run.
        FileExistsError: if the directory of the analysis exists.
    """
    if not config.runs:
        raise ValueError("at least one run's directory is needed; got none")
    return _compare(config) if len(config.runs) > 1 else _statistics(config)


def _directory(config: Config) -> Path:
    """Make the directory of the analysis."""
    return new_directory("analyse", slug("-".join(run.resolve().name for run in config.runs))[:80], config)


# --- Several runs. ---


def _compare(config: Config) -> dict[str, Any]:
    runs = load(config.runs)
    own = getattr(importlib.import_module(f"experiments.{runs[0].experiment}"), "COLUMNS", ())
    columns = columns_of(runs, config.metrics, own)
    rows = common_rows(runs)
    if not rows:
        has = "; ".join(f"{run.name} has ({'), ('.join(map(label, list(run.results)[:4]))}), ..." for run in runs)
        raise ValueError(f"the runs must have a row (case, variant and method) with a seed in common; {has}")
    directory = _directory(config)
    report = Report(directory, f"{runs[0].experiment}: {' and '.join(run.name for run in runs)}")
    differ = settings_table(runs)
    report.tables([differ]) if differ.rows else report.say([differ.title])
    found = {row: compared(runs, row, columns) for row in rows}
    said = [sentence for sentences, _ in found.values() for sentence in sentences]
    report.say(said)
    for _, tables in found.values():
        report.tables(tables)
    for case, drawn in curves_of(runs, [read_metrics(run.directory) for run in runs]).items():
        if case in {row[0] for row in rows}:
            report.picture(_curves(config, case, drawn, columns, directory))
    summary = {"settings": [list(row) for row in differ.rows], "verdicts": said, "directory": str(directory)}
    report.write(summary)
    return summary


def _curves(config: Config, case: str, drawn: Curves, columns: Sequence[Column], directory: Path) -> Path | None:
    """Draw a case's curves: methods in their colours, runs by dashes."""
    there = drawn.metrics
    panels = [(c.key, c.panel, c.scale) for c in columns if c.panel is not None and c.key in there] or panels_of(there)
    if not panels:
        return None
    path = directory / f"{slug(case) or 'convergence'}.{config.picture_format}"
    plots.curves(path, drawn.log, drawn.groups, panels, config.unit, drawn.looks)
    return path


# --- One run. ---


def _statistics(config: Config) -> dict[str, Any]:
    (source,) = config.runs
    log = read_metrics(source)
    if not log:
        raise FileNotFoundError(_without_log(source))
    log, groups = with_mismatch(log), group_names(line["run"] for line in log)
    evaluated = sorted({line["epoch"] for line in log})
    if config.epoch is not None and config.epoch not in evaluated:
        raise ValueError(f"epoch must be one of the log's, {evaluated}; got {config.epoch}")
    panels = _chosen(config, log)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, _, _ in panels:
        values = {group: _values(log, runs, name, config.epoch) for group, runs in groups.items()}
        found[name] = {group: describe(column) for group, column in values.items() if column}
    directory = _directory(config)
    report = Report(directory, f"{source}")
    when = "in the last epoch" if config.epoch is None else f"in epoch {config.epoch}"
    columns = ["metric", "row", "seeds", "mean", "sd", "median", "min", "max"]
    rows = [
        [name, group, str(int(numbers["seeds"])), *(f"{numbers[column]:.4g}" for column in columns[3:])]
        for name, by_group in found.items()
        for group, numbers in by_group.items()
    ]
    report.tables([Table(f"{source}: statistics over seeds, {when}", columns, rows)])
    path = directory / f"curves.{config.picture_format}"
    plots.curves(path, log, groups, [panel for panel in panels if found[panel[0]]], config.unit, _looks(groups))
    report.picture(path)
    summary = {"statistics": found, "directory": str(directory)}
    report.write(summary)
    return summary


def _without_log(source: Path) -> str:
    """Say what to give instead of a directory that has no log of its own."""
    if below := those_below(source, "metrics.jsonl"):
        return f"one run's directory is needed; got {source}{below}"
    if (source / "config.json").is_file():
        name = read_document(source / "config.json")["experiment"]
        return f"curves need a run with a metrics.jsonl; got {source}, of {name}, which has its results in summary.md"
    return f"the directory of a run that has curves has a metrics.jsonl; got {source}, without"


def _looks(groups: dict[str, list[str]]) -> dict[str, plots.Look]:
    """Draw a run's rows by the methods in which their names end."""
    rows = {name: row_of(name) for name in groups}
    return plots.looks({name: (row[1], label(("", "", row[2]))) for name, row in rows.items()})


def describe(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (ddof 1; NaN for a single value), median, minimum and maximum."""
    return {
        "seeds": len(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else float("nan"),
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def _chosen(config: Config, log: list[dict]) -> list[tuple[str, str, str]]:
    """Return name, title and scale of the metrics that are asked for, or of those that are known and there."""
    there = {name for line in log for name in line}
    unknown = set(config.metrics) - there
    if unknown:
        raise ValueError(
            f"metrics must be in the log, which has {', '.join(sorted(there))}; got {', '.join(sorted(unknown))}"
        )
    return [(name, name, "linear") for name in config.metrics] or panels_of(there)


def _values(log: list[dict], runs: Sequence[str], metric: str, epoch: int | None) -> list[float]:
    """Return a metric of each run in an epoch, or in its last that has it; those that are not finite are left out."""
    found = []
    for run in runs:
        history = {line["epoch"]: line[metric] for line in log if line["run"] == run and metric in line}
        if history:
            value = history.get(max(history) if epoch is None else epoch, np.nan)
            found += [value] if np.isfinite(value) else []
    return found


if __name__ == "__main__":
    with one_sentence("experiments.analyse"):
        run(parse(Config(()), sys.argv[1:], header=__doc__))
