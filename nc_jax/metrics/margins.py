"""Margins: by how much an example's own class wins over the strongest other one, and their mean, spread and minimum.

A margin is positive exactly where the classifier is right, and says how clearly, which accuracy does not. Numbers never
raise: the margin of padding is NaN, and so is that of a vector without a direction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm


def logit_margins(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    r"""Margin of each example in the logits' unit.

    .. math:: z_y - \max_{j \ne y} z_j

    Args:
        logits: shape (N, K) with K >= 2.
        labels: shape (N,).

    Returns:
        Shape (N,), positive where the classifier is right, 0 at a tie; at least float32. NaN where the label is not in
        0..K-1 (padding, by convention -1).

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> logit_margins(jnp.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), jnp.array([0, 1])).tolist()
        [2.0, -2.0]
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits and labels must have shapes (batch, classes) and (batch,); got {logits.shape} and {labels.shape}"
        )
    if logits.shape[1] < 2:
        raise ValueError(f"a margin needs classes >= 2; got {logits.shape[1]}")
    logits = at_least_float32(logits)
    classes = jnp.arange(logits.shape[1])
    own = labels[:, None] == classes
    # Selected, not summed over a one-hot product: 0 * inf would be NaN for an infinite logit of another class.
    gap = jnp.max(logits, axis=1, where=own, initial=-jnp.inf) - jnp.max(logits, axis=1, where=~own, initial=-jnp.inf)
    return jnp.where(jnp.any(own, axis=1), gap, jnp.nan)


def cosine_margins(
    features: Float[Array, "batch dim"], frame: Float[Array, "dim classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    r"""Margin of each example in cosines: free of the lengths of features and class vectors.

    .. math:: \cos(h, w_y) - \max_{j \ne y} \cos(h, w_j)

    At perfect collapse to a simplex it is :math:`1 + 1/(K-1) = K/(K-1)` for every example. Nothing is centred here:
    Markou et al. first subtract the mean of all examples from the features and the mean of the class vectors from
    those. A feature that is not centred has a part that all classes share and that shrinks its cosines.

    Args:
        features: shape (N, d).
        frame: class vectors, shape (d, K) with K >= 2.
        labels: shape (N,).

    Returns:
        Shape (N,), in [-2, 2] up to rounding, positive where the classifier of largest cosine is right; at least
        float32. NaN where the label is not in 0..K-1 (padding, by convention -1), for a feature of zeros, and
        everywhere if a class vector is zero.

    Raises:
        ValueError: if the shapes do not fit or K < 2.

    Example:
        >>> cosine_margins(jnp.array([[5.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, -3.0], [0.0, 0.0]]), jnp.array([0, 1]))
        Array([2., 0.], dtype=float32)

    Reference: Markou, Ajanthan and Gould (2024), released program (compute_margin).
    """
    if features.ndim != 2 or frame.ndim != 2 or features.shape[1] != frame.shape[0]:
        raise ValueError(
            "features and frame must have shapes (batch, dim) and (dim, classes); "
            f"got {features.shape} and {frame.shape}"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must have shape {features.shape[:1]} like the features; got {labels.shape}")
    features, frame = at_least_float32(features), at_least_float32(frame)
    return logit_margins(matmul(features / safe_norm(features, axis=1), frame / safe_norm(frame, axis=0)), labels)


class MarginSummary(NamedTuple):
    """What `MarginSums.compute` derives; all NaN without any example."""

    mean: Float[Array, ""]
    standard_deviation: Float[Array, ""]  # over the number of examples: they are all there are
    minimum: Float[Array, ""]
    share_positive: Float[Array, ""]  # the accuracy, if a tie is a mistake


class MarginSums(NamedTuple):
    r"""Mean, scatter and minimum of margins as a monoid: add with `merge`, read with `compute`.

    It holds the mean and :math:`\sum_i (m_i - \bar m)^2`, not the sum of squares, which cancels when the margins have
    all but become equal: what collapse makes of them. Counts are int32: exact up to 2^31 - 1 examples.

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
        """Make the sums of no examples, the identity of `merge`.

        Args:
            dtype: what to accumulate in; narrower dtypes are widened to float32.
        """
        dtype = jnp.promote_types(dtype, jnp.float32)
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return cls(zero, zero, jnp.asarray(jnp.inf, dtype), none, none)

    @classmethod
    def from_batch(cls, margins: Float[Array, " batch"], labels: Int[Array, " batch"]) -> "MarginSums":
        """Take the sums of one batch.

        Args:
            margins: shape (N,), from `cosine_margins` or `logit_margins`; the result has their dtype, at least float32.
            labels: shape (N,), used only to tell padding (labels < 0), which is ignored. A NaN of an example that is
                none makes mean, deviation and minimum NaN: it is not to be mistaken for padding.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if margins.ndim != 1 or labels.shape != margins.shape:
            raise ValueError(
                f"margins and labels must have shapes (batch,) and (batch,); got {margins.shape} and {labels.shape}"
            )
        margins, used = at_least_float32(margins), labels >= 0
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
        """Join the sums of two disjoint sets of examples; exact up to rounding, in any order."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1).astype(self.mean.dtype)
        delta = other.mean - self.mean
        return MarginSums(
            mean=self.mean + share * delta,
            scatter=self.scatter + other.scatter + self.count * share * delta**2,
            minimum=jnp.minimum(self.minimum, other.minimum),
            count=count,
            correct=self.correct + other.correct,
        )

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "MarginSums":
        """Merge over a mapped axis, as `ClassStatistics.all_reduce`."""
        count, correct = jax.lax.psum((self.count, self.correct), axis_name)
        mean = jax.lax.psum(self.mean * (self.count / jnp.maximum(count, 1).astype(self.mean.dtype)), axis_name)
        return MarginSums(
            mean=mean,
            scatter=jax.lax.psum(self.scatter + self.count * (self.mean - mean) ** 2, axis_name),
            minimum=jax.lax.pmin(self.minimum, axis_name),
            count=count,
            correct=correct,
        )

    def compute(self) -> MarginSummary:
        """Derive mean, standard deviation, minimum and the share of positive margins (see `MarginSummary`)."""
        mean = jnp.where(self.count > 0, self.mean, jnp.nan)
        return MarginSummary(
            mean=mean,
            standard_deviation=jnp.sqrt(self.scatter / self.count),
            # A reduction over devices need not keep a NaN in its minimum; sums do.
            minimum=jnp.where(jnp.isnan(mean), jnp.nan, self.minimum),
            share_positive=self.correct / self.count.astype(mean.dtype),
        )
