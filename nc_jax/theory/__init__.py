"""Unconstrained features: the objective, its global minimum, a certificate, escape directions, minority collapse."""

from nc_jax.theory.certificate import (
    Certificate,
    Escape,
    certificate,
    duality_gap,
    escape_direction,
    lower_bound,
    nuclear_objective,
)
from nc_jax.theory.hessian import (
    HessianExtremes,
    curvature,
    hessian_eigenvalues,
    hessian_extremes,
    hessian_product,
)
from nc_jax.theory.imbalance import minority_collapse_thresholds, vanishing_threshold
from nc_jax.theory.objective import Penalties, data_loss, logit_gradient, logits, objective, penalties
from nc_jax.theory.optimum import optimal_margin, optimal_point, optimal_value
from nc_jax.theory.orthogonal import (
    OrthogonalCertificate,
    orthogonal_certificate,
    orthogonal_features,
    orthogonal_value,
)
from nc_jax.theory.problem import LossName, Point, UnconstrainedFeatures

__all__ = [
    "Certificate",
    "Escape",
    "HessianExtremes",
    "LossName",
    "OrthogonalCertificate",
    "Penalties",
    "Point",
    "UnconstrainedFeatures",
    "certificate",
    "curvature",
    "data_loss",
    "duality_gap",
    "escape_direction",
    "hessian_eigenvalues",
    "hessian_extremes",
    "hessian_product",
    "logit_gradient",
    "logits",
    "lower_bound",
    "minority_collapse_thresholds",
    "nuclear_objective",
    "objective",
    "optimal_margin",
    "optimal_point",
    "optimal_value",
    "orthogonal_certificate",
    "orthogonal_features",
    "orthogonal_value",
    "penalties",
    "vanishing_threshold",
]
