"""How collapsed a network is: class statistics of the features, and metrics that are computed from them."""

from nc_jax.metrics.agreement import Agreement
from nc_jax.metrics.alignment import (
    class_angles,
    error_exponent_ratio,
    error_exponents,
    etf_error_exponent,
    mean_cosine,
    optimal_error_exponent,
    principal_angles,
)
from nc_jax.metrics.ancestors import AncestorCounts, ancestor_overlaps
from nc_jax.metrics.calibration import CalibrationSums, expected_calibration_error
from nc_jax.metrics.cdnv import class_distance_normalized_variance
from nc_jax.metrics.clients import (
    Answers,
    ClientDrift,
    ClientSummary,
    GroupAngles,
    answers,
    client_drift,
    client_summary,
    group_angles,
)
from nc_jax.metrics.collapse import (
    bias_collapse,
    collapse_metrics,
    nearest_centre_agreement,
    within_class_collapse,
)
from nc_jax.metrics.depth import collapse_by_depth, effective_depth, nearest_centre_by_layer
from nc_jax.metrics.detection import auroc, false_positive_rate
from nc_jax.metrics.duality import self_duality, uniform_duality
from nc_jax.metrics.entries import Entry
from nc_jax.metrics.feature_scores import Nci, Neco, Vim
from nc_jax.metrics.few_shot import FewShotErrors, few_shot_errors
from nc_jax.metrics.forgetting import average_accuracy, backward_transfer, forgetting, forward_transfer
from nc_jax.metrics.generalized import generalized_collapse_metrics
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
from nc_jax.metrics.measurement import Measurement, report
from nc_jax.metrics.multi_label import TagWiseAverage, tag_sets, tag_wise_average
from nc_jax.metrics.nearest_mean import nearest_mean_scores
from nc_jax.metrics.one_vs_rest import OneVsRestMargin, one_vs_rest_margin
from nc_jax.metrics.outliers import energy_score, max_logit, max_softmax, outlier_orthogonality
from nc_jax.metrics.regression import RegressionStatistics, regression_collapse
from nc_jax.metrics.report import ClassTable, Report
from nc_jax.metrics.shots import balanced_accuracy, group_recall, shot_groups, thirds
from nc_jax.metrics.simplex import equiangle, equinorm, etf_distance, etf_distance_floor, maximal_angle
from nc_jax.metrics.statistics import Centre, ClassMoments, ClassStatistics
from nc_jax.metrics.uniformity import (
    EnergyGap,
    KernelMoments,
    UniformityGap,
    energy_gap,
    kernel_moments,
    uniformity_gap,
)
from nc_jax.metrics.zero_mean import nearest_centre_accuracy, support_occupancy, zero_mean_collapse

__all__ = [
    "Agreement",
    "AncestorCounts",
    "Answers",
    "CalibrationSums",
    "Centre",
    "ClassMoments",
    "ClassStatistics",
    "ClassTable",
    "ClientDrift",
    "ClientSummary",
    "EnergyGap",
    "Entry",
    "FewShotErrors",
    "GroupAngles",
    "HierarchyStatistics",
    "KernelMoments",
    "MarginSummary",
    "MarginSums",
    "Measurement",
    "Nci",
    "Neco",
    "OneVsRestMargin",
    "RegressionStatistics",
    "Report",
    "TagWiseAverage",
    "UniformityGap",
    "Vim",
    "ancestor_overlaps",
    "answers",
    "auroc",
    "average_accuracy",
    "backward_transfer",
    "balanced_accuracy",
    "bias_collapse",
    "class_angles",
    "class_distance_normalized_variance",
    "client_drift",
    "client_summary",
    "collapse_by_depth",
    "collapse_metrics",
    "cosine_margins",
    "effective_depth",
    "effective_rank",
    "energy_gap",
    "energy_score",
    "equiangle",
    "equinorm",
    "error_exponent_ratio",
    "error_exponents",
    "etf_distance",
    "etf_distance_floor",
    "etf_error_exponent",
    "expected_calibration_error",
    "false_positive_rate",
    "few_shot_errors",
    "forgetting",
    "forward_transfer",
    "generalized_collapse_metrics",
    "group_angles",
    "group_recall",
    "kernel_moments",
    "logit_margins",
    "max_logit",
    "max_softmax",
    "maximal_angle",
    "mean_cosine",
    "nearest_centre_accuracy",
    "nearest_centre_agreement",
    "nearest_centre_by_layer",
    "nearest_etf_distance",
    "nearest_mean_scores",
    "nuclear_rank",
    "numerical_rank",
    "one_vs_rest_margin",
    "optimal_error_exponent",
    "outlier_orthogonality",
    "principal_angles",
    "regression_collapse",
    "report",
    "self_duality",
    "shot_groups",
    "similarity_errors",
    "stable_rank",
    "support_occupancy",
    "tag_sets",
    "tag_wise_average",
    "thirds",
    "uniform_duality",
    "uniformity_gap",
    "usual_top",
    "variability_collapse_index",
    "within_class_collapse",
    "zero_mean_collapse",
]
