r"""Losses that pull features to prescribed angles with the class vectors, and their mixture with cross-entropy."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.checks import (
    Labels,
    Reals,
    check_at_least,
    check_features_fit,
    checked_labels,
    checked_scores,
    nan_without_class,
    real_array,
)

MixingName = Literal["linear-decrease", "linear-increase", "cosine", "cosine-linear-increase", "cosine-linear-decrease"]
MixingSchedule = Callable[..., tuple[Array, Array]]  # epoch -> (beta, alpha)


def cross_entropy(logits: Reals, labels: Labels) -> Float[Array, " batch"]:
    """Cross-entropy with integer labels, per example, in nats.

    Args:
        logits: shape (N, K).
        labels: integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a finite number that the
            caller must mask.

    Returns:
        Numbers >= 0, shape (N,), in at least float32. NaN for a label that is neither a class nor -1: under `jax.jit`,
        where it cannot be refused.

    Raises:
        ValueError: if the logits do not have shape (N, K), or the labels are not integers of shape (N,) in -1..K-1.
    """
    logits, labels = checked_scores(logits, labels)
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    return nan_without_class(jax.nn.logsumexp(logits, axis=1) - chosen, labels, logits.shape[1])


def cosine_alignment(
    features: Reals,
    labels: Labels,
    frame: Reals,
    similarity: Reals,
) -> Float[Array, " batch"]:
    r"""Squared errors of the cosines between a feature and *all* class vectors, summed over the classes.

    .. math:: \ell(h, y) = \sum_k \big(\cos(w_k, h) - S_{k y}\big)^2

    If S holds the cosines of the frame itself, the loss is zero exactly if h has the direction of :math:`w_y`. The
    terms of the other classes decide how much an error towards each of them costs. The sum grows with K, and so does
    the weight of this loss in a mixture with cross-entropy.

    Args:
        features: h, shape (N, d), of any length. A zero vector has cosine 0 with every class vector, and no gradient.
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a number that the caller
            must mask.
        frame: class vectors w_k as columns, shape (d, K), of any length.
        similarity: wanted cosines S, shape (K, K).

    Returns:
        Numbers in [0, 4 K], shape (N,). NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the shapes do not fit, or the labels are not integers of shape (N,) in -1..K-1.

    Example:
        >>> frame = jnp.eye(2)
        >>> cosine_alignment(jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]), frame, jnp.eye(2)).tolist()
        [0.0, 2.0]

    Reference: Liang and Davis (2023), section 3.3.
    """
    features, labels, frame = _checked(features, labels, frame)
    similarity, num_classes = real_array(similarity, "similarity"), frame.shape[1]
    if similarity.shape != (num_classes, num_classes):
        raise ValueError(f"similarity must have shape {(num_classes, num_classes)}; got {similarity.shape}")
    cosines = matmul(_units(features, axis=1), _units(frame, axis=0))
    wanted = transpose(similarity)[jnp.clip(labels, 0, num_classes - 1)].astype(cosines.dtype)
    return nan_without_class(jnp.sum((cosines - wanted) ** 2, axis=1), labels, num_classes)


def cosine_embedding(features: Reals, labels: Labels, frame: Reals) -> Float[Array, " batch"]:
    r"""One minus the cosine between a feature and the vector of its class, :math:`1 - \cos(w_y, h)`.

    Args:
        features: h, shape (N, d), of any length.
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a number that the caller
            must mask.
        frame: class vectors w_k as columns, shape (d, K), of any length. The frame of Barz and Denzler has the cosines
            1 - d / d_max (`nc_jax.hierarchy.similarity` with mapping="linear" and min_similarity=0.0).

    Returns:
        Numbers in [0, 2], shape (N,). NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the shapes do not fit, or the labels are not integers of shape (N,) in -1..K-1.

    Reference: Barz and Denzler, Hierarchy-based image embeddings for semantic image retrieval (2019), section 3.3.
    """
    features, labels, frame = _checked(features, labels, frame)
    own = transpose(frame)[jnp.clip(labels, 0, frame.shape[1] - 1)]
    gaps = 1 - jnp.sum(_units(features, axis=1) * _units(own, axis=1), axis=1)
    return nan_without_class(gaps, labels, frame.shape[1])


def mixing_schedule(
    alpha: float | MixingName,
    epochs: int = 100,  # Liang and Davis (2023)
    period: int = 10,  # in epochs; the released program leaves it to the user
) -> MixingSchedule:
    r"""Weights over the epochs in a mixture of losses: total = beta * cross-entropy + alpha * alignment.

    With e the epoch, T the number of epochs, p the period and the wave :math:`c = (1 - \cos(2 \pi e / p)) / 2`, the
    names mean:

    - "linear-decrease": :math:`\alpha = 1 - e / T`;
    - "linear-increase": :math:`\alpha = e / T`;
    - "cosine": :math:`\alpha = c`;
    - "cosine-linear-increase": :math:`\alpha = c\, e / T`;
    - "cosine-linear-decrease": :math:`\alpha = 1 - c\, e / T`.

    In all of them :math:`\beta = 1 - \alpha`. A number is a constant alpha, with :math:`\beta = 1 - \alpha` for
    alpha <= 1 and :math:`\beta = 1` for alpha > 1.

    Args:
        alpha: a constant >= 0, or one of the names above.
        epochs: number of epochs T.
        period: period p of the cosine wave, in epochs.

    Returns:
        A function epoch -> (beta, alpha), both scalars; the epoch may be a traced value.

    Raises:
        ValueError: if the name is unknown, a constant is negative, or epochs or period is below 1.

    Example:
        >>> beta, alpha = mixing_schedule("linear-increase", epochs=10)(2)
        >>> round(float(beta), 6), round(float(alpha), 6)
        (0.8, 0.2)

    Reference: Liang and Davis (2023), released program, whose scripts use constants of 0.4 and 0.5.
    """
    if isinstance(alpha, str):
        if alpha not in get_args(MixingName):
            raise ValueError(f"alpha must be a number or one of {', '.join(get_args(MixingName))}; got {alpha!r}")
    elif not alpha >= 0:
        raise ValueError(f"alpha must be at least 0; got {alpha}")
    check_at_least("epochs", epochs)
    check_at_least("period", period)

    def schedule(epoch: ArrayLike) -> tuple[Array, Array]:
        if not isinstance(alpha, str):
            return jnp.asarray(1 - alpha if alpha <= 1 else 1.0), jnp.asarray(float(alpha))
        epoch = jnp.asarray(epoch, jnp.float32)
        share, wave = epoch / epochs, (1 - jnp.cos(2 * jnp.pi * epoch / period)) / 2
        if alpha == "cosine-linear-decrease":
            return wave * share, 1 - wave * share
        weights = {
            "linear-decrease": 1 - share,
            "linear-increase": share,
            "cosine": wave,
            "cosine-linear-increase": wave * share,
        }
        return 1 - weights[alpha], weights[alpha]

    return schedule


def _checked(features: Reals, labels: Labels, frame: Reals) -> tuple[Array, Array, Array]:
    """Return features (N, d), labels (N,) and frame (d, K), once their shapes fit."""
    features = at_least_float32(real_array(features, "features"))
    frame = at_least_float32(real_array(frame, "frame"))
    check_features_fit(features, frame)
    return features, checked_labels(labels, frame.shape[1], rows=features.shape[0]), frame


def _units(vectors: Array, axis: int) -> Array:
    """Scale to unit length; a zero vector stays zero, without a gradient."""
    lengths = safe_norm(vectors, axis=axis)
    return vectors * jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
