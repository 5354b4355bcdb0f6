"""Extensions that come with the library. Derive your own from `nc_jax.training.Extension`."""

from nc_jax.training.extensions.feature_decay import FeatureDecay
from nc_jax.training.extensions.local_lengths import LocalLengths
from nc_jax.training.extensions.logit_adjustment import LogitAdjustment
from nc_jax.training.extensions.logit_memory import LogitMemory
from nc_jax.training.extensions.masked_softmax import BatchSoftmax, TaskSoftmax
from nc_jax.training.extensions.mixup import Mixup, class_balanced_pairs, shuffled_pairs
from nc_jax.training.extensions.model_contrast import ModelContrast
from nc_jax.training.extensions.space_alignment import AlignmentPenalty, AlignmentProjection, AlignmentSlerp

__all__ = [
    "AlignmentPenalty",
    "AlignmentProjection",
    "AlignmentSlerp",
    "BatchSoftmax",
    "FeatureDecay",
    "LocalLengths",
    "LogitAdjustment",
    "LogitMemory",
    "Mixup",
    "ModelContrast",
    "TaskSoftmax",
    "class_balanced_pairs",
    "shuffled_pairs",
]
