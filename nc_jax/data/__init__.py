"""Data in: labelled arrays, the embedded digits, and batches of static shape that resume exactly.

`nc_jax.data.digits` is imported on its own (`from nc_jax.data import digits`): it brings TensorFlow Datasets with it.
"""

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.pipeline import batches, eval_batches, steps_per_epoch

__all__ = ["LabelledArrays", "batches", "eval_batches", "steps_per_epoch"]
