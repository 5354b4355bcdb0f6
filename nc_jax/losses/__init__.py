"""Losses: pure functions of arrays that give one number per example; the caller masks padding and averages."""

from nc_jax.losses.alignment import (
    MixingSchedule,
    cosine_alignment,
    cosine_embedding,
    cross_entropy,
    mixing_schedule,
)
from nc_jax.losses.arc_mixup import arc_log_loss, arc_weights, features_of_classes, log_loss
from nc_jax.losses.dot_regression import class_lengths, dot_regression
from nc_jax.losses.label_trees import (
    conditional_risk_scores,
    hierarchical_cross_entropy,
    level_weights,
    soft_label_loss,
    soft_targets,
    tree_log_softmax,
)
from nc_jax.losses.levels import (
    dissimilarity,
    feature_slices,
    hierarchy_aware_features,
    jensen_shannon,
    level_cross_entropies,
    level_geometry,
    summed_probabilities,
)
from nc_jax.losses.masks import mask_logits, same_task
from nc_jax.losses.priors import (
    SmoothingForm,
    adjusted_logits,
    balanced_softmax,
    label_aware_smoothing,
    ldam,
    ldam_margins,
    smoothed_cross_entropy,
)
from nc_jax.losses.reweighting import effective_number_weights, effective_numbers, focal
from nc_jax.losses.uniformity import (
    HugTerms,
    between_class,
    class_distances,
    class_subset,
    hug,
    hug_of_means,
    hug_terms,
    within_class,
)

__all__ = [
    "HugTerms",
    "MixingSchedule",
    "SmoothingForm",
    "adjusted_logits",
    "arc_log_loss",
    "arc_weights",
    "balanced_softmax",
    "between_class",
    "class_distances",
    "class_lengths",
    "class_subset",
    "conditional_risk_scores",
    "cosine_alignment",
    "cosine_embedding",
    "cross_entropy",
    "dissimilarity",
    "dot_regression",
    "effective_number_weights",
    "effective_numbers",
    "feature_slices",
    "features_of_classes",
    "focal",
    "hierarchical_cross_entropy",
    "hierarchy_aware_features",
    "hug",
    "hug_of_means",
    "hug_terms",
    "jensen_shannon",
    "label_aware_smoothing",
    "ldam",
    "ldam_margins",
    "level_cross_entropies",
    "level_geometry",
    "level_weights",
    "log_loss",
    "mask_logits",
    "mixing_schedule",
    "same_task",
    "smoothed_cross_entropy",
    "soft_label_loss",
    "soft_targets",
    "summed_probabilities",
    "tree_log_softmax",
    "within_class",
]
