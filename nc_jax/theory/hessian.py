"""Curvature of a function of a tree of arrays: along a direction, the extreme eigenvalues, or all eigenvalues."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import matmul, symmetric_part, transpose
from nc_jax.checks import check_at_least

Function = Callable[[Any], Float[Array, ""]]


class HessianExtremes(NamedTuple):
    """Estimates of the smallest and the largest eigenvalue of a Hessian.

    Attributes:
        smallest: smallest eigenvalue.
        largest: largest eigenvalue.
        direction: unit eigenvector of the smallest eigenvalue, with the structure of the point.
        error: error bound. An eigenvalue of the Hessian lies within this distance of each of the two estimates.
    """

    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    direction: Any
    error: Float[Array, ""]


def hessian_product(function: Function, point: Any, direction: Any) -> Any:
    """Return the Hessian times a direction. Both have the structure of the point; the cost is about two gradients."""
    return jax.jvp(jax.grad(function), (point,), (direction,))[1]


def curvature(function: Function, point: Any, direction: Any) -> Float[Array, ""]:
    """Return the second derivative along a direction of any length, from the exact Hessian product."""
    product = hessian_product(function, point, direction)
    return sum(
        (jnp.vdot(ours, theirs) for ours, theirs in zip(*map(jax.tree.leaves, (direction, product)), strict=True)),
        start=jnp.zeros(()),
    )


def hessian_eigenvalues(function: Function, point: Any) -> Float[Array, " size"]:
    """Return all eigenvalues of the dense Hessian, ascending. For points of at most a few thousand numbers."""
    flat, unravel = ravel_pytree(point)
    hessian = jax.hessian(lambda vector: function(unravel(vector)))(flat)
    return jnp.linalg.eigvalsh(symmetric_part(hessian))


def hessian_extremes(
    function: Function,
    point: Any,
    *,
    key: PRNGKeyArray,
    steps: int = 64,  # the ends of the spectra of unconstrained features settle to 1e-8 within 40
) -> HessianExtremes:
    """Estimate the smallest and the largest eigenvalue of the Hessian by Lanczos' method, without forming the matrix.

    Every new direction is orthogonalised twice against all earlier ones; otherwise eigenvalues would appear more than
    once. The memory is `steps` times that of the point.

    Args:
        function: function from the point to a scalar, twice differentiable.
        point: a tree of floating arrays.
        key: random key from which the first direction is drawn.
        steps: largest number of products with the Hessian.

    Raises:
        ValueError: if steps < 1, or the point is empty.

    Reference: Golub and Van Loan, Matrix Computations (2013).
    """
    flat, unravel = ravel_pytree(point)
    check_at_least("steps", steps)
    if not flat.size:
        raise ValueError("Lanczos' method needs a point that is not empty; got one without a number")
    steps = min(steps, flat.size)
    slope = jax.grad(lambda vector: function(unravel(vector)))
    eps = jnp.finfo(flat.dtype).eps

    def advance(index: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        basis, diagonal, beside, alive = carry
        vector = basis[index]
        product = jax.jvp(slope, (flat,), (vector,))[1]
        # Once the Krylov space is exhausted, fill the rest of the diagonal with its first entry. This value lies within
        # the spectrum, so it changes neither extreme.
        diagonal = diagonal.at[index].set(jnp.where(alive, jnp.vdot(vector, product), diagonal[0]))
        size = jnp.linalg.norm(product)
        for _ in range(2):
            product = product - matmul(transpose(basis), matmul(basis, product))
        rest = jnp.linalg.norm(product)
        alive = alive & (rest > 10 * eps * size) & (rest > 0)
        rest = jnp.where(alive, rest, 0)
        beside = beside.at[index].set(rest)
        following = jnp.where(alive, product / jnp.where(alive, rest, 1), 0)
        return basis.at[index + 1].set(following), diagonal, beside, alive

    first = jax.random.normal(key, flat.shape, flat.dtype)
    basis = jnp.zeros((steps + 1, flat.size), flat.dtype).at[0].set(first / jnp.linalg.norm(first))
    zeros = jnp.zeros(steps, flat.dtype)
    basis, diagonal, beside, _ = jax.lax.fori_loop(0, steps, advance, (basis, zeros, zeros, jnp.asarray(True)))
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    error = beside[-1] * jnp.maximum(jnp.abs(vectors[-1, 0]), jnp.abs(vectors[-1, -1]))
    direction = matmul(transpose(basis[:-1]), vectors[:, 0])
    return HessianExtremes(values[0], values[-1], unravel(direction / jnp.linalg.norm(direction)), error)
