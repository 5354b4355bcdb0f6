"""NC2: how far class vectors are from a simplex equiangular tight frame. `nc_jax.metrics.collapse` has the others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose, unit_scale
from nc_jax.checks import Mask, Reals, check_at_least, check_whole, checked_mask, is_traced, real_array
from nc_jax.metrics.statistics import ClassStatistics, check_statistics

_TILE = 1024  # rows of a K x K matrix that are formed at once: 200 MB for 50,000 classes in float32


def etf_distance(vectors: Reals, present: Mask | None = None) -> Float[Array, ""]:
    r"""NC2: distance of class vectors from a simplex equiangular tight frame (ETF) of any size and orientation.

    .. math:: \left\| \frac{W^\top W}{\|W^\top W\|_F} - \frac{I - 1 1^\top / K}{\sqrt{K - 1}} \right\|_F

    The distance compares Gram matrices of unit Frobenius norm. W holds the class vectors as columns.

    Args:
        vectors: class vectors as columns, shape (d, K): the frame of a classifier, or `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count.

    Returns:
        A number in [0, sqrt(2)] without unit; 0 for a simplex ETF, which requires d >= K - 1. For K > d + 1 it is at
        least `etf_distance_floor`. NaN if fewer than two columns count or if all of them are zero.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` is not boolean of shape (K,).

    Example:
        >>> float(etf_distance(jnp.array([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]]))) < 1e-6
        True

    Reference: Zhu et al. (2021), released program (ETF_metric); on centred means, the NC2 of rhubarbwu/neural-collapse.
    """
    vectors, present = checked_vectors(vectors, present)
    vectors = vectors / unit_scale(vectors)  # squares of squares must fit
    return distance_to_simplex(vectors, vectors, present)


def etf_distance_floor(num_classes: int | Int[Array, ""], dim: int) -> Float[Array, ""]:
    r"""Least `etf_distance` of K vectors in d dimensions, and least product form of `self_duality`.

    .. math:: \sqrt{2 - 2 \sqrt{d / (K - 1)}} \text{ for } K > d + 1, \qquad 0 \text{ for } K \le d + 1

    Both metrics are the distance of a matrix :math:`A / \|A\|_F` of rank at most d, :math:`A = W^\top W` or
    :math:`A = W^\top M`, from :math:`P / \sqrt{K - 1}`, where P is the projection :math:`I - 1 1^\top / K`. The square
    of the distance is :math:`2 - 2 \langle A, P \rangle / (\|A\|_F \sqrt{K - 1})`. The matrix :math:`P A P` has at
    most d singular values that are not zero, so with the inequality of Cauchy and Schwarz

    .. math:: \langle A, P \rangle = \operatorname{tr}(P A P) \le \|P A P\|_* \le \sqrt d \, \|P A P\|_F
        \le \sqrt d \, \|A\|_F .

    Equality holds if A is a positive multiple of a projection of rank d whose image has sum zero: vectors that sum to
    zero and form a tight frame, such as the projection of a simplex to d dimensions. Neither equal lengths nor
    different vectors are needed for it.

    Args:
        num_classes: K >= 2, such as the number of classes with examples, also within `jax.jit`.
        dim: d >= 1.

    Returns:
        A number in [0, sqrt(2)): 0.75 for 1000 classes in 512 dimensions.

    Raises:
        ValueError: if d < 1 or, for a known number, K < 2.

    Example:
        >>> round(float(etf_distance_floor(1000, 512)), 4), float(etf_distance_floor(4, 3))
        (0.7538, 0.0)

    Reference: derived here; the inequalities above are its proof.
    """
    check_whole("dim", dim)
    if dim < 1 or (not is_traced(num_classes) and num_classes < 2):
        raise ValueError(f"the least distance needs num_classes >= 2 and dim >= 1; got {num_classes} and {dim}")
    others = jnp.asarray(num_classes, jax.dtypes.canonicalize_dtype(float)) - 1
    return jnp.sqrt(2 - 2 * jnp.sqrt(jnp.minimum(dim / others, 1)))


def equinorm(
    vectors: Reals,
    present: Mask | None = None,
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
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` is not boolean of shape (K,).

    Reference: Papyan, Han and Donoho (2020).
    """
    vectors, present = checked_vectors(vectors, present)
    norms = safe_norm(vectors, axis=0)[0]
    return masked_std(norms / jnp.mean(norms, where=present), present, ddof)


