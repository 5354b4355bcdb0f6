"""Free features, as if the network could fit anything: how many steps do the three heads need to collapse?

Claim     Markou et al. (2024), section 4: on unconstrained features the nearest simplex ETF converges faster than the
          fixed one and the learned classifier.
Command   python -m experiments.unconstrained_features   (3 cases x 3 heads x 8 seeds: 5 minutes on two CPU cores)
Expected  steps to NC3 < 0.1, nearest / fixed / learned: 5 / 15 / 196 at K = 100, d = 512; 15 / 29 / > 220 at d = 100;
          to a loss within 1e-3 of the least: 52 / 61 / 149 at d = 512
Writes    runs/unconstrained_features/<time>-<preset>/: config.json, metrics.jsonl, tensorboard/, summary.md,
          summary.json, and a plot per case

The N = n K feature vectors are parameters themselves. All heads have unit class vectors without bias and features of
length tau, so that the least possible loss is known: log(1 + (K - 1) exp(-tau K / (K - 1))). The class means of the
nearest head are those of the moment, as in a full batch, but for the preset sgd, which averages those of its batches.
"""

import collections
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments import harness, plots
from experiments.free_features import Descent, DescentOptions, parse
from experiments.setups import HeadName
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.solvers import describe
from nc_jax.training import MetricsLog, read_metrics
from nc_jax.training.logging import write_atomically


@dataclasses.dataclass(frozen=True)
class Config(DescentOptions, harness.RunOptions):
    """Settings of the experiment, beside those of a descent.

    Attributes:
        cases: what to collapse, as "K:d", K classes in d dimensions.
        heads: which classifiers to compare.
        seeds: how many seeds each; a seed draws the initial features and class vectors.
        nc3_target: the threshold on NC3 whose first step is reported.
        gap_targets: likewise, on the loss above the least possible one.
    """

    cases: tuple[str, ...] = ("10:512", "100:512", "100:100")
    heads: tuple[HeadName, ...] = ("learned", "fixed", "nearest")
    seeds: int = 8  # enough for a paired test
    nc3_target: float = 0.1  # issue 5, and the next
    gap_targets: tuple[float, ...] = (1e-2, 1e-3)


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(preset="smoke", cases=("5:8",), seeds=2, steps=12),
    # What the paper could not do with the gradient: 1000 classes.
    "large": Config(preset="large", cases=("200:512", "1000:1024"), seeds=2, steps=120, measure_every=20),
    "agd": Config(preset="agd", optimizer="agd", learning_rate=1.0),
    "sgd": Config(preset="sgd", optimizer="sgd"),
}

# Metric, title in the plot, scale.
PANELS = [
    ("loss_gap", "loss above the least possible", "log"),
    ("accuracy", "accuracy", "linear"),
    ("nc1", "NC1: within-class variability", "log"),
    ("nc2_means", "NC2: class means to a simplex ETF", "log"),
    ("nc3", "NC3: classifier to class means", "log"),
    ("mean_margin", "mean cosine margin", "linear"),
    ("means_to_etf", "class means to the nearest ETF", "log"),
    ("classifier_to_etf", "classifier to the nearest ETF", "log"),
]


def run(config: Config) -> dict[str, Any]:
    """Collapse every case with every head and seed; write and show the comparison.

    Returns:
        What summary.json holds: per case and head the numbers of each seed, and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        FloatingPointError: if a number stops being finite.
    """
    if config.resume is None:
        check(config)
    directory, config = harness.open_run("unconstrained_features", config)
    groups: dict[str, dict[HeadName, list[str]]] = {
        case: {head: [f"{case}-{head}-seed{seed}" for seed in range(config.seeds)] for head in config.heads}
        for case in config.cases
    }
    done = {run for run, count in _lines(directory).items() if count == config.steps + 1}
    cost: dict[str, dict[str, Any]] = {}
    with MetricsLog(directory) as log:
        for case, heads in groups.items():
            cost[case] = {}
            for head, runs in heads.items():
                descent = Descent(config, case, head)
                for seed, name in enumerate(runs):
                    if name not in done:
                        log.drop_after(name, -1)
                        write(log, name, descent(seed))
                cost[case][head] = {"seconds": descent.seconds_per_step(), "bytes": descent.memory()}
                print(f"K:d = {case}, {head}: {len(runs)} seeds", flush=True)
    rows = read_metrics(directory / "metrics.jsonl")
    summary = summarise(config, rows, groups) | {"cost": cost, "directory": str(directory)}
    for case, heads in groups.items():
        plots.curves(directory / _plot(case), rows, heads, PANELS, unit="step")
    report(config, summary, directory)
    return summary


