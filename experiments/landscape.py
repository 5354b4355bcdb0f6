"""Has the landscape of unconstrained features a trap? To the closed-form minimum from everywhere, and off all saddles.

Claim     Zhu et al. (2021): every local minimum is global and collapsed, every other critical point is a strict saddle
          (d > K there; d = K by Shen and Gu (2024)). Hong and Ling: minority classes collapse.
Command   python -m experiments.landscape        (2 minutes on two CPU cores)
Expected  100 of 100 starts of every optimiser within 2e-13 of the closed form; no saddle called a minimum, curvature
          predicted to 1e-14; with classes of 20, 20, 1, 1 examples the last two vectors vanish at a decay of 0.033
Writes    runs/landscape/<time>-<preset>/: config.json, results.jsonl, summary.md, summary.json, slice.png, minority.png
Data      none: features and class vectors are the variables.

All in float64. Gradient descent, perturbed gradient descent and L-BFGS start at random points, and, to find saddles, in
subspaces of too few dimensions, which descent by exact gradients never leaves. A resumed run takes up the parts that
are finished.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nc_jax.study import Ledger, RunOptions, Table, landscape_plots, main
from nc_jax.study.cli import open_run
from nc_jax.study.descent import Descended, gradient_descent, lbfgs, quick_key, random_trees, stable_rate
from nc_jax.study.landscape import MinorityOptions, minority_collapse, slice_through
from nc_jax.study.progress import Progress
from nc_jax.study.tables import markdown_table, show_table
from nc_jax.theory import (
    Certificate,
    Escape,
    LossName,
    Point,
    UnconstrainedFeatures,
    certificate,
    curvature,
    duality_gap,
    escape_direction,
    hessian_extremes,
    objective,
    optimal_value,
)
from nc_jax.training.logging import write_atomically

Optimizer = Literal["gd", "perturbed gd", "lbfgs"]
ESCAPE = 1e-2  # how far along an escape direction: the quadratic term then still outweighs the next one
LOSSES: dict[str, LossName] = {"ce": "cross_entropy", "mse": "mse"}


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Settings of the experiment.

    Attributes:
        cases: what to minimise, as "loss:K:n:d", the loss being "ce" (with a bias) or "mse" (without).
        weight_decay: of the class vectors.
        feature_decay: of the features.
        bias_decay: of the bias.
        starts: random ones, for each case and optimiser.
        saddle_starts: likewise, for each number of dimensions in which saddles are sought.
        scale: standard deviation of their entries.
        optimizers: which.
        steps: at most so many, of gradient descent.
        tolerance: on the gradient's norm, relative to the root of the product of the two decays.
        target: a start has reached the minimum if its value is within this relative distance of the closed form.
        minority: the part on minority collapse.
    """

    cases: tuple[str, ...] = ("ce:4:5:6", "ce:10:3:10", "ce:4:5:3", "mse:4:5:6")  # d > K, d = K, d = K - 1
    # All three far below the threshold from which everything is zero, so that minima and saddles are well apart.
    weight_decay: float = 0.005
    feature_decay: float = 0.001
    bias_decay: float = 0.01
    starts: int = 100  # a trap that catches three starts in a hundred would be seen with 95 %
    saddle_starts: int = 20
    scale: float = 0.3  # logits of order one, as an initialised network has them
    optimizers: tuple[Optimizer, ...] = ("gd", "perturbed gd", "lbfgs")
    steps: int = 40_000
    tolerance: float = 1e-6  # the value is then within 1e-10
    target: float = 1e-8  # far above rounding, far below the distance to the lowest saddle
    minority: MinorityOptions = dataclasses.field(default_factory=MinorityOptions)


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(
        cases=("ce:3:2:3",),
        weight_decay=0.02,
        feature_decay=0.02,
        starts=4,
        saddle_starts=4,
        steps=20_000,
        minority=MinorityOptions(minority=(4, 1), majority=4, decays=4),
    ),
    "large": Config(cases=("ce:30:4:40", "ce:30:4:30"), weight_decay=1e-3, steps=200_000),
}


