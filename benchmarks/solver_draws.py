"""Does the nearest simplex ETF ever go wrong without a word?

Claim     Over problems drawn from the whole input space, no frame differs from a simplex ETF, and no gradient is off by
          more than 1e-3, unless the status says so.
Command   python -m benchmarks.solver_draws [smoke|default]
Drawn     shape, dtype (float32, float64, bfloat16), solver, with and without proximal term and weights; kind of means
          (`KINDS`); scale 1e-30 to 1e30; proximal weight; weights, some of them zero.
Checked   the Gram matrix of the frame: every entry to 100 eps of the frame's dtype. The gradient of <G, frame> in the
          means: in float64 its slope along a random direction, against central differences of a NumPy solution; in
          lower precision all of it, against a formula in NumPy and float64 at the same input.
Tolerance of the gradient: 1e-3, plus the eps of the dtype in which it is returned, plus 30 eps kappa of the dtype that
          computes. Here kappa is the size of the terms that B consists of over its least singular value, by which the
          derivative divides. The tolerance is at most 0.1, so a rotation that nothing determines needs its status.
At zero   scaling to unit norm has no derivative for means that are all zero; the gradient must then be zero.
Not compared  gradients that the dtype cannot hold (the scale of 1e-30 at condition 1e9, say): they are counted.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.problems import haar, simplex_template
from nc_jax import nearest_simplex_etf
from nc_jax.solvers import Status

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
TERMS = ("alone", "prox", "weights, prox")
GRAM_EPS = 100
KEPT = 100  # problems that are not wrong in the result, those with the largest errors; all would be 4 MB
GRADIENT, CONDITION_FACTOR, LARGEST_TOLERANCE = 1e-3, 30, 0.1


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        problems: number of problems; it is rounded up to a multiple of the number of programs.
        shapes: (d, K) of the problems.
        dtypes: dtypes of the means.
        solvers: solvers that are tried.
        seed: random seed of the problems.
    """

    problems: int = 10_000
    shapes: tuple[tuple[int, int], ...] = ((1, 2), (3, 2), (4, 5), (12, 5), (64, 10), (24, 20))
    dtypes: tuple[str, ...] = tuple(DTYPES)
    solvers: tuple[str, ...] = ("polar", "trust_region")
    seed: int = 0


PRESETS = {"default": Config(), "smoke": Config(problems=300, shapes=((3, 2), (12, 5)), dtypes=("float32", "float64"))}


class Problem(NamedTuple):
    """Inputs of a batch of problems in NumPy; the means are rounded to their dtype."""

    means: np.ndarray  # (N, d, K)
    prox: np.ndarray  # (N, d, K - 1)
    delta: np.ndarray  # (N,)
    weights: np.ndarray  # (N, K)
    cotangent: np.ndarray  # (N, d, K)
    direction: np.ndarray  # (N, d, K), of the size of the means


