r"""What an example counts in a loss: weights by the size of its class, and the focal loss, by how hard it is.

Weights of classes multiply any loss of examples: `weights[labels] * cross_entropy(logits, labels)`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.checks import Labels, Reals, checked_per_class, checked_scores, nan_without_class


def effective_numbers(
    counts: Reals,
    beta: float = 0.9999,  # Cao et al. (2019); Cui et al. (2019) try 0.9 to 0.9999
) -> Float[Array, " classes"]:
    r"""Effective numbers of examples, :math:`E_n = (1 - \beta^n) / (1 - \beta)`.

    The n-th example of a class adds :math:`\beta^{n-1}`, because it resembles those that were there before. For
    beta = 0 a class counts once, and for beta = 1 every example does.

    Args:
        counts: numbers of examples n, shape (K,).
        beta: in [0, 1].

    Returns:
        Numbers between 0 and n, shape (K,), with full relative precision for every n.

    Raises:
        ValueError: if the counts are not one number >= 0 for each class, or beta does not lie in [0, 1].

    Example:
        >>> effective_numbers([1, 2, 3], beta=0.5).round(4).tolist()
        [1.0, 1.5, 1.75]

    Reference: Cui et al., Class-balanced loss based on effective number of samples (2019).
    """
    return _effective_numbers(checked_per_class(counts, "counts"), beta)


def effective_number_weights(
    counts: Reals,
    beta: float = 0.9999,  # as in effective_numbers
) -> Float[Array, " classes"]:
    r"""Weights of the classes, inversely proportional to the effective numbers of examples, with the sum K.

    For beta = 1 they are inversely proportional to the numbers of examples, and for beta = 0 all weights are 1.

    Args:
        counts: numbers of training examples, all above 0, shape (K,).
        beta: in [0, 1].

    Returns:
        Numbers > 0 with the mean 1, shape (K,).

    Raises:
        ValueError: if the counts are not one positive number for each class, or beta does not lie in [0, 1].

    Example:
        >>> effective_number_weights([3, 1], beta=1.0).tolist()
        [0.5, 1.5]

    Reference: Cui et al. (2019), and its released program.
    """
    inverse = 1 / _effective_numbers(checked_per_class(counts, "counts", positive=True), beta)
    return inverse / jnp.mean(inverse)


def focal(
    logits: Reals,
    labels: Labels,
    gamma: float = 2.0,  # Lin et al. (2017): best of 0 to 5
) -> Float[Array, " batch"]:
    r"""Cross-entropy that examples enter less the surer their class is, per example.

    .. math:: \ell(z, y) = -(1 - p_y)^\gamma \log p_y, \qquad p = \operatorname{softmax}(z)

    It is computed from :math:`t = \log \sum_{k \ne y} e^{z_k} - z_y`, of which :math:`1 - p_y` is the sigmoid. So the
    loss and its gradient are finite for logits of any size, and keep their precision as :math:`p_y` tends to 1.

    Args:
        logits: z, shape (N, K).
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a finite number that the
            caller must mask.
        gamma: exponent >= 0; 0 gives cross-entropy.

    Returns:
        Numbers >= 0, shape (N,). NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1, or
            gamma is negative or not finite.

    Example:
        >>> [round(float(loss), 4) for loss in focal(jnp.array([[0.0, 0.0], [2.0, 0.0]]), [0, 0])]
        [0.1733, 0.0018]

    Reference: Lin et al., Focal loss for dense object detection (2017), whose classes are two.
    """
    logits, labels = checked_scores(logits, labels)
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 0 and finite; got {gamma}")
    num_classes = logits.shape[1]
    own = jnp.maximum(labels, 0)[:, None]
    # Not minus infinity, of which the derivative would be NaN if there is no other class.
    others = jnp.where(own == jnp.arange(num_classes)[None], jnp.finfo(logits.dtype).min / 4, logits)
    lead = jnp.take_along_axis(logits, own, axis=1)[:, 0]
    behind = jax.nn.logsumexp(others, axis=1) - lead
    each = jnp.exp(gamma * jax.nn.log_sigmoid(behind)) * jax.nn.softplus(behind)
    return nan_without_class(each, labels, num_classes)


def _effective_numbers(counts: Array, beta: float) -> Array:
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in 0..1; got {beta}")
    if beta == 1:
        return counts
    if beta == 0:
        return (counts > 0).astype(counts.dtype)
    return -jnp.expm1(counts * math.log(beta)) / (1 - beta)
