"""How collapsed a network is: class statistics, and the metrics that are functions of them."""

from nc_jax.metrics.collapse import (
    bias_collapse,
    collapse_metrics,
    equiangle,
    equinorm,
    etf_distance,
    maximal_angle,
    nearest_centre_agreement,
    self_duality,
    within_class_collapse,
)
from nc_jax.metrics.statistics import Agreement, Centre, ClassMoments, ClassStatistics

__all__ = [
    "Agreement",
    "Centre",
    "ClassMoments",
    "ClassStatistics",
    "bias_collapse",
    "collapse_metrics",
    "equiangle",
    "equinorm",
    "etf_distance",
    "maximal_angle",
    "nearest_centre_agreement",
    "self_duality",
    "within_class_collapse",
]
