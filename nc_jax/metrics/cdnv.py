"""NC1 by pairs of classes: their variances relative to the distance of their means. No scatter is needed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.metrics.statistics import ClassStatistics, check_statistics


def class_distance_normalized_variance(
    stats: ClassStatistics,
    exponent: float | int = 1,  # Galanti, György and Hutter (2022)
) -> Float[Array, ""]:
    r"""CDNV, a form of NC1: mean over pairs of classes of their variance, relative to the distance of their means.

    .. math:: \operatorname*{mean}_{i < j} \frac{v_i + v_j}{2 \, (\|\mu_i - \mu_j\|^2)^p}

    :math:`v_k` is the mean squared distance of the examples of class k to their mean :math:`\mu_k`, and p the exponent.

    Papers differ in p. Galanti, György and Hutter (2022), who introduce the metric, have p = 1, the squared distance.
    So has the package rhubarbwu/neural-collapse by default; its argument `dist_exp` is p, and an early version of it
    always squares once more, p = 2. A larger p gives less weight to pairs that are far apart. Only p = 1 is a ratio
    without unit: for any other p the value changes with the scale of the features, so compare it only between networks
    whose features have similar size.

    Args:
        stats: statistics of the features; the scatter is not needed. Classes without examples are left out.
        exponent: p > 0.

    Returns:
        A number >= 0, in the unit of the features to the power 2 - 2p; 0 at perfect collapse. NaN for a single class,
        and infinite if two classes of positive variance have the same mean.

    Raises:
        ValueError: if the exponent is not positive.

    Example:
        >>> features, labels = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 2.0], [-1.0, -2.0]]), jnp.array([0, 0, 1, 1])
        >>> stats = ClassStatistics.from_batch(features, labels, num_classes=2)
        >>> [float(class_distance_normalized_variance(stats, p)) for p in (1, 2)]
        [0.625, 0.15625]

    Reference: Galanti, György and Hutter, On the role of neural collapse in transfer learning (2022).
    """
    if not exponent > 0:
        raise ValueError(f"exponent must be positive; got {exponent}")
    check_statistics(stats)
    size, stats = stats.unit, stats.at_unit_scale()
    size = size / stats.unit
    sizes = jnp.maximum(stats.counts, 1).astype(stats.shifts.dtype)
    variances = stats.class_scatter / sizes
    classes = jnp.arange(sizes.size)

    def ratios_of(index: Array) -> Array:
        # Differences instead of the expanded square, which would cancel for class means that are nearly equal.
        squares = jnp.sum((stats.shifts - stats.shifts[:, index, None]) ** 2, axis=0)
        counted = stats.present & stats.present[index] & (classes > index)
        distances = squares if exponent == 1 else squares**exponent
        return jnp.where(counted, (variances + variances[index]) / jnp.where(counted, 2 * distances, 1), 0)

    number = jnp.sum(stats.present.astype(sizes.dtype))
    pairs = number * (number - 1) / 2
    ratio = jnp.sum(jax.lax.map(ratios_of, classes)) / pairs
    return ratio if exponent == 1 else ratio * size ** (2 - 2 * exponent)
