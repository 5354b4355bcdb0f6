"""Manifolds, parametrisations of their points by free numbers, and tests that a manifold is implemented correctly."""

from nc_jax.manifolds import checks
from nc_jax.manifolds.oblique import Oblique
from nc_jax.manifolds.orthogonal import (
    PARAMETRISATIONS,
    Parametrisation,
    cayley,
    exponential,
    householder,
    polar,
)
from nc_jax.manifolds.stiefel import Stiefel
from nc_jax.manifolds.submanifold import Submanifold

__all__ = [
    "PARAMETRISATIONS",
    "Oblique",
    "Parametrisation",
    "Stiefel",
    "Submanifold",
    "cayley",
    "checks",
    "exponential",
    "householder",
    "polar",
]
