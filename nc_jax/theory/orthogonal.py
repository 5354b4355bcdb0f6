r"""The orthogonal layer-peeled model: free features below a fixed frame of orthonormal class vectors, and its optimum.

The features :math:`h_i` of N examples with labels :math:`y_i` are free, the class vectors :math:`q_k` are not:

.. math::
    \min_H \; \frac1N \sum_i -\log \frac{e^{z_{i y_i}}}{\sum_k e^{z_{ik}}}, \quad z_{ik} = q_k^\top h_i,
    \qquad \|h_i\|^2 \le E, \quad \sum_{k \ne y_i} z_{ik} \ge 0 .

Non-negative features below a non-negative frame fulfil the second condition. The minimum is zero-mean collapse:
:math:`h_i = \sqrt E \, q_{y_i}`. Proof, for one example: by Jensen's inequality
:math:`\sum_{k \ne y} e^{z_k} \ge (K - 1) \exp\big(\tfrac{1}{K-1} \sum_{k \ne y} z_k\big) \ge K - 1`, and by that of
Cauchy and Schwarz :math:`z_y \le \sqrt E`, with equality for :math:`h = \sqrt E \, q_y` only, where all other
:math:`z_k` are 0. So the loss is at least :math:`\log(1 + (K - 1) e^{-\sqrt E})`, and only this point attains it.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.checks import (
    Labels,
    Reals,
    check_features_fit,
    check_whole,
    checked_features,
    checked_labels,
    is_traced,
    real_array,
)
from nc_jax.frames.properties import gram
from nc_jax.losses import cross_entropy


class OrthogonalCertificate(NamedTuple):
    """How far features are from the minimum of the orthogonal layer-peeled model; all zero at the minimum.

    Attributes:
        gap: mean cross-entropy minus the least value, in nats. Negative only if a condition is violated.
        excess: largest violation of the first condition over the examples: squared length over E, minus 1, or 0.
        deficit: largest violation of the second condition: minus the summed logits of the wrong classes over the square
            root of E, or 0.
        distance: root mean square of the distances to the minimiser, over the square root of E.
    """

    gap: Float[Array, ""]
    excess: Float[Array, ""]
    deficit: Float[Array, ""]
    distance: Float[Array, ""]


def orthogonal_value(num_classes: int, energy: float) -> float:
    r"""Least mean cross-entropy of the orthogonal layer-peeled model, :math:`\log(1 + (K - 1) e^{-\sqrt E})`.

    Without the second condition, features that point away from the other class vectors would have the lower value
    :math:`\log(1 + (K - 1) e^{-\sqrt{E K / (K - 1)}})`: that of a simplex.

    Args:
        num_classes: K >= 2.
        energy: largest squared length E > 0 of a feature.

    Returns:
        A number in nats.

    Raises:
        ValueError: if K is not a whole number of at least 2, or E is not positive and finite.

    Example:
        >>> round(orthogonal_value(10, 25.0), 9)
        0.058873935

    Reference: Kim and Kim, Fixed non-negative orthogonal classifier (FNO, 2024); the closed form is derived here.
    """
    check_whole("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"the orthogonal layer-peeled model needs num_classes >= 2; got {num_classes}")
    _check_energy(energy)
    return math.log1p((num_classes - 1) * math.exp(-math.sqrt(energy)))


def orthogonal_features(labels: Labels, frame: Reals, energy: float) -> Float[Array, "batch dim"]:
    r"""Minimiser of the orthogonal layer-peeled model: the class vectors of the labels, times :math:`\sqrt E`.

    Args:
        labels: classes 0..K-1 as integers, shape (N,); rows with the label -1 (padding) are zero.
        frame: orthonormal class vectors as columns, shape (d, K).
        energy: largest squared length E > 0 of a feature.

    Returns:
        Features, shape (N, d), in the dtype of the frame; NaN if the frame is not orthonormal, under `jax.jit`.

    Raises:
        ValueError: if the frame is not a matrix of orthonormal columns, the labels are not integers of shape (N,) in
            -1..K-1, or E is not positive and finite.

    Reference: Kim and Kim (2024).
    """
    _check_energy(energy)
    frame = _orthonormal(frame)
    return _minimiser(checked_labels(labels, frame.shape[1]), frame, energy)


def orthogonal_certificate(features: Reals, labels: Labels, frame: Reals, energy: float) -> OrthogonalCertificate:
    r"""Compare features with the minimum of the orthogonal layer-peeled model, which is unique.

    The gap is at least 0 if both conditions hold, and then 0 at the minimiser only.

    Args:
        features: h, shape (N, d).
        labels: y, classes 0..K-1 as integers, shape (N,); -1 marks padding, which does not count.
        frame: orthonormal class vectors as columns, shape (d, K) with K >= 2.
        energy: largest squared length E > 0 of a feature. For features of a network, take the largest squared length
            among them: then the first condition holds.

    Returns:
        Gap, violations and distance. NaN without examples, for features that are not finite, and, under `jax.jit`, for
        a frame that is not orthonormal.

    Raises:
        ValueError: if the shapes do not fit, the frame is not orthonormal, the labels are not integers of shape (N,) in
            -1..K-1, K < 2, or E is not positive and finite.

    Example:
        >>> frame, labels = jnp.eye(4, 3), jnp.array([0, 2])
        >>> found = orthogonal_certificate(orthogonal_features(labels, frame, 9.0), labels, frame, 9.0)
        >>> [round(float(value), 6) + 0.0 for value in found]
        [0.0, 0.0, 0.0, 0.0]

    Reference: Kim and Kim (2024) for the model; the proof above.
    """
    _check_energy(energy)
    features, frame = checked_features(features), _orthonormal(frame)
    check_features_fit(features, frame)
    num_classes = frame.shape[1]
    labels = checked_labels(labels, num_classes, rows=len(features))
    least, root, used = orthogonal_value(num_classes, energy), math.sqrt(energy), labels >= 0
    logits = matmul(features, frame)
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    distances = safe_norm(features - _minimiser(labels, frame, energy), axis=1)[:, 0] / root
    lengths = safe_norm(features, axis=1)[:, 0] / root

    def largest(violations: Array) -> Array:
        worst = jnp.max(jnp.where(used, violations, 0), initial=0)
        return jnp.where(jnp.any(used), worst, jnp.nan)

    return OrthogonalCertificate(
        gap=jnp.mean(cross_entropy(logits, labels), where=used) - least,
        excess=largest(lengths**2 - 1),
        deficit=largest((own - jnp.sum(logits, axis=1)) / root),
        distance=jnp.sqrt(jnp.mean(distances**2, where=used)),
    )


def _minimiser(labels: Int[Array, " batch"], frame: Array, energy: float) -> Array:
    vectors = transpose(frame)[jnp.maximum(labels, 0)]
    return jnp.where((labels >= 0)[:, None], math.sqrt(energy) * vectors, 0)


def _orthonormal(frame: Reals) -> Float[Array, "dim classes"]:
    """Return the frame in at least float32, once its columns are orthonormal; NaN if a traced one's are not."""
    frame = at_least_float32(real_array(frame, "frame"))
    products = gram(frame)
    error = jnp.max(jnp.abs(products - jnp.eye(len(products), dtype=products.dtype)), initial=0)
    right = error <= float(jnp.finfo(frame.dtype).eps) ** 0.5  # rounding is far below, and a scaled frame above
    if not is_traced(right) and not right:
        raise ValueError(
            f"the frame must have orthonormal columns; got inner products that are off by up to {float(error):.3g}"
        )
    return jnp.where(right, frame, jnp.nan)


def _check_energy(energy: float) -> None:
    if not 0 < energy < math.inf:
        raise ValueError(f"the energy must be positive and finite; got {energy}")
