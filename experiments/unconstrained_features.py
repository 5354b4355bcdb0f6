"""How many steps to collapse do three heads need, if features are free, as if the network could fit anything?

Claim     Markou et al. (2024), section 4: on unconstrained features the nearest simplex ETF converges faster than the
          fixed one and the learned classifier.
Command   python -m experiments.unconstrained_features   (3 cases x 3 heads x 8 seeds: 5 minutes on two CPU cores)
Expected  steps to NC3 < 0.1, nearest / fixed / learned: 5 / 15 / 196 at K = 100, d = 512; 15 / 29 / > 220 at d = 100;
          to a loss within 1e-3 of the least: 52 / 61 / 149 at d = 512
Writes    runs/unconstrained_features/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/,
          summary.md, summary.json, and a plot for each case
Data      none: the N = n K feature vectors are parameters themselves.

All heads have unit class vectors without bias, and features of length tau. The least possible loss is therefore known:
log(1 + (K - 1) exp(-tau K / (K - 1))). The nearest head uses the current class means of all features. In the preset
sgd, which sees a batch at a time, it averages the class means of the batches.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.heads import NearestOptions
from nc_jax.methods import Setting, method
from nc_jax.solvers import describe
from nc_jax.study import About, Column, Ledger, Plan, RunOptions, comparison_tables, main, plots
from nc_jax.study.free_features import Descent, DescentOptions, parse
from nc_jax.study.progress import Progress
from nc_jax.study.report import Report
from nc_jax.study.runs import open_run
from nc_jax.study.settings import refuse_twice, slug
from nc_jax.study.verdict import verdicts
from nc_jax.training import MetricsLog, read_metrics


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Settings of the experiment.

    Attributes:
        cases: problems to solve, as "K:d": K classes in d dimensions.
        methods: names of the classifiers to compare (`nc_jax.methods.METHODS`).
        seeds: number of descents of each classifier. A seed draws the initial features and class vectors.
        nc3_target: a table shows the first step in which NC3 is below this.
        gap_targets: for each of these, a table shows the first step in which the loss is less than this above the least
            possible loss.
        descent: how the features move.
        head: choices about the nearest head. Its radius and min_alpha follow from the descent.
    """

    cases: tuple[str, ...] = ("10:512", "100:512", "100:100")
    methods: tuple[str, ...] = ("learned", "fixed", "nearest")
    seeds: int = 8  # enough for a paired test
    nc3_target: float = 0.1  # well before rounding, and after the initial drop of all heads
    gap_targets: tuple[float, ...] = (1e-2, 1e-3)
    descent: DescentOptions = dataclasses.field(default_factory=DescentOptions)
    head: NearestOptions = dataclasses.field(default_factory=NearestOptions)


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(cases=("5:8",), seeds=2, descent=DescentOptions(steps=12)),
    # What the paper could not do with the gradient: 1000 classes.
    "large": Config(cases=("200:512", "1000:1024"), seeds=2, descent=DescentOptions(steps=120, measure_every=20)),
    "agd": Config(descent=DescentOptions(optimizer="agd", learning_rate=1.0)),
    "sgd": Config(descent=DescentOptions(optimizer="sgd")),
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
# What is reached at the end: metric, and its name in tables.
FINAL = {
    "loss_gap": "final loss gap",
    "nc1": "final NC1",
    "nc2_means": "final NC2 of class means",
    "nc3": "final NC3",
    "mean_margin": "final cosine margin",
    "means_to_etf": "final distance to an ETF",
}
ABOUT = {
    "default": About(
        "learned, fixed and nearest head on K:d = 10:512, 100:512 and 100:100, 8 seeds each",
        5,
        "steps to NC3 < 0.1 at 100:512: nearest 5, fixed 15, learned 196",
    ),
    "smoke": About("five classes, twelve steps, for the tests", 0.4),
    "large": About("200 classes in 512 dimensions and 1000 in 1024, 2 seeds; the latter take half an hour of CPU time"),
    "agd": About("the default with automatic gradient descent", 5),
    "sgd": About("the default with batches instead of all features at once", 5),
}


def columns(config: Config) -> tuple[Column, ...]:
    """Return the metrics of the tables: thresholds, with the ratio of their steps, and what is reached at the end."""
    ratio: Any = {"digits": 1, "test": "ratio", "words": ("sooner", "later")}
    steps = [Column("steps to NC3", f"steps to NC3 < {config.nc3_target:g}", **ratio)]
    steps += [Column(f"steps to {gap:g}", f"steps to a loss gap of {gap:g}", **ratio) for gap in config.gap_targets]
    final = [Column(name, title, 5, test="none") for name, title in FINAL.items()]
    cost = [Column("milliseconds", "milliseconds per step", 3, test="none")]
    cost += [Column("megabytes", "MB beyond arguments (XLA)", 2, test="none")]
    return (*steps, *final, *cost)


def head_of(config: Config, name: str, num_classes: int) -> Any:
    """Return a head of K classes."""
    # The means of the moment, unless a batch shows but a part of the features: its means are then averaged.
    min_alpha = config.head.min_alpha if config.descent.optimizer == "sgd" else 1.0
    options = dataclasses.replace(config.head, radius=config.descent.radius, min_alpha=min_alpha)
    return method(name).head(Setting(num_classes=num_classes, head=options))


