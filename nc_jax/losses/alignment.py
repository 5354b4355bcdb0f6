r"""Losses that pull features to prescribed angles with the class vectors, and their mixture with cross-entropy."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm

MixingName = Literal["linear-decrease", "linear-increase", "cosine", "cosine-linear-increase", "cosine-linear-decrease"]
MixingSchedule = Callable[..., tuple[Array, Array]]  # epoch -> (beta, alpha)


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Cross-entropy with integer labels, per example, in nats; negative labels (padding) give a finite number."""
    logits = at_least_float32(logits)
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def cosine_alignment(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    frame: Float[Array, "dim classes"],
    similarity: Float[Array, "classes classes"],
) -> Float[Array, " batch"]:
    r"""Squared errors of the cosines between a feature and *all* class vectors, summed over the classes.

    .. math:: \ell(h, y) = \sum_k \big(\cos(w_k, h) - S_{k y}\big)^2

    It vanishes exactly if h points along :math:`w_y`, when S are the frame's own cosines; the other classes' terms say
    in which directions to err. The sum grows with K, and with it the weight that the loss has in a mixture.

    Args:
        features: h, shape (N, d), of any length. A zero vector has cosine 0 with everything, and no gradient.
        labels: y, shape (N,); negative ones (padding) give a number that must not be used.
        frame: class vectors w_k as columns, shape (d, K), of any length.
        similarity: S, wanted cosines, shape (K, K).

    Returns:
        One number in [0, 4 K] per example, shape (N,).

    Example:
        >>> frame = jnp.eye(2)
        >>> cosine_alignment(jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]), frame, jnp.eye(2)).tolist()
        [0.0, 2.0]

    Reference: Liang and Davis (2023), section 3.3.
    """
    features, frame = at_least_float32(features), at_least_float32(frame)
    cosines = matmul(_units(features, axis=1), _units(frame, axis=0))
    return jnp.sum((cosines - similarity.T[jnp.maximum(labels, 0)]) ** 2, axis=1)


def cosine_embedding(
    features: Float[Array, "batch dim"], labels: Int[Array, " batch"], frame: Float[Array, "dim classes"]
) -> Float[Array, " batch"]:
    r"""One minus the cosine between a feature and its own class vector, :math:`1 - \cos(w_y, h)`.

    Args:
        features: shape (N, d).
        labels: shape (N,).
        frame: shape (d, K); Barz and Denzler's has the cosines 1 - d / d_max (`nc_jax.hierarchy.similarity` with
            mapping="linear" and min_similarity=0.0).

    Returns:
        One number in [0, 2] per example.

    Reference: Barz and Denzler, Hierarchy-based image embeddings for semantic image retrieval (2019), section 3.3.
    """
    features, own = at_least_float32(features), at_least_float32(frame).T[jnp.maximum(labels, 0)]
    return 1 - jnp.sum(_units(features, axis=1) * _units(own, axis=1), axis=1)


def mixing_schedule(
    alpha: float | MixingName,
    epochs: int = 100,  # Liang and Davis (2023)
    period: int = 10,  # of the cosines, in epochs; the released program leaves it to the user
) -> MixingSchedule:
    r"""Weights of a mixture of cross-entropy and alignment over the epochs: total = beta CE + alpha alignment.

    With e the epoch, T their number and p the period: "linear-decrease", :math:`\alpha = 1 - e / T`; "linear-increase",
    :math:`\alpha = e / T`; "cosine", :math:`\alpha = (1 - \cos(2 \pi e / p)) / 2`; "cosine-linear-increase", that times
    :math:`e / T`; all with :math:`\beta = 1 - \alpha`. In "cosine-linear-decrease" beta has that shape. A number is a
    constant alpha, with :math:`\beta = 1 - \alpha`, but 1 if alpha > 1.

    Args:
        alpha: a number >= 0 or a name.
        epochs: T.
        period: p.

    Returns:
        A function epoch -> (beta, alpha), scalars; the epoch may be traced.

    Raises:
        ValueError: if there is no such schedule, or a number is out of its range.

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
    if epochs < 1 or period < 1:
        raise ValueError(f"epochs and period must be at least 1; got {epochs} and {period}")

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


def _units(vectors: Array, axis: int) -> Array:
    """Scale to unit length; a zero vector stays zero, without a gradient."""
    lengths = safe_norm(vectors, axis=axis)
    return vectors * jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
