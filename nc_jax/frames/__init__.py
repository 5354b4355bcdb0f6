"""Frames: which geometry the class vectors have. Arrays in, arrays out; class vectors are columns."""

from nc_jax.frames import properties
from nc_jax.frames.hierarchical import (
    hierarchical,
    hierarchical_constructor,
    hierarchical_template,
    separated_template,
)
from nc_jax.frames.simplex import SimplexTemplate, simplex_etf, simplex_template

__all__ = [
    "SimplexTemplate",
    "hierarchical",
    "hierarchical_constructor",
    "hierarchical_template",
    "properties",
    "separated_template",
    "simplex_etf",
    "simplex_template",
]