def run(config: Config) -> dict[str, Any]:
    """Descend from everywhere, certify what is found, draw a slice and the collapse of minorities.

    Returns:
        What summary.json holds: "descents", "saddles", "slice", "minority", and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
    """
    if config.resume is None:
        check(config)
    directory, config = open_run("landscape", config)
    ledger = Ledger(directory / "results.jsonl")
    first = problem_of(config, config.cases[0])
    parts: dict[tuple[str, str], Callable[[], Any]] = {
        ("slice", ""): partial(slice_through, first, config.scale),
        ("minority", ""): partial(minority_collapse, config.minority),
    }
    for case in config.cases:
        parts["descents", case] = partial(descend_everywhere, config, case)
        parts["saddles", case] = partial(find_saddles, config, case)
    found: dict[tuple[str, str], Any] = {}
    with jax.enable_x64(True), Progress(len(parts), "parts") as bar:
        for (what, case), compute in parts.items():
            found[what, case] = ledger.once({"what": what, "case": case}, compute)
            bar.advance(1, f"{what} {case}")
    landscape_plots.slice_of_a_landscape(directory / "slice.png", **found["slice", ""])
    minority = found["minority", ""]
    curves = {name: minority[name] for name in ("decays", "angles", "norms")}
    landscape_plots.minority_curves(directory / "minority.png", **curves)
    summary = {
        "descents": {case: found["descents", case] for case in config.cases},
        "saddles": {case: found["saddles", case] for case in config.cases},
        "minority": minority,
        "directory": str(directory),
    }
    report(config, summary, directory)
    return summary


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not config.cases or not config.optimizers:
        raise ValueError(
            f"at least one case and optimizer are needed; got cases={config.cases}, optimizers={config.optimizers}"
        )
    for case in config.cases:
        optimal_value(problem_of(config, case))
    if len(problem_of(config, config.cases[0]).counts) < 3:
        raise ValueError(f"the slice needs a first case of at least 3 classes; got {config.cases[0]!r}")
    for name in ("starts", "saddle_starts", "steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    for name in ("scale", "tolerance", "target", "bias_decay"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive; got {getattr(config, name)}")


def problem_of(config: Config, case: str) -> UnconstrainedFeatures:
    """Return the problem of a case.

    Raises:
        ValueError: unless it is "loss:K:n:d" with a known loss and three numbers that fit together.
    """
    loss, *sizes = case.split(":")
    if loss not in LOSSES or len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise ValueError(f'a case is "loss:K:n:d" with the loss {" or ".join(LOSSES)}; got {case!r}')
    num_classes, per_class, dim = map(int, sizes)
    return UnconstrainedFeatures.balanced(
        num_classes,
        per_class,
        dim=dim,
        weight_decay=config.weight_decay,
        feature_decay=config.feature_decay,
        bias_decay=config.bias_decay if loss == "ce" else None,
        loss=LOSSES[loss],
    )


@functools.cache
def cost_of(problem: UnconstrainedFeatures) -> Callable[[Point], Array]:
    """Return the objective of a problem, always as the same object: what runs on it compiles once."""
    return partial(objective, problem)


def descend(config: Config, problem: UnconstrainedFeatures, optimizer: Optimizer, starts: Point) -> Descended:
    """Run an optimiser from every start."""
    cost, tolerance = cost_of(problem), config.tolerance * problem.threshold
    if optimizer == "lbfgs":
        return lbfgs(cost, starts, steps=config.steps, tolerance=tolerance)
    seed = 1 if optimizer == "perturbed gd" else None
    rate = stable_rate(cost, random_starts(problem, config.starts, config.scale))
    return gradient_descent(cost, starts, seed=seed, rate=rate, steps=config.steps, tolerance=tolerance)


class Examined(NamedTuple):
    """What the theory says about a critical point, and the way off it."""

    certificate: Certificate
    duality_gap: Array
    escape: Escape
    curvature: Array
    least_eigenvalue: Array


@partial(jax.jit, static_argnames="problem")
def examine(problem: UnconstrainedFeatures, points: Point) -> Examined:
    """Examine points, one per leading index: the exact curvature is that along the escape direction."""

    def one(point: Point) -> Examined:
        cost, escape = cost_of(problem), escape_direction(problem, point)
        exact = curvature(cost, point, escape.direction)
        # 40 steps settle these spectra.
        extremes = hessian_extremes(cost, point, key=quick_key(2), steps=40)
        return Examined(certificate(problem, point), duality_gap(problem, point), escape, exact, extremes.smallest)

    return jax.vmap(one)(points)


def random_starts(problem: UnconstrainedFeatures, number: int, scale: float, rank: int | None = None) -> Point:
    """Return random points, in the first `rank` dimensions only if that is given."""
    points = random_trees(problem.origin(), number, scale=scale, seed=0)
    if rank is None:
        return points
    return points._replace(frame=points.frame.at[:, rank:].set(0), features=points.features.at[..., rank:].set(0))


def descend_everywhere(config: Config, case: str) -> dict[str, Any]:
    """Run every optimiser from all random starts.

    Returns:
        "value", the closed form; per optimiser how many starts reached it, the worst relative distance to it, how many
        ends are certified, the largest duality gap, the median and the largest number of steps.
    """
    problem = problem_of(config, case)
    starts, best = random_starts(problem, config.starts, config.scale), optimal_value(problem)
    found: dict[str, Any] = {"value": best}
    for optimizer in config.optimizers:
        ends = descend(config, problem, optimizer, starts)
        distance = np.abs(np.asarray(ends.value) - best) / best
        examined = examine(problem, ends.point)
        found[optimizer] = {
            "reached": int(np.sum(distance < config.target)),
            "worst": float(np.max(distance)),
            "certified": int(jnp.sum(examined.certificate.is_global)),
            "duality_gap": float(jnp.max(examined.duality_gap)),
            "median_steps": int(np.median(ends.steps)),
            "most_steps": int(np.max(ends.steps)),
        }
    return found


