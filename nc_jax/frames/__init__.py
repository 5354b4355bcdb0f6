"""Frames: arrays of shape (d, K) whose columns are class vectors with prescribed lengths and angles."""

from nc_jax.frames import properties
from nc_jax.frames.configurations import least_energy
from nc_jax.frames.hierarchical import (
    hierarchical,
    hierarchical_constructor,
    hierarchical_template,
    separated_template,
)
from nc_jax.frames.hyperspherical import (
    HypersphericalSolution,
    hyperspherical,
    hyperspherical_solution,
    hyperspherical_template,
)
from nc_jax.frames.lengths import local_lengths
from nc_jax.frames.orthogonal import nonnegative_orthogonal, owner
from nc_jax.frames.random import random_unit
from nc_jax.frames.simplex import SimplexTemplate, aligned_etf, simplex_etf, simplex_template
from nc_jax.frames.template import DenseTemplate, LearnedTemplate, Template, as_template

__all__ = [
    "DenseTemplate",
    "HypersphericalSolution",
    "LearnedTemplate",
    "SimplexTemplate",
    "Template",
    "aligned_etf",
    "as_template",
    "hierarchical",
    "hierarchical_constructor",
    "hierarchical_template",
    "hyperspherical",
    "hyperspherical_solution",
    "hyperspherical_template",
    "least_energy",
    "local_lengths",
    "nonnegative_orthogonal",
    "owner",
    "properties",
    "random_unit",
    "separated_template",
    "simplex_etf",
    "simplex_template",
]
