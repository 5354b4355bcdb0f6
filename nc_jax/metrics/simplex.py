"""NC2: how far class vectors are from a simplex equiangular tight frame. `nc_jax.metrics.collapse` has the others."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose, unit_scale
from nc_jax.checks import Reals, real_array


def etf_distance(vectors: Reals, present: Bool[Array, " classes"] | None = None) -> Float[Array, ""]:
    r"""NC2: distance of class vectors from a simplex equiangular tight frame (ETF) of any size and orientation.

    .. math:: \left\| \frac{W^\top W}{\|W^\top W\|_F} - \frac{I - 1 1^\top / K}{\sqrt{K - 1}} \right\|_F

    The distance compares Gram matrices of unit Frobenius norm. W holds the class vectors as columns.

    Args:
        vectors: class vectors as columns, shape (d, K): the frame of a classifier, or `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count.

    Returns:
        A number in [0, sqrt(2)] without unit; 0 for a simplex ETF, which requires d >= K - 1. For K > d + 1 it is at
        least sqrt(2 - 2 sqrt(d / (K - 1))). NaN if fewer than two columns count or if all of them are zero.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` does not have shape (K,).

    Example:
        >>> float(etf_distance(jnp.array([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]]))) < 1e-6
        True

    Reference: Zhu et al. (2021), released program (ETF_metric); on centred means, the NC2 of rhubarbwu/neural-collapse.
    """
    vectors, present = checked_vectors(vectors, present)
    vectors = vectors / unit_scale(vectors)  # squares of squares must fit
    return distance_to_simplex(matmul(transpose(vectors), vectors), present)


def equinorm(
    vectors: Reals,
    present: Bool[Array, " classes"] | None = None,
    ddof: int = 0,  # the K classes are all classes, not a sample; the released program of FNO uses 1 (torch.std)
) -> Float[Array, ""]:
    """NC2: standard deviation of the norms of class vectors, divided by their mean. 0 if all have the same norm.

    Args:
        vectors: class vectors as columns, shape (d, K): the frame of a classifier, or `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count.
        ddof: the variance divides by the number of columns minus ddof. 0: population variance; 1: sample variance.

    Returns:
        A ratio >= 0 without unit. NaN if all vectors are zero, or if at most ddof columns count.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` does not have shape (K,).

    Reference: Papyan, Han and Donoho (2020).
    """
    vectors, present = checked_vectors(vectors, present)
    norms = safe_norm(vectors, axis=0)[0]
    return _masked_std(norms / jnp.mean(norms, where=present), present, ddof)


def equiangle(
    vectors: Reals,
    present: Bool[Array, " classes"] | None = None,
    ddof: int = 0,  # the pairs are all pairs, not a sample; the released program of FNO uses 1 (torch.std)
) -> Float[Array, ""]:
    """NC2: standard deviation of the cosines of all pairs of class vectors. 0 if all pairs have the same angle.

    Args:
        vectors: class vectors as columns, shape (d, K): the frame of a classifier, or `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count.
        ddof: the variance divides by the number of pairs minus ddof. 0: population variance; 1: sample variance.

    Returns:
        A difference of cosines, in [0, 1] for ddof=0. NaN if a vector that counts is zero, or if at most ddof pairs
        count.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` does not have shape (K,).

    Reference: Papyan, Han and Donoho (2020).
    """
    cosines, pairs = _pair_cosines(*checked_vectors(vectors, present))
    return _masked_std(cosines, pairs, ddof)


def maximal_angle(
    vectors: Reals,
    present: Bool[Array, " classes"] | None = None,
    target: float | None = None,  # None: -1/(K-1), the cosine of the widest common angle that K vectors can have
    signed: bool = False,  # as Papyan, Han and Donoho (2020); the released program of FNO uses the signed mean
) -> Float[Array, ""]:
    r"""NC2: mean over pairs of class vectors of :math:`|\cos(w_i, w_j) - \text{target}|`. 0 means perfect collapse.

    Args:
        vectors: class vectors as columns, shape (d, K): the frame of a classifier, or `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count.
        target: cosine that every pair should have. None: -1/(K-1), that of a simplex. 0.0: that of an orthogonal frame.
        signed: average the differences without the absolute value. Positive and negative differences then cancel, so a
            value of 0 does not prove collapse.

    Returns:
        A difference of cosines, in [0, 2] ([-2, 2] if signed). NaN if a vector that counts is zero, or if fewer than
        two count.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` does not have shape (K,).

    Reference: Papyan, Han and Donoho (2020). The released program of Liang and Davis (2023) applies it to class means.
    """
    vectors, present = checked_vectors(vectors, present)
    cosines, pairs = _pair_cosines(vectors, present)
    gaps = cosines - (-1 / (jnp.sum(present.astype(cosines.dtype)) - 1) if target is None else target)
    return jnp.mean(gaps if signed else jnp.abs(gaps), where=pairs)


def checked_vectors(vectors: Reals, present: Array | None) -> tuple[Array, Array]:
    """Return class vectors (d, K) in at least float32, with zero columns where they do not count, and the mask (K,).

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` does not have shape (K,).
    """
    vectors = real_array(vectors, "class vectors")
    if vectors.ndim != 2 or vectors.shape[1] < 2 or not vectors.shape[0]:
        raise ValueError(f"class vectors must have shape (dim, classes) with classes >= 2; got {vectors.shape}")
    if present is None:
        return at_least_float32(vectors), jnp.ones(vectors.shape[1], bool)
    if present.shape != vectors.shape[1:]:
        raise ValueError(f"present must have shape {vectors.shape[1:]}, one entry per class; got {present.shape}")
    return jnp.where(present, at_least_float32(vectors), 0), present


def distance_to_simplex(product: Array, present: Array) -> Array:
    """Return the Frobenius distance of a product (K, K) from the Gram matrix of the present classes' simplex.

    Both are scaled to unit Frobenius norm. The formula is that of `etf_distance`.
    """
    mask = present.astype(product.dtype)
    num_present = jnp.sum(mask)
    simplex = (jnp.diag(mask) - jnp.outer(mask, mask) / num_present) / jnp.sqrt(num_present - 1)
    return jnp.linalg.norm(product / jnp.linalg.norm(product) - simplex)


def _pair_cosines(vectors: Array, present: Array) -> tuple[Array, Array]:
    """Return all cosines, shape (K, K), and the mask of the pairs i < j that count."""
    directions = vectors / jnp.where(present, safe_norm(vectors, axis=0), 1)
    return matmul(transpose(directions), directions), jnp.triu(jnp.outer(present, present), 1)


def _masked_std(values: Array, mask: Array, ddof: int) -> Array:
    squares = jnp.sum(jnp.where(mask, values - jnp.mean(values, where=mask), 0) ** 2)
    return jnp.sqrt(squares / jnp.maximum(jnp.sum(mask.astype(values.dtype)) - ddof, 0))
