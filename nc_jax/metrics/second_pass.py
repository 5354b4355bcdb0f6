"""The second pass over the data: every example beside the class means, and beside the classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.arrays import matmul
from nc_jax.checks import PADDING_LABEL
from nc_jax.metrics.agreement import Agreement, right_answers, same_answers
from nc_jax.metrics.collapse import checked_bias
from nc_jax.metrics.margins import MarginSums, cosine_margins, logit_margins
from nc_jax.metrics.nearest_mean import nearest_mean_scores
from nc_jax.metrics.report import MARGIN_BINS
from nc_jax.metrics.statistics import ClassStatistics, checked_features


class Sums(NamedTuple):
    """What a second pass adds up; the parts of the classifier are None without one."""

    nearest_right: Int[Array, " classes"]  # examples of each class whose nearest class mean is their own
    right: Int[Array, " classes"] | None
    agreement: Agreement | None
    cosines: MarginSums
    logits: MarginSums | None
    histogram: Int[Array, " bins"]  # of cosine margins


@jax.jit
def compare(
    stats: ClassStatistics,
    centre: tuple[Array, Array],
    frame: Float[Array, "dim classes"] | None,
    bias: Float[Array, " classes"] | None,
    features: Array,
    labels: Array,
) -> Sums:
    """Compare a batch with the class means and with the classifier.

    Args:
        stats: statistics of all examples, without a scatter.
        centre: what cosine margins subtract from the features, shape (d,), and the vectors that they compare with, as
            columns: centred class vectors or, without a classifier, centred means of the classes with examples.
        frame: class vectors as columns; None for features without a classifier.
        bias: shape (K,).
        features: shape (N, d).
        labels: shape (N,), -1 for padding.
    """
    features, (labels, _) = checked_features(features), of_finite(features, labels)
    used, num_classes = labels >= 0, stats.present.size

    def by_class(right: Array) -> Int[Array, " classes"]:
        return jnp.zeros(num_classes, jnp.int32).at[jnp.where(used, labels, num_classes)].add(right, mode="drop")

    scores = nearest_mean_scores(features, stats.means, stats.present)
    middle, vectors = centre
    places = labels
    if frame is None:  # the vectors are the means of the classes that are there
        places = jnp.where(used, jnp.cumsum(stats.present)[labels] - 1, PADDING_LABEL).astype(jnp.int32)
    margins = cosine_margins(features - middle[None], vectors, places)
    bins = jnp.clip((margins + 2) * (MARGIN_BINS / 4), 0, MARGIN_BINS - 1).astype(jnp.int32)
    histogram = jnp.zeros(MARGIN_BINS, jnp.int32).at[bins].add(used & ~jnp.isnan(margins))
    right = agreement = of_logits = None
    if frame is not None:
        logits = matmul(features, frame) + checked_bias(bias, frame)[None]
        right, of_logits = (
            by_class(right_answers(logits, labels)),
            MarginSums.from_batch(logit_margins(logits, labels), labels),
        )
        agree = same_answers(logits, scores, stats.present) & used
        agreement = Agreement(jnp.sum(agree, dtype=jnp.int32), jnp.sum(used, dtype=jnp.int32))
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