def run(config: Config) -> dict[str, Any]:
    """Draw, solve and check every problem, and write the result."""
    groups = list(itertools.product(config.shapes, config.dtypes, config.solvers, TERMS))
    count = -(-config.problems // len(groups))
    rows = []
    for number, (shape, dtype, solver, terms) in enumerate(groups):
        harness.progress(f"{number + 1} of {len(groups)}: (d, K) = {shape}, {dtype}, {solver}, {terms}")
        generator = np.random.default_rng((config.seed, number))
        kinds, problem = draw_problems(generator, count, shape, dtype, terms)
        checked = check(problem, dtype, terms, *solve(problem, dtype, solver, terms))
        where = {"d": shape[0], "K": shape[1], "dtype": dtype, "solver": solver, "terms": terms}
        rows += [where | {"kind": kind} | row for kind, row in zip(kinds, checked, strict=True)]
    table = harness.Table(
        f"{len(rows)} problems",
        (
            "dtype, solver",
            "problems",
            "converged",
            "not unique",
            "not converged",
            "not finite",
            "beyond range",
            "frames wrong",
            "gradients wrong",
            "largest error",
        ),
        [table_row(rows, *which) for which in itertools.product(config.dtypes, config.solvers)],
    )
    claims = [
        harness.Claim(f"{what} wrong without a status", "all", sum(row[key] for row in rows), at_most=0)
        for what, key in (("frames", "frame_wrong"), ("gradients", "gradient_wrong"))
    ]
    wrong = [row for row in rows if row["frame_wrong"] or row["gradient_wrong"]]
    right = [row for row in rows if row["status"] < Status.NOT_UNIQUE and not row["beyond"] and row not in wrong]
    largest = sorted(right, key=lambda row: row["gradient_error"], reverse=True)[:KEPT]
    return harness.report(
        "solver_draws", config, rows=wrong + largest, table=table, claims=claims, draw=functools.partial(draw, rows)
    )


# --- Problems. ---


def gaussian(generator, dim, num_classes):
    """Independent entries."""
    return generator.normal(size=(dim, num_classes))


def with_spectrum(generator, dim, num_classes, values):
    """Random singular vectors and given singular values."""
    rank = len(values)
    return haar(generator, dim, rank) * values @ haar(generator, num_classes, rank).T


def conditioned(generator, dim, num_classes):
    """Centred means whose singular values fall by up to nine orders of magnitude."""
    values = np.logspace(0, -generator.uniform(0, 9), num_classes - 1)
    return with_spectrum(generator, dim, num_classes - 1, values) @ simplex_template(num_classes)


def deficient(generator, dim, num_classes):
    """Equal singular values, fewer than the K - 1 that a rotation needs."""
    rank = generator.integers(1, max(num_classes - 1, 2))
    return with_spectrum(generator, dim, num_classes, np.ones(min(rank, dim)))


def duplicated(generator, dim, num_classes):
    """Some classes share a mean."""
    means = gaussian(generator, dim, num_classes)
    return means[:, generator.integers(0, num_classes, num_classes)]


def zeros(generator, dim, num_classes):
    """Some means are zero."""
    return gaussian(generator, dim, num_classes) * (generator.random(num_classes) < 0.7)


def offset(generator, dim, num_classes):
    """A common offset of up to 1e8 times the spread."""
    return gaussian(generator, dim, num_classes) + 10 ** generator.uniform(0, 8) * generator.normal(size=(dim, 1))


def graded(generator, dim, num_classes):
    """Columns of lengths 1e-2 to 1e2."""
    return gaussian(generator, dim, num_classes) * 10 ** generator.uniform(-2, 2, num_classes)


def collapsed(generator, dim, num_classes):
    """A simplex ETF itself."""
    return haar(generator, dim, num_classes - 1) @ simplex_template(num_classes)


def with_nan(generator, dim, num_classes):
    """One mean is NaN or infinite."""
    means = gaussian(generator, dim, num_classes)
    means[:, generator.integers(num_classes)] = generator.choice([np.nan, np.inf])
    return means


KINDS = (gaussian, conditioned, deficient, duplicated, zeros, offset, graded, collapsed, with_nan)


def draw_problems(generator: np.random.Generator, count: int, shape: tuple[int, int], dtype: str, terms: str) -> tuple:
    """Return the names of the kinds of means, and a batch of problems."""
    dim, num_classes = shape
    kinds = [KINDS[generator.integers(len(KINDS))] for _ in range(count)]
    scales = 10 ** generator.uniform(-30, 30, (count, 1, 1))
    means = np.stack([kind(generator, dim, num_classes) for kind in kinds]) * scales
    delta = generator.choice([1e-3, 1.0], count) if terms == "prox" else generator.choice([0.0, 1e-3, 1.0], count)
    weights = generator.uniform(0.1, 3, (count, num_classes))
    weights[generator.random(count) < 0.3, 0] = 0
    problem = Problem(
        means=means.astype(DTYPES[dtype]),
        prox=np.stack([haar(generator, dim, num_classes - 1) for _ in range(count)]).astype(np.float32),
        delta=delta.astype(np.float32),
        weights=weights.astype(np.float32),
        cotangent=generator.normal(size=means.shape).astype(np.float32),
        direction=generator.normal(size=means.shape) * scales,
    )
    return [kind.__name__ for kind in kinds], problem


# --- Our solution. ---


def solve(problem: Problem, dtype: str, solver: str, terms: str) -> tuple[np.ndarray, ...]:
    """Return frames, statuses and gradients by nc_jax, in float64 but rounded as they are returned."""

    def one(means, prox, delta, weights, cotangent):
        def objective(means):
            found = nearest_simplex_etf(
                means,
                prox_point=prox if "prox" in terms else None,
                prox_weight=delta,
                weights=weights if "weights" in terms else None,
                solver="polar" if solver == "polar" else "trust_region",
            )
            return jnp.vdot(cotangent, found.frame), (found.frame, found.solution.status)

        (_, found), gradient = jax.value_and_grad(objective, has_aux=True)(means)
        return *found, gradient

    with jax.enable_x64(dtype == "float64"):
        wide = np.float64 if dtype == "float64" else np.float32
        others = (array.astype(wide) for array in problem[1:5])
        frames, statuses, gradients = jax.device_get(jax.jit(jax.vmap(one))(problem.means, *others))
    return frames.astype(float), statuses, gradients.astype(float)


# --- The checks. ---


class Exact(NamedTuple):
    """Solution in float64: the frame, B over its terms' size, the polar factor of B, and what leads from H to B."""

    frame: np.ndarray
    matrix: np.ndarray
    rotation: np.ndarray
    size: np.ndarray
    norm: np.ndarray


def solve_exactly(means: np.ndarray, problem: Problem, terms: str) -> Exact:
    """Solve in NumPy; the means are at a scale of one."""
    num_classes = means.shape[2]
    template = simplex_template(num_classes) / np.sqrt(num_classes - 1)
    weights = problem.weights[:, None].astype(float) if "weights" in terms else np.ones((1, 1, 1))
    delta = problem.delta[:, None, None].astype(float) if "prox" in terms else np.zeros((len(means), 1, 1))
    norm = np.sqrt(np.sum(weights * means**2, axis=(1, 2), keepdims=True))
    norm = np.where(norm > 0, norm, 1)
    counted = weights * means if "weights" in terms else means - means.mean(axis=2, keepdims=True)
    matrix = 2 * counted / norm @ template.T + delta * problem.prox
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    rotation = left @ right
    size = 2 * np.linalg.norm(counted / norm, axis=(1, 2)) / (num_classes - 1) + delta[:, 0, 0]
    frame = np.sqrt(num_classes) * rotation @ template
    return Exact(frame, matrix, rotation, size, norm)


def exact_gradient(means: np.ndarray, problem: Problem, terms: str, exact: Exact) -> np.ndarray:
    r"""Gradient of <G, frame> in the means, which are at a scale of one.

    With B = U S, S = V diag(s) V^T and the cotangent N of U, the cotangent of B is
    U X + (I - U U^T) N S^{-1}, where the skew X solves S X + X S = U^T N - N^T U.
    """
    num_classes = means.shape[2]
    template = simplex_template(num_classes) / np.sqrt(num_classes - 1)
    rotation, cotangent = exact.rotation, np.sqrt(num_classes) * problem.cotangent.astype(float) @ template.T
    transposed = np.swapaxes(rotation, 1, 2)
    values, vectors = np.linalg.eigh(transposed @ exact.matrix)
    back = np.swapaxes(vectors, 1, 2)
    aligned = transposed @ cotangent
    skew = back @ (aligned - np.swapaxes(aligned, 1, 2)) @ vectors
    by_matrix = rotation @ (vectors @ divide(skew, values[:, :, None] + values[:, None]) @ back)
    outside = (cotangent - rotation @ aligned) @ vectors
    if rotation.shape[1] > rotation.shape[2]:
        by_matrix += divide(outside, values[:, None]) @ back
    weights = problem.weights[:, None].astype(float) if "weights" in terms else np.ones((1, 1, 1))
    direct = 2 * weights * (by_matrix @ template)  # centred, as the rows of the template are
    along = np.sum(direct * means, axis=(1, 2), keepdims=True) / exact.norm**2
    return (direct - along * weights * means) / exact.norm


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; numbers that exact arithmetic does not determine are left at zero."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 1e-15)


def check(
    problem: Problem, dtype: str, terms: str, frames: np.ndarray, statuses: np.ndarray, gradients: np.ndarray
) -> list[dict[str, Any]]:
    """Return one row per problem: its status, condition and errors, and whether anything is wrong without a status."""
    num_classes = frames.shape[2]
    solved = np.float64 if dtype == "float64" else np.float32
    eps, returned = float(np.finfo(solved).eps), jnp.finfo(DTYPES[dtype])
    gram = np.swapaxes(frames, 1, 2) @ frames
    wanted = (num_classes * np.eye(num_classes) - 1) / (num_classes - 1)
    frame_error = np.abs(gram - wanted).max(axis=(1, 2)) / eps

    means = problem.means.astype(float)
    if "weights" in terms:
        means = np.where(problem.weights[:, None] > 0, means, 0)
    finite = np.all(np.isfinite(means), axis=(1, 2))
    means = np.where(finite[:, None, None], means, 0)
    scale = np.abs(means).max(axis=(1, 2), keepdims=True)
    scale = np.where(scale > 0, scale, 1)
    exact = solve_exactly(means / scale, problem, terms)
    # Scaling to unit norm has no derivative at zero, where nc_jax promises a gradient of zero.
    empty = np.max(np.abs(means), axis=(1, 2), keepdims=True) == 0
    expected = np.where(empty, 0, exact_gradient(means / scale, problem, terms, exact) / scale)
    values = np.linalg.svd(exact.matrix, compute_uv=False)
    square = values.shape[1] == frames.shape[1]
    # On O(n), two singular values are added, and the single one of O(1) has no derivative.
    least = values[:, -1] + values[:, -2] if square and values.shape[1] > 1 else values[:, -1]
    condition = exact.size / np.maximum(least, 1e-300)

    error = relative(gradients - expected, expected)
    if dtype == "float64":
        error = np.where(
            empty[:, 0, 0], error, slope_error(means, scale, problem, terms, exact, expected, gradients, least)
        )
    tolerance = np.minimum(GRADIENT + returned.eps + CONDITION_FACTOR * eps * condition, LARGEST_TOLERANCE)
    largest = np.abs(expected).max(axis=(1, 2))
    # Subnormal numbers are flushed to zero, so entries below `tiny` count for nothing.
    beyond = (largest > float(returned.max)) | ((largest < 1e4 * float(returned.tiny)) & (largest > 0))
    said = statuses >= Status.NOT_UNIQUE
    frame_wrong = ~said & ~(frame_error <= GRAM_EPS)
    gradient_wrong = ~said & ~beyond & ~(error <= tolerance)
    columns = {
        "status": statuses.tolist(),
        "condition": condition.tolist(),
        "frame_error": frame_error.tolist(),
        "gradient_error": error.tolist(),
        "tolerance": tolerance.tolist(),
        "beyond": beyond.tolist(),
        "frame_wrong": frame_wrong.tolist(),
        "gradient_wrong": gradient_wrong.tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def slope_error(means, scale, problem, terms, exact, expected, gradients, least) -> np.ndarray:
    """Error of the slope along the direction against central differences, in units of a typical slope."""
    direction = problem.direction / np.linalg.norm(problem.direction, axis=(1, 2), keepdims=True)
    if "weights" in terms:
        direction = np.where(problem.weights[:, None] > 0, direction, 0)
    # A step that changes B by 3 % of what the derivative divides by, and keeps it in its component of the manifold: the
    # truncation error is then 1e-6, and rounding errors are amplified by 30 times the condition.
    values = np.linalg.svd(exact.matrix, compute_uv=False)
    step = np.maximum(np.minimum(3e-2 * least, 0.2 * values[:, -1]), 1e-14)[:, None, None] * exact.norm / 2

    def objective(t):
        frame = solve_exactly(means / scale + t * step * direction, problem, terms).frame
        return np.sum(problem.cotangent * frame, axis=(1, 2))

    near, far = (objective(1) - objective(-1)) / 2, (objective(2) - objective(-2)) / 4
    slope = (4 * near - far) / 3 / step[:, 0, 0]
    found = np.sum(gradients * scale * direction, axis=(1, 2))
    typical = np.linalg.norm(expected * scale, axis=(1, 2)) / np.sqrt(means[0].size)
    # Where the exact gradient vanishes (on O(1), say), so must ours, up to rounding.
    return np.abs(found - slope) / np.maximum(typical, 1e-8)


def relative(difference: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Frobenius norm of a difference, relative to that of what was expected; absolute where that is zero."""
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    scale = np.where(scale > 0, scale, 1)
    size = np.linalg.norm(expected / scale, axis=(1, 2))
    return np.linalg.norm(difference / scale, axis=(1, 2)) / np.where(size > 0, size, 1)


# --- The report. ---


def table_row(rows: list[dict[str, Any]], dtype: str, solver: str) -> list[str]:
    """Count the problems of a dtype and a solver by status and fault."""
    chosen = [row for row in rows if (row["dtype"], row["solver"]) == (dtype, solver)]
    ranges = ((0, 1), (2, 2), (3, 4), (5, 5))
    counts = [sum(low <= row["status"] <= high for row in chosen) for low, high in ranges]
    faults = [sum(row[key] for row in chosen) for key in ("beyond", "frame_wrong", "gradient_wrong")]
    errors = [row["gradient_error"] for row in chosen if row["status"] < Status.NOT_UNIQUE and not row["beyond"]]
    numbers = [str(number) for number in (len(chosen), *counts, *faults)]
    return [f"{dtype}, {solver.replace('_', ' ')}", *numbers, harness.number(max(errors, default=0.0))]


def draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Error of the gradient against condition, one panel per dtype."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    for axis, dtype in zip(np.atleast_1d(figure.subplots(1, len(dtypes), sharey=True)), dtypes, strict=True):
        for status, label in ((0, "converged"), (2, "not unique")):
            chosen = [row for row in rows if (row["dtype"], row["status"]) == (dtype, status) and not row["beyond"]]
            condition = [min(row["condition"], 1e20) for row in chosen]
            axis.loglog(condition, [max(row["gradient_error"], 1e-16) for row in chosen], ".", ms=2, label=label)
        axis.set_title(dtype)
        axis.set_xlabel("condition of the derivative")
    figure.axes[0].set_ylabel("relative error of the gradient")
    figure.axes[0].legend(fontsize=8)


if __name__ == "__main__":
    harness.main(run, PRESETS)
