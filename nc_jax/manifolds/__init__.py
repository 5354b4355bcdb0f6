"""Manifolds on which the solvers move, and the slope tests that show a manifold or a cost is right."""

from nc_jax.manifolds import checks
from nc_jax.manifolds.stiefel import Stiefel

__all__ = ["Stiefel", "checks"]
