r"""Outliers (out-of-distribution examples): where they lie in collapsed features (NC5), and scores of logits.

A score is one number for each example, *larger* for an example of the data set that the network was trained on.
`auroc` and `false_positive_rate` say how well it works. `nc_jax.metrics.feature_scores` has those of features.

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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32, matmul, normalized
from nc_jax.checks import Reals, checked_logits, real_array
from nc_jax.metrics.statistics import ClassStatistics, check_statistics


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
    check_statistics(stats)
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
