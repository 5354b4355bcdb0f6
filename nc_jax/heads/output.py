"""What every head returns, and the scaling of features that heads share."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import safe_norm
from nc_jax.solvers import Solution


class LevelOutput(NamedTuple):
    """What a classifier for every level of a label tree gives, coarsest level first.

    Attributes:
        logits: (N, K_l) each; the last are the classes'.
        frames: class vectors (d, K_l) each.
    """

    logits: tuple[Float[Array, "batch _"], ...]
    frames: tuple[Float[Array, "dim _"], ...]


class HeadOutput(NamedTuple):
    """What a head returns.

    Attributes:
        logits: features @ frame + bias, shape (N, K).
        features: the features as the classifier sees them (scaled to length `radius`, if the head does that), (N, d).
        frame: class vectors as columns, (d, K).
        bias: (K,).
        solution: how the inner solve of this call went; None where there was none.
        levels: of heads with a classifier for every level of a label tree (`nc_jax.heads.levels`); None elsewhere.
        raw_features: the features as the backbone gave them, which decay on features penalises; a head leaves this to
            its `nc_jax.models.Classifier`.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch dim"]
    frame: Float[Array, "dim classes"]
    bias: Float[Array, " classes"]
    solution: Solution | None = None
    levels: LevelOutput | None = None
    raw_features: Float[Array, "batch dim"] | None = None


def scale_features(features: Float[Array, "batch dim"], radius: float | None) -> Float[Array, "batch dim"]:
    """Scale each feature vector to the given length (None: leave it); a zero vector stays zero.

    Raises:
        ValueError: if the features are not of shape (N, d), or the radius is not positive.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (batch, dim); got shape {features.shape}")
    if radius is None:
        return features
    if not radius > 0:
        raise ValueError(f"radius must be positive; got {radius}")
    norms = safe_norm(features, axis=1)
    return radius * features / jnp.where(norms > 0, norms, 1)
