"""Data in: labelled arrays, named sets, harder versions of them, and batches of static shape that resume exactly.

Four modules are imported on their own (`from nc_jax.data import sources`): `digits`, `glyphs` and `sources` bring
TensorFlow Datasets with them, `augment` brings dm_pix.
"""

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.imbalance import (
    asymmetric_noise,
    exponential_counts,
    long_tailed,
    step_counts,
    step_imbalanced,
    subsample,
    symmetric_noise,
    take_per_class,
)
from nc_jax.data.pipeline import ExampleSource, batches, epoch_indices, eval_batches, steps_per_epoch

__all__ = [
    "ExampleSource",
    "LabelledArrays",
    "asymmetric_noise",
    "batches",
    "epoch_indices",
    "eval_batches",
    "exponential_counts",
    "long_tailed",
    "step_counts",
    "step_imbalanced",
    "steps_per_epoch",
    "subsample",
    "symmetric_noise",
    "take_per_class",
]
