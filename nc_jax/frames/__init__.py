"""Frames: which geometry the class vectors have. Arrays in, arrays out; class vectors are columns."""

from nc_jax.frames import properties
from nc_jax.frames.simplex import SimplexTemplate, simplex_etf, simplex_template

__all__ = ["SimplexTemplate", "properties", "simplex_etf", "simplex_template"]
