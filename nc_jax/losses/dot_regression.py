r"""Dot regression: features are drawn to the fixed vector of their class, and no other class pushes them away.

Cross-entropy pulls a feature towards its own class vector and pushes it from all others. On data with a long tail, rare
classes get mostly the push. With class vectors that are fixed and at equal angles the push is not needed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32, safe_norm, transpose
from nc_jax.checks import (
    Labels,
    Reals,
    check_features_fit,
    checked_labels,
    checked_per_class,
    nan_without_class,
    real_array,
)

# Shorter features count as this long, as in the dot regression of the released program of Kim and Kim (2024).
SHORTEST = 1e-8


def class_lengths(counts: Reals) -> Float[Array, " classes"]:
    r"""Factors by which `dot_regression` lengthens the vectors of rare classes.

    .. math:: a_k = \sqrt{\gamma / n_k}, \qquad \gamma = \frac{\sum_j n_j}{\#\{j : n_j > 0\}}

    A class with the average number of examples has the factor 1, and one with a quarter of it has the factor 2. Classes
    without an example have the factor 1. Because the loss grows with the square of the factor, every class then has the
    same total weight.

    Args:
        counts: numbers of examples n_k, shape (K,). The released program takes those of the batch, at every step. For
            labels with padding (-1) they are `jax.nn.one_hot(labels, num_classes).sum(axis=0)`, summed over devices by
            `nc_jax.collective.all_sum`. Those of the training set make the factors constant.

    Returns:
        Numbers > 0, shape (K,).

    Raises:
        ValueError: if the counts are not one for each class, or one of them is negative or not finite (under `jax.jit`,
            where values are unknown, a NaN stays a NaN).

    Example:
        >>> [round(float(factor), 4) for factor in class_lengths([8, 2, 0])]
        [0.7906, 1.5811, 1.0]

    Reference: Yang et al. (2022), released program (produce_Ew).
    """
    counts = checked_per_class(counts, "counts")
    present = counts != 0
    average = jnp.sum(counts) / jnp.maximum(jnp.sum(present.astype(counts.dtype)), 1)
    return jnp.where(present, jnp.sqrt(average / jnp.where(present, counts, 1)), 1)


def dot_regression(
    features: Reals, labels: Labels, frame: Reals, *, lengths: Reals | None = None
) -> Float[Array, " batch"]:
    r"""Squared error of the product of a feature with the vector of its class, per example.

    .. math:: \ell(h, y) = \frac{(\tilde m_y^\top h - \|\tilde m_y\| \|h\|)^2}{2 \|h\|}, \qquad \tilde m_y = a_y m_y

    The norms are constants for derivatives, so with the cosine c between feature and class vector

    .. math:: \ell = \tfrac12 \|h\| \|\tilde m_y\|^2 (1 - c)^2, \qquad
        \frac{\partial \ell}{\partial h} = -(1 - c) \|\tilde m_y\| \, \tilde m_y.

    The gradient is a pull along the own class vector. It vanishes exactly if the feature has this direction, and does
    not depend on the feature's length. (The derivative of the values, with norms that vary, would also shorten
    features.)

    Few-shot class-incremental learning uses :math:`10 \cdot \tfrac12 (m_y^\top \hat h - 1)^2` for the feature's
    direction :math:`\hat h`. For class vectors of length 1, that is ten times this function at features that the caller
    has divided by their lengths.

    Args:
        features: h, shape (N, d). Lengths below 1e-8 count as 1e-8, so a zero vector has the cosine 0, and is
            pulled, too.
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a finite number that the
            caller must mask.
        frame: class vectors m_k as columns, shape (d, K).
        lengths: factors a_k of the class vectors, shape (K,), from `class_lengths`. None: all are 1.

    Returns:
        Numbers >= 0, shape (N,), in at least float32. NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers of shape (N,) in -1..K-1, or a factor is
            negative or not finite.

    Example:
        >>> frame, labels = jnp.eye(2), jnp.array([0, 0])
        >>> dot_regression(jnp.array([[3.0, 0.0], [0.0, 4.0]]), labels, frame).tolist()
        [0.0, 2.0]
        >>> directions = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> (10 * dot_regression(directions, labels, frame)).tolist()  # few-shot class-incremental learning
        [0.0, 5.0]

    Reference: Yang et al., Inducing neural collapse in imbalanced learning (2022), and its released program; Yang et
    al., Neural collapse inspired feature-classifier alignment for few-shot class-incremental learning (2023).
    """
    features = at_least_float32(real_array(features, "features"))
    frame = at_least_float32(real_array(frame, "frame"))
    check_features_fit(features, frame)
    num_classes = frame.shape[1]
    labels = checked_labels(labels, num_classes, rows=features.shape[0])
    if lengths is not None:
        frame = frame * checked_per_class(lengths, "lengths", num_classes).astype(frame.dtype)[None]
    own = transpose(frame)[jnp.clip(labels, 0, num_classes - 1)]
    size = jax.lax.stop_gradient(jnp.maximum(safe_norm(features, axis=1), SHORTEST))[:, 0]
    own_size = jax.lax.stop_gradient(safe_norm(own, axis=1))[:, 0]
    short = jnp.sum(own * (features / size[:, None]), axis=1) - own_size  # dividing first, nothing over- or underflows
    return nan_without_class(size * short**2 / 2, labels, num_classes)
