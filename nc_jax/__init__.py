"""nc_jax: frames, solvers, layers, losses, metrics and experiments for neural collapse, in JAX and Flax."""

from nc_jax.nearest import NearestFrame, nearest_frame, nearest_simplex_etf

__version__ = "0.1.0"
__all__ = ["NearestFrame", "nearest_frame", "nearest_simplex_etf"]
