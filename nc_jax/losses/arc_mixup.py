r"""Arc-mixup: mixtures of two orthogonal class vectors on the arc between them, and the log loss that pulls to them.

A convex combination of two orthogonal unit vectors is shorter than either. With the weights :math:`\lambda` and
:math:`\sqrt{1 - \lambda^2}`, the mixture of two class vectors stays on the unit sphere.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from nc_jax.arrays import at_least_float32, normalized
from nc_jax.checks import (
    Labels,
    Mask,
    Reals,
    as_array,
    check_features_fit,
    checked_labels,
    is_traced,
    nan_without_class,
    real_array,
)
from nc_jax.frames.orthogonal import owner

# Added to the overlap before its logarithm is taken: the released program of Kim and Kim (2024).
SMALLEST = 1e-18


def arc_weights(share: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return the two weights of arc-mixup, :math:`\sin(\pi u / 2)` and :math:`\cos(\pi u / 2)`.

    Their squares sum to 1. For u uniform on [0, 1], the first has the arcsine law, with the mean :math:`2 / \pi`.

    Args:
        share: u in [0, 1].

    Returns:
        Weights of the first and of the second of two examples, in [0, 1].

    Raises:
        ValueError: if a share is known, and not in [0, 1].

    Reference: Kim and Kim (2024), released program.
    """
    share = real_array(share, "share")
    if not is_traced(share) and not np.all(np.abs(np.asarray(share) - 0.5) <= 0.5):
        raise ValueError("a share of arc-mixup must lie in [0, 1]; got a number outside")
    angle = share * (math.pi / 2)
    return jnp.sin(angle), jnp.maximum(jnp.cos(angle), 0)  # rounding makes the cosine of pi / 2 negative


def features_of_classes(frame: Reals, present: Mask) -> Bool[Array, " dim"]:
    """Return which features belong to one of the given classes.

    Args:
        frame: class vectors as columns that share no feature, shape (d, K).
        present: which classes, booleans of shape (K,).

    Raises:
        ValueError: if two class vectors share a feature, or `present` does not have one boolean for each class.

    Example:
        >>> features_of_classes(jnp.eye(4, 3), jnp.array([True, False, True])).tolist()
        [True, False, True, False]
    """
    frame, present = real_array(frame, "frame"), as_array(present, "present")
    owners = owner(frame)
    if present.shape != frame.shape[1:] or present.dtype != bool:
        raise ValueError(
            f"present must be booleans of shape {frame.shape[1:]}, one for each class; "
            f"got {present.dtype} of shape {present.shape}"
        )
    return (owners >= 0) & jnp.asarray(present)[owners]


def log_loss(scores: Reals) -> Float[Array, " batch"]:
    r"""Return :math:`-\log(s + 10^{-18})` of each score s, such as the overlap of a feature with its target.

    Args:
        scores: s, at most 1, shape (N,). Scores below 0 count as 0.

    Returns:
        Numbers between 0 and 41.446, shape (N,). Where the score is 0 or less, the loss has this largest value and no
        gradient.

    Raises:
        ValueError: if the scores are not real numbers of shape (N,).

    Example:
        >>> [round(float(loss), 4) + 0.0 for loss in log_loss(jnp.array([1.0, 0.5, 0.0, -1.0]))]
        [0.0, 0.6931, 41.4465, 41.4465]

    Reference: Kim and Kim (2024), released program (LogLoss).
    """
    scores = at_least_float32(real_array(scores, "scores"))
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (batch,); got {scores.shape}")
    none = scores <= 0
    return jnp.where(none, -math.log(SMALLEST), -jnp.log(jnp.where(none, 1, scores) + SMALLEST))


def arc_log_loss(
    features: Reals,
    frame: Reals,
    labels: Labels,
    partners: Labels,
    weights: tuple[Float[Array, " batch"], Float[Array, " batch"]],
) -> Float[Array, " batch"]:
    r"""Log loss of the overlap between a feature's direction and a mixture of two class vectors, per example.

    .. math:: \ell(h) = -\log\Big(\frac{h^\top}{\|h\|} (\lambda q_a + \mu q_b) + 10^{-18}\Big)

    For orthonormal class vectors, non-negative features and :math:`\lambda^2 + \mu^2 = 1`, the loss is 0 exactly if h
    has the direction of the mixture. There is no softmax: other classes repel only by their part in the length of h.
    (The paper writes layer normalisation for the division by the length; the released program divides by the length.)

    Args:
        features: h, shape (N, d). A zero vector has the largest loss, and no gradient.
        frame: class vectors q_k as columns, shape (d, K).
        labels: a, classes 0..K-1 as integers, shape (N,); rows with the label -1 (padding) give a finite number that
            the caller must mask.
        partners: b, the second classes, shape (N,).
        weights: :math:`\lambda` and :math:`\mu`, each of shape (N,); see `arc_weights`.

    Returns:
        Numbers in [0, 41.446], shape (N,), for orthonormal class vectors. NaN for a label that is neither a class nor
        -1, under `jax.jit`.

    Raises:
        ValueError: if the shapes do not fit, or the labels are not integers of shape (N,) in -1..K-1.

    Reference: Kim and Kim, Fixed non-negative orthogonal classifier (FNO, 2024), and its released program.
    """
    features, frame = (
        at_least_float32(real_array(part, name)) for part, name in ((features, "features"), (frame, "frame"))
    )
    check_features_fit(features, frame)
    given = [real_array(weight, "weights") for weight in weights]
    if [weight.shape for weight in given] != 2 * [features.shape[:1]]:
        raise ValueError(
            f"weights must be two arrays of shape {features.shape[:1]}, one number for each example; "
            f"got {[weight.shape for weight in given]}"
        )
    own, other = (checked_labels(one, frame.shape[1], rows=features.shape[0]) for one in (labels, partners))
    vectors = (jnp.take(frame, jnp.maximum(one, 0), axis=1, mode="clip").T for one in (own, other))
    target = sum(weight[:, None] * vector for weight, vector in zip(given, vectors, strict=True))
    each = log_loss(jnp.sum(normalized(features, axis=1)[0] * target, axis=1))
    each = nan_without_class(each, own, frame.shape[1])
    return nan_without_class(each, other, frame.shape[1])
