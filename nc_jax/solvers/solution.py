"""What a solver returns, and a sentence for every way in which it can end."""

import enum
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Status(enum.IntEnum):
    """How a solve ended, from best to worst: the worst of several is their maximum."""

    CONVERGED = 0
    CONVERGED_TO_PRECISION = 1
    NOT_UNIQUE = 2
    ITERATION_LIMIT = 3
    RADIUS_COLLAPSED = 4
    NON_FINITE = 5


_SENTENCES = {
    Status.CONVERGED: "converged: the gradient norm is below the tolerance",
    Status.CONVERGED_TO_PRECISION: "converged to the dtype's precision: no step lowers the gradient norm any further",
    Status.NOT_UNIQUE: "converged to one of several solutions: directions that the input leaves open get no gradient",
    Status.ITERATION_LIMIT: "not converged: the iteration limit was reached first",
    Status.RADIUS_COLLAPSED: "not converged: the trust region shrank to nothing, so the derivatives may be wrong",
    Status.NON_FINITE: "failed: a NaN or an infinity in the cost, its gradient or the input",
}


class Solution(NamedTuple):
    """What a caller may want to know about a solve.

    Attributes:
        point: the best point found.
        value: the cost there.
        grad_norm: length of the Riemannian gradient there, in units of the cost.
        iterations: outer iterations, 0 for a closed form.
        inner_iterations: products with the Hessian, over all outer iterations.
        status: a `Status` as int32; `describe(status)` gives the sentence.
    """

    point: Float[Array, "..."]
    value: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    iterations: Int[Array, "..."]
    inner_iterations: Int[Array, "..."]
    status: Int[Array, "..."]


def describe(status: Any) -> str:
    """Return the sentence for a status.

    Args:
        status: a `Status`, or its number as an integer, a NumPy or a JAX scalar.

    Raises:
        ValueError: if there is no such status.

    Example:
        >>> describe(Status.ITERATION_LIMIT)
        'not converged: the iteration limit was reached first'
    """
    try:
        return _SENTENCES[Status(int(status))]
    except ValueError:
        raise ValueError(f"a status is one of {[int(code) for code in Status]}; got {int(status)}") from None


def status_array(status: Status) -> Int[Array, ""]:
    """Return the status as the int32 scalar that compiled code carries."""
    return jnp.asarray(status, jnp.int32)
