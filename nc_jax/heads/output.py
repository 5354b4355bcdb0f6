"""The output of a head, and the scaling of features that all heads use."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int

from nc_jax.arrays import safe_norm
from nc_jax.solvers import Solution


class LevelOutput(NamedTuple):
    """Output of a head with a classifier for every level of a label tree, coarsest level first.

    Level l has K_l nodes; the last level has the K classes.

    Attributes:
        logits: for each level, logits of its nodes, shape (N, K_l).
        frames: for each level, class vectors of its nodes as columns, shape (d, K_l).
    """

    logits: tuple[Float[Array, "batch _"], ...]
    frames: tuple[Float[Array, "dim _"], ...]


class HeadOutput(NamedTuple):
    """Output of a head.

    Attributes:
        logits: class scores features @ frame + bias, shape (N, K). The head `tree_softmax` gives log-probabilities.
        features: features after the head has scaled them to length `radius` (unscaled without one), shape (N, d).
        frame: class vectors as columns, shape (d, K).
        bias: constants added to the logits, shape (K,); zeros for a head without a bias.
        solution: how the inner problem of this call ended; None if the call solved none.
        levels: logits and class vectors for every level of a label tree; None unless the head is
            `nc_jax.heads.levels`.
        raw_features: features as the backbone gave them, on which feature decay acts, shape (N, d).
            `nc_jax.models.Classifier` sets this field; a head leaves it None.
        classes: in a training step of `nc_jax.heads.sampled`, the class of each column of `logits` and `frame`, -1 for
            none, shape (S,); these and `bias` then have S columns instead of K. None: column k belongs to class k.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch dim"]
    frame: Float[Array, "dim classes"]
    bias: Float[Array, " classes"]
    solution: Solution | None = None
    levels: LevelOutput | None = None
    raw_features: Float[Array, "batch dim"] | None = None
    classes: Int[Array, " classes"] | None = None


# A program that returns an output can then be serialised by jax.export.
for _kind in (LevelOutput, HeadOutput):
    export.register_namedtuple_serialization(_kind, serialized_name=f"nc_jax.heads.{_kind.__name__}")


def check_width(features: Float[Array, "batch dim"], dim: int) -> None:
    """Raise a ValueError unless features have the dimension d with which their head was initialised."""
    if features.shape[1] != dim:
        raise ValueError(
            f"features must have shape (batch, {dim}), the dim for which the head was initialised; got {features.shape}"
        )


def check_radius(radius: float | None) -> None:
    """Raise a ValueError unless the length that features are scaled to is positive and finite, or None."""
    if radius is not None and not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, or None; got {radius}")


def scale_features(features: Float[Array, "batch dim"], radius: float | None) -> Float[Array, "batch dim"]:
    """Scale each feature vector to the same length; a zero vector stays zero.

    Args:
        features: shape (N, d).
        radius: the length, > 0; None returns the features unchanged.

    Raises:
        ValueError: if the features do not have shape (N, d), or the radius is not positive.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (batch, dim); got shape {features.shape}")
    check_radius(radius)
    if radius is None:
        return features
    norms = safe_norm(features, axis=1)
    return radius * features / jnp.where(norms > 0, norms, 1)