def find_saddles(config: Config, case: str) -> dict[str, Any]:
    """Descend within too few dimensions, certify where that ends, and leave it.

    Returns:
        Per number of dimensions (0 is the origin): how many points, how many of them critical, called global, and of
        negative curvature; their values; the worst relative difference of predicted and exact curvature; curvature and
        least eigenvalue at the lowest of them; how many ends lie lower after a step along the escape direction and
        another descent; how many perturbed descents from the same starts reach the minimum.
    """
    problem = problem_of(config, case)
    best, full_rank = optimal_value(problem), problem.num_classes - (problem.loss == "cross_entropy")
    found = {}
    for rank in sorted({0, 1, full_rank - 1}):
        starts = random_starts(problem, config.saddle_starts, config.scale, rank)
        saddles = descend(config, problem, "gd", starts)
        first = examine(problem, saddles.point)
        beside = jax.tree.map(lambda at, way: at + ESCAPE * way, saddles.point, first.escape.direction)
        fallen = descend(config, problem, "gd", beside).value < saddles.value * (1 - config.target)
        kicked = np.asarray(descend(config, problem, "perturbed gd", starts).value)
        lowest = int(np.argmin(saddles.value))
        found[str(rank)] = {
            "points": config.saddle_starts,
            "critical": int(jnp.sum(first.certificate.is_critical)),
            "called_global": int(jnp.sum(first.certificate.is_global)),
            "strict": int(jnp.sum(first.curvature < 0)),
            "values": sorted({float(f"{value:.9g}") for value in np.asarray(saddles.value)}),
            "prediction_error": float(jnp.max(jnp.abs(first.escape.curvature / first.curvature - 1))),
            "residual": float(jnp.max(first.escape.residual)),
            "curvature": float(first.curvature[lowest]),
            "least_eigenvalue": float(first.least_eigenvalue[lowest]),
            "fallen": int(np.sum(fallen)),
            "reached": int(np.sum(np.abs(kicked - best) / best < config.target)),
        }
    return found


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show the tables."""
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    decays = f"decays {config.weight_decay:g}, {config.feature_decay:g}, bias {config.bias_decay:g}"
    text = f"# landscape, preset {config.preset}\n"

    def add(title: str, columns: list[str], rows: list[list[str]]) -> None:
        nonlocal text
        table = Table(title, columns, rows)
        text += f"\n{title}\n\n{markdown_table(table)}"
        show_table(table)

    title = f"{config.starts} random starts each; {decays}; reached: within {config.target:g} of the closed form"
    columns = ["loss:K:n:d", "least value", "", "reached", "certified", "worst distance", "duality gap", "steps"]
    table = [
        [
            case,
            f"{found['value']:.9f}",
            optimizer,
            f"{found[optimizer]['reached']} of {config.starts}",
            str(found[optimizer]["certified"]),
            f"{found[optimizer]['worst']:.1e}",
            f"{found[optimizer]['duality_gap']:.1e}",
            f"{found[optimizer]['median_steps']}",
        ]
        for case, found in summary["descents"].items()
        for optimizer in config.optimizers
    ]
    add(title, columns, table)

    title = "critical points of lower rank, and the way off them"
    columns = ["loss:K:n:d", "rank", "critical", "called global", "strict", "values", "curvature", "predicted within"]
    columns += ["least eigenvalue", "left", "kicked to the minimum"]
    table = [
        [
            case,
            rank,
            f"{saddle['critical']} of {saddle['points']}",
            str(saddle["called_global"]),
            str(saddle["strict"]),
            _range(saddle["values"]),
            f"{saddle['curvature']:.3g}",
            f"{saddle['prediction_error']:.1e}",
            f"{saddle['least_eigenvalue']:.3g}",
            str(saddle["fallen"]),
            str(saddle["reached"]),
        ]
        for case, ranks in summary["saddles"].items()
        for rank, saddle in ranks.items()
    ]
    add(title, columns, table)

    minority = summary["minority"]
    title = (
        f"angle between the two minority classes' vectors, in degrees, beside two classes of {config.minority.majority}"
    )
    chosen = np.unique(np.linspace(0, len(minority["decays"]) - 1, 7).round().astype(int))
    columns = ["decay", *(f"n = {count}" for count in minority["angles"])]
    table = [
        [f"{minority['decays'][place]:.3g}", *(_angle(angles[place]) for angles in minority["angles"].values())]
        for place in chosen
    ]
    table.append(["zero from", *(_threshold(value) for value in minority["vanishes"].values())])
    note = f"Largest duality gap: {max(minority['duality_gaps'].values()):.1e}."
    add(title, columns, table)
    text += f"\n{note}\n"
    text += "\n![slice](slice.png)\n\n![minority collapse](minority.png)\n"
    print(note)
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")


def _range(values: list[float]) -> str:
    return f"{values[0]:.4f}" if len(values) == 1 else f"{values[0]:.4f} to {values[-1]:.4f} ({len(values)})"


def _angle(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _threshold(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main(run, PRESETS)