def _lines(directory: Path) -> dict[str, int]:
    """Count the lines of each run: only one with all of them is finished."""
    return dict(collections.Counter(row["run"] for row in read_metrics(directory / "metrics.jsonl")))


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not config.cases or not config.heads or config.seeds < 1:
        raise ValueError(
            "at least one case, head and seed are needed; "
            f"got cases={config.cases}, heads={config.heads}, seeds={config.seeds}"
        )
    for case in config.cases:
        num_classes, dim = parse(case)
        check_room_for_simplex(num_classes + int(config.full_template), dim)
    for name in ("per_class", "steps", "batch_size", "measure_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    for name in ("learning_rate", "radius", "nc3_target"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive; got {getattr(config, name)}")
    if not config.prox_weight >= 0:
        raise ValueError(f"prox_weight must be at least 0; got {config.prox_weight}")


def write(log: MetricsLog, name: str, values: dict[str, np.ndarray]) -> None:
    """Log a run, a line per step.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    steps = len(values["loss_gap"])
    if not np.isfinite(values["loss_gap"]).all():
        step = int(np.argmin(np.isfinite(values["loss_gap"])))
        raise FloatingPointError(f"descent needs finite losses; {name} met a NaN or an infinity in step {step}")
    for step in range(steps):
        log.write(name, step, step, {metric: float(series[step]) for metric, series in values.items()})


def summarise(config: Config, rows: list[dict], groups: dict[str, dict[HeadName, list[str]]]) -> dict[str, Any]:
    """Collect thresholds and final values, per case, head and seed."""
    by_run: dict[str, list[dict]] = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    cases: dict[str, Any] = {}
    for case, heads in groups.items():
        cases[case] = {}
        for head, runs in heads.items():
            histories = [sorted(by_run[name], key=lambda row: row["step"]) for name in runs]
            values = {"steps to NC3": [_first(history, "nc3", config.nc3_target) for history in histories]}
            for gap in config.gap_targets:
                values[f"steps to a gap of {gap:g}"] = [_first(history, "loss_gap", gap) for history in histories]
            for metric in ("loss_gap", "nc1", "nc2_means", "nc3", "mean_margin", "means_to_etf"):
                values[metric] = [history[-1][metric] for history in histories]
            worst = max(row["solve_status"] for history in histories for row in history)
            cases[case][head] = {"values": values, "solve_status": int(worst)}
    return {"cases": cases, "steps": config.steps}


def _first(history: list[dict], metric: str, target: float) -> float:
    """Return the number of steps after which a metric is below its target; NaN if that never happens."""
    return next((row["step"] for row in history if row[metric] < target), math.nan)


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show a table per case."""
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    text = f"# unconstrained_features, preset {config.preset}\n"
    for case, heads in summary["cases"].items():
        num_classes, dim = parse(case)
        others = [head for head in heads if head != "nearest"] if "nearest" in heads else []
        columns = ["", *heads, *(f"{head} / nearest" for head in others)]
        table = []
        for metric in next(iter(heads.values()))["values"]:
            values = {head: heads[head]["values"][metric] for head in heads}
            counted = metric.startswith("steps")
            title = f"{metric} < {config.nc3_target:g}" if metric == "steps to NC3" else metric
            row = [title, *(_cell(values[head], counted) for head in heads)]
            row += [harness.paired_ratio(values[head], values["nearest"]) if counted else "" for head in others]
            table.append(row)
        cost = summary["cost"][case]
        table.append(
            ["milliseconds per step", *(f"{1e3 * cost[head]['seconds']:.3g}" for head in heads), *[""] * len(others)]
        )
        table.append(
            ["MB beyond arguments (XLA)", *(f"{cost[head]['bytes'] / 1e6:.3g}" for head in heads), *[""] * len(others)]
        )
        title = (
            f"K = {num_classes}, d = {dim}, n = {config.per_class}, {config.optimizer}, {config.seeds} seeds: "
            "mean ± standard deviation; mean ratio with a paired t test of its logarithm"
        )
        status = heads["nearest"]["solve_status"] if "nearest" in heads else None
        note = "" if status is None else f"\nInner solves, worst of all steps: {describe(status)}.\n"
        text += f"\n{title}\n\n{harness.markdown_table(columns, table)}{note}\n![{case}]({_plot(case)})\n"
        harness.show_table(title, columns, table)
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")


def _cell(values: list[float], counted: bool) -> str:
    if counted:
        return harness.mean_and_sd(values, 1)
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def _plot(case: str) -> str:
    return f"{case.replace(':', '-')}.png"


if __name__ == "__main__":
    harness.main(run, PRESETS)
