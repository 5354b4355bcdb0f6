"""What a finished run's log says: statistics over seeds, and every curve, from the saved lines alone.

Claim     None: it reads what other experiments have written.
Command   python -m experiments.analyse DIRECTORY [DIRECTORY ...] [--epoch 10] [--metrics train/nc1 ...]
          (seconds)
Expected  a table and a plot per metric that the log has
Writes    into the first directory: analysis.md (mean, standard deviation, median, minimum and maximum over seeds),
          analysis.png (the curves) and, where a run left margins.jsonl, margins.png (the margins of all examples)
Data      any log of `nc_jax.training.MetricsLog` whose runs are named <group>-seed<number>, as all experiments' are.

Several directories are compared: what differs between their settings is printed first, and their groups get the
directory's name in front.
"""

import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from nc_jax.study import Table, plots
from nc_jax.study.cli import fail
from nc_jax.study.tables import markdown_table, show_table
from nc_jax.training import read_metrics
from nc_jax.training.logging import write_atomically

# What is drawn where the log has it: name without "train/", title, scale.
PANELS = [
    ("loss", "loss", "log"),
    ("accuracy", "accuracy", "linear"),
    ("vci", "variability collapse index", "linear"),
    ("nc1", "NC1: within-class variability", "log"),
    ("nc2_means", "NC2 of the means", "log"),
    ("nc2_classifier", "NC2 of the classifier", "linear"),
    ("nearest_etf_means", "nearest ETF to the means", "log"),
    ("nearest_etf_classifier", "nearest ETF to the classifier", "linear"),
    ("nc3", "NC3: classifier to class means", "log"),
    ("mismatch", "1 - NC4: not the nearest centre", "linear"),
    ("cosine_margin", "mean cosine margin", "linear"),
    ("cosine_margin_min", "least cosine margin", "linear"),
    ("rank_means", "rank of the means", "linear"),
    ("effective_rank_means", "effective rank of the means", "linear"),
]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to analyse.

    Attributes:
        directories: of the runs.
        epoch: whose numbers go into the table; None takes each run's last.
        metrics: names in the log; empty takes those of `PANELS`, of training and test set, that are there.
        unit: what the curves are drawn against.
    """

    directories: tyro.conf.Positional[tuple[Path, ...]]
    epoch: int | None = None
    metrics: tuple[str, ...] = ()
    unit: str = "epoch"


def run(config: Config) -> dict[str, Any]:
    """Write the table and the plots.

    Returns:
        By metric, group and statistic the numbers of the table.

    Raises:
        ValueError: if there is no directory, or the logs do not have the epoch or a metric.
        FileNotFoundError: if a directory has no log.
    """
    rows, margins = _read(config.directories)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["run"] for row in rows):
        groups.setdefault(re.sub(r"-seed\d+$", "", name), []).append(name)
    evaluated = sorted({row["epoch"] for row in rows})
    if config.epoch is not None and config.epoch not in evaluated:
        raise ValueError(f"epoch must be one of the log's, {evaluated}; got {config.epoch}")
    names = _metrics(config, rows)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, _, _ in names:
        values = {group: _values(rows, runs, name, config.epoch) for group, runs in groups.items()}
        found[name] = {group: describe(column) for group, column in values.items() if column}
    directory = config.directories[0]
    different = differing(config.directories)
    columns = ["metric", "head", "seeds", "mean", "sd", "median", "min", "max"]
    table = [
        [name, group, str(int(numbers["seeds"])), *(f"{numbers[column]:.4g}" for column in columns[3:])]
        for name, by_group in found.items()
        for group, numbers in by_group.items()
    ]
    when = "the last epoch" if config.epoch is None else f"epoch {config.epoch}"
    title = f"Statistics over seeds, {when}"
    shown = Table(title, columns, table)
    text = f"# {title}\n\n{', '.join(map(str, config.directories))}\n\n"
    text += "".join(f"{line}\n" for line in different) + f"\n{markdown_table(shown)}\n"
    panels = [panel for panel in names if found[panel[0]]]
    plots.curves(directory / "analysis.png", rows, groups, panels, config.unit)
    text += "![curves](analysis.png)\n"
    if margins:
        plots.quantiles(directory / "margins.png", margins)
        text += "\n![margins of all examples](margins.png)\n"
    write_atomically(directory / "analysis.md", text)
    for line in different:
        print(line)
    show_table(shown)
    print(f"written to {directory}")
    return found


def differing(directories: Sequence[Path]) -> list[str]:
    """Return a line for each setting in which the runs differ, with the value in each of them."""
    settings = []
    for directory in directories:
        path = directory / "config.json"
        settings.append(_flat(json.loads(path.read_text(encoding="utf-8"))["config"]) if path.is_file() else {})
    names = dict.fromkeys(name for one in settings for name in one if name not in ("workdir", "resume", "preset"))
    values = {name: [one.get(name) for one in settings] for name in names}
    return [
        f"{name}: {', '.join(json.dumps(value) for value in found)}"
        for name, found in values.items()
        if any(value != found[0] for value in found)
    ]


def _flat(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


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


def _read(directories: Sequence[Path]) -> tuple[list[dict], dict[str, dict[str, list[float]]]]:
    """Return the rows of all logs, and percentiles of margins by set and run."""
    if not directories:
        raise ValueError("at least one run's directory is needed; got none")
    rows: list[dict] = []
    margins: dict[str, dict[str, list[float]]] = {}
    for directory in directories:
        path = directory / "metrics.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"a run's directory has a metrics.jsonl; got {directory}, without")
        front = f"{directory.name}/" if len(directories) > 1 else ""
        for row in read_metrics(path):
            row["run"] = front + row["run"]
            for split in ("", "train/", "test/"):
                if row.get(f"{split}nc4") is not None:
                    row[f"{split}mismatch"] = 1 - row[f"{split}nc4"]
            rows.append(row)
        if (directory / "margins.jsonl").is_file():
            for line in (directory / "margins.jsonl").read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                margins.setdefault(entry["split"], {})[front + entry["run"]] = entry["percentiles"]
    return rows, margins


def _metrics(config: Config, rows: list[dict]) -> list[tuple[str, str, str]]:
    """Return name, title and scale of what is asked for, or of what is known and there."""
    there = {name for row in rows for name in row}
    unknown = set(config.metrics) - there
    if unknown:
        raise ValueError(
            f"metrics must be in the log, which has {', '.join(sorted(there))}; got {', '.join(sorted(unknown))}"
        )
    if config.metrics:
        return [(name, name, "linear") for name in config.metrics]
    splits = [("", ""), ("train/", " (train)"), ("test/", " (test)")]
    return [
        (split + name, title + suffix, scale)
        for name, title, scale in PANELS
        for split, suffix in splits
        if split + name in there
    ]


def _values(rows: list[dict], runs: Sequence[str], metric: str, epoch: int | None) -> list[float]:
    """Return a metric of each run in an epoch, or in its last that has it; those that are not finite are left out."""
    found = []
    for run in runs:
        history = {row["epoch"]: row[metric] for row in rows if row["run"] == run and metric in row}
        if history:
            value = history.get(max(history) if epoch is None else epoch, np.nan)
            found += [value] if np.isfinite(value) else []
    return found


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__)
    try:
        run(tyro.cli(Config, description="Settings:"))
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
