r"""Outliers (out-of-distribution examples): their place in collapsed features (NC5), and scores that find them.

A score is one number for each example, *larger* for an example of the data set that the network was trained on.
`auroc` and `false_positive_rate` say how well it works. Scores of logits need nothing else. Scores of features are
fitted to statistics of the training features first:

>>> features, labels = jnp.array([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0], [3.0, 0.2, 1.0]]), jnp.array([0, 1, 0])
>>> stats = ClassStatistics.from_batch(features, labels, num_classes=2)
>>> neco = Neco.fit(stats, standardize=False)
>>> [round(float(score), 2) for score in neco.score(jnp.array([[3.0, -3.0, 0.0], [1.0, 1.0, 4.0]]))]
[1.0, 0.01]

================  ========  ==================================================================================
score             from      larger where
================  ========  ==================================================================================
`max_softmax`     logits    the largest probability is larger: the usual baseline
`max_logit`       logits    the largest logit is larger
`energy_score`    logits    the logits are larger altogether, :math:`\log \sum_k e^{z_k}`
`Neco`            features  more of the feature lies in the few directions that the training features span
`Nci`             both      the feature is nearer in angle to the class vector of its class, and longer
`Vim`             both      the energy is larger, and less of the feature lies outside of the principal space
================  ========  ==================================================================================
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, normalized, safe_norm, transpose
from nc_jax.checks import Labels, Reals, check_features_fit, check_whole, checked_labels, checked_logits, real_array
from nc_jax.metrics.collapse import checked_bias
from nc_jax.metrics.simplex import checked_frame
from nc_jax.metrics.statistics import ClassStatistics, checked_features


def outlier_orthogonality(stats: ClassStatistics, outlier_mean: Reals) -> Float[Array, ""]:
    r"""NC5: mean absolute cosine of the class means with the mean of outliers. 0 if outliers are orthogonal to classes.

    .. math:: \frac1K \sum_k |\cos(\mu_k, \mu_{\text{out}})|

    Nothing is centred: the means are those of the features themselves. Where no feature is negative, as behind a ReLU,
    means of unrelated inputs have a positive cosine, and 0 is out of reach for most outliers.

    Args:
        stats: statistics of the training features; classes without examples are left out. The scatter is not needed.
        outlier_mean: mean of the features of outliers, :math:`\mu_{\text{out}}`, shape (d,).

    Returns:
        A number in [0, 1] without unit. NaN if the mean of outliers or of a class with examples is zero, or there is
        no class.

    Raises:
        ValueError: if the mean of outliers does not have shape (d,).

    Example:
        >>> stats = ClassStatistics.from_batch(jnp.eye(2, 3), jnp.arange(2), num_classes=2, scatter=False)
        >>> round(float(outlier_orthogonality(stats, jnp.array([0.0, 3.0, 4.0]))), 6)
        0.3

    Reference: Ammar et al., NECO: neural collapse based out-of-distribution detection (2024), property NC5.
    """
    outlier_mean = at_least_float32(real_array(outlier_mean, "outlier_mean"))
    dim = stats.shifts.shape[0]
    if outlier_mean.shape != (dim,):
        raise ValueError(f"outlier_mean must have shape ({dim},) like the class means; got {outlier_mean.shape}")
    (means, lengths), (mean, length) = normalized(stats.means, axis=0), normalized(outlier_mean)
    cosines = jnp.where((lengths[0] > 0) & (length[0] > 0), jnp.abs(matmul(mean, means)), jnp.nan)
    return jnp.mean(cosines, where=stats.present)


def max_logit(logits: Reals) -> Float[Array, " batch"]:
    """Score of each example: its largest logit, of logits of shape (N, K); a ValueError for another shape.

    Reference: Hendrycks et al., Scaling out-of-distribution detection for real-world settings (2022).
    """
    return jnp.max(checked_logits(logits), axis=1)


def max_softmax(logits: Reals) -> Float[Array, " batch"]:
    r"""Score of each example: the logarithm of its largest softmax probability.

    .. math:: \max_k z_k - \log \sum_k e^{z_k}

    The order, which is all that counts for AUROC, is that of the probabilities. But probabilities within 6e-8 of 1 are
    equal in float32, as those of a collapsed network may be; their logarithms are not.

    Args:
        logits: z, shape (N, K).

    Returns:
        Numbers <= 0, shape (N,).

    Raises:
        ValueError: if the logits do not have shape (N, K).

    Example:
        >>> [f"{score:.4g}" for score in max_softmax(jnp.array([[20.0, 0.0], [30.0, 0.0]]))]
        ['-2.061e-09', '-9.358e-14']

    Reference: Hendrycks and Gimpel, A baseline for detecting misclassified and out-of-distribution examples (2017).
    """
    logits = checked_logits(logits)
    top = jnp.argmax(logits, axis=1)[:, None] == jnp.arange(logits.shape[1])[None]
    # Without the term 1 of the top class, which would swallow the others.
    others = jnp.where(top, 0, jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True)))
    return -jnp.log1p(jnp.sum(others, axis=1))


def energy_score(logits: Reals, temperature: float | int = 1) -> Float[Array, " batch"]:
    r"""Score of each example: its negative free energy, :math:`T \log \sum_k e^{z_k / T}`.

    Args:
        logits: z, shape (N, K).
        temperature: T > 0. For T near 0 it is the largest logit.

    Returns:
        Shape (N,), in the unit of the logits.

    Raises:
        ValueError: if the temperature is not positive, or the logits do not have shape (N, K).

    Example:
        >>> energy_score(jnp.array([[0.0, 0.0], [100.0, 0.0]])).round(4).tolist()
        [0.6930999755859375, 100.0]

    Reference: Liu et al., Energy-based out-of-distribution detection (2020), equation (4), whose default is T = 1.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    return temperature * jax.nn.logsumexp(checked_logits(logits) / temperature, axis=1)


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
            ValueError: if the frame does not have shape (d, K) like the class means.
        """
        frame = at_least_float32(checked_frame(frame, stats))
        return cls(stats.global_mean, frame, jnp.asarray(alpha, frame.dtype))

    def score(self, features: Reals, logits: Reals) -> Float[Array, " batch"]:
        """Score examples.

        Args:
            features: h, shape (N, d).
            logits: z, shape (N, K), which decide for the class; at a tie for the smaller number.

        Returns:
            Shape (N,). NaN for a feature that is equal to the mean.

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
        return jnp.where(lengths[:, 0] > 0, nearness, jnp.nan) + length


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
