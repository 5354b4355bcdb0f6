"""The result of a solver, its status, and a sentence that explains each status."""

import enum
import operator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int


class Status(enum.IntEnum):
    """How a solve ended, ordered from best to worst, so that the worst of several statuses is their maximum.

    `describe` gives a sentence for each. Up to NOT_UNIQUE the point is a solution; with NON_FINITE, discard it.
    """

    CONVERGED = 0
    CONVERGED_TO_PRECISION = 1
    NOT_UNIQUE = 2
    ITERATION_LIMIT = 3
    RADIUS_COLLAPSED = 4
    NON_FINITE = 5


_SENTENCES = {
    Status.CONVERGED: "converged: the gradient norm is below the tolerance",
    Status.CONVERGED_TO_PRECISION: "converged to the dtype's precision: no step lowers the gradient norm any further",
    Status.NOT_UNIQUE: (
        "converged to one of several solutions: directions that the input leaves open, up to its rounding, get no "
        "gradient"
    ),
    Status.ITERATION_LIMIT: "not converged: the iteration limit was reached first",
    Status.RADIUS_COLLAPSED: "not converged: the trust region shrank to nothing, so the derivatives may be wrong",
    Status.NON_FINITE: "failed: a NaN or an infinity in the cost, its gradient or the input",
}


class Solution(NamedTuple):
    """Result of a solve.

    Attributes:
        point: the best point found.
        value: cost at the point.
        grad_norm: length of the Riemannian gradient at the point, in units of the cost.
        iterations: number of outer iterations; 0 for a closed form without iterations.
        inner_iterations: number of products with the Hessian, over all outer iterations.
        status: a `Status` as int32; `describe(status)` explains it in a sentence.
    """

    point: Float[Array, "..."]
    value: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    iterations: Int[Array, "..."]
    inner_iterations: Int[Array, "..."]
    status: Int[Array, "..."]


export.register_namedtuple_serialization(Solution, serialized_name="nc_jax.solvers.Solution")  # for jax.export


def describe(status: Any) -> str:
    """Return a sentence that explains a status.

    Args:
        status: a `Status`, or its number as an integer, a NumPy scalar or a JAX scalar.

    Raises:
        ValueError: if the number is not that of a status.

    Example:
        >>> describe(Status.ITERATION_LIMIT)
        'not converged: the iteration limit was reached first'
    """
    try:
        return _SENTENCES[Status(operator.index(status))]
    except (ValueError, TypeError):
        raise ValueError(f"a status is one of {[int(code) for code in Status]}; got {status}") from None


def status_array(status: Status) -> Int[Array, ""]:
    """Return the status as the int32 scalar that compiled code carries."""
    return jnp.asarray(status, jnp.int32)
