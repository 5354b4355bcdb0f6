"""Does following the class means cause minority collapse, or cure it?

Claim     Fang et al. (2021): if classes are very unequal in size, class vectors of small classes become equal.
Command   python -m experiments.minority_collapse   (2 profiles x 5 ratios x 13 heads x 5 seeds: 5 minutes of CPU time)
Expected  accuracy of rare / frequent classes at a ratio of 1000 (step): learned with decay 0.000 / 1.000, learned unit
          vectors 0.886 / 0.996, fixed 0.990 / 0.988, nearest 0.981 / 0.934, nearest with the centre of the classes
          0.930 / 0.995, the same without the gradient through the inner problem 0.986 / 0.987
Writes    runs/minority_collapse/<time>-<preset>/: config.json, results.jsonl, summary.md, summary.json, and a picture
          for each profile
Data      none: the feature vectors of all examples are parameters themselves.

Half of the classes are the minority: the last ones of a step, the smaller ones of an exponential profile. The ratio is
that of the largest to the smallest class. Rows with decay have decays on class vectors and features, as weight decay
gives them; in all other rows class vectors have unit length, and features the length tau. "counts" and "rare" are class
weights of the inner problem: n_k, and the inverse effective number of examples of Cui et al. (2019). "classes" is the
nearest head that subtracts the mean of the classes in place of the batch's, and "cut" one whose class means are
constants in the backward pass. Accuracies are those of noisy copies of the features, equally many of each class.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array

from nc_jax import heads
from nc_jax.data import exponential_counts, step_counts
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.heads import Head
from nc_jax.losses import effective_number_weights
from nc_jax.solvers import describe
from nc_jax.study import About, Column, Ledger, Plan, RunOptions, Table, comparison_tables, imbalance_plots, main
from nc_jax.study.imbalanced_features import ImbalancedDescent, ImbalanceOptions
from nc_jax.study.progress import Progress
from nc_jax.study.report import Report
from nc_jax.study.runs import open_run
from nc_jax.study.settings import refuse_twice
from nc_jax.study.statistics import mean_and_sd
from nc_jax.study.tables import fitted
from nc_jax.theory import minority_collapse_thresholds, vanishing_threshold

Profile = Literal["step", "exponential"]
PROFILES: dict[str, Callable[..., np.ndarray]] = {"step": step_counts, "exponential": exponential_counts}
BETA = 0.999  # Cui et al. (2019): one of their four values; the effective number of 1000 examples is then 632


class Row(NamedTuple):
    """A head, and whether it comes with decays instead of fixed lengths."""

    head: Callable[[ImbalanceOptions, Array], Head]
    decays: bool = False


# Weights that are large for rare classes: the inverse effective number of examples.
rare = partial(effective_number_weights, beta=BETA)


def nearest(
    config: ImbalanceOptions, counts: Array, weights: Callable[[Array], Array] | None = None, **options: Any
) -> Head:
    """Return a nearest head with class weights made from the counts."""
    options = {"radius": config.radius} | options
    return heads.nearest(config.num_classes, weights=None if weights is None else weights(counts), **options)


def learned(config: ImbalanceOptions, counts: Array) -> Head:
    """Return a head of learned unit vectors."""
    del counts
    return heads.learned(config.num_classes, radius=config.radius, normalize_columns=True, use_bias=False)


ROWS = {
    "learned, decay": Row(lambda config, counts: heads.learned(config.num_classes), decays=True),
    "learned": Row(learned),
    "fixed, decay": Row(lambda config, counts: heads.fixed(config.num_classes), decays=True),
    "fixed": Row(lambda config, counts: heads.fixed(config.num_classes, radius=config.radius)),
    "nearest, decay": Row(partial(nearest, radius=None), decays=True),
    "nearest": Row(nearest),
    "nearest, cut": Row(partial(nearest, stop_gradient=True)),
    "nearest, counts": Row(partial(nearest, weights=lambda counts: counts)),
    "nearest, rare": Row(partial(nearest, weights=rare)),
    "nearest, classes": Row(partial(nearest, centre="classes")),
    "nearest, classes, cut": Row(partial(nearest, centre="classes", stop_gradient=True)),
    "nearest, classes, counts": Row(partial(nearest, centre="classes", weights=lambda counts: counts)),
    "nearest, classes, rare": Row(partial(nearest, centre="classes", weights=rare)),
}


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Settings of the experiment.

    Attributes:
        profiles: how the class sizes fall from the largest to the smallest: "step" (two sizes) or "exponential".
        ratios: sizes of the largest class over that of the smallest; every ratio is a problem of its own.
        heads: rows of the tables: which head, and with decay or not.
        seeds: number of descents of each head. A seed draws the initial features and the order of the examples.
        descent: the classes, and how the features move.
    """

    profiles: tuple[Profile, ...] = ("step", "exponential")
    ratios: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0, 1000.0)  # merged, not zero, at 50 of the step: theory
    heads: tuple[str, ...] = tuple(ROWS)
    seeds: int = 5  # enough for a paired test
    descent: ImbalanceOptions = dataclasses.field(default_factory=ImbalanceOptions)


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(
        profiles=("step",),
        ratios=(1.0, 10.0),
        heads=("learned, decay", "fixed", "nearest, classes, rare"),
        seeds=2,
        descent=ImbalanceOptions(num_classes=4, dim=4, largest=20, steps=40, batch_size=16),
    ),
}
ABOUT = {
    "default": About(
        "thirteen heads on two profiles and five ratios, 5 seeds each",
        5,
        "rare classes at a ratio of 1000: learned with decay 0.000, learned 0.886, fixed 0.990, nearest 0.981",
    ),
    "smoke": About("four classes, forty steps, for the tests", 0.4),
}
# Metric, title, digits.
METRICS = [
    ("minority accuracy", "accuracy of the minority", 3),
    ("majority accuracy", "accuracy of the majority", 3),
    ("minority cosine", "cosine of minority class vectors", 3),
    ("minority mean cosine", "cosine of minority class means", 3),
    ("minority alignment", "cosine of minority vectors to their means", 3),
    ("minority margin", "least logit margin of the minority", 2),
    ("majority margin", "least logit margin of the majority", 2),
    ("minority loss", "loss of the minority", 3),
    ("majority loss", "loss of the majority", 3),
    ("feature length", "length of the minority's features before scaling, over the majority's", 2),
]
BASE = "nearest, classes, cut"  # which the others are compared with, seed by seed
TESTED = [Column(key, title, digits) for key, title, digits in METRICS[:2]]