def equiangle(
    vectors: Reals,
    present: Mask | None = None,
    ddof: int = 0,  # the pairs are all pairs, not a sample; the released program of FNO uses 1 (torch.std)
) -> Float[Array, ""]:
    r"""NC2: standard deviation of the cosines of all pairs of class vectors. 0 if all pairs have the same angle.

    K > d + 1 vectors with one common cosine are all equal: a Gram matrix with the entries 1 and c has the eigenvalues
    :math:`1 - c` (K - 1 times) and :math:`1 + (K - 1) c`, so its rank is less than K - 1 only for c = 1. The value 0 is
    then the opposite of collapse. Unit vectors that sum to zero have at least

    .. math:: \frac{1}{K - 1} \sqrt{\frac{K (K - 1 - d)}{d}} .

    Proof: the mean cosine is -1/(K - 1). The Gram matrix has trace K and rank at most d, so the sum of its squares is
    at least K^2 / d, with equality for a tight frame. The rest is arithmetic.

    Args:
        vectors: class vectors as columns, shape (d, K): the frame of a classifier, or `stats.centred_means()`.
        present: True for columns that count, shape (K,); None: all columns count.
        ddof: the variance divides by the number of pairs minus ddof. 0: population variance; 1: sample variance.

    Returns:
        A difference of cosines, in [0, 1] for ddof=0. NaN if a vector that counts is zero, or if at most ddof pairs
        count.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` is not boolean of shape (K,).

    Reference: Papyan, Han and Donoho (2020).
    """
    check_at_least("ddof", ddof, 0)
    vectors, present = checked_vectors(vectors, present)
    sum_of = _sums_over_pairs(vectors, present)
    number = _number_of_pairs(present, vectors)
    mean = sum_of(lambda cosines: cosines) / number
    return jnp.sqrt(sum_of(lambda cosines: (cosines - mean) ** 2) / jnp.maximum(number - ddof, 0))


def maximal_angle(
    vectors: Reals,
    present: Mask | None = None,
    target: float | None = None,  # None: -1/(K-1), the cosine of the widest common angle that K vectors can have
    signed: bool = False,  # as Papyan, Han and Donoho (2020); the released program of FNO uses the signed mean
) -> Float[Array, ""]:
    r"""NC2: mean over pairs of class vectors of :math:`|\cos(w_i, w_j) - \text{target}|`. 0 means perfect collapse.

    For K > d + 1 no simplex fits, and with the default target the mean is at least :math:`(K - 1 - d) / (K - 1)^2`.
    Proof: let X be the Gram matrix of the directions, of rank at most d, minus that of a simplex, which has K - 1
    eigenvalues K/(K - 1). By Eckart and Young the squares in X sum to at least (K - 1 - d) K^2/(K - 1)^2. No entry is
    larger than K/(K - 1), so the absolute entries sum to at least (K - 1 - d) K/(K - 1).

    Do not compare frames by this metric then: it is not least where vectors are spread evenly. Take d directions with
    the cosine -1/(K - 1), some of which two classes share. For K <= 2d they have 2 (K - d)/(K - 1)^2, which is 0.001
    for 1000 classes in 512 dimensions. The projection of a simplex to a random subspace has 0.025 there.

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
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` is not boolean of shape (K,).

    Reference: Papyan, Han and Donoho (2020). The released program of Liang and Davis (2023) applies it to class means.
    """
    vectors, present = checked_vectors(vectors, present)
    wanted = -1 / (jnp.sum(present.astype(vectors.dtype)) - 1) if target is None else target
    sum_of = _sums_over_pairs(vectors, present)
    total = sum_of(lambda cosines: cosines - wanted if signed else jnp.abs(cosines - wanted))
    return total / _number_of_pairs(present, vectors)


def checked_vectors(vectors: Reals, present: Mask | None) -> tuple[Array, Array]:
    """Return class vectors (d, K) in at least float32, with zero columns where they do not count, and the mask (K,).

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `present` is not boolean of shape (K,).
    """
    vectors = real_array(vectors, "class vectors")
    if vectors.ndim != 2 or vectors.shape[1] < 2 or not vectors.shape[0]:
        raise ValueError(f"class vectors must have shape (dim, classes) with classes >= 2; got {vectors.shape}")
    if present is None:
        return at_least_float32(vectors), jnp.ones(vectors.shape[1], bool)
    present = checked_mask(present, vectors.shape[1], "present")
    return jnp.where(present, at_least_float32(vectors), 0), present


