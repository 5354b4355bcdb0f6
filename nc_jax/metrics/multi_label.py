r"""Multi-label collapse: the tag-wise average property of examples that have several labels, here called tags.

An example has a set of tags S. Sets of one tag collapse as classes do. At multi-label collapse, the mean feature of a
set of m tags is a positive multiple, the same for all such sets, of the average of the means of its tags alone.

Sets of tags are classes for `ClassStatistics`, so everything else of this package works with them, too:

>>> tags = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
>>> features = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [2, 2, 0], [0, 2, 2], [9, 9, 9]])
>>> sets, numbers = tag_sets(tags)
>>> stats = ClassStatistics.from_batch(features, numbers, len(sets), scatter=False)
>>> found = tag_wise_average(stats, sets)
>>> found.multiplicities, float(found.angles[0]), float(found.distances[0]), float(found.scales[0])
((2,), 0.0, 0.0, 4.0)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import angles, matmul, safe_norm, unit_scale
from nc_jax.checks import Mask, as_array
from nc_jax.metrics.statistics import ClassStatistics, check_statistics


class TagWiseAverage(NamedTuple):
    """How far the means of sets of several tags are from averages of the means of their tags.

    Attributes:
        multiplicities: the numbers of tags m >= 2 that occur, ascending, M of them.
        angles: for each m, the mean angle of set and average over the mean angle of sets and averages of other sets,
            shape (M,).
        distances: for each m, the relative distance of the sets from the scaled averages, shape (M,).
        scales: for each m, the best scale, shape (M,).
        counts: for each m, the number of sets that count, shape (M,).
    """

    multiplicities: tuple[int, ...]
    angles: Float[Array, " multiplicities"]
    distances: Float[Array, " multiplicities"]
    scales: Float[Array, " multiplicities"]
    counts: Int[Array, " multiplicities"]


def tag_sets(tags: Mask) -> tuple[Bool[np.ndarray, "sets tags"], Int[np.ndarray, " batch"]]:
    """List the sets of tags that occur, and the number of each example's set.

    Args:
        tags: for each example which tags it has, 0 and 1 or booleans, shape (N, K).

    Returns:
        The different sets, shape (S, K), those of few tags first; and for each example the number of its set, shape
        (N,), int32. An example without tags has the number -1, which statistics take for padding.

    Raises:
        ValueError: if the tags do not have shape (N, K), or hold other numbers.

    Example:
        >>> sets, numbers = tag_sets(np.array([[1, 1], [0, 1], [1, 1], [0, 0]]))
        >>> sets.tolist(), numbers.tolist()
        ([[False, True], [True, True]], [1, 0, 1, -1])
    """
    found = np.asarray(as_array(tags, "tags"))
    if found.ndim != 2 or not found.shape[1] or not np.isin(found, (0, 1)).all():
        raise ValueError(f"tags must be 0 and 1 of shape (batch, tags); got {found.dtype} of shape {found.shape}")
    sets, numbers = np.unique(found.astype(bool), axis=0, return_inverse=True)
    order = np.argsort(sets.sum(axis=1), kind="stable")
    order = order[sets[order].any(axis=1)]
    places = np.full(len(sets), -1, np.int32)
    places[order] = np.arange(len(order))
    return sets[order], places[numbers.reshape(-1)]


def tag_wise_average(stats: ClassStatistics, sets: Mask) -> TagWiseAverage:
    r"""Measure the tag-wise average property, for each number of tags.

    With the mean :math:`\mu_S` of the examples that have the tags S, and the average of the means of the tags alone,
    :math:`a_S = \tfrac1m \sum_{k \in S} \mu_{\{k\}}`, let for all sets S, T of m tags

    .. math::
        \text{angle}_m = \frac{\operatorname{mean}_S \angle(\mu_S, a_S)}{\operatorname{mean}_{S, T} \angle(\mu_S, a_T)},
        \qquad \text{distance}_m = \min_{c \ge 0} \sqrt{\frac{\sum_S \|\mu_S - c \, a_S\|^2}{\sum_S \|\mu_S\|^2}}

    The angle is that of Li et al., for m = 2. Their released program averages the denominator over all pairs of tags;
    here T runs over the sets that occur, which are the same if every pair does. The distance, derived here from the
    property itself, also asks for the one length that the theorem gives to all sets of m tags. Nothing is centred, as
    there. Means that share a large common part (behind a ReLU, for instance) have small angles to all averages, which
    the ratio takes into account, and a small distance, which it does not: subtract the mean of the examples of one tag
    from the features first if that is meant.

    Args:
        stats: statistics of the features, with the sets of tags as classes; the scatter is not needed.
        sets: which tags each set has, booleans of shape (S, K), from `tag_sets`.

    Returns:
        A number for each m. Angles are 0 at collapse, and 1 if a set is as near to other averages as to its own.
        Distances are in [0, 1], and 0 at collapse. A set counts if it has examples, and each of its tags has examples
        without other tags. NaN if no set counts, or if a mean that counts is zero; the angle also if all angles are 0.

    Raises:
        ValueError: if the sets are not booleans of shape (S, K) with S as in the statistics, or one is empty or occurs
            twice.

    Reference: Li et al., Neural collapse in multi-label learning with pick-all-label loss (2024), and its released
    program (angle_metric).
    """
    sets = np.asarray(as_array(sets, "sets"))
    check_statistics(stats)
    number = stats.counts.size
    if sets.ndim != 2 or len(sets) != number or sets.dtype != bool:
        raise ValueError(
            f"sets must be booleans of shape ({number}, tags), one row for each class of the statistics; got "
            f"{sets.dtype} of shape {sets.shape}"
        )
    sizes = sets.sum(axis=1)
    if not sizes.all() or len(np.unique(sets, axis=0)) < number:
        raise ValueError("sets must be different and have a tag each; got an empty one, or one twice")
    alone = np.full(sets.shape[1], -1)  # for each tag, the set that has no other
    singles = np.flatnonzero(sizes == 1)
    alone[sets[singles].argmax(axis=1)] = singles
    means = stats.at_unit_scale().means
    means = means / unit_scale(means)
    known = jnp.asarray(alone >= 0) & stats.present[alone]
    tag_means = jnp.where(known[None], means[:, alone], 0)
    averages = matmul(tag_means, jnp.asarray(sets.T / sizes, means.dtype))
    counted = stats.present & (jnp.asarray(sets, jnp.int32) @ (~known).astype(jnp.int32) == 0)
    multiplicities = tuple(int(m) for m in np.unique(sizes) if m > 1)
    parts = [np.flatnonzero(sizes == multiplicity) for multiplicity in multiplicities]
    found = [_compare(means[:, part], averages[:, part], counted[part]) for part in parts]
    columns = [jnp.stack(column) for column in zip(*found, strict=True)] if found else [jnp.zeros(0)] * 4
    return TagWiseAverage(multiplicities, columns[0], columns[1], columns[2], columns[3].astype(jnp.int32))


def _compare(means: Array, averages: Array, counted: Array) -> tuple[Array, Array, Array, Array]:
    """Return angle, distance, scale and count of the sets of one multiplicity, as columns (d, S)."""
    means, averages = (jnp.where(counted[None], columns, 0) for columns in (means, averages))
    scale = jnp.maximum(jnp.sum(means * averages) / jnp.sum(averages**2), 0)
    distance = safe_norm(means - scale * averages)[0, 0] / safe_norm(means)[0, 0]
    own = jnp.mean(angles(means, averages), where=counted)

    def of_average(average: Array) -> Array:
        return jnp.mean(angles(means, jnp.broadcast_to(average[:, None], means.shape)), where=counted)

    others = jnp.mean(jax.lax.map(of_average, averages.T), where=counted)
    lengths = jnp.minimum(safe_norm(means, axis=0), safe_norm(averages, axis=0))[0]
    sound = jnp.any(counted) & jnp.all(jnp.where(counted, lengths > 0, True))
    angle, distance, scale = (jnp.where(sound, value, jnp.nan) for value in (own / others, distance, scale))
    return angle, distance, scale, jnp.sum(counted)