def counts_of(config: Config, profile: str, ratio: float) -> np.ndarray:
    """Return the number of examples of each class."""
    return PROFILES[profile](config.descent.num_classes, config.descent.largest, 1 / ratio)


def plan(config: Config) -> Plan:
    """Say how many descents there are."""
    descents = len(config.profiles) * len(config.ratios) * len(config.heads) * config.seeds
    steps = config.descent.steps
    return Plan(f"{descents} descents of {steps} steps", lambda: float(descents * steps), "steps")


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not (config.profiles and config.ratios and config.heads) or config.seeds < 1:
        raise ValueError(
            "at least one profile, ratio, head and seed are needed; got "
            f"profiles={config.profiles}, ratios={config.ratios}, heads={config.heads}, seeds={config.seeds}"
        )
    unknown = set(config.heads) - set(ROWS)
    if unknown:
        raise ValueError(f"heads must be among {', '.join(map(repr, ROWS))}; got {', '.join(map(repr, unknown))}")
    refuse_twice("profiles", config.profiles)
    refuse_twice("heads", config.heads)
    refuse_twice("ratios", [f"{ratio:g}" for ratio in config.ratios])
    check_room_for_simplex(config.descent.num_classes, config.descent.dim)
    for ratio in config.ratios:
        if not 1 <= ratio <= config.descent.largest:
            raise ValueError(
                f"a ratio must lie in [1, largest], or the smallest class is empty; got {ratio:g} and "
                f"largest={config.descent.largest}"
            )


def run(config: Config) -> dict[str, Any]:
    """Descend with every head at every ratio; write and show the comparison.

    Returns:
        What summary.json holds: "profiles", by profile, ratio, head and metric a number per seed; "thresholds", by
        ratio of the step; and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
    """
    if config.resume is None:
        check(config)
    with open_run("minority_collapse", config) as (directory, config):
        return _compare(config, directory)


