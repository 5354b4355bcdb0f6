"""Data sets: labelled arrays, named sets, and harder versions of them. `nc_jax.streams` makes batches of them.

Import four modules explicitly (`from nc_jax.data import sources`), because they load further packages: `digits`,
`glyphs` and `sources` load TensorFlow Datasets, `augment` loads dm_pix.
"""

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.batch import Batch, Partner, known_labels
from nc_jax.data.class_counts import (
    exponential_counts,
    majority_counts,
    pareto_counts,
    profile_counts,
    step_counts,
)
from nc_jax.data.clients import ClientArrays, PartitionStatistics, partition_statistics
from nc_jax.data.imbalance import (
    asymmetric_noise,
    long_tailed,
    step_imbalanced,
    subsample,
    symmetric_noise,
    take_per_class,
)
from nc_jax.data.partition import Partition, by_classes, dirichlet, grouped, iid, shards
from nc_jax.data.source import Decoding, ExampleSource, check_fit, class_names_of, decoding_of, labels_of

__all__ = [
    "Batch",
    "ClientArrays",
    "Decoding",
    "ExampleSource",
    "LabelledArrays",
    "Partition",
    "PartitionStatistics",
    "Partner",
    "asymmetric_noise",
    "by_classes",
    "check_fit",
    "class_names_of",
    "decoding_of",
    "dirichlet",
    "exponential_counts",
    "grouped",
    "iid",
    "known_labels",
    "labels_of",
    "long_tailed",
    "majority_counts",
    "pareto_counts",
    "partition_statistics",
    "profile_counts",
    "shards",
    "step_counts",
    "step_imbalanced",
    "subsample",
    "symmetric_noise",
    "take_per_class",
]
