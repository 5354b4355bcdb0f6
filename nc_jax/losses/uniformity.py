r"""Hyperspherical uniformity gap (HUG): features gather at the vector of their class, and class vectors spread out.

Only directions count: :math:`\hat x_i` is the direction of feature i and :math:`\hat w_k` that of class vector k, the
*proxy* of its class. There is no softmax and no temperature; an example is classified by the nearest class vector.

A loss is made of two terms. `between_class` says how far the class vectors are from spread evenly, and `within_class`
how far features are from their class vectors. `hug` is their weighted sum over a whole batch, on all devices.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.arrays import at_least_float32, matmul, normalized, safe_norm, transpose
from nc_jax.checks import (
    PADDING_LABEL,
    Labels,
    Reals,
    check_features_fit,
    checked_labels,
    checked_per_class,
    nan_without_class,
    real_array,
)
from nc_jax.collective import all_rows, all_sum, device
from nc_jax.losses.dot_regression import class_lengths
from nc_jax.losses.spread import Objective, Reduction, between_class, class_subset
from nc_jax.solvers import Status

__all__ = [
    "HugTerms",
    "between_class",
    "class_distances",
    "class_subset",
    "hug",
    "hug_of_means",
    "hug_terms",
    "within_class",
]


class HugTerms(NamedTuple):
    """The two terms of HUG, of which `hug` is the weighted sum.

    Attributes:
        between: what `between_class` gives for the class vectors; inf for an energy of equal ones.
        within: distance of features to their class vectors.
        status: a `nc_jax.solvers.Status` as int32. NON_FINITE if a term is inf or NaN, because class vectors are equal,
            or a vector is zero or not finite. NOT_UNIQUE if class vectors are equal and their least distance is to be
            enlarged: no gradient says in which direction. CONVERGED otherwise.
    """

    between: Float[Array, ""]
    within: Float[Array, ""]
    status: Int[Array, ""]


def within_class(
    features: Reals, labels: Labels, frame: Reals, counts: Reals | None = None, *, stop_gradient_proxies: bool = True
) -> Float[Array, " batch"]:
    r"""Distance of each feature's direction to that of its class vector, per example.

    .. math:: \ell(x, y) = a_y \|\hat x - \hat w_y\|, \qquad a_k = \frac{\sum_j n_j}{n_k \, \#\{j : n_j > 0\}}

    Without `counts`, all :math:`a_k` are 1. With the class counts :math:`n_k` of a batch, the mean over the batch is
    the mean over its classes of the means over their examples: every class weighs the same. The counts are those of the
    whole batch, so this holds over any number of devices and for parts of a batch.

    The distance comes from differences, and is accurate near zero. There its gradient keeps a constant length, unlike
    that of a squared distance; at zero, which is collapse, it is zero.

    Args:
        features: x, shape (N, d), of any length.
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a number that the caller
            must mask.
        frame: class vectors w_k as columns, shape (d, K), of any length.
        counts: numbers of examples of each class in the whole batch, shape (K,), as
            `nc_jax.training.Context.class_counts` gives them.
        stop_gradient_proxies: hold the class vectors constant for derivatives, as the released program does. Then
            learned class vectors spread out whatever the features do.

    Returns:
        Numbers in [0, 2] without counts, shape (N,), in at least float32. NaN for a feature or class vector that is
        zero or not finite and, under `jax.jit`, for a label that is neither a class nor -1.

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers of shape (N,) in -1..K-1, or a count is
            negative or not finite.

    Example:
        >>> features, labels = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> [round(float(one), 4) for one in within_class(features, labels, jnp.eye(2))]
        [0.0, 1.4142]

    Reference: Liu et al. (2023), and its released program.
    """
    features, labels, frame = _checked(features, labels, frame)
    each = _distances(features, labels, jax.lax.stop_gradient(frame) if stop_gradient_proxies else frame)
    if counts is None:
        return each
    counts = checked_per_class(counts, "counts", frame.shape[1])
    weights = class_lengths(counts) ** 2
    return each * weights.astype(each.dtype)[jnp.clip(labels, 0, frame.shape[1] - 1)]


def class_distances(
    features: Reals,
    labels: Labels,
    frame: Reals,
    *,
    reduction: Literal["mean", "sum", "max"] = "mean",
    stop_gradient_proxies: bool = True,
) -> Float[Array, " classes"]:
    r"""Distances of a class's features to its class vector, :math:`\|\hat x_i - \hat w_k\|`, reduced per class.

    Args:
        features: shape (N, d), of any length.
        labels: integer classes 0..K-1, shape (N,); rows with the label -1 are padding.
        frame: class vectors as columns, shape (d, K), of any length.
        reduction: "mean", "sum" or "max", over the examples of the class on all devices.
        stop_gradient_proxies: hold the class vectors constant for derivatives.

    Returns:
        Shape (K,). NaN for a class without example, and where `within_class` is NaN.

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers of shape (N,) in -1..K-1, or the reduction is
            unknown.

    Example:
        >>> features, labels = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> [round(float(one), 4) for one in class_distances(features, labels, jnp.eye(2))]
        [0.7071, nan]
    """
    if reduction not in ("mean", "sum", "max"):
        raise ValueError(f"reduction must be one of mean, sum, max; got {reduction!r}")
    each = within_class(features, labels, frame, stop_gradient_proxies=stop_gradient_proxies)
    found, counts = _per_class(each, jnp.asarray(labels), jnp.shape(frame)[1], reduction)
    return jnp.where(counts > 0, found, jnp.nan)


def hug_terms(
    features: Reals,
    labels: Labels,
    frame: Reals,
    *,
    objective: Objective = "mhe",
    reduction: Reduction = "mean",
    stop_gradient_proxies: bool = True,
) -> HugTerms:
    """Return the two terms of `hug`, unweighted, and a status. The arguments are those of `hug`."""
    features, labels, frame = _checked(features, labels, frame)
    return _terms(features, labels, frame, None, objective, reduction, stop_gradient_proxies)


def hug(
    features: Reals,
    labels: Labels,
    frame: Reals,
    *,
    alpha: float = 1.0,  # Liu et al. (2023), released program
    beta: float = 1.0,  # Liu et al. (2023), released program
    objective: Objective = "mhe",
    reduction: Reduction = "mean",
    stop_gradient_proxies: bool = True,
) -> Float[Array, ""]:
    r"""Hyperspherical uniformity gap of a batch, to be minimised: spread class vectors, gather features around them.

    .. math::
        \text{mean:}\quad \alpha \operatorname*{mean}_{c < k} \|\hat w_c - \hat w_k\|^{-2} + \beta
        \operatorname*{mean}_{c \text{ present}} \operatorname*{mean}_{i : y_i = c} \|\hat x_i - \hat w_c\|

        \text{sum:}\quad \alpha \sum_{c \ne k} \|\hat w_c - \hat w_k\|^{-2} + \beta \sum_i \|\hat x_i - \hat w_{y_i}\|

    The released program takes means, in which every class weighs the same; the paper writes sums. They are not
    interchangeable: the ratio of the two terms differs by a factor that depends on the number of classes and on the
    size of the batch. With "mhs" the second term is the largest distance of each class, averaged or summed over the
    classes. With "mgd" and "mhs" the first term, see `between_class`, has no reduction.

    At perfect collapse onto a simplex ETF, "mhe" with means is :math:`\alpha (K - 1) / (2 K)`.

    It is a sum over the batch of all devices, so every device gets the same number. A training step that needs a number
    for each example may take this one for all of them, or, exact for parts of a batch, too, ::

        between_class(frame) + within_class(features, labels, frame, context.class_counts(num_classes))

    Args:
        features: x, shape (N, d), of any length.
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 are padding, and left out.
        frame: class vectors w_k (proxies) as columns, shape (d, K), of any length, K >= 2.
        alpha: weight of the class vectors' term, at least 0.
        beta: weight of the features' term, at least 0.
        objective: "mhe", "mhs" or "mgd"; see `between_class`.
        reduction: "mean" or "sum".
        stop_gradient_proxies: hold the class vectors constant in the second term, as the released program does.

    Returns:
        A scalar in at least float32. inf for an energy of equal class vectors. NaN for a feature or class vector that
        is zero or not finite, without any example and, under `jax.jit`, for a label that is neither a class nor -1.
        `hug_terms` says which term it is.

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers of shape (N,) in -1..K-1, or an option is
            unknown or out of its range.

    Example:
        >>> frame = jnp.array([[1.0, -1.0], [0.0, 0.0]])
        >>> float(hug(2 * frame.T, jnp.array([0, 1]), frame))  # perfect collapse: (K - 1) / (2 K)
        0.25

    Reference: Liu et al., Generalizing and decoupling neural collapse via hyperspherical uniformity gap (2023), and its
    released program, which leaves out equal class vectors where this energy is inf.
    """
    _check_weights(alpha, beta)
    terms = hug_terms(
        features,
        labels,
        frame,
        objective=objective,
        reduction=reduction,
        stop_gradient_proxies=stop_gradient_proxies,
    )
    return _weighted(terms, alpha, beta)


def hug_of_means(
    features: Reals,
    labels: Labels,
    num_classes: int,
    *,
    alpha: float = 1.0,  # as in hug
    beta: float = 1.0,  # as in hug
    objective: Objective = "mhe",
    reduction: Reduction = "mean",
) -> Float[Array, ""]:
    r"""Hyperspherical uniformity gap without class vectors: the centred class means of the batch take their place.

    With the class means :math:`\mu_k`, their mean :math:`\mu` over the classes present, and

    .. math:: w_k = \mu_k - \mu, \qquad z_i = x_i - \mu,

    this is `hug` of the features :math:`z_i` and the class vectors :math:`w_k` of the classes present. It does not
    change if a common vector is added to all features. Gradients pass through the means. (The paper's general form
    takes distances between the examples of a class in place of those to its mean.)

    Args:
        features: x, shape (N, d).
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 are padding, and left out.
        num_classes: K >= 2.
        alpha: weight of the class means' term, at least 0.
        beta: weight of the features' term, at least 0.
        objective: "mhe", "mhs" or "mgd"; see `between_class`.
        reduction: "mean" or "sum"; see `hug`.

    Returns:
        A scalar, the same on all devices. inf for an energy of equal class means; NaN with fewer than two classes in
        the batch, and where `hug` is NaN.

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers of shape (N,) in -1..K-1, or an option is
            unknown or out of its range.

    Example:
        >>> features = jnp.array([[1.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
        >>> float(hug_of_means(features, jnp.array([0, 0, 1]), 2))
        0.25

    Reference: Liu et al. (2023), the general form.
    """
    _check_weights(alpha, beta)
    features = at_least_float32(real_array(features, "features"))
    if features.ndim != 2:
        raise ValueError(f"features must have shape (batch, dim); got {features.shape}")
    labels = checked_labels(labels, num_classes, rows=features.shape[0])
    features, frame, present = _centred(features, labels, num_classes)
    return _weighted(_terms(features, labels, frame, present, objective, reduction, False), alpha, beta)


def _terms(
    features: Array,
    labels: Array,
    frame: Array,
    present: Array | None,
    objective: Objective,
    reduction: Reduction,
    stop_gradient_proxies: bool,
) -> HugTerms:
    between = between_class(frame, objective=objective, reduction=reduction, present=present)
    each = _distances(features, labels, jax.lax.stop_gradient(frame) if stop_gradient_proxies else frame)
    largest = objective == "mhs"
    found, counts = _per_class(each, labels, frame.shape[1], "max" if largest else reduction)
    within = jnp.sum(found)
    if reduction == "mean":
        within = within / jnp.sum((counts > 0).astype(within.dtype))
    lost = ~jnp.isfinite(between) | ~jnp.isfinite(within)
    stuck = (between == 0) if largest else jnp.zeros((), bool)  # the least distance is zero
    status = jnp.where(lost, Status.NON_FINITE, jnp.where(stuck, Status.NOT_UNIQUE, Status.CONVERGED))
    return HugTerms(between, within, status.astype(jnp.int32))


def _weighted(terms: HugTerms, alpha: float, beta: float) -> Array:
    # A term with the weight 0 is left out: 0 times inf would be NaN.
    parts = [weight * term for weight, term in ((alpha, terms.between), (beta, terms.within)) if weight]
    return sum(parts, jnp.zeros((), terms.within.dtype))


def _check_weights(alpha: float, beta: float) -> None:
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite; got {weight}")


def _checked(features: Reals, labels: Labels, frame: Reals) -> tuple[Array, Array, Array]:
    features = at_least_float32(real_array(features, "features"))
    frame = at_least_float32(real_array(frame, "frame"))
    check_features_fit(features, frame)
    return features, checked_labels(labels, frame.shape[1], rows=features.shape[0]), frame


def _distances(features: Array, labels: Array, frame: Array) -> Array:
    """Return the distances of directions per example. NaN is put in last, so that other rows keep their gradients."""
    own = transpose(frame)[jnp.clip(labels, 0, frame.shape[1] - 1)]
    (left, sizes), (right, own_sizes) = normalized(features, axis=1), normalized(own, axis=1)
    found = safe_norm(left - right, axis=1)[:, 0]
    lost = (labels >= 0) & ((sizes * own_sizes)[:, 0] == 0)
    return nan_without_class(jnp.where(lost, jnp.nan, found), labels, frame.shape[1])


def _per_class(each: Array, labels: Array, num_classes: int, reduction: str) -> tuple[Array, Array]:
    """Return a number for each class, 0 for a class without example, and the class counts, over all devices."""
    # An example whose label is no class counts for some class, so that its NaN is seen.
    own = jnp.where(labels == PADDING_LABEL, num_classes, jnp.clip(labels, 0, num_classes - 1))
    member = own[:, None] == jnp.arange(num_classes)[None]
    counts = all_sum(jnp.sum(member.astype(each.dtype), axis=0))
    if reduction == "max":
        largest = jnp.max(jnp.where(member, each[:, None], -jnp.inf), axis=0, initial=-jnp.inf)
        largest = jnp.max(all_rows(largest[None], jnp.asarray(device()[0])[None]), axis=0)
        return jnp.where(counts > 0, largest, 0), counts
    sums = all_sum(jnp.sum(jnp.where(member, each[:, None], 0), axis=0))
    return (sums / jnp.maximum(counts, 1) if reduction == "mean" else sums), counts


def _centred(features: Array, labels: Array, num_classes: int) -> tuple[Array, Array, Array]:
    """Return features and class means as columns, both less the mean of the class means, and which classes occur."""
    used = (labels != PADDING_LABEL)[:, None]
    members = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    features = jnp.where(used, features, 0)
    counts, total = all_sum((jnp.sum(members, axis=0), jnp.sum(features, axis=0)))
    # Nothing depends on the origin. One among the features keeps the digits of their differences.
    origin = jax.lax.stop_gradient(total / jnp.maximum(jnp.sum(counts), 1))
    features = jnp.where(used, features - origin[None], 0)
    present = counts > 0
    means = all_sum(matmul(transpose(features), members)) / jnp.maximum(counts, 1)[None]
    centre = jnp.sum(means, axis=1) / jnp.sum(present.astype(means.dtype))
    frame = jnp.where(present[None], means - centre[:, None], 0)
    # A class mean at the centre has no direction; rounding must not choose one.
    rounding = 8 * jnp.finfo(means.dtype).eps * jnp.max(safe_norm(means, axis=0))
    frame = jnp.where(safe_norm(frame, axis=0) <= rounding, 0, frame)
    return features - centre[None], frame, present
