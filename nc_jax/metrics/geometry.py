"""Subspaces and shapes: how much of the variability lies between classes, how many dimensions, how near to a simplex.

All are functions of singular values, so none depends on the scale or the orientation of features. Numbers never raise:
what is 0 / 0 is NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.metrics.statistics import Centre, ClassStatistics


def variability_collapse_index(
    stats: ClassStatistics,
    centre: Centre = "sample",  # the total is then the covariance of the features: Xu and Liu (2023)
) -> Float[Array, ""]:
    r"""VCI: the share of the between-class directions' variability that lies within classes.

    .. math::
        1 - \frac{\operatorname{tr}(\Sigma_T^+ \Sigma_B)}{\operatorname{rank} \Sigma_B}, \qquad
        \Sigma_T = \Sigma_W + \Sigma_B, \qquad
        \Sigma_B = \sum_k \tfrac{n_k}{n} (\mu_k - \mu)(\mu_k - \mu)^\top

    with :math:`\Sigma_W` the scatter over the number n of examples. Every example counts once in both, so that
    :math:`\Sigma_T` is a second moment of the features and the index unchanged under invertible linear maps (with the
    sample or the balanced centre, also under shifts). With classes of unequal sizes this differs from the released
    program of Markou et al. (2024), where every class counts once in :math:`\Sigma_B`.

    Args:
        stats: statistics of the features.
        centre: which :math:`\mu`. "origin" compares second moments that are not centred.

    Returns:
        A number in [0, 1] without unit. 0 if every class is a single point, and whenever an affine map takes every
        example to its class's one-hot vector: some map does, as a rule, where there are no more examples than
        dimensions, so there the index says nothing. NaN if all means of the present classes are at the centre up to
        rounding, as a single one is.

    Raises:
        ValueError: if the centre is unknown.

    Example:
        >>> features, labels = jnp.array([[2.0], [0.0], [-2.0], [0.0]]), jnp.array([0, 0, 1, 1])
        >>> round(float(variability_collapse_index(ClassStatistics.from_batch(features, labels, num_classes=2))), 6)
        0.5

    Reference: Xu and Liu (2023), Quantifying the Variability Collapse of Neural Networks.
    """
    dtype = stats.means.dtype
    dim, eps = stats.means.shape[0], jnp.finfo(dtype).eps
    weights = stats.counts.astype(dtype)
    weights = weights / jnp.sum(weights)
    root = jnp.sqrt(weights)
    between = stats.centred_means(centre) * root  # B B^T = Sigma_B
    within = stats.scatter / jnp.sum(stats.counts.astype(dtype))

    # A linear map costs nothing, so each feature gets unit variance first: what follows has singular values to tell
    # from rounding, and features of unequal scales would hide in it. A feature that does not vary is left out.
    rounding = 4 * eps * jnp.linalg.norm(stats.means * root, axis=1)  # of the means before they were centred
    deviation = jnp.sqrt(jnp.diag(within) + jnp.sum(between**2, axis=1))
    scale = jnp.where(deviation > rounding, 1 / jnp.where(deviation > rounding, deviation, 1), 0)
    scale = jnp.where(jnp.isfinite(deviation), scale, jnp.nan)
    between, within = between * scale[:, None], within * scale[:, None] * scale

    # In a basis whose first r vectors span the means, Sigma_B is diag(s^2) there, and the block of Sigma_T^+ is the
    # inverse of diag(s^2) + W, with W what is left of Sigma_W there after regression on the other directions.
    basis, singular, _ = jnp.linalg.svd(between, full_matrices=True)
    num_leading = singular.size
    kept = singular > jnp.maximum(max(between.shape) * eps * singular[0], jnp.linalg.norm(rounding * scale))
    inside = jnp.concatenate([kept, jnp.zeros(dim - num_leading, bool)])
    within = matmul(transpose(basis), matmul(within, basis))
    values, vectors = jnp.linalg.eigh(jnp.where(inside | inside[:, None], 0, within))
    regular = values > dim * eps * jnp.maximum(values[-1], 0)
    cross = matmul(jnp.where(inside, 0, within[:num_leading]), vectors)
    inverse = jnp.where(regular, 1 / jnp.where(regular, values, 1), 0)
    rest = within[:num_leading, :num_leading] - matmul(cross * inverse, transpose(cross))
    rest = jnp.where(kept & kept[:, None], rest, 0)

    # tr((W + S^2)^-1 W), not r less the trace with S^2: near collapse that would cancel. Unit diagonals keep means that
    # are nearly dependent (a small s) from drowning the others; each term is a / (a + b) with a, b >= 0.
    squares = jnp.where(kept, singular, 0) ** 2
    size = jnp.sqrt(jnp.maximum(jnp.diag(rest), 0) + squares)
    size = jnp.where(kept, size, 1)
    rest, squares = rest / size / size[:, None], squares / size**2
    _, axes = jnp.linalg.eigh(rest + jnp.diag(squares))
    left = jnp.maximum(jnp.sum(axes * matmul(rest, axes), axis=0), 0)
    between_part = matmul(squares, axes**2)
    shares = left / jnp.where(left + between_part > 0, left + between_part, 1)
    return jnp.where(jnp.any(kept), jnp.sum(shares) / jnp.sum(kept), jnp.nan)


def numerical_rank(matrix: Float[Array, "rows columns"], relative_tolerance: float | None = None) -> Int[Array, ""]:
    """Count the singular values above a tolerance times the largest.

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.
        relative_tolerance: >= 0; None: max(rows, columns) times the dtype's eps, numpy.linalg.matrix_rank's.

    Returns:
        int32. 0 for a matrix of zeros and for one that is not finite.

    Raises:
        ValueError: if it is not a matrix, is empty, or the tolerance is negative.

    Example:
        >>> int(numerical_rank(jnp.diag(jnp.array([1.0, 1e-3, 0.0])))), int(numerical_rank(jnp.eye(3), 1.0))
        (2, 0)
    """
    if relative_tolerance is not None and not relative_tolerance >= 0:
        raise ValueError(f"relative_tolerance must be at least 0; got {relative_tolerance}")
    singular = _relative_singular_values(matrix)
    bound = max(matrix.shape) * jnp.finfo(singular.dtype).eps if relative_tolerance is None else relative_tolerance
    return jnp.sum(singular > bound, dtype=jnp.int32)


def stable_rank(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    r"""Squared Frobenius norm over squared spectral norm, :math:`\|A\|_F^2 / \|A\|_2^2`.

    At most the rank, with equality if all nonzero singular values are equal; unlike the rank it moves little when the
    matrix does.

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.

    Returns:
        A number in [1, min(rows, columns)]. NaN for a matrix of zeros and for one that is not finite.

    Raises:
        ValueError: if it is not a matrix or is empty.

    Example:
        >>> float(stable_rank(jnp.diag(jnp.array([2.0, 1.0]))))
        1.25

    Reference: Rudelson and Vershynin (2007), Sampling from large matrices: an approach through geometric functional
    analysis (under the name of numerical rank).
    """
    return jnp.sum(_relative_singular_values(matrix) ** 2)


def nuclear_rank(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    r"""Squared nuclear norm over squared Frobenius norm, :math:`(\|A\|_* / \|A\|_F)^2`.

    At most the rank, with equality if all nonzero singular values are equal.

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.

    Returns:
        A number in [1, min(rows, columns)]. NaN for a matrix of zeros and for one that is not finite.

    Raises:
        ValueError: if it is not a matrix or is empty.

    Example:
        >>> round(float(nuclear_rank(jnp.diag(jnp.array([2.0, 1.0])))), 5)
        1.8

    Reference: the numerical rank of Markou et al. (2024), released program, which averages it over the classes.
    """
    singular = _relative_singular_values(matrix)
    return jnp.sum(singular) ** 2 / jnp.sum(singular**2)


def effective_rank(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    r"""Exponential of the entropy of the singular values, scaled to sum one: how many dimensions are in use.

    .. math:: \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \sigma_i / \textstyle\sum_j \sigma_j

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.

    Returns:
        A number in [1, min(rows, columns)], the rank if all nonzero singular values are equal. NaN for a matrix of
        zeros and for one that is not finite.

    Raises:
        ValueError: if it is not a matrix or is empty.

    Example:
        >>> round(float(effective_rank(3 * jnp.eye(4, 6))), 5)
        4.0

    Reference: Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.
    """
    singular = _relative_singular_values(matrix)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(singular / jnp.sum(singular))))


def nearest_etf_distance(
    vectors: Float[Array, "dim classes"], present: Bool[Array, " classes"] | None = None
) -> Float[Array, ""]:
    r"""NC2: distance of class vectors to the nearest simplex ETF, both of unit Frobenius norm.

    .. math::
        \min_{U^\top U = I} \left\| \frac{H}{\|H\|_F} - \frac{U T}{\|T\|_F} \right\|_F
        = \sqrt{2 - 2 \left\| \frac{H T^\top}{\|H\|_F \|T\|_F} \right\|_*}

    over all rotations U of the reduced template T (`nc_jax.frames.simplex_template`), reflections included: an
    orthogonal Procrustes problem, whose minimum needs no minimiser. Where `etf_distance` compares Gram matrices, this
    compares the vectors. A part common to all vectors counts as distance: for class means give centred ones.

    Args:
        vectors: class vectors as columns, shape (d, K) with d >= K - 1: a classifier's frame, or
            `stats.centred_means()`.
        present: which columns count, shape (K,); None: all. The simplex is that of the columns that count.

    Returns:
        A number in [0, sqrt(2)] without unit; the norm of the difference, not its square. NaN if fewer than two columns
        count or if all are zero.

    Raises:
        ValueError: if K < 2, d < K - 1 or the shapes do not fit.

    Example:
        >>> float(nearest_etf_distance(jnp.array([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]]))) < 1e-6
        True

    Reference: Markou, Ajanthan and Gould (2024), released program (ETF_distance.py, whose cost is its square); the
    closed form is orthogonal Procrustes, Schönemann (1966).
    """
    if vectors.ndim != 2:
        raise ValueError(f"class vectors must have shape (dim, classes); got {vectors.shape}")
    dim, num_classes = vectors.shape
    check_room_for_simplex(num_classes, dim)
    if present is None:
        present = jnp.ones(num_classes, bool)
    if present.shape != vectors.shape[1:]:
        raise ValueError(f"present must have shape {vectors.shape[1:]}, one entry per class; got {present.shape}")
    vectors = jnp.where(present, at_least_float32(vectors), 0)
    vectors = vectors / safe_norm(vectors)
    rank = jnp.sum(present.astype(vectors.dtype)) - 1
    common = jnp.sum(vectors, axis=1) / (rank + 1)
    centred = jnp.where(present, vectors - common[:, None], 0)
    # H T^T and the centred H have the same singular values. The nearest simplex has the centred H's singular vectors
    # and equal singular values, so the difference is known part by part: 2 - 2 nuc, which loses half of the digits
    # near 0 (1e-3 in float32 where this has 1e-6), is not needed.
    singular = jnp.linalg.svd(centred, compute_uv=False)
    target = 1 / jnp.sqrt(jnp.maximum(rank, 1))
    gaps = jnp.where(jnp.arange(singular.size) < rank, singular - target, 0)
    parts = jnp.concatenate([gaps, jnp.sqrt(rank + 1) * common])
    # The safe norm has a derivative at 0, but takes the norm of NaN for 0.
    return jnp.where((rank > 0) & jnp.all(jnp.isfinite(parts)), safe_norm(parts)[0], jnp.nan)


def _relative_singular_values(matrix: Array) -> Array:
    """Singular values over the largest; NaN for a matrix of zeros or one that is not finite."""
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"a rank needs a matrix with at least one row and one column; got shape {matrix.shape}")
    matrix = at_least_float32(matrix)
    # At unit scale no square within the decomposition overflows or underflows.
    singular = jnp.linalg.svd(matrix / jnp.max(jnp.abs(matrix)), compute_uv=False)
    return singular / singular[0]