def plan(config: Config) -> Plan:
    """Say how many descents there are; a step costs in proportion to the entries of the features."""
    runs = len(config.methods) * config.seeds

    def work() -> float:
        entries = [math.prod(parse(case)) * config.descent.per_class for case in config.cases]
        return runs * config.descent.steps * sum(entries) / 1e6

    return Plan(f"{runs * len(config.cases)} descents of {config.descent.steps} steps", work, "million entries moved")


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not config.cases or not config.methods or config.seeds < 1:
        raise ValueError(
            "at least one case, method and seed are needed; "
            f"got cases={config.cases}, methods={config.methods}, seeds={config.seeds}"
        )
    if not config.nc3_target > 0:
        raise ValueError(f"nc3_target must be positive; got {config.nc3_target}")
    refuse_twice("cases", config.cases)
    refuse_twice("methods", config.methods)
    refuse_twice("gap_targets", [f"{gap:g}" for gap in config.gap_targets])
    for case in config.cases:
        num_classes, dim = parse(case)
        for name in config.methods:
            head_of(config, name, num_classes).declare(dim, np.float32)


def run(config: Config) -> dict[str, Any]:
    """Collapse every case with every head and seed; write and show the comparison.

    Returns:
        What summary.json holds: "cases", by case, head and metric a number per seed; and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
    """
    if config.resume is None:
        check(config)
    with open_run("unconstrained_features", config) as (directory, config):
        return _compare(config, directory)


def _compare(config: Config, directory: Path) -> dict[str, Any]:
    """Descend where a run's directory lacks a result; write and show what all descents found."""
    ledger, total = Ledger(directory / "results.jsonl"), len(config.cases) * len(config.methods) * config.seeds
    settings = {"settings": config.fingerprint("cases", "methods", "seeds")}
    cases: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with MetricsLog(directory) as log, Progress(total, "descents") as bar:
        for case in config.cases:
            cases[case] = {}
            for name in config.methods:
                descent = Descent(config.descent, case, head_of(config, name, parse(case)[0]))
                found = []
                for seed in range(config.seeds):
                    key = {"case": case, "method": name, "seed": seed, "run": run_name(case, name, seed)}
                    key |= settings
                    found.append(ledger.once(key, lambda key=key, descent=descent: descend(config, log, key, descent)))
                    bar.advance(1, f"K:d = {case}, {name}")
                cost = ledger.once({"case": case, "method": name, "what": "cost"} | settings, descent.cost)
                cases[case][name] = [run | cost for run in found]
    rows = read_metrics(directory / "metrics.jsonl")
    values = {
        case: {name: {key: [run[key] for run in runs] for key in runs[0]} for name, runs in heads.items()}
        for case, heads in cases.items()
    }
    for case in config.cases:
        groups = {name: [run_name(case, name, seed) for seed in range(config.seeds)] for name in config.methods}
        plots.curves(picture(config, directory, case), rows, groups, PANELS, unit="step")
    summary = {"cases": values, "steps": config.descent.steps, "directory": str(directory)}
    report(config, summary, directory)
    return summary


def run_name(case: str, name: str, seed: int) -> str:
    """Return the name of a descent in the log."""
    return f"{slug(case)}-{name}-seed{seed}"


def picture(config: Config, directory: Path, case: str) -> Path:
    """Return the path of a case's plot."""
    return config.picture(directory, slug(case))


def descend(config: Config, log: MetricsLog, key: dict[str, Any], descent: Descent) -> dict[str, float]:
    """Descend once and log a line per step; return thresholds and final values, all NaN if a loss was not finite."""
    name = key["run"]
    values = descent(key["seed"])
    log.rewind(name, -1)
    for step in range(len(values["loss_gap"])):
        log.write(name, step, step, {metric: float(series[step]) for metric, series in values.items()})
    found = {"steps to NC3": first_below(values["nc3"], config.nc3_target)}
    found |= {f"steps to {gap:g}": first_below(values["loss_gap"], gap) for gap in config.gap_targets}
    found |= {metric: float(values[metric][-1]) for metric in FINAL}
    found["solve_status"] = int(np.max(values["solve_status"]))
    if not np.isfinite(values["loss_gap"]).all():
        print(f"{name} diverged in step {int(np.argmin(np.isfinite(values['loss_gap'])))}", flush=True)
        return dict.fromkeys(found, math.nan)
    return found


def first_below(series: np.ndarray, target: float) -> float:
    """Return the number of steps after which a metric is below its target; NaN if that never happens."""
    below = np.flatnonzero(series < target)
    return float(below[0]) if below.size else math.nan


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show verdicts and tables for each case."""
    report = Report(directory, f"unconstrained_features, preset {config.preset}")
    base = "nearest" if "nearest" in config.methods else None
    for case, heads in summary["cases"].items():
        num_classes, dim = parse(case)
        report.heading(f"K = {num_classes} classes in d = {dim} dimensions")
        if base is not None:
            report.say(verdicts(heads, columns(config), base, [name for name in heads if name != base]))
        what = f"{config.descent.per_class} free features per class, {config.descent.optimizer}"
        report.tables(comparison_tables(heads, columns(config), base, what=what))
        if base is not None:
            status = np.max(heads[base]["solve_status"])  # NaN if a run diverged
            ended = describe(int(status)) if math.isfinite(status) else "diverged"
            report.say([f"Inner solves of the nearest head, worst of all steps: {ended}."])
        report.picture(picture(config, directory, case))
    report.write(summary)


if __name__ == "__main__":
    main(run, PRESETS, about=ABOUT, plan=plan)
