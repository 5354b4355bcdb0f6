"""What the arithmetic of an accelerator does to a polar factor: TF32 products, bfloat16 inputs, and its decompositions.

`benchmarks.gpu` runs these. Answers are compared with the polar factor in float64, and every error is reported: there
is no tolerance beyond which a row gets no time, because the errors are what is asked.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, ours
from benchmarks.problems import Problem, polar
from nc_jax.solvers.polar import PolarMethod, polar_decomposition

PLAIN_STEPS = 20  # of Newton-Schulz, two more than the fewest that suffice for (2048, 1000)
METHODS: tuple[PolarMethod, ...] = tuple(name for name in get_args(PolarMethod) if name != "auto")
BY_PRODUCTS: PolarMethod = "newton_schulz"


def errors_of(rotation: Any, expected: np.ndarray) -> dict[str, float]:
    """Return the relative error of a rotation, and the largest entry of |U^T U - I|, in float64."""
    rotation = np.asarray(rotation, np.float64)
    gram = rotation.T @ rotation
    return {
        "error": harness.relative_error(rotation, expected),
        "orthogonality": float(np.abs(gram - np.eye(len(gram))).max()),
    }


@jax.jit
def plain_newton_schulz(matrix: jax.Array) -> jax.Array:
    """Return the polar factor by steps X (3 I - X^T X) / 2 whose products have JAX's default precision."""
    largest = jnp.sqrt(jnp.max(jnp.sum(jnp.abs(matrix), axis=0)) * jnp.max(jnp.sum(jnp.abs(matrix), axis=1)))

    def step(point: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return 1.5 * point - 0.5 * point @ (point.T @ point), None

    return jax.lax.scan(step, matrix / largest, length=PLAIN_STEPS)[0]


def products_in(problem: Problem, precisions: Sequence[str]) -> list[dict[str, Any]]:
    """Return the errors of our solvers, which ask for full precision, and of one that does not, at each precision."""
    inputs, matrix = ours.inputs_of(problem), jnp.asarray(problem.matrix, jnp.float32)
    programs: dict[str, Callable[[], Any]] = {
        solver: lambda solver=solver: ours.compiled(solver)(*inputs).rotation for solver in ours.SOLVERS
    }
    programs["Newton-Schulz by plain products"] = partial(plain_newton_schulz, matrix)
    rows = []
    for precision in precisions:
        for name, program in programs.items():
            with jax.default_matmul_precision(precision):
                found = errors_of(program(), problem.rotation)
            rows.append({"case": problem.label, "program": name, "precision": precision} | found)
    return rows


def claims_of_products(rows: Sequence[dict[str, Any]]) -> list[harness.Claim]:
    """Return the claims on errors: targets for our solvers, at every default precision of products."""
    limits = {
        "error": ("relative error of the rotation", ours.ROTATION_TOLERANCE),
        "orthogonality": ("largest entry of |U^T U - I|", ours.ORTHOGONALITY_TOLERANCE),
    }
    return [
        harness.Claim(
            f"{statement}: {row['program']}, default precision {row['precision']}",
            row["case"],
            row[key],
            at_most=limit if row["program"] in ours.SOLVERS else None,
        )
        for row in rows
        for key, (statement, limit) in limits.items()
    ]


def narrow_inputs(problem: Problem) -> list[dict[str, Any]]:
    """Return the errors for class means in bfloat16: beside the solution for these means, and for those in float32.

    The first is the error of the solver, the second also has what rounding the means has changed.
    """
    means, *rest = ours.inputs_of(problem)
    means = means.astype(jnp.bfloat16)
    rounded = np.asarray(means, np.float64)
    template, previous = np.asarray(problem.template, np.float64), np.asarray(problem.previous, np.float64)
    expected = polar(2 * rounded @ template.T + problem.prox_weight * previous)
    rows = []
    for solver in ours.SOLVERS:
        rotation = jax.device_get(ours.compiled(solver)(means, *rest).rotation)
        rows.append(
            {
                "case": problem.label,
                "program": f"{solver}, means in bfloat16",
                "dtype": str(rotation.dtype),
                "error_to_unrounded": harness.relative_error(rotation, problem.rotation),
                **errors_of(rotation, expected),
            }
        )
    return rows


def polar_methods(problem: Problem, *, repeats: int, budget: float) -> list[dict[str, Any]]:
    """Time the methods of `nc_jax.solvers.polar` on one matrix, in turns. A method that fails has its sentence."""
    matrix, previous = jnp.asarray(problem.matrix, jnp.float32), jnp.asarray(problem.previous)
    rows: dict[str, dict[str, Any]] = {}
    programs: dict[str, Callable[[], Any]] = {}
    for method in METHODS:
        starts = {method: None} | ({f"{method}, warm": previous} if method == BY_PRODUCTS else {})
        for name, start in starts.items():
            program = jax.jit(partial(polar_decomposition, method=method, init=start))
            rows[name] = {"case": problem.label, "program": name}
            try:
                found = jax.block_until_ready(program(matrix))
            except Exception as error:
                rows[name]["failed"] = harness.sentence(error)
                continue
            rows[name] |= errors_of(found.factor, problem.rotation) | {"iterations": int(found.iterations)}
            programs[name] = partial(program, matrix)
    for name, timing in harness.compare(programs, repeats=repeats, budget=budget).items():
        rows[name] |= timing.row()
    return list(rows.values())


def claims_of_methods(rows: Sequence[dict[str, Any]]) -> list[harness.Claim]:
    """Return how many times faster than the decompositions the method by products is."""
    timed = {row["program"]: row for row in rows if "seconds" in row}
    if BY_PRODUCTS not in timed:
        return []
    return [
        harness.Claim(
            f"polar factor by {BY_PRODUCTS}: times faster than by {name}",
            row["case"],
            row["seconds"] / timed[BY_PRODUCTS]["seconds"],
            unit="x",
        )
        for name, row in timed.items()
        if not name.startswith(BY_PRODUCTS)
    ]
