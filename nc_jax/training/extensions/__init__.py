"""Extensions that come with the library. Derive your own from `nc_jax.training.Extension`."""

from nc_jax.training.extensions.arc_mixup import ArcMixup, class_balanced_pairs
from nc_jax.training.extensions.feature_decay import FeatureDecay
from nc_jax.training.extensions.logit_memory import LogitMemory
from nc_jax.training.extensions.masked_softmax import BatchSoftmax, TaskSoftmax
from nc_jax.training.extensions.space_alignment import AlignmentPenalty, AlignmentProjection, AlignmentSlerp

__all__ = [
    "AlignmentPenalty",
    "AlignmentProjection",
    "AlignmentSlerp",
    "ArcMixup",
    "BatchSoftmax",
    "FeatureDecay",
    "LogitMemory",
    "TaskSoftmax",
    "class_balanced_pairs",
]
