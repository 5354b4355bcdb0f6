"""The second pass over the data: every example beside the class means, and beside the classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import matmul, normalized, unit_scale
from nc_jax.checks import PADDING_LABEL, checked_features
from nc_jax.metrics.agreement import Agreement, right_answers, same_answers
from nc_jax.metrics.collapse import checked_bias
from nc_jax.metrics.margins import MarginSums, logit_margins
from nc_jax.metrics.report import MARGIN_BINS
from nc_jax.metrics.statistics import ClassStatistics


class Sums(NamedTuple):
    """What a second pass adds up; the parts of the classifier are None without one."""

    nearest_right: Int[Array, " classes"]  # examples of each class whose nearest class mean is their own
    right: Int[Array, " classes"] | None
    agreement: Agreement | None
    cosines: MarginSums
    logits: MarginSums | None
    histogram: Int[Array, " bins"]  # of cosine margins


class Directions(NamedTuple):
    """What examples are compared with: class means and class vectors, seen from a point in the middle.

    Unit vectors and lengths are apart, because cosines need the former only. The last three are None without a
    classifier.
    """

    present: Bool[Array, " classes"]  # which classes have a mean
    middle: Float[Array, " dim"]
    means: Float[Array, "dim classes"]  # directions from the middle to the class means
    mean_lengths: Float[Array, "1 classes"]
    frame: Float[Array, "dim classes"] | None  # directions of the class vectors minus their mean
    frame_lengths: Float[Array, "1 classes"] | None
    offsets: Float[Array, "1 classes"] | None  # logits of the middle, without the part of the mean class vector


def directions_of(
    stats: ClassStatistics, frame: Float[Array, "dim classes"] | None, bias: Float[Array, " classes"] | None
) -> Directions:
    """Return what a second pass compares with.

    The middle is the point from which cosine margins look: the mean of all features or, without a classifier, the mean
    of the class means.
    """
    middle = jnp.mean(stats.means, axis=1, where=stats.present) if frame is None else stats.global_mean
    # About the middle as it is rounded, because that is what features will lose.
    means = normalized(stats.means_about(middle), axis=0)
    if frame is None:
        return Directions(stats.present, middle, *means, None, None, None)
    centred = frame - jnp.mean(frame, axis=1, keepdims=True)
    offsets = (matmul(middle, centred) + checked_bias(bias, frame))[None]
    return Directions(stats.present, middle, *means, *normalized(centred, axis=0), offsets)


@jax.jit
def compare(directions: Directions, features: Array, labels: Array) -> Sums:
    """Compare a batch with the class means and with the classifier.

    Args:
        directions: from `directions_of`.
        features: shape (N, d).
        labels: shape (N,), -1 for padding.
    """
    features, (labels, _) = checked_features(features), of_finite(features, labels)
    there, used, num_classes = directions.present[None], labels >= 0, directions.present.size

    def by_class(right: Array) -> Int[Array, " classes"]:
        return jnp.zeros(num_classes, jnp.int32).at[jnp.where(used, labels, num_classes)].add(right, mode="drop")

    # Cosines, logits and scores of the nearest mean differ by factors and by terms of one class or of one example. So
    # one product with the directions gives them. No score needs the part that all classes have in common.
    units, lengths = normalized(features - directions.middle[None], axis=1)
    to_means = matmul(units, directions.means)
    size = unit_scale(directions.mean_lengths)  # with it, no square over- or underflows
    far, near = lengths / size, directions.mean_lengths / size
    # -|h - mu_k|^2 / 2 for each class with examples, up to scale.
    scores = jnp.where(there, (to_means * far - near / 2) * near, -jnp.inf)
    right = agreement = of_logits = None
    if directions.frame is None or directions.frame_lengths is None or directions.offsets is None:
        cosines = jnp.where(there, to_means, -jnp.inf)
        all_have_length = jnp.all((near > 0) | ~there)
    else:
        cosines = matmul(units, directions.frame)
        all_have_length = jnp.all(directions.frame_lengths > 0)
        logits = cosines * lengths * directions.frame_lengths + directions.offsets
        right = by_class(right_answers(logits, labels))
        of_logits = MarginSums.from_batch(logit_margins(logits, labels), labels)
        agree = same_answers(logits, scores, directions.present) & used
        agreement = Agreement(jnp.sum(agree, dtype=jnp.int32), jnp.sum(used, dtype=jnp.int32))
    # A vector without length has no cosine.
    margins = jnp.where((lengths[:, 0] > 0) & all_have_length, logit_margins(cosines, labels), jnp.nan)
    bins = jnp.clip((margins + 2) * (MARGIN_BINS / 4), 0, MARGIN_BINS - 1).astype(jnp.int32)
    histogram = jnp.zeros(MARGIN_BINS, jnp.int32).at[bins].add(used & ~jnp.isnan(margins))
    return Sums(
        nearest_right=by_class(right_answers(scores, labels)),
        right=right,
        agreement=agreement,
        cosines=MarginSums.from_batch(margins, labels),
        logits=of_logits,
        histogram=histogram,
    )


@jax.jit
def merged(sums: Sums, more: Sums) -> Sums:
    """Join two disjoint sets of examples."""
    return Sums(
        nearest_right=sums.nearest_right + more.nearest_right,
        right=None if sums.right is None or more.right is None else sums.right + more.right,
        agreement=None if sums.agreement is None or more.agreement is None else sums.agreement.merge(more.agreement),
        cosines=sums.cosines.merge(more.cosines),
        logits=None if sums.logits is None or more.logits is None else sums.logits.merge(more.logits),
        histogram=sums.histogram + more.histogram,
    )


def values_of(sums: Sums) -> dict[str, Array]:
    """Return the entries that need a second pass."""
    found = {"nearest_centre_accuracy": jnp.sum(sums.nearest_right) / sums.cosines.count}
    if sums.right is not None and sums.agreement is not None:
        found |= {"nc4": sums.agreement.compute(), "accuracy": jnp.sum(sums.right) / sums.cosines.count}
    for name, margins in (("cosine", sums.cosines), ("logit", sums.logits)):
        if margins is not None:
            mean, sd, least, _ = margins.compute()
            found |= {f"margin_{name}_mean": mean, f"margin_{name}_sd": sd, f"margin_{name}_min": least}
    return found


def of_finite(features: Array, labels: Array) -> tuple[Int[Array, " batch"], Int[Array, ""]]:
    """Return the labels with padding for rows that are not finite, and the number of labelled rows among those."""
    lost = (labels >= 0) & ~jnp.all(jnp.isfinite(features), axis=1)
    return jnp.where(lost, PADDING_LABEL, labels), jnp.sum(lost, dtype=jnp.int32)
