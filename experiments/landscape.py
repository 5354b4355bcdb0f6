"""Does the landscape of unconstrained features have a trap, in which descent ends before collapse?

Claim     Zhu et al. (2021): every local minimum is global and collapsed, every other critical point is a strict saddle
          (d > K there; d = K by Shen and Gu (2024)). Hong and Ling: minority classes collapse.
Command   python -m experiments.landscape        (2 minutes on two CPU cores)
Expected  100 of 100 starts of every optimiser within 2e-13 of the closed form; no saddle called a minimum, curvature
          predicted to 1e-14; with classes of 20, 20, 1, 1 examples the last two vectors vanish at a decay of 0.033
Writes    runs/landscape/<time>-<preset>/: config.json, results.jsonl, summary.md, summary.json, slice.png, minority.png
Data      none: features and class vectors are the variables.

All computations are in float64. Gradient descent, perturbed gradient descent and L-BFGS start at random points. To find
saddles, gradient descent also starts in subspaces of too few dimensions, which it never leaves.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nc_jax.checks import check_at_least
from nc_jax.study import About, Ledger, Plan, RunOptions, landscape_plots, main
from nc_jax.study.descent import Descended, gradient_descent, lbfgs, quick_key, random_trees, stable_rate
from nc_jax.study.landscape import MinorityOptions, minority_collapse, slice_through
from nc_jax.study.landscape_report import report
from nc_jax.study.progress import Progress
from nc_jax.study.runs import open_run
from nc_jax.study.settings import refuse_twice
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

Optimizer = Literal["gd", "perturbed gd", "lbfgs"]
ESCAPE = 1e-2  # how far along an escape direction: the quadratic term then still outweighs the next one
LOSSES: dict[str, LossName] = {"ce": "cross_entropy", "mse": "mse"}


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Settings of the experiment.

    Attributes:
        cases: what to minimise, as "loss:K:n:d": K classes of n examples in d dimensions, and the loss "ce" (with a
            bias) or "mse" (without).
        weight_decay: weight decay of the class vectors.
        feature_decay: weight decay of the features.
        bias_decay: weight decay of the bias.
        starts: number of random starts for each case and optimiser.
        saddle_starts: number of random starts for each number of dimensions in which saddles are sought.
        scale: standard deviation of the entries of a random start.
        optimizers: which optimisers to run from the random starts.
        steps: the most steps that a gradient descent may take.
        tolerance: a descent ends when the gradient's norm is below this number times sqrt(weight_decay x
            feature_decay).
        target: a start counts as having reached the minimum if the relative distance of its value to the closed form
            is below this.
        minority: the part on minority collapse: two classes of many examples and two of few.
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
ABOUT = {
    "default": About(
        "four problems of 4 to 10 classes, 100 starts per optimiser; saddles; minority classes",
        2,
        "all starts reach the closed form; no saddle is called a minimum",
    ),
    "smoke": About("one problem of 3 classes, for the tests", 0.4),
    "large": About("30 classes, weak decay"),
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
    with open_run("landscape", config) as (directory, config):
        return _explore(config, directory)


def _explore(config: Config, directory: Path) -> dict[str, Any]:
    """Compute the parts that a run's directory lacks; write and show what all of them say."""
    ledger, settings = Ledger(directory / "results.jsonl"), config.fingerprint("cases")
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
            bar.advance(0, f"{what} {case}")
            found[what, case] = ledger.once({"what": what, "case": case, "settings": settings}, compute)
            bar.advance(1, f"{what} {case}")
    pictures = [config.picture(directory, name) for name in ("slice", "minority")]
    landscape_plots.slice_of_a_landscape(pictures[0], **found["slice", ""])
    minority = found["minority", ""]
    curves = {name: minority[name] for name in ("decays", "angles", "norms")}
    landscape_plots.minority_curves(pictures[1], **curves)
    summary = {
        "descents": {case: found["descents", case] for case in config.cases},
        "saddles": {case: found["saddles", case] for case in config.cases},
        "minority": minority,
        "directory": str(directory),
    }
    report(config, summary, pictures)
    return summary


def plan(config: Config) -> Plan:
    """Say how many descents there are."""
    saddles = 3 * 3 * config.saddle_starts  # in three dimensions; there, beside the saddle, and perturbed
    descents = len(config.cases) * (len(config.optimizers) * config.starts + saddles)

    parts = f"{descents} descents in {len(config.cases)} cases, a slice and the minorities"
    return Plan(parts, lambda: descents * config.steps, "steps at most")


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not config.cases or not config.optimizers:
        raise ValueError(
            f"at least one case and optimizer are needed; got cases={config.cases}, optimizers={config.optimizers}"
        )
    refuse_twice("cases", config.cases)
    refuse_twice("optimizers", config.optimizers)
    for case in config.cases:
        optimal_value(problem_of(config, case))
    if len(problem_of(config, config.cases[0]).counts) < 3:
        raise ValueError(f"the slice needs a first case of at least 3 classes; got {config.cases[0]!r}")
    for name in ("starts", "saddle_starts", "steps"):
        check_at_least(name, getattr(config, name))
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


if __name__ == "__main__":
    main(run, PRESETS, about=ABOUT, plan=plan)
