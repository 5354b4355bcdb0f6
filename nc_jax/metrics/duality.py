"""NC3: how far the classifier is from the class means, up to scale. `nc_jax.metrics.collapse` has the others."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import normalized, safe_norm, unit_scale
from nc_jax.checks import Reals
from nc_jax.metrics.simplex import checked_frame, checked_vectors, distance_to_simplex, masked_std
from nc_jax.metrics.statistics import Centre, ClassStatistics

Duality = Literal["product", "difference", "directions", "cosine"]


def self_duality(
    frame: Reals,
    stats: ClassStatistics,
    form: Duality = "product",  # Zhu et al. (2021), released program
    centre: Centre = "balanced",  # the default of within_class_collapse
) -> Float[Array, ""]:
    r"""NC3: distance of the classifier W from the centred class means M, up to scale. 0 means perfect collapse.

    .. math::
        \text{product} = \left\| \frac{W^\top M}{\|W^\top M\|_F} - \frac{I - 1 1^\top / K}{\sqrt{K - 1}} \right\|_F,
        \qquad \text{difference} = \left\| \frac{W}{\|W\|_F} - \frac{M}{\|M\|_F} \right\|_F

    .. math::
        \text{directions} = \frac1K \sum_k \|\hat w_k - \hat m_k\|, \qquad
        \text{cosine} = \frac1K \sum_k (1 - \hat w_k^\top \hat m_k)

    The difference is zero exactly if W and M are equal up to a positive factor. The product compares W with M and both
    with a simplex: for equal W and M it is zero only if they form a simplex ETF. So use another form for every other
    frame; if the vectors of that frame do not sum to zero, also set `centre="origin"`. For K > d + 1 the product is at
    least `etf_distance_floor`. Directions and cosine compare class by class and ignore all lengths. They have the least
    value 0 for every K, as the self-duality of generalized neural collapse does.

    Args:
        frame: class vectors of the classifier as columns, W, shape (d, K).
        stats: statistics of the features. Classes without examples are left out of W and of M.
        form: "product" (Zhu et al. 2021), "difference" (Papyan, Han and Donoho 2020; the released programs of Liang
            and Davis (2023) and of FNO use its square), "directions" (Liu et al. 2023) or "cosine".
        centre: point that is subtracted from the class means; see `ClassStatistics.centred_means`.

    Returns:
        A number in [0, 2] without unit. NaN if W or M is zero; the product also if fewer than two classes are present,
        directions and cosine also if one class vector or centred class mean is zero.

    Raises:
        ValueError: if the frame does not have shape (d, K) like the class means, K < 2, or the form or the centre is
            unknown.

    Reference: Papyan, Han and Donoho (2020) for the difference; Zhu et al. (2021), released program (WH_relation), for
    the product.
    """
    if form not in get_args(Duality):
        raise ValueError(f"form must be one of {', '.join(get_args(Duality))}; got {form!r}")
    frame, centred, present = _checked(frame, stats, centre)
    if form in ("directions", "cosine"):
        (units, lengths), (others, sizes) = normalized(frame, axis=0), normalized(centred, axis=0)
        gaps = safe_norm(units - others, axis=0)[0]
        gaps = jnp.where((lengths[0] > 0) & (sizes[0] > 0), gaps, jnp.nan)
        # Half the square is 1 - cos, and keeps its digits near 0.
        return jnp.mean(gaps if form == "directions" else gaps**2 / 2, where=present)
    frame, centred = frame / unit_scale(frame), centred / unit_scale(centred)  # the squares of both must fit
    if form == "product":
        return distance_to_simplex(frame, centred, present)
    return jnp.linalg.norm(frame / jnp.linalg.norm(frame) - centred / jnp.linalg.norm(centred))


def uniform_duality(
    frame: Reals,
    stats: ClassStatistics,
    centre: Centre = "balanced",  # the default of within_class_collapse
    ddof: int = 0,  # the K classes are all classes, not a sample; the package rhubarbwu/neural-collapse uses 1
) -> Float[Array, ""]:
    r"""Uniform duality (UNC3): variance over the classes of the inner product of class vector and centred class mean.

    .. math:: \operatorname{Var}_k \; w_k^\top (\mu_k - \mu)

    It is 0 if every class vector and its class mean have the same inner product, whether they are parallel or not.
    Self-duality with equal lengths implies it.

    Args:
        frame: class vectors of the classifier as columns, :math:`w_k`, shape (d, K).
        stats: statistics of the features. Classes without examples are left out.
        centre: point that is subtracted from the class means; see `ClassStatistics.centred_means`.
        ddof: the variance divides by the number of classes minus ddof. 0: population variance; 1: sample variance.

    Returns:
        A number >= 0 in the squared unit of the logits: compare it only between networks whose logits have similar
        size. NaN if at most ddof classes have examples.

    Raises:
        ValueError: if the frame does not have shape (d, K) like the class means, K < 2, or the centre is unknown.

    Example:
        >>> stats = ClassStatistics.from_batch(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.arange(2), num_classes=2)
        >>> float(uniform_duality(jnp.array([[1.0, -3.0], [0.0, 5.0]]), stats))
        1.0
    """
    frame, centred, present = _checked(frame, stats, centre)
    length, size = (unit_scale(array).reshape(()) for array in (frame, centred))
    products = jnp.sum((frame / length) * (centred / size), axis=0)
    return masked_std(products, present, ddof) ** 2 * (length * size) ** 2


def _checked(frame: Reals, stats: ClassStatistics, centre: Centre) -> tuple[Array, Array, Array]:
    """Return the frame and the centred class means, with zeros for absent classes, and which are present."""
    frame, present = checked_vectors(checked_frame(frame, stats), stats.present)
    return frame, stats.centred_means(centre), present
