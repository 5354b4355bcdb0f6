"""How collapsed a network is: class statistics of the features, and metrics that are computed from them."""

from nc_jax.metrics.collapse import (
    bias_collapse,
    collapse_metrics,
    nearest_centre_agreement,
    self_duality,
    within_class_collapse,
)
from nc_jax.metrics.forgetting import average_accuracy, backward_transfer, forgetting, forward_transfer
from nc_jax.metrics.geometry import (
    effective_rank,
    nearest_etf_distance,
    nuclear_rank,
    numerical_rank,
    stable_rank,
    variability_collapse_index,
)
from nc_jax.metrics.hierarchy import HierarchyStatistics, similarity_errors, usual_top
from nc_jax.metrics.margins import MarginSummary, MarginSums, cosine_margins, logit_margins
from nc_jax.metrics.nearest_mean import nearest_mean_scores
from nc_jax.metrics.simplex import equiangle, equinorm, etf_distance, maximal_angle
from nc_jax.metrics.statistics import Agreement, Centre, ClassMoments, ClassStatistics
from nc_jax.metrics.zero_mean import nearest_centre_accuracy, support_occupancy, zero_mean_collapse

__all__ = [
    "Agreement",
    "Centre",
    "ClassMoments",
    "ClassStatistics",
    "HierarchyStatistics",
    "MarginSummary",
    "MarginSums",
    "average_accuracy",
    "backward_transfer",
    "bias_collapse",
    "collapse_metrics",
    "cosine_margins",
    "effective_rank",
    "equiangle",
    "equinorm",
    "etf_distance",
    "forgetting",
    "forward_transfer",
    "logit_margins",
    "maximal_angle",
    "nearest_centre_accuracy",
    "nearest_centre_agreement",
    "nearest_etf_distance",
    "nearest_mean_scores",
    "nuclear_rank",
    "numerical_rank",
    "self_duality",
    "similarity_errors",
    "stable_rank",
    "support_occupancy",
    "usual_top",
    "variability_collapse_index",
    "within_class_collapse",
    "zero_mean_collapse",
]