def distance_to_simplex(left: Array, right: Array, present: Array) -> Array:
    """Return the Frobenius distance of left^T right (K, K) from the Gram matrix of the present classes' simplex.

    Both are scaled to unit Frobenius norm. The formula is that of `etf_distance`. Of more than `_TILE` classes, the
    product is formed twice, in parts: first for its norm.
    """
    mask = present.astype(left.dtype)
    others = jnp.sum(mask) - 1

    def product(rows: Array) -> Array:
        return matmul(transpose(left[:, rows]), right)

    def gaps(rows: Array, norm: Array) -> Array:
        rest = -mask[rows][:, None] * mask[None] / (others + 1)
        simplex = jnp.where(rows[:, None] == jnp.arange(mask.size)[None], mask[None] + rest, rest) / jnp.sqrt(others)
        return product(rows) / norm - simplex

    norm = jnp.sqrt(_sum_over_rows(mask.size, lambda rows: product(rows) ** 2))
    return jnp.sqrt(_sum_over_rows(mask.size, lambda rows: gaps(rows, norm) ** 2))


def checked_frame(frame: Reals, stats: ClassStatistics, *, rows: bool = False) -> Array:
    """Return the frame as columns, once it has the shape of the class means."""
    check_statistics(stats)
    return frame_of_shape(frame, stats.shifts.shape, rows=rows)


def frame_of_shape(frame: Reals, wanted: tuple[int, ...], *, rows: bool = False) -> Array:
    """Return the frame as columns, once it has the shape (d, K) of the class means."""
    frame = real_array(frame, "frame")
    if rows:
        if frame.shape != wanted[::-1]:
            raise ValueError(f"frame must have shape {wanted[::-1]}, one row per class; got {frame.shape}")
        return transpose(frame)
    if frame.shape != wanted:
        turned = ": transpose it, class vectors are columns" if frame.shape == wanted[::-1] else ""
        raise ValueError(f"frame must have shape {wanted} like the class means; got {frame.shape}{turned}")
    return frame


def _sums_over_pairs(vectors: Array, present: Array) -> Callable[[Callable[[Array], Array]], Array]:
    """Return what sums a function of the cosines over the pairs i < j that count."""
    directions = vectors / jnp.where(present, safe_norm(vectors, axis=0), 1)
    classes = jnp.arange(present.size)

    def sum_of(function: Callable[[Array], Array]) -> Array:
        def part(rows: Array) -> Array:
            cosines = matmul(transpose(directions[:, rows]), directions)
            pairs = present[rows][:, None] & present[None] & (rows[:, None] < classes[None])
            return jnp.where(pairs, function(cosines), 0)

        return _sum_over_rows(present.size, part)

    return sum_of


def _number_of_pairs(present: Array, like: Array) -> Array:
    number = jnp.sum(present.astype(like.dtype))
    return number * (number - 1) / 2


def _sum_over_rows(number: int, matrix: Callable[[Array], Array]) -> Array:
    """Sum the entries of a matrix, of which at most `_TILE` rows are formed at once, from their indices."""

    def part(rows: Array) -> Array:
        return jnp.sum(jnp.sum(matrix(rows), axis=1))  # in two steps: a sum of 10^7 numbers in a row loses digits

    rows = jnp.arange(number)
    if number <= _TILE:
        return part(rows)
    whole, rest = jnp.split(rows, [number // _TILE * _TILE])
    return jnp.sum(jax.lax.map(part, whole.reshape(-1, _TILE))) + part(rest)


def masked_std(values: Array, mask: Array, ddof: int) -> Array:
    """Return the standard deviation of the values in the mask, divided by their number minus ddof."""
    check_at_least("ddof", ddof, 0)
    squares = jnp.sum(jnp.where(mask, values - jnp.mean(values, where=mask), 0) ** 2)
    return jnp.sqrt(squares / jnp.maximum(jnp.sum(mask.astype(values.dtype)) - ddof, 0))
