"""Classifier heads as pure functions: a head holds the class vectors (the frame) and decides how they move.

`learned`, `fixed`, `rotated` and `nearest` return a `Head`, `staged` joins two, and `sampled` makes one for very many
classes. A head's `init(key, dim)` gives parameters and state; its `apply` maps features to a `HeadOutput`.
`nc_jax.models` wraps the same functions for Flax Linen and NNX.
"""

from nc_jax.heads.batch_means import batch_means_of
from nc_jax.heads.fixed import FrameConstructor, fixed
from nc_jax.heads.head import Declared, Head, Initial
from nc_jax.heads.learned import learned
from nc_jax.heads.levels import levels, tree_softmax
from nc_jax.heads.nearest import nearest
from nc_jax.heads.nearest_options import NearestOptions
from nc_jax.heads.output import HeadOutput, LevelOutput, scale_features
from nc_jax.heads.pooled import pooled
from nc_jax.heads.rotated import rotated
from nc_jax.heads.sampling import Candidates, class_candidates, places_among, sampled
from nc_jax.heads.staged import staged
from nc_jax.heads.tree_template import tree_template

__all__ = [
    "Candidates",
    "Declared",
    "FrameConstructor",
    "Head",
    "HeadOutput",
    "Initial",
    "LevelOutput",
    "NearestOptions",
    "batch_means_of",
    "class_candidates",
    "fixed",
    "learned",
    "levels",
    "nearest",
    "places_among",
    "pooled",
    "rotated",
    "sampled",
    "scale_features",
    "staged",
    "tree_softmax",
    "tree_template",
]
