"""Methods as values: every paper's method is a row of one table, made of a head, a loss, extensions and a stream."""

from nc_jax.extras import require_all

require_all("train", __name__)

from nc_jax.methods.method import Method, Setting
from nc_jax.methods.options import (
    ContinualOptions,
    FederatedOptions,
    HierarchyOptions,
    TailOptions,
    UniformityOptions,
)
from nc_jax.methods.table import METHODS, method

__all__ = [
    "METHODS",
    "ContinualOptions",
    "FederatedOptions",
    "HierarchyOptions",
    "Method",
    "Setting",
    "TailOptions",
    "UniformityOptions",
    "method",
]
