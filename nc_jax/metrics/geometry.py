"""Geometry of features and class vectors: variability collapse index, ranks, and distance to the nearest simplex.

All metrics here are functions of singular values, so they do not depend on the scale or the orientation of features.
Values never raise an error: a metric that is 0 / 0 is NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.checks import Mask, Reals, checked_mask, real_array
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.metrics.statistics import Centre, ClassStatistics, check_statistics


def variability_collapse_index(
    stats: ClassStatistics,
    centre: Centre = "sample",  # Sigma_T is then the covariance of the features: Xu and Liu (2023)
) -> Float[Array, ""]:
    r"""VCI: share of within-class variability in the directions between class means. 0 means perfect collapse.

    .. math::
        1 - \frac{\operatorname{tr}(\Sigma_T^+ \Sigma_B)}{\operatorname{rank} \Sigma_B}, \qquad
        \Sigma_T = \Sigma_W + \Sigma_B, \qquad
        \Sigma_B = \sum_k \tfrac{n_k}{n} (\mu_k - \mu)(\mu_k - \mu)^\top

    Class k has :math:`n_k` of the n examples and mean :math:`\mu_k`; :math:`\mu` is the centre, and :math:`\Sigma_W`
    the within-class scatter divided by n. Every example counts once in :math:`\Sigma_W` and in :math:`\Sigma_B`. So
    :math:`\Sigma_T` is a second moment of the features, and the index does not change under invertible linear maps
    (with the centres "sample" and "balanced", nor under shifts). The released program of Markou et al. (2024) counts
    every class once in :math:`\Sigma_B`, which gives other values if the classes differ in size.

    Args:
        stats: statistics of the features.
        centre: the point :math:`\mu`: "sample", "balanced" or "origin"; see `ClassStatistics.centred_means`. "origin"
            compares second moments about zero.

    Returns:
        A number in [0, 1] without unit; 0 if the examples of each class have the same features. Beware: it is also 0
        if an affine map takes every example to the one-hot vector of its class. Such a map usually exists if there are
        at most as many examples as dimensions, so use the index only with more examples. NaN if all class means
        equal the centre up to rounding, as with a single class.

    Raises:
        ValueError: if the centre is unknown.

    Example:
        >>> features, labels = jnp.array([[2.0], [0.0], [-2.0], [0.0]]), jnp.array([0, 0, 1, 1])
        >>> round(float(variability_collapse_index(ClassStatistics.from_batch(features, labels, num_classes=2))), 6)
        0.5

    Reference: Xu and Liu (2023), Quantifying the Variability Collapse of Neural Networks.
    """
    check_statistics(stats)
    stats = stats.at_unit_scale()
    dtype = stats.shifts.dtype
    dim, eps = stats.shifts.shape[0], jnp.finfo(dtype).eps
    weights = stats.counts.astype(dtype)
    weights = weights / jnp.sum(weights)
    root = jnp.sqrt(weights)
    between = stats.centred_means(centre) * root[None]  # B B^T = Sigma_B
    within = stats.scatter / jnp.sum(stats.counts.astype(dtype))

    # The index does not change under linear maps, so first scale each feature to unit variance. Otherwise the singular
    # values of features with a small scale could not be told from rounding. Leave out features that do not vary.
    # Bound on the rounding error of the means: that of sums of features, relative to the origin.
    means = stats.means if centre == "origin" else stats.shifts
    rounding = 4 * eps * jnp.sqrt(jnp.sum((means * root[None]) ** 2, axis=1) + jnp.diag(within))
    deviation = jnp.sqrt(jnp.diag(within) + jnp.sum(between**2, axis=1))
    scale = jnp.where(deviation > rounding, 1 / jnp.where(deviation > rounding, deviation, 1), 0)
    scale = jnp.where(jnp.isfinite(deviation), scale, jnp.nan)
    between, within = between * scale[:, None], within * scale[:, None] * scale[None]

    # Take a basis whose first r vectors span the class means. In this r x r block, Sigma_B is diag(s^2) and Sigma_T^+
    # is the inverse of diag(s^2) + W, where W is the block of Sigma_W after regression on the remaining directions.
    basis, singular, _ = jnp.linalg.svd(between, full_matrices=True)
    num_leading = singular.size
    kept = singular > jnp.maximum(max(between.shape) * eps * singular[0], jnp.linalg.norm(rounding * scale))
    inside = jnp.concatenate([kept, jnp.zeros(dim - num_leading, bool)])
    within = matmul(transpose(basis), matmul(within, basis))
    values, vectors = jnp.linalg.eigh(jnp.where(inside[None] | inside[:, None], 0, within))
    regular = values > dim * eps * jnp.maximum(values[-1], 0)
    cross = matmul(jnp.where(inside[None], 0, within[:num_leading]), vectors)
    inverse = jnp.where(regular, 1 / jnp.where(regular, values, 1), 0)
    rest = within[:num_leading, :num_leading] - matmul(cross * inverse[None], transpose(cross))
    rest = jnp.where(kept[None] & kept[:, None], rest, 0)

    # Compute tr((W + S^2)^-1 W), because r - tr((W + S^2)^-1 S^2) would cancel near collapse. First scale to unit
    # diagonals, so that nearly dependent means (a small s) do not lose accuracy next to the large ones. Each term of
    # the sum is a / (a + b) with a, b >= 0.
    squares = jnp.where(kept, singular, 0) ** 2
    size = jnp.sqrt(jnp.maximum(jnp.diag(rest), 0) + squares)
    size = jnp.where(kept, size, 1)
    rest, squares = rest / size[None] / size[:, None], squares / size**2
    _, axes = jnp.linalg.eigh(rest + jnp.diag(squares))
    left = jnp.maximum(jnp.sum(axes * matmul(rest, axes), axis=0), 0)
    between_part = matmul(squares, axes**2)
    shares = left / jnp.where(left + between_part > 0, left + between_part, 1)
    return jnp.where(jnp.any(kept), jnp.sum(shares) / jnp.sum(kept.astype(dtype)), jnp.nan)


def numerical_rank(matrix: Reals, relative_tolerance: float | None = None) -> Int[Array, ""]:
    """Count the singular values that exceed a tolerance times the largest singular value.

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.
        relative_tolerance: the tolerance, >= 0. None: max(rows, columns) times the eps of the dtype, as in
            numpy.linalg.matrix_rank.

    Returns:
        The count as int32. 0 for a matrix of zeros and for a matrix that is not finite.

    Raises:
        ValueError: if the array is not a matrix or is empty, or the tolerance is negative.

    Example:
        >>> int(numerical_rank(jnp.diag(jnp.array([1.0, 1e-3, 0.0])))), int(numerical_rank(jnp.eye(3), 1.0))
        (2, 0)
    """
    if relative_tolerance is not None and not relative_tolerance >= 0:
        raise ValueError(f"relative_tolerance must be at least 0; got {relative_tolerance}")
    matrix = real_array(matrix, "matrix")
    singular = _relative_singular_values(matrix)
    bound = max(matrix.shape) * jnp.finfo(singular.dtype).eps if relative_tolerance is None else relative_tolerance
    return jnp.sum(singular > bound, dtype=jnp.int32)


def stable_rank(matrix: Reals) -> Float[Array, ""]:
    r"""Squared Frobenius norm over squared spectral norm, :math:`\|A\|_F^2 / \|A\|_2^2`.

    It is at most the rank, and equal to the rank if all nonzero singular values are equal. Unlike the rank, it changes
    little if the matrix changes little.

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.

    Returns:
        A number in [1, min(rows, columns)]. NaN for a matrix of zeros and for a matrix that is not finite.

    Raises:
        ValueError: if the array is not a matrix or is empty.

    Example:
        >>> float(stable_rank(jnp.diag(jnp.array([2.0, 1.0]))))
        1.25

    Reference: Rudelson and Vershynin (2007), Sampling from large matrices: an approach through geometric functional
    analysis (which calls it numerical rank).
    """
    return jnp.sum(_relative_singular_values(matrix) ** 2)


def nuclear_rank(matrix: Reals) -> Float[Array, ""]:
    r"""Squared nuclear norm over squared Frobenius norm, :math:`(\|A\|_* / \|A\|_F)^2`.

    It is at most the rank, and equal to the rank if all nonzero singular values are equal.

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.

    Returns:
        A number in [1, min(rows, columns)]. NaN for a matrix of zeros and for a matrix that is not finite.

    Raises:
        ValueError: if the array is not a matrix or is empty.

    Example:
        >>> round(float(nuclear_rank(jnp.diag(jnp.array([2.0, 1.0])))), 5)
        1.8

    Reference: Markou et al. (2024), released program, which calls it numerical rank and averages it over the classes.
    """
    singular = _relative_singular_values(matrix)
    return jnp.sum(singular) ** 2 / jnp.sum(singular**2)


def effective_rank(matrix: Reals) -> Float[Array, ""]:
    r"""Exponential of the entropy of the singular values, scaled to sum 1: how many dimensions the matrix uses.

    .. math:: \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \sigma_i / \textstyle\sum_j \sigma_j

    Args:
        matrix: any matrix; dtypes narrower than float32 are widened.

    Returns:
        A number in [1, min(rows, columns)], equal to the rank if all nonzero singular values are equal. NaN for a
        matrix of zeros and for a matrix that is not finite.

    Raises:
        ValueError: if the array is not a matrix or is empty.

    Example:
        >>> round(float(effective_rank(3 * jnp.eye(4, 6))), 5)
        4.0

    Reference: Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.
    """
    singular = _relative_singular_values(matrix)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(singular / jnp.sum(singular))))


def nearest_etf_distance(vectors: Reals, present: Mask | None = None) -> Float[Array, ""]:
    r"""NC2: distance of class vectors H to the nearest simplex equiangular tight frame (ETF), both of unit norm.

    .. math::
        \min_{U^\top U = I} \left\| \frac{H}{\|H\|_F} - \frac{U T}{\|T\|_F} \right\|_F
        = \sqrt{2 - 2 \left\| \frac{H T^\top}{\|H\|_F \|T\|_F} \right\|_*}

    The minimum is over all rotations U, including reflections, of the reduced template T
    (`nc_jax.frames.simplex_template`). This is an orthogonal Procrustes problem, whose minimum has a closed form
    (:math:`\|\cdot\|_*` is the nuclear norm). `etf_distance` compares Gram matrices instead of vectors. An offset
    common to all vectors counts as distance, so centre class means first.

    Args:
        vectors: class vectors as columns, H, shape (d, K) with d >= K - 1: the frame of a classifier, or
            `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count. The simplex has as many vectors as
            columns that count.

    Returns:
        The norm of the difference (not its square), a number in [0, sqrt(2)] without unit; 0 for a simplex ETF. NaN if
        fewer than two columns count or if all of them are zero.

    Raises:
        ValueError: if K < 2, d < K - 1 or the shapes do not fit.

    Example:
        >>> float(nearest_etf_distance(jnp.array([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]]))) < 1e-6
        True

    Reference: Markou, Ajanthan and Gould (2024), released program (ETF_distance.py, which uses the square of this
    distance); Schönemann (1966) for the closed form.
    """
    vectors = real_array(vectors, "class vectors")
    if vectors.ndim != 2:
        raise ValueError(f"class vectors must have shape (dim, classes); got {vectors.shape}")
    dim, num_classes = vectors.shape
    check_room_for_simplex(num_classes, dim)
    present = jnp.ones(num_classes, bool) if present is None else checked_mask(present, num_classes, "present")
    vectors = jnp.where(present[None], at_least_float32(vectors), 0)
    vectors = vectors / safe_norm(vectors)
    rank = jnp.sum(present.astype(vectors.dtype)) - 1
    common = jnp.sum(vectors, axis=1) / (rank + 1)
    centred = jnp.where(present, vectors - common[:, None], 0)
    # H T^T and the centred H have the same singular values. The nearest simplex has the singular vectors of the centred
    # H and equal singular values, so the difference is a sum of squares over directions. The formula with 2 - 2 nuc
    # would lose half of the digits near 0 (error 1e-3 in float32, instead of 1e-6 here).
    singular = jnp.linalg.svd(centred, compute_uv=False)
    target = 1 / jnp.sqrt(jnp.maximum(rank, 1))
    gaps = jnp.where(jnp.arange(singular.size) < rank.astype(jnp.int32), singular - target, 0)
    parts = jnp.concatenate([gaps, jnp.sqrt(rank + 1) * common])
    # safe_norm has a derivative at 0. NaN for fewer than two columns and for vectors that are zero or not finite.
    return jnp.where((rank > 0) & jnp.all(jnp.isfinite(parts)), safe_norm(parts)[0], jnp.nan)


def _relative_singular_values(matrix: Reals) -> Array:
    """Singular values divided by the largest; NaN for a matrix that is zero or not finite."""
    matrix = real_array(matrix, "matrix")
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"a rank needs a matrix with at least one row and one column; got shape {matrix.shape}")
    matrix = at_least_float32(matrix)
    # At unit scale no square within the decomposition overflows or underflows.
    singular = jnp.linalg.svd(matrix / jnp.max(jnp.abs(matrix)), compute_uv=False)
    return singular / singular[0]
