r"""How well class vectors and class means are aligned, and what their misalignment costs.

Training on a long tail may leave a classifier whose class vectors have the right angles among themselves but not the
directions of the class means. The optimal error exponent is the price of that: how fast errors vanish with the noise of
the features. Angles say where it comes from. Class vectors that leave the span of the class means cost little:
an angle :math:`\theta` of all of them takes the factor :math:`\cos^2 \theta` from the exponent of a simplex. A turn
*within* the span costs more: four class vectors that have a mean cosine of 0.931 with the vectors of a simplex can be
left with 46 percent of its exponent. So the mean cosine alone does not say what is lost.

Class vectors and class means are columns, shape (d, K). Values never raise an error: a metric without a value is NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import angles, at_least_float32, matmul, normalized, safe_norm, transpose, unit_scale
from nc_jax.checks import Labels, Mask, Reals, as_array, is_traced, real_array
from nc_jax.metrics.collapse import checked_bias
from nc_jax.metrics.simplex import checked_vectors, frame_of_shape


def error_exponents(
    means: Reals, frame: Reals, bias: Reals | None = None, present: Mask | None = None
) -> Float[Array, " classes"]:
    r"""Error exponent of each class: half the squared distance from its mean to the nearest decision boundary.

    .. math::
        \beta_k = \min_{j \ne k} \frac12 \left(
        \frac{[(w_k - w_j)^\top \mu_k + b_k - b_j]_+}{\|w_k - w_j\|} \right)^2

    If the features of class k are its mean plus Gaussian noise of covariance :math:`\sigma^2 I`, a linear classifier
    takes them for another class with a probability of about :math:`\exp(-\beta_k / \sigma^2)` for small :math:`\sigma`.

    The differences :math:`w_k - w_j` are formed, for one k at a time. Inner products of the vectors need fewer
    operations, but lose digits where class vectors are nearly equal, as at minority collapse: for vectors that differ
    by a thousandth of their length, the error in float32 is 19 percent, instead of 3e-7.

    Args:
        means: class means :math:`\mu_k` as columns, shape (d, K), not centred if there is a bias.
        frame: class vectors :math:`w_k` as columns, shape (d, K).
        bias: b, shape (K,); None: no bias.
        present: True for the classes that count, shape (K,); None: all classes. The others have no examples, and no
            example is taken for one of theirs.

    Returns:
        Shape (K,), in the squared unit of the features. 0 if the mean is not on the right side of every boundary. Of
        two classes with equal class vectors, the one with the larger bias always wins: the pair gives it an infinite
        exponent, and the other one 0. With equal biases both have 0. NaN for a class that is not present, and if fewer
        than two are.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> error_exponents(jnp.diag(jnp.array([1.0, 3.0])), jnp.eye(2)).round(5).tolist()
        [0.25, 2.25]

    Reference: Papyan, Han and Donoho (2020), who define the smallest of them, as a large-deviations limit.
    """
    return _exponents(*_checked(means, frame, bias, present))


def optimal_error_exponent(
    means: Reals, frame: Reals, bias: Reals | None = None, present: Mask | None = None
) -> Float[Array, ""]:
    r"""Error exponent of the worst class, :math:`\min_k \beta_k`: how fast errors vanish with the noise of features.

    It is :math:`-\lim_{\sigma \to 0} \sigma^2 \log P(\text{error})` for the noise of `error_exponents`. Among unit
    means, it is at most K/(4 (K-1)) (`etf_error_exponent`), the value of a simplex ETF that is both means and frame.

    Args:
        means: class means as columns, shape (d, K), not centred if there is a bias.
        frame: class vectors as columns, shape (d, K). Their common length does not matter if there is no bias.
        bias: shape (K,); None: no bias.
        present: True for the classes that count, shape (K,); None: all classes.

    Returns:
        A number >= 0, in the squared unit of the features; 0 if the mean of a class is not classified as that class.
        NaN if fewer than two classes count.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> round(float(optimal_error_exponent(2 * jnp.eye(2), jnp.eye(2))), 5)
        1.0

    Reference: Papyan, Han and Donoho (2020), which calls the value of the best means and classifier optimal.
    """
    means, frame, bias, present = _checked(means, frame, bias, present)
    return _smallest(_exponents(means, frame, bias, present), present)


def etf_error_exponent(num_classes: int) -> float:
    r"""Error exponent of a simplex ETF of unit vectors with itself as classifier, :math:`K / (4 (K - 1))`.

    Args:
        num_classes: K >= 2.

    Raises:
        ValueError: if K < 2.

    Example:
        >>> etf_error_exponent(3)
        0.375

    Reference: Papyan, Han and Donoho (2020): no unit means and no linear classifier have a larger one.
    """
    if num_classes < 2:
        raise ValueError(f"an error exponent needs at least 2 classes; got {num_classes}")
    return num_classes / (4 * (num_classes - 1))


def error_exponent_ratio(
    means: Reals, frame: Reals, bias: Reals | None = None, present: Mask | None = None
) -> Float[Array, ""]:
    r"""Optimal error exponent relative to the best that class means of the same size can have; 1 at collapse.

    .. math::
        \frac{\min_k \beta_k}{s^2 K / (4 (K - 1))}, \qquad
        s^2 = \frac1K \sum_k \|\mu_k - \mu_G\|^2, \qquad \mu_G = \frac1K \sum_k \mu_k

    The two classes of a pair share one boundary, so :math:`\beta_k` and :math:`\beta_j` cannot both exceed
    :math:`\|\mu_k - \mu_j\|^2 / 8`. The mean of this bound over all pairs is the denominator. So the ratio is at most
    1, and 1 exactly if the means form a simplex ETF about :math:`\mu_G` and the classifier decides for the nearest of
    them. The scales of features and of classifier do not matter. A shift of the features does not if the bias makes up
    for it.

    Args:
        means: class means :math:`\mu_k` as columns, shape (d, K), not centred: their centre decides together with the
            bias.
        frame: class vectors as columns, shape (d, K).
        bias: shape (K,); None: no bias.
        present: True for the classes that count, shape (K,); None: all classes. K is their number.

    Returns:
        A number in [0, 1] without unit, up to rounding. NaN if fewer than two classes count or their means are equal up
        to rounding.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> from nc_jax.frames import simplex_etf
        >>> frame = simplex_etf(4, 6)
        >>> round(float(error_exponent_ratio(5 * frame, frame)), 5)
        1.0
        >>> round(float(error_exponent_ratio(5 * frame + 2, frame, bias=-2 * frame.sum(axis=0))), 5)
        1.0
    """
    means, frame, offsets, present = _checked(means, frame, bias, present)
    size = unit_scale(means).reshape(())  # the squares must fit
    means, offsets = means / size, offsets / size
    number = jnp.sum(present.astype(means.dtype))
    spread, total = jnp.sum(_centred(means, present) ** 2), jnp.sum(means**2)
    bound = spread / (4 * (number - 1))
    distinct = spread > (4 * jnp.finfo(means.dtype).eps) ** 2 * total  # the rounding error of the centre
    smallest = _smallest(_exponents(means, frame, offsets, present), present)
    return jnp.where(distinct, smallest / jnp.where(distinct, bound, 1), jnp.nan)


def class_angles(means: Reals, frame: Reals, present: Mask | None = None) -> Float[Array, " classes"]:
    r"""Angle of each class vector with its centred class mean, :math:`\angle(w_k, \mu_k - \mu_G)`. 0 at collapse.

    Args:
        means: class means :math:`\mu_k` as columns, shape (d, K). Their mean :math:`\mu_G` is subtracted.
        frame: class vectors :math:`w_k` as columns, shape (d, K). They are not centred.
        present: True for the classes that count, shape (K,); None: all classes. Only they enter :math:`\mu_G`.

    Returns:
        Radians in [0, pi], shape (K,), accurate to rounding near 0, too. NaN for a class that is not present, and where
        the class vector or the centred mean is zero.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> class_angles(jnp.array([[3.0, 1.0], [5.0, 5.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [0.0, 1.5707963705062866]
    """
    means, frame, _, present = _checked(means, frame, None, present)
    centred = _centred(means, present)
    defined = present & jnp.any(centred != 0, axis=0) & jnp.any(frame != 0, axis=0)
    return jnp.where(defined, angles(frame, centred), jnp.nan)


def principal_angles(means: Reals, frame: Reals, present: Mask | None = None) -> Float[Array, " angles"]:
    """Principal angles between the span of the centred class means and that of the centred class vectors.

    They do not see how vectors are turned within the span: they are 0 if the classifier looks at the directions in
    which the class means differ, and pi/2 for a direction that it does not see at all. Both are centred, because
    neither the mean of the class means nor that of the class vectors has a part in a decision.

    Args:
        means: class means as columns, shape (d, K).
        frame: class vectors as columns, shape (d, K).
        present: True for the classes that count, shape (K,); None: all classes.

    Returns:
        Radians in [0, pi/2], ascending, shape (min(d, K - 1),), accurate to rounding near 0, too. There are as many
        angles as the smaller of the two spans has dimensions, up to rounding; the rest are NaN. Not for derivatives,
        which singular vectors of equal singular values do not have.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> means, frame = jnp.array([[1.0, -1.0], [0.0, 0.0]]), jnp.array([[1.0, -1.0], [1.0, -1.0]])
        >>> [round(angle, 3) for angle in jnp.degrees(principal_angles(means, frame)).tolist()]
        [45.0]

    Reference: Björck and Golub, Numerical methods for computing angles between linear subspaces (1973).
    """
    means, frame, _, present = _checked(means, frame, None, present)
    first, of_first = _basis(_centred(means, present), means)
    second, of_second = _basis(_centred(frame, present), frame)
    inner = matmul(transpose(first), second)
    # Cosines are flat near 0 and sines near pi/2, so both are computed. A column of zeros has the sine 1, as if it were
    # at right angles: otherwise its zeros would be taken for angles of 0.
    outside = jnp.concatenate([second - matmul(first, inner), jnp.diag((~of_second).astype(second.dtype))])
    cosines = jnp.linalg.svd(inner, compute_uv=False)
    sines = jnp.linalg.svd(outside, compute_uv=False)[::-1]
    number = jnp.minimum(jnp.sum(of_first), jnp.sum(of_second))
    return jnp.where(jnp.arange(cosines.size) < number, jnp.arctan2(sines, cosines), jnp.nan)


def mean_cosine(vectors: Reals, members: Labels) -> Float[Array, ""]:
    """Mean cosine over all pairs of the class vectors of a group of classes. 1 at minority collapse.

    In training on a long tail, the class vectors of rare classes approach each other, until no example tells them
    apart. Of a simplex ETF of K classes, every group has -1/(K-1).

    Args:
        vectors: class vectors as columns, shape (d, K); or centred class means.
        members: class numbers of the group, integers of shape (M,), such as `shot_groups(counts)["few"]`.

    Returns:
        A number in [-1, 1]. Vectors of length zero have collapsed, so that their cosine with every other vector counts
        as 1. NaN if the group has fewer than two members, or one that is no class (under `jax.jit`, where it
        cannot be refused).

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, or `members` are not class numbers.

    Example:
        >>> float(mean_cosine(jnp.array([[1.0, 0.0, 5.0], [0.0, 2.0, 0.0]]), jnp.array([0, 2])))
        1.0

    Reference: Fang et al., Exploring deep neural networks via layer-peeled model: minority collapse in imbalanced
    training (2021).
    """
    vectors, _ = checked_vectors(vectors, None)
    members, num_classes = as_array(members, "members"), vectors.shape[1]
    wanted = f"members must be class numbers in 0..{num_classes - 1}, integers of shape (members,)"
    if members.ndim != 1 or not jnp.issubdtype(members.dtype, jnp.integer):
        raise ValueError(f"{wanted}; got {members.dtype} of shape {members.shape}")
    if not is_traced(members) and ((members < 0) | (members >= num_classes)).any():
        raise ValueError(f"{wanted}; got {members[(members < 0) | (members >= num_classes)][0]}")
    # Under jit, a number that is no class gives NaN.
    chosen = vectors.at[:, jnp.asarray(members)].get(mode="fill", wrap_negative_indices=False)
    directions, lengths = normalized(chosen, axis=0)
    collapsed = lengths[0] == 0
    cosines = jnp.where(collapsed[None] | collapsed[:, None], 1, matmul(transpose(directions), directions))
    return jnp.mean(cosines, where=jnp.triu(jnp.ones(cosines.shape, bool), 1))


def _checked(means: Reals, frame: Reals, bias: Reals | None, present: Mask | None) -> tuple[Array, Array, Array, Array]:
    """Return means, frame (both with zero columns for absent classes), bias and mask, once they fit."""
    means, present = checked_vectors(real_array(means, "class means"), present)
    frame = at_least_float32(frame_of_shape(frame, means.shape))
    bias = jnp.broadcast_to(checked_bias(bias, frame), present.shape)
    return means, jnp.where(present[None], frame, 0), bias, present


def _exponents(means: Array, frame: Array, bias: Array, present: Array) -> Array:
    size, length = unit_scale(means).reshape(()), unit_scale(frame).reshape(())
    means, vectors, bias = transpose(means) / size, transpose(frame) / length, bias / length / size
    classes = jnp.arange(present.size)

    # Without the checkpoint, a derivative would store the differences of all pairs, 2 GB for 1000 classes in d = 512.
    @jax.checkpoint
    def distance_of(label: Array) -> Array:
        normals, lengths = normalized(vectors[label][None] - vectors, axis=1)
        lengths, lead = lengths[:, 0], bias[label] - bias
        equal = lengths == 0
        distances = matmul(normals, means[label]) + lead / jnp.where(equal, 1, lengths)
        distances = jnp.where(equal, jnp.where(lead > 0, jnp.inf, 0), distances)
        return jnp.min(jnp.maximum(distances, 0), where=present & (classes != label), initial=jnp.inf)

    distances = jax.lax.map(distance_of, classes) * size
    return jnp.where(present & (jnp.sum(present) >= 2), distances**2 / 2, jnp.nan)


def _smallest(exponents: Array, present: Array) -> Array:
    return jnp.where(jnp.sum(present) >= 2, jnp.min(exponents, where=present, initial=jnp.inf), jnp.nan)


def _centred(vectors: Array, present: Array) -> Array:
    """Subtract the mean of the present columns, and leave zeros elsewhere."""
    weights = present.astype(vectors.dtype)
    weights = weights / jnp.sum(weights)
    # Twice, because the rounding error of the first centre is relative to the distance from the origin.
    for _ in range(2):
        vectors = jnp.where(present[None], vectors - matmul(vectors, weights)[:, None], 0)
    return vectors


def _basis(centred: Array, vectors: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis of the span, filled up with columns of zeros, and which columns belong to it."""
    size = min(centred.shape[0], centred.shape[1] - 1)  # centred vectors span at most K - 1 dimensions
    scale = unit_scale(centred)
    left, singular, _ = jnp.linalg.svd(centred / scale, full_matrices=False)
    eps = jnp.finfo(centred.dtype).eps
    # The first bound is that of numpy.linalg.matrix_rank, the second one the rounding error of the centre.
    bound = jnp.maximum(max(centred.shape) * eps * singular[0], 4 * eps * safe_norm(vectors)[0] / scale[0])
    kept = (singular > bound)[:size]
    return jnp.where(kept[None], left[:, :size], 0), kept
