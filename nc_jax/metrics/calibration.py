"""Calibration: whether the confidence of a classifier is its accuracy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from nc_jax.arrays import wider
from nc_jax.checks import Labels, Reals, check_whole, checked_scores, nan_without_class

NUM_BINS = 15  # Guo et al. (2017), table 1


class CalibrationSums(NamedTuple):
    r"""Running statistics of confidences: take them with `from_batch`, add them with `merge`, read them with `compute`.

    The confidence of an example is the largest of its softmax probabilities. Bin m of M holds the examples with a
    confidence in ((m - 1)/M, m/M]. Mean confidences are merged instead of sums, which would lose digits over many
    examples. Counts are int32: exact up to 2^31 - 1 examples.

    Attributes:
        confidence: mean confidence of the examples of each bin, shape (M,); 0 for an empty bin.
        correct: number of right answers in each bin, shape (M,).
        count: number of examples in each bin, shape (M,).

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]))
        >>> sums = CalibrationSums.from_batch(logits, jnp.array([0, 1, 1, -1]))
        >>> sums.count[-7:].tolist(), round(sums.compute().item(), 5)
        ([1, 0, 0, 0, 0, 2, 0], 0.4)

    Reference: Guo et al., On calibration of modern neural networks (2017), equations (2) and (3).
    """

    confidence: Float[Array, " bins"]
    correct: Int[Array, " bins"]
    count: Int[Array, " bins"]

    @classmethod
    def init(cls, num_bins: int = NUM_BINS, dtype: DTypeLike = jnp.float32) -> "CalibrationSums":
        """Return the statistics of no examples, the identity of `merge`.

        Args:
            num_bins: M >= 1.
            dtype: dtype of the confidences; dtypes narrower than float32 are widened to float32.

        Raises:
            ValueError: if M < 1.
        """
        _check_bins(num_bins)
        none = jnp.zeros(num_bins, jnp.int32)
        return cls(jnp.zeros(num_bins, wider(dtype)), none, none)

    @classmethod
    def from_batch(cls, logits: Reals, labels: Labels, num_bins: int = NUM_BINS) -> "CalibrationSums":
        """Take the statistics of one batch.

        Args:
            logits: shape (N, K).
            labels: class numbers 0..K-1 as integers, shape (N,); -1 marks padding, which is not counted.
            num_bins: M >= 1.

        Returns:
            Statistics in the dtype of the logits, or float32 if that is wider. The class of the largest logit is the
            answer, at a tie the smaller number. If logits are not finite numbers, or a label is no class (under
            `jax.jit`, where it cannot be refused), the confidence of the last bin is NaN.

        Raises:
            ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1, or
                M < 1.
        """
        _check_bins(num_bins)
        logits, labels = checked_scores(logits, labels)
        used = (labels >= 0) | (labels < -1)
        confidence = nan_without_class(jnp.max(jax.nn.softmax(logits, axis=1), axis=1), labels, logits.shape[1])
        right = jnp.argmax(logits, axis=1) == labels
        known = jnp.where(jnp.isnan(confidence), 1, confidence)
        bins = jnp.clip(jnp.ceil(known * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
        members = (bins[:, None] == jnp.arange(num_bins)[None]) & used[:, None]
        count = jnp.sum(members, axis=0, dtype=jnp.int32)
        total = jnp.sum(jnp.where(members, confidence[:, None], 0), axis=0)
        return cls(
            confidence=total / jnp.maximum(count, 1).astype(total.dtype),
            correct=jnp.sum(members & right[:, None], axis=0, dtype=jnp.int32),
            count=count,
        )

    def merge(self, other: "CalibrationSums") -> "CalibrationSums":
        """Join the statistics of two disjoint sets of examples; exact up to rounding, in any order.

        Raises:
            ValueError: if the numbers of bins differ.
        """
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"statistics that are merged must have the same bins; got {self.count.shape} and {other.count.shape}"
            )
        count, dtype = self.count + other.count, self.confidence.dtype
        share = other.count.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
        confidence = self.confidence + share * (other.confidence - self.confidence)
        return CalibrationSums(confidence, self.correct + other.correct, count)

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "CalibrationSums":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the statistics of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        count, correct = jax.lax.psum((self.count, self.correct), axis_name)
        share = self.count.astype(self.confidence.dtype) / jnp.maximum(count, 1).astype(self.confidence.dtype)
        return CalibrationSums(jax.lax.psum(self.confidence * share, axis_name), correct, count)

    def compute(self) -> Float[Array, ""]:
        r"""Return the expected calibration error, see `expected_calibration_error`; NaN without any example."""
        dtype = self.confidence.dtype
        gaps = jnp.abs(self.correct.astype(dtype) - self.confidence * self.count.astype(dtype))
        return jnp.sum(gaps) / jnp.sum(self.count.astype(dtype))


def expected_calibration_error(logits: Reals, labels: Labels, num_bins: int = NUM_BINS) -> Float[Array, ""]:
    r"""Expected calibration error: mean gap between accuracy and confidence, over bins of equal width.

    .. math:: \sum_{m=1}^M \frac{n_m}{N} \, | \text{accuracy}_m - \text{confidence}_m |

    Bin m holds the :math:`n_m` examples whose largest softmax probability, their confidence, is in ((m - 1)/M, m/M].

    Args:
        logits: shape (N, K).
        labels: class numbers 0..K-1 as integers, shape (N,); -1 marks padding, which is not counted.
        num_bins: M >= 1.

    Returns:
        A number in [0, 1]; 0 for a calibrated classifier. NaN without any example, if logits are NaN, or if a label is
        no class (under `jax.jit`, where it cannot be refused).

    Raises:
        ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1, or
            M < 1.

    Example:
        >>> round(expected_calibration_error(jnp.log(jnp.array([[0.75, 0.25]] * 4)), jnp.array([0, 0, 0, 1])).item(), 6)
        0.0

    Reference: Guo et al., On calibration of modern neural networks (2017), equation (3).
    """
    return CalibrationSums.from_batch(logits, labels, num_bins).compute()


def _check_bins(num_bins: int) -> None:
    check_whole("num_bins", num_bins)
    if num_bins < 1:
        raise ValueError(f"a calibration error needs num_bins >= 1; got {num_bins}")
