"""Margins: by how much the score of the true class exceeds the highest score of the other classes.

A margin is positive exactly if the classifier is right; its size says how clear the decision is. Values never raise an
error: the margin of padding is NaN, and so is the cosine margin of a zero vector.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm
from nc_jax.checks import (
    Labels,
    Reals,
    check_features_fit,
    checked_features,
    checked_labels,
    checked_scores,
    real_array,
)


def logit_margins(logits: Reals, labels: Labels) -> Float[Array, " batch"]:
    r"""Margin of each example with logits z and label y, in the unit of the logits.

    .. math:: z_y - \max_{j \ne y} z_j

    Args:
        logits: z, shape (N, K) with K >= 2.
        labels: y, integers of shape (N,), -1 for padding.

    Returns:
        Margins, shape (N,), in at least float32: positive if the classifier is right, 0 at a tie. NaN if the label is
        not in 0..K-1 (padding, by convention -1).

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> logit_margins(jnp.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), jnp.array([0, 1])).tolist()
        [2.0, -2.0]
    """
    logits, labels = checked_scores(logits, labels)
    if logits.shape[1] < 2:
        raise ValueError(f"a margin needs classes >= 2; got {logits.shape[1]}")
    classes = jnp.arange(logits.shape[1])
    own = labels[:, None] == classes[None]
    # Select the logits by `where`. A product with one-hot labels would give 0 * inf = NaN if another logit is infinite.
    gap = jnp.max(logits, axis=1, where=own, initial=-jnp.inf) - jnp.max(logits, axis=1, where=~own, initial=-jnp.inf)
    return jnp.where(jnp.any(own, axis=1), gap, jnp.nan)


def cosine_margins(features: Reals, frame: Reals, labels: Labels) -> Float[Array, " batch"]:
    r"""Margin of each example in cosines, which does not depend on the lengths of features and class vectors.

    .. math:: \cos(h, w_y) - \max_{j \ne y} \cos(h, w_j)

    At perfect collapse to a simplex it is :math:`1 + 1/(K-1) = K/(K-1)` for every example. This function does not
    centre anything. Markou et al. first subtract the mean of all features from the features, and the mean of the class
    vectors from the class vectors. Without that, an offset common to all features makes the cosines smaller.

    Args:
        features: h, shape (N, d).
        frame: class vectors :math:`w_k` as columns, shape (d, K) with K >= 2.
        labels: y, integers of shape (N,), -1 for padding.

    Returns:
        Margins, shape (N,), in [-2, 2] up to rounding and in at least float32: positive if the class of the largest
        cosine is the right one. NaN if the label is not in 0..K-1 (padding, by convention -1) or the feature is zero.
        All are NaN if a class vector is zero.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> cosine_margins(jnp.array([[5.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, -3.0], [0.0, 0.0]]), jnp.array([0, 1]))
        Array([2., 0.], dtype=float32)

    Reference: Markou, Ajanthan and Gould (2024), released program (compute_margin).
    """
    features, frame = checked_features(features), at_least_float32(real_array(frame, "frame"))
    check_features_fit(features, frame)
    labels = checked_labels(labels, frame.shape[1], rows=len(features))
    return logit_margins(matmul(features / safe_norm(features, axis=1), frame / safe_norm(frame, axis=0)), labels)


class MarginSummary(NamedTuple):
    """Summary of margins, from `MarginSums.compute`. Without any example, all values are NaN.

    Attributes:
        mean: mean margin.
        standard_deviation: standard deviation of the margins; the variance divides by the number of examples.
        minimum: smallest margin.
        share_positive: share of examples with a positive margin: the accuracy, if a tie counts as a mistake.
    """

    mean: Float[Array, ""]
    standard_deviation: Float[Array, ""]
    minimum: Float[Array, ""]
    share_positive: Float[Array, ""]


class MarginSums(NamedTuple):
    r"""Running statistics of margins: take them with `from_batch`, add them with `merge`, read them with `compute`.

    The scatter is :math:`\sum_i (m_i - \bar m)^2` over the margins :math:`m_i` with mean :math:`\bar m`. A sum of
    squares would cancel near collapse, where all margins are nearly equal. Counts are int32: exact up to 2^31 - 1
    examples.

    Attributes:
        mean: mean margin of the examples so far.
        scatter: sum of squared deviations from the mean.
        minimum: smallest margin.
        count: number of examples.
        correct: number of examples with a positive margin.

    Example:
        >>> sums = MarginSums.from_batch(jnp.array([1.0, -1.0, 3.0, 9.0]), jnp.array([0, 0, 1, -1]))
        >>> summary = sums.compute()
        >>> summary.mean.item(), summary.minimum.item(), sums.correct.item(), sums.count.item()
        (1.0, -1.0, 2, 3)

    Reference: Chan, Golub and LeVeque (1979), Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances (for `merge`).
    """

    mean: Float[Array, ""]
    scatter: Float[Array, ""]
    minimum: Float[Array, ""]
    count: Int[Array, ""]
    correct: Int[Array, ""]

    @classmethod
    def init(cls, dtype: DTypeLike = jnp.float32) -> "MarginSums":
        """Return the statistics of no examples, the identity of `merge`.

        Args:
            dtype: dtype of the sums; dtypes narrower than float32 are widened to float32.
        """
        dtype = jnp.promote_types(dtype, jnp.float32)
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return cls(zero, zero, jnp.asarray(jnp.inf, dtype), none, none)

    @classmethod
    def from_batch(cls, margins: Reals, labels: Labels) -> "MarginSums":
        """Take the statistics of one batch.

        Args:
            margins: shape (N,), from `cosine_margins` or `logit_margins`. The statistics have the dtype of the margins,
                or float32 if that is wider. If the margin of an example is NaN, so are mean, deviation and minimum.
            labels: integers of shape (N,). Only their sign is used: rows with labels < 0 are padding and are ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        margins = at_least_float32(real_array(margins, "margins"))
        if margins.ndim != 1:
            raise ValueError(f"margins must have shape (batch,); got {margins.shape}")
        used = checked_labels(labels, rows=len(margins), of="margins") >= 0
        count = jnp.sum(used, dtype=jnp.int32)
        mean = jnp.sum(margins, where=used) / jnp.maximum(count, 1).astype(margins.dtype)
        return cls(
            mean=mean,
            scatter=jnp.sum((margins - mean) ** 2, where=used),
            minimum=jnp.min(margins, where=used, initial=jnp.inf),
            count=count,
            correct=jnp.sum(used & (margins > 0), dtype=jnp.int32),
        )

    def merge(self, other: "MarginSums") -> "MarginSums":
        """Join the statistics of two disjoint sets of examples; exact up to rounding, in any order."""
        count = self.count + other.count
        share = other.count.astype(self.mean.dtype) / jnp.maximum(count, 1).astype(self.mean.dtype)
        delta = other.mean - self.mean
        return MarginSums(
            mean=self.mean + share * delta,
            scatter=self.scatter + other.scatter + self.count.astype(delta.dtype) * share * delta**2,
            minimum=jnp.minimum(self.minimum, other.minimum),
            count=count,
            correct=self.correct + other.correct,
        )

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "MarginSums":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the statistics of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        count, correct = jax.lax.psum((self.count, self.correct), axis_name)
        mean = jax.lax.psum(
            self.mean * (self.count.astype(self.mean.dtype) / jnp.maximum(count, 1).astype(self.mean.dtype)), axis_name
        )
        return MarginSums(
            mean=mean,
            scatter=jax.lax.psum(self.scatter + self.count.astype(mean.dtype) * (self.mean - mean) ** 2, axis_name),
            minimum=jax.lax.pmin(self.minimum, axis_name),
            count=count,
            correct=correct,
        )

    def compute(self) -> MarginSummary:
        """Compute mean, standard deviation, minimum and share of positive margins (see `MarginSummary`)."""
        mean = jnp.where(self.count > 0, self.mean, jnp.nan)
        return MarginSummary(
            mean=mean,
            standard_deviation=jnp.sqrt(self.scatter / self.count.astype(mean.dtype)),
            # A minimum over devices may drop a NaN, but a sum keeps it: so the mean says whether there was one.
            minimum=jnp.where(jnp.isnan(mean), jnp.nan, self.minimum),
            share_positive=self.correct.astype(mean.dtype) / self.count.astype(mean.dtype),
        )