def _compare(config: Config, directory: Path) -> dict[str, Any]:
    """Descend where a run's directory lacks a result; write and show what all descents found."""
    ledger = Ledger(directory / "results.jsonl")
    settings = config.fingerprint("profiles", "ratios", "heads")
    found: dict[str, Any] = {profile: {f"{ratio:g}": {} for ratio in config.ratios} for profile in config.profiles}
    total = len(config.heads) * len(config.profiles) * len(config.ratios)
    with Progress(total, "heads at a ratio") as bar:
        for name in config.heads:
            row = ROWS[name]
            descent = ImbalancedDescent(config.descent, partial(row.head, config.descent), decays=row.decays)
            for profile in config.profiles:
                for ratio in config.ratios:
                    key = {"profile": profile, "ratio": ratio, "head": name, "settings": settings}
                    counts = counts_of(config, profile, ratio)
                    values = ledger.once(key, partial(descent, counts, config.seeds))
                    found[profile][f"{ratio:g}"][name] = values
                    bar.advance(1, f"{name}, {profile} {ratio:g}")
    thresholds = {f"{ratio:g}": thresholds_of(config, ratio) for ratio in config.ratios if ratio > 1}
    summary = {"profiles": found, "thresholds": thresholds, "directory": str(directory)}
    for profile in config.profiles:
        imbalance_plots.against_ratio(config.picture(directory, profile), found[profile])
    report(config, summary, directory)
    return summary


def thresholds_of(config: Config, ratio: float) -> dict[str, float]:
    """Return the decay, and those from which on the vectors of a step's small classes are equal, and zero."""
    counts = counts_of(config, "step", ratio).tolist()
    decay = (config.descent.weight_decay * config.descent.feature_decay) ** 0.5
    merged = float(min(minority_collapse_thresholds(counts)))
    # The bias of the row "learned, decay" has no decay.
    zero = vanishing_threshold(counts, 0.0) if len(set(counts)) == 2 else merged
    return {"decay": decay, "equal": merged, "zero": zero}


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show the tables of each profile."""
    report = Report(directory, f"minority_collapse, preset {config.preset}")
    for profile in config.profiles:
        found = summary["profiles"][profile]
        report.heading(f"{profile}: {config.descent.num_classes} classes in {config.descent.dim} dimensions")
        for metric, title, digits in METRICS:
            report.tables(fitted(_against_ratio(title, found, metric, digits, config.seeds)))
        largest = f"{max(config.ratios):g}"
        base = BASE if BASE in config.heads else None
        report.tables(comparison_tables(found[largest], TESTED, base, what=f"{profile}, ratio {largest}"))
        report.picture(config.picture(directory, profile))
    if "step" in config.profiles and "learned, decay" in config.heads and summary["thresholds"]:
        report.heading("The learned head with decay, beside the theory")
        report.tables([_theory(summary)])
    solves = [
        max(values["solve_status"])
        for ratios in summary["profiles"].values()
        for rows in ratios.values()
        for values in rows.values()
    ]
    report.say([f"Inner solves of the nearest heads, worst of all steps: {describe(int(max(solves)))}."])
    report.write(summary)


def _against_ratio(title: str, found: dict[str, Any], metric: str, digits: int, seeds: int) -> Table:
    rows = []
    for name in next(iter(found.values())):
        numbers = np.array([values[name][metric] for values in found.values()])
        spread = f"{numbers.std(axis=1, ddof=min(1, seeds - 1)).max():.{digits}f}"
        rows.append([name, *(f"{mean:.{digits}f}" for mean in numbers.mean(axis=1)), spread])
    title = f"{title}: mean over {seeds} seeds by ratio, and the largest of the standard deviations over seeds"
    return Table(title, ["", *found, "largest sd"], rows)


def _theory(summary: dict[str, Any]) -> Table:
    """Say where class vectors should be equal or zero, and what the descents have."""
    rows = []
    for ratio, limits in summary["thresholds"].items():
        values = summary["profiles"]["step"][ratio]["learned, decay"]
        expected = [name for name in ("equal", "zero") if limits["decay"] >= limits[name]]
        row = [ratio, f"{limits['equal']:.3g}", f"{limits['zero']:.3g}", expected[-1] if expected else "different"]
        rows.append([*row, mean_and_sd(values["minority cosine"], 3), mean_and_sd(values["length"], 3)])
    decay = next(iter(summary["thresholds"].values()))["decay"]
    title = f"Minority class vectors of the step at a decay of {decay:.3g} (length: relative to the majority's)"
    return Table(title, ["ratio", "equal from", "zero from", "so they are", "cosine", "length"], rows)


if __name__ == "__main__":
    main(run, PRESETS, about=ABOUT, plan=plan)
