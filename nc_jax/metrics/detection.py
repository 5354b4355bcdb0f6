"""How well a score tells the examples of a data set from outliers: AUROC, and false positives at a true-positive rate.

Here the *positive* examples are those of the data set that a network was trained on (in-distribution), and a larger
score says "in-distribution". So do the papers on NECO, NCI and ViM. Where outliers are the positive ones, change the
sign of the scores and swap the labels: the area stays as it is, the other number changes.
"""

from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32
from nc_jax.checks import Labels, Reals, checked_labels, real_array


def auroc(scores: Reals, labels: Labels) -> Float[Array, ""]:
    r"""Area under the receiver operating characteristic: probability that an example scores above an outlier.

    .. math:: \frac{1}{P Q} \sum_{i \text{ inside}} \sum_{j \text{ outlier}}
        \left( [s_i > s_j] + \tfrac12 [s_i = s_j] \right)

    P and Q are the numbers of in-distribution examples and of outliers. Equal scores count one half, exactly. Counting
    takes integers, so only the last mean is rounded.

    Args:
        scores: s, shape (N,); infinite ones are allowed.
        labels: 1 for an example of the data set, 0 for an outlier, -1 for padding, integers of shape (N,).

    Returns:
        A number in [0, 1]: 1 if every outlier has a smaller score than every example, and 0.5 for scores that say
        nothing. NaN if there is no example or no outlier, or if a score that counts is NaN.

    Raises:
        ValueError: if the scores do not have shape (N,), or the labels are not integers of that shape in -1..1.

    Example:
        >>> float(auroc(jnp.array([3.0, 2.0, 2.0, 1.0]), jnp.array([1, 1, 0, 0])))
        0.875

    Reference: Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve
    (1982).
    """
    scores, inside, outside = _checked(scores, labels)
    order = jnp.argsort(scores)
    ordered = scores[order]
    # Number of in-distribution examples among the first 0, 1, ..., N scores in ascending order.
    below = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(inside[order].astype(jnp.int32))])
    under, up_to = (below[jnp.searchsorted(ordered, scores, side=side)] for side in ("left", "right"))
    positives, negatives = _count(inside), _count(outside)
    # Shares of the positives above each outlier, plus half of those at it: every term is in [0, 1], for any N.
    beaten = ((positives - up_to) + (positives - under)).astype(scores.dtype) / (2 * positives.astype(scores.dtype))
    found = jnp.sum(jnp.where(outside, beaten, 0)) / negatives.astype(scores.dtype)
    return jnp.where(_known(scores, inside | outside), found, jnp.nan)


def false_positive_rate(
    scores: Reals,
    labels: Labels,
    true_positive_rate: float | int = 0.95,  # Wang et al. (2022), Ammar et al. (2024) and OpenOOD
) -> Float[Array, ""]:
    r"""Share of the outliers that pass the largest threshold which enough in-distribution examples pass (FPR95).

    .. math:: \frac1Q \, |\{j \text{ outlier}: s_j \ge t\}|, \qquad
        t = \max \{ t: |\{i \text{ inside}: s_i \ge t\}| \ge r P \}

    Programs differ by one example where r P is no whole number, and for equal scores. Here at least the share r passes,
    as at the first point of scikit-learn's `roc_curve` that reaches it. The released program of ViM lets
    :math:`\lfloor r P \rfloor` examples pass, and OpenOOD also takes only outliers with a score *above* the threshold.

    Args:
        scores: s, shape (N,); infinite ones are allowed.
        labels: 1 for an example of the data set, 0 for an outlier, -1 for padding, integers of shape (N,).
        true_positive_rate: r in (0, 1], taken as the nearest fraction with a denominator of at most 10,000.

    Returns:
        A number in [0, 1]; 0 if the score tells all outliers apart. NaN if there is no example or no outlier, or if a
        score that counts is NaN.

    Raises:
        ValueError: if the rate is not in (0, 1], the scores do not have shape (N,), or the labels are not integers of
            that shape in -1..1.

    Example:
        >>> scores, labels = jnp.array([4.0, 3.0, 2.0, 2.5, 1.0]), jnp.array([1, 1, 1, 0, 0])
        >>> [float(false_positive_rate(scores, labels, rate)) for rate in (0.6, 0.95)]
        [0.0, 0.5]

    Reference: Wang et al., ViM: out-of-distribution with virtual-logit matching (2022).
    """
    if not 0 < true_positive_rate <= 1:
        raise ValueError(f"true_positive_rate must lie in (0, 1]; got {true_positive_rate}")
    scores, inside, outside = _checked(scores, labels)
    if not len(scores):
        return jnp.asarray(jnp.nan, scores.dtype)
    rate = Fraction(true_positive_rate).limit_denominator(10_000)
    positives, negatives = _count(inside), _count(outside)
    # The least whole number >= r P, from P = q D + m without a product that could overflow.
    whole, rest = positives // rate.denominator, positives % rate.denominator
    needed = whole * rate.numerator - (-rest * rate.numerator // rate.denominator)
    ordered = jnp.sort(jnp.where(inside, scores, -jnp.inf))
    threshold = ordered[jnp.clip(len(scores) - needed, 0, len(scores) - 1)]
    found = _count(outside & (scores >= threshold)).astype(scores.dtype) / negatives.astype(scores.dtype)
    return jnp.where(_known(scores, inside | outside) & (positives > 0), found, jnp.nan)


def _checked(
    scores: Reals, labels: Labels
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"], Bool[Array, " batch"]]:
    """Return the scores, and which ones are of the data set and which of outliers."""
    scores = at_least_float32(real_array(scores, "scores"))
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (batch,); got {scores.shape}")
    labels = checked_labels(labels, 2, rows=len(scores), of="scores")
    # Padding must not be NaN, which every comparison and every sort would carry along.
    return jnp.where(labels >= 0, scores, 0), labels == 1, labels == 0


def _count(mask: Bool[Array, " batch"]) -> Int[Array, ""]:
    return jnp.sum(mask, dtype=jnp.int32)


def _known(scores: Float[Array, " batch"], used: Bool[Array, " batch"]) -> Bool[Array, ""]:
    return ~jnp.any(jnp.isnan(scores) & used)
