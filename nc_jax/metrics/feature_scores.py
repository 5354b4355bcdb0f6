r"""Scores of features that find outliers, fitted to statistics of the training features: NECO, NCI and ViM.

A score is one number for each example, *larger* for an example of the data set that the network was trained on.

>>> features, labels = jnp.array([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0], [3.0, 0.2, 1.0]]), jnp.array([0, 1, 0])
>>> stats = ClassStatistics.from_batch(features, labels, num_classes=2)
>>> neco = Neco.fit(stats, standardize=False)
>>> [round(float(score), 2) for score in neco.score(jnp.array([[3.0, -3.0, 0.0], [1.0, 1.0, 4.0]]))]
[1.0, 0.01]
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, normalized, safe_norm, transpose
from nc_jax.checks import (
    Labels,
    Reals,
    check_features_fit,
    check_whole,
    checked_features,
    checked_labels,
    checked_logits,
    is_traced,
)
from nc_jax.metrics.collapse import checked_bias
from nc_jax.metrics.outliers import energy_score
from nc_jax.metrics.simplex import checked_frame
from nc_jax.metrics.statistics import ClassStatistics, check_statistics


class Neco(NamedTuple):
    r"""NECO: the share of a feature's length that lies in the leading principal directions of the training features.

    .. math:: \frac{\|V^\top x\|}{\|x\|}, \qquad x = (h - \mu) / \sigma \ \text{(entry by entry)} \quad \text{or} \quad
        x = h

    The r columns of V are the leading principal directions of x over the training set. At collapse the features of K
    classes span K - 1 directions about their mean. Outliers that are orthogonal to them (NC5) have the score 0.

    The paper's score is the second form. The released program standardises the features with their mean and standard
    deviation over the training set, which the first form says, and multiplies the score by the largest logit, except
    for ResNets. Its authors advise against standardising where classes are well collapsed.

    Attributes:
        mean: :math:`\mu`, shape (d,); zero for the second form.
        deviation: :math:`\sigma`, shape (d,); one for the second form, and for features that do not vary.
        basis: V, shape (d, r).

    Reference: Ammar et al., NECO: neural collapse based out-of-distribution detection (2024), and its released program.
    """

    mean: Float[Array, " dim"]
    deviation: Float[Array, " dim"]
    basis: Float[Array, "dim rank"]

    @classmethod
    def fit(
        cls,
        stats: ClassStatistics,
        rank: int | None = None,  # None: K - 1, the dimensions of a simplex; the paper chooses it for each network
        *,
        standardize: bool = True,  # the released program
    ) -> "Neco":
        """Take the principal directions from statistics of the training features.

        Args:
            stats: statistics of the features, with a scatter.
            rank: r, the number of directions, 1..d. None: K - 1, or d if that is smaller, or 1 for one class.
            standardize: use the first form, of standardised features.

        Raises:
            ValueError: if r is not in 1..d, or the statistics have no scatter.
        """
        check_statistics(stats)
        dim, num_classes = stats.shifts.shape
        rank = max(min(num_classes - 1, dim), 1) if rank is None else checked_rank(rank, dim)
        scaled, size = stats.at_unit_scale(), stats.unit / stats.at_unit_scale().unit
        covariance = _covariance(scaled)
        if not standardize:
            zero = jnp.zeros_like(stats.origin)
            return cls(zero, zero + 1, _leading(covariance, rank))
        # A feature that does not vary has the variance of its rounding.
        rounding = 4 * jnp.finfo(covariance.dtype).eps * jnp.max(jnp.abs(scaled.means), axis=1, initial=0)
        deviation = jnp.sqrt(jnp.diag(covariance))
        varies = deviation > rounding
        scale = jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0)
        basis = _leading(covariance * scale[:, None] * scale[None], rank)
        return cls(stats.global_mean, jnp.where(varies, deviation * size, 1), basis)

    def score(self, features: Reals, logits: Reals | None = None) -> Float[Array, " batch"]:
        """Score examples.

        Args:
            features: h, shape (N, d).
            logits: shape (N, K), to multiply the score by the largest logit; None: as it is.

        Returns:
            Shape (N,), in [0, 1] without logits. NaN for a feature vector x that is zero.

        Raises:
            ValueError: if the shapes do not fit.
        """
        features = _fitting(features, self.basis)
        units, lengths = normalized((features - self.mean[None]) / self.deviation[None], axis=1)
        shares = safe_norm(matmul(units, self.basis), axis=1)
        scores = jnp.where(lengths > 0, shares, jnp.nan)[:, 0]
        return scores if logits is None else scores * jnp.max(_of_rows(logits, features), axis=1)


class Nci(NamedTuple):
    r"""NCI: how near the centred feature is to the class vector of the predicted class, and how long the feature is.

    .. math:: \frac{w_c^\top (h - \mu)}{\|h - \mu\|} + \alpha \|h\|_1, \qquad c = \operatorname*{argmax}_k z_k

    At collapse centred features lie along their class vectors (NC3), and far from the origin. The length of
    :math:`w_c` stays in the score.

    Attributes:
        mean: :math:`\mu`, the mean of the training features, shape (d,).
        frame: class vectors :math:`w_k` as columns, shape (d, K).
        alpha: weight of the length, >= 0.

    Reference: Liu and Qin, Detecting out-of-distribution through the lens of neural collapse (2025); the formula is
    that of the authors' program in OpenOOD, and of pytorch-ood.
    """

    mean: Float[Array, " dim"]
    frame: Float[Array, "dim classes"]
    alpha: Float[Array, ""]

    @classmethod
    def fit(
        cls,
        stats: ClassStatistics,
        frame: Reals,
        alpha: ArrayLike = 0.0,  # pytorch-ood; Liu and Qin choose it for each network, on outliers held out for that
    ) -> "Nci":
        """Take the mean from statistics of the training features.

        Args:
            stats: statistics of the features; the scatter is not needed.
            frame: class vectors of the classifier as columns, shape (d, K).
            alpha: weight of the length of the feature, in the unit of a class vector over that of a feature.

        Raises:
            ValueError: if the frame does not have shape (d, K) like the class means, or the weight is negative or not
                finite.
        """
        frame = at_least_float32(checked_frame(frame, stats))
        if not is_traced(alpha) and not 0 <= np.asarray(alpha) < np.inf:
            raise ValueError(f"alpha must be a finite number of at least 0; got {alpha}")
        return cls(stats.global_mean, frame, jnp.asarray(alpha, frame.dtype))

    def score(self, features: Reals, logits: Reals) -> Float[Array, " batch"]:
        """Score examples.

        Args:
            features: h, shape (N, d).
            logits: z, shape (N, K), which decide for the class; at a tie for the smaller number.

        Returns:
            Shape (N,). NaN for a feature that is equal to the mean, and for a NaN among its logits.

        Raises:
            ValueError: if the shapes do not fit.
        """
        features = _fitting(features, self.frame)
        logits = _of_rows(logits, features)
        if logits.shape[1] != self.frame.shape[1]:
            raise ValueError(
                f"logits must have one column for each of the {self.frame.shape[1]} classes; got shape {logits.shape}"
            )
        units, lengths = normalized(features - self.mean[None], axis=1)
        nearness = jnp.sum(units * transpose(self.frame)[jnp.argmax(logits, axis=1)], axis=1)
        # A product with alpha = 0 would make an infinite length NaN.
        length = jnp.where(self.alpha == 0, 0, self.alpha * jnp.sum(jnp.abs(features), axis=1))
        decided = ~jnp.any(jnp.isnan(logits), axis=1)
        return jnp.where(decided & (lengths[:, 0] > 0), nearness, jnp.nan) + length


class Vim(NamedTuple):
    r"""ViM (virtual-logit matching): the energy of the logits less a virtual logit, that of "none of the classes".

    .. math:: \log \sum_k e^{z_k} - \alpha \|R^\top (h - o)\|, \qquad
        \alpha = \frac{\sum_i \max_k z_{ik}}{\sum_i \|R^\top (h_i - o)\|}

    o is the feature whose logits are nearest to zero, :math:`-(W^\top)^+ b`. The columns of R are the principal
    directions of :math:`h - o` over the training set except for the first r. The scale :math:`\alpha` makes the virtual
    logit of training examples as large as their largest logit, on average.

    It takes two passes over the training set: `fit` needs its statistics, and `update` its features and logits.
    Before the second one, scores are NaN.

    Attributes:
        centre: o, shape (d,).
        basis: R, shape (d, d - r).
        logit_mean: mean of the largest logit over the examples of the second pass.
        residual_mean: mean of the residual's length :math:`\|R^\top (h - o)\|` over them.
        count: number of these examples.

    Reference: Wang et al., ViM: out-of-distribution with virtual-logit matching (2022), and its released program.
    """

    centre: Float[Array, " dim"]
    basis: Float[Array, "dim rest"]
    logit_mean: Float[Array, ""]
    residual_mean: Float[Array, ""]
    count: Int[Array, ""]

    @classmethod
    def fit(
        cls,
        stats: ClassStatistics,
        frame: Reals,
        bias: Reals | None = None,
        rank: int | None = None,  # None: 1000 for d >= 2048 and 512 for d >= 768, the released program; else d // 2
    ) -> "Vim":
        """Take the centre and the directions from the classifier and statistics of the training features.

        Args:
            stats: statistics of the features, with a scatter.
            frame: class vectors of the classifier as columns, shape (d, K).
            bias: b, shape (K,), or None for a classifier without a bias.
            rank: r, the dimension of the principal space, 1..d-1; None: see above (pytorch-ood halves d, too, where it
                is smaller than r).

        Raises:
            ValueError: if r is not in 1..d-1, the frame does not have shape (d, K) like the class means, the shapes of
                bias and frame do not fit, or the statistics have no scatter.
        """
        frame = at_least_float32(checked_frame(frame, stats))
        dim = len(frame)
        if rank is None:
            rank = 1000 if dim >= 2048 else 512 if dim >= 768 else dim // 2
        rank = checked_rank(rank, dim - 1)
        bias = jnp.broadcast_to(checked_bias(bias, frame), frame.shape[1:])
        centre = -matmul(jnp.linalg.pinv(transpose(frame)), bias)
        scaled = stats.at_unit_scale()
        offset = scaled.global_mean - centre * (scaled.unit / stats.unit)
        # The principal directions are those of the covariance plus the square of the offset. An offset of a thousand
        # times the spread would hide the small directions of that sum in float32, so its root is decomposed.
        values, vectors = jnp.linalg.eigh(_covariance(scaled))
        root = jnp.concatenate([vectors * jnp.sqrt(jnp.maximum(values, 0))[None], offset[:, None]], axis=1)
        rest = jnp.linalg.svd(root, full_matrices=False)[0][:, rank:]
        zero = jnp.zeros((), root.dtype)
        return cls(centre, rest, zero, zero, jnp.zeros((), jnp.int32))

    def update(self, features: Reals, logits: Reals, labels: Labels | None = None) -> "Vim":
        """Add a batch of training examples to the means from which the scale follows.

        Args:
            features: h, shape (N, d).
            logits: z, shape (N, K).
            labels: integers of shape (N,). Only their sign is used: rows with labels < 0 are padding and are ignored.
                None: every row is an example.

        Raises:
            ValueError: if the shapes do not fit.
        """
        features = _fitting(features, self.basis)
        top = jnp.max(_of_rows(logits, features), axis=1)
        used = jnp.ones(len(features), bool) if labels is None else checked_labels(labels, rows=len(features)) >= 0
        count = self.count + jnp.sum(used, dtype=jnp.int32)
        number = jnp.maximum(count, 1).astype(top.dtype)

        def joined(mean: Array, values: Array) -> Array:
            return mean + jnp.sum(jnp.where(used, values - mean, 0)) / number

        return self._replace(
            logit_mean=joined(self.logit_mean, top),
            residual_mean=joined(self.residual_mean, self._residuals(features)),
            count=count,
        )

    def score(self, features: Reals, logits: Reals) -> Float[Array, " batch"]:
        """Score examples.

        Args:
            features: h, shape (N, d).
            logits: z, shape (N, K).

        Returns:
            Shape (N,), in the unit of the logits. NaN before `update`, and if no training example has a residual.

        Raises:
            ValueError: if the shapes do not fit.
        """
        features = _fitting(features, self.basis)
        logits = _of_rows(logits, features)
        scale = jnp.where((self.count > 0) & (self.residual_mean > 0), self.logit_mean / self.residual_mean, jnp.nan)
        return energy_score(logits) - scale * self._residuals(features)

    def _residuals(self, features: Float[Array, "batch dim"]) -> Float[Array, " batch"]:
        return safe_norm(matmul(features - self.centre[None], self.basis), axis=1)[:, 0]


def checked_rank(rank: int, most: int) -> int:
    """Return a number of dimensions, once it is a whole number in 1..most."""
    check_whole("rank", rank)
    if not 1 <= rank <= most:
        raise ValueError(f"rank must lie in 1..{most}; got {rank}")
    return int(rank)


def _covariance(stats: ClassStatistics) -> Float[Array, "dim dim"]:
    """Return the covariance of all features."""
    counts = stats.counts.astype(stats.shifts.dtype)
    number = jnp.sum(counts)
    between = stats.centred_means("sample") * jnp.sqrt(counts / number)[None]
    return stats.scatter / number + matmul(between, transpose(between))


def _leading(matrix: Float[Array, "dim dim"], rank: int) -> Float[Array, "dim rank"]:
    """Return the eigenvectors of the largest eigenvalues, largest first."""
    return jnp.linalg.eigh(matrix)[1][:, ::-1][:, :rank]


def _fitting(features: Reals, vectors: Float[Array, "dim columns"]) -> Float[Array, "batch dim"]:
    features = checked_features(features)
    check_features_fit(features, vectors, "the vectors of the score")
    return features


def _of_rows(logits: Reals, features: Float[Array, "batch dim"]) -> Float[Array, "batch classes"]:
    logits = checked_logits(logits)
    if len(logits) != len(features):
        raise ValueError(f"logits must have one row for each of the {len(features)} features; got shape {logits.shape}")
    return logits
