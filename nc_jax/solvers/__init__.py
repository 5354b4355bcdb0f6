"""Solvers on manifolds, and the status that says how a solve ended."""

from nc_jax.solvers.polar import PolarDecomposition, PolarMethod, polar, polar_decomposition
from nc_jax.solvers.solution import Solution, Status, describe
from nc_jax.solvers.truncated_cg import truncated_cg
from nc_jax.solvers.trust_region import TrustRegionOptions, trust_region

__all__ = [
    "PolarDecomposition",
    "PolarMethod",
    "Solution",
    "Status",
    "TrustRegionOptions",
    "describe",
    "polar",
    "polar_decomposition",
    "truncated_cg",
    "trust_region",
]
