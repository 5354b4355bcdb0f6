"""Properties of a frame: Gram matrix, cosines, coherence, potential, tightness.

A frame is an array of shape (d, K) whose columns are the class vectors.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import at_least_float32, matmul, normalized, transpose


def gram(frame: Float[Array, "dim classes"]) -> Float[Array, "classes classes"]:
    """Gram matrix W^T W: inner products of all pairs of columns, at full precision on every device.

    Args:
        frame: W, shape (d, K).

    Returns:
        Shape (K, K), in float32 or wider.

    Raises:
        ValueError: if the frame is not a matrix.

    Example:
        >>> gram(jnp.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    frame = at_least_float32(frame)
    if frame.ndim != 2:
        raise ValueError(f"a frame must have shape (dim, classes); got shape {frame.shape}")
    return matmul(transpose(frame), frame)


def cosines(frame: Float[Array, "dim classes"]) -> Float[Array, "classes classes"]:
    """Cosines of the angles between all pairs of columns of a (d, K) frame, shape (K, K). 0 for a column of zeros."""
    return gram(normalized(at_least_float32(frame), axis=0)[0])


def coherence(frame: Float[Array, "dim classes"]) -> Float[Array, ""]:
    """Largest |cosine| between two different columns of a (d, K) frame; zero for a single column.

    For K >= d it is at least sqrt((K - d) / (d (K - 1))), the Welch bound. A simplex ETF (d >= K - 1) has 1 / (K - 1).

    Reference: Welch, Lower bounds on the maximum cross correlation of signals (1974).
    """
    return jnp.max(jnp.abs(_off_diagonal(cosines(frame))), initial=0.0)


def equiangularity_error(frame: Float[Array, "dim classes"]) -> Float[Array, ""]:
    """Largest minus smallest cosine between different columns of a (d, K) frame: 0 for an equiangular frame."""
    pairs = _off_diagonal(cosines(frame))
    return jnp.max(pairs) - jnp.min(pairs) if pairs.size else jnp.zeros((), pairs.dtype)


def frame_potential(frame: Float[Array, "dim classes"]) -> Float[Array, ""]:
    """Sum of the squared inner products of all ordered pairs of columns, ||W^T W||_F^2, for W of shape (d, K).

    For unit columns it is at least max(K, K^2 / d). Orthonormal columns (K <= d) and tight frames (K >= d) reach this
    bound.

    Reference: Benedetto and Fickus, Finite normalized tight frames (2003), theorem 6.2.
    """
    return jnp.sum(gram(frame) ** 2)


def is_tight(frame: Float[Array, "dim classes"], *, tolerance: float | None = None) -> Bool[Array, ""]:
    """Whether W W^T is a multiple of the projection on the span of the columns.

    In the strict sense, a tight frame spans R^d. This function looks at the span of the columns only: for a simplex ETF
    in d > K - 1 dimensions, the result is True.

    Args:
        frame: W, shape (d, K).
        tolerance: largest allowed spread of the nonzero eigenvalues of W W^T, relative to the largest eigenvalue. None:
            the square root of the eps of the dtype.
    """
    frame = at_least_float32(frame)
    bound = float(jnp.finfo(frame.dtype).eps) ** 0.5 if tolerance is None else tolerance
    # W W^T is c times a projection exactly if its square is c W W^T. W^T W has the same nonzero eigenvalues as W W^T.
    products = gram(frame)
    constant = jnp.sum(products**2) / jnp.trace(products)
    return jnp.linalg.norm(matmul(products, products) - constant * products) <= bound * constant**2


def _off_diagonal(matrix: Float[Array, "size size"]) -> Float[Array, " pairs"]:
    return matrix[jnp.triu_indices(matrix.shape[0], k=1)]
