"""The orthogonal polar factor: the matrix with orthonormal columns that is nearest to a given one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32, matmul, transpose


class PolarDecomposition(NamedTuple):
    """B = U S with S = V diag(s) V^T, in the form that the derivative needs.

    Attributes:
        factor: U, shape (..., n, p), orthonormal columns.
        values: s, shape (..., p), the singular values of B.
        vectors: V, shape (..., p, p), its right singular vectors as columns.
    """

    factor: Float[Array, "*batch n p"]
    values: Float[Array, "*batch p"]
    vectors: Float[Array, "*batch p p"]


def polar_decomposition(matrix: Float[Array, "*batch n p"]) -> PolarDecomposition:
    """Polar factor with the eigendecomposition of the symmetric factor, from one singular value decomposition.

    Args:
        matrix: B, shape (..., n, p) with n >= p. Dtypes narrower than float32 are solved in float32.

    Raises:
        ValueError: if B is not a matrix with at least as many rows as columns.
    """
    if matrix.ndim < 2 or matrix.shape[-2] < matrix.shape[-1]:
        raise ValueError(f"the polar factor needs a matrix of shape (n, p) with n >= p; got shape {matrix.shape}")
    left, values, right = jnp.linalg.svd(at_least_float32(matrix), full_matrices=False)
    return PolarDecomposition(matmul(left, right), values, transpose(right))


@jax.custom_jvp
def polar(matrix: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
    r"""Orthogonal polar factor U of B = U S, with S symmetric positive semidefinite.

    U maximises <U, B> over matrices with orthonormal columns, so it solves the orthogonal Procrustes problem. It is
    unique where B has full column rank; otherwise one of the solutions is returned.

    This is the bare solver. Its differentiable form is `nc_jax.implicit.polar_factor`.

    Args:
        matrix: B, shape (..., n, p) with n >= p. Dtypes narrower than float32 are solved in float32.

    Returns:
        U, shape (..., n, p), in float32 or float64; NaN where B is not finite.

    Raises:
        ValueError: if B is not a matrix with at least as many rows as columns.
        TypeError: if it is differentiated.

    Example:
        >>> bool(jnp.allclose(polar(jnp.array([[3.0, 0.0], [0.0, -2.0]])), jnp.array([[1.0, 0.0], [0.0, -1.0]])))
        True

    Reference: Higham, Functions of Matrices (2008), theorems 8.1 and 8.4.
    """
    return polar_decomposition(matrix).factor


@polar.defjvp
def _polar_is_not_differentiated(primals, tangents):
    # Autodiff of the SVD divides by differences of squared singular values: silently wrong where two are close.
    raise TypeError("solvers.polar has no derivative; use nc_jax.implicit.polar_factor, which has the exact one")
