"""`nearest_frame` on the problem of the benchmarks, and the checks of its answers."""

import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.problems import Problem
from nc_jax.frames import SimplexTemplate
from nc_jax.nearest import NearestFrame, nearest_frame

SolverName = Literal["polar", "trust region"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)

ROTATION_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
ORTHOGONALITY_TOLERANCE = 1e-5  # for every entry of U^T U - I


def template_of(num_classes: int) -> SimplexTemplate:
    """Return the template of the problem as `nearest_simplex_etf` uses it: an operator with cheap products."""
    return SimplexTemplate(num_classes, 1 / math.sqrt(num_classes - 1))


def solve(
    solver: SolverName,
    means: jax.Array,
    previous: jax.Array,
    weight: Any,
    init: jax.Array,
    template: jax.Array | None = None,
) -> NearestFrame:
    """Solve with one of our solvers; without a template, with that of the simplex."""
    return nearest_frame(
        means,
        template_of(means.shape[1]) if template is None else template,
        prox_point=previous,
        prox_weight=weight,
        solver="polar" if solver == "polar" else "trust_region",
        init=init,
    )


@functools.cache
def compiled(solver: SolverName) -> Any:
    """Return `solve` with a fixed solver as one jitted function, so that problems of one size share a program."""
    return jax.jit(functools.partial(solve, solver))


def inputs_of(problem: Problem, start: str = "warm") -> list[jax.Array]:
    """Means, previous rotation, prox weight and starting point on the device, and a template without structure."""
    arrays = [problem.means, problem.previous, np.float32(problem.prox_weight), problem.start(start)]
    if not problem.simplex:
        arrays.append(problem.template)
    return [jnp.asarray(array) for array in arrays]


def label(name: str, precision: str, precisions: tuple[str, ...]) -> str:
    """Return the name of a program, followed by the precision of its matrix products if there are several."""
    return f"{name}, {precision}" if len(precisions) > 1 else name


def check_rotation(what: str, problem: Problem, rotation: Any) -> dict[str, float]:
    """Compare a rotation with the solution in float64.

    Raises:
        WrongAnswerError: if the rotation differs too much from the solution, or is not orthogonal.
    """
    rotation = np.asarray(rotation)
    gram = rotation.T.astype(np.float64) @ rotation
    worst = float(np.abs(gram - np.eye(len(gram))).max())
    return {
        "error": harness.require_close(f"the rotation by {what}", rotation, problem.rotation, ROTATION_TOLERANCE),
        "orthogonality": harness.require_at_most(f"|U^T U - I| by {what}", worst, ORTHOGONALITY_TOLERANCE),
    }


def check_gradient(what: str, problem: Problem, gradient: Any) -> float:
    """Return the relative error of the gradient of <G, U T> in the means.

    Raises:
        WrongAnswerError: if the error exceeds `GRADIENT_TOLERANCE`.
    """
    return harness.require_close(f"the gradient by {what}", gradient, problem.gradient, GRADIENT_TOLERANCE)
