"""Streams: which examples make up step s, as a pure function of the seed and s; and how they are read.

A stream does not depend on devices, on training or on what was read before. At a given seed and step, a run therefore
reads the same examples on any machine, so an interrupted run resumes exactly.
"""

from nc_jax.extras import require

require("grain", "train", __name__)

from nc_jax.streams.balanced import Staged, Weighted
from nc_jax.streams.clients import Clients
from nc_jax.streams.epochs import Epochs, epoch_indices, epoch_order, steps_per_epoch
from nc_jax.streams.exemplars import Exemplars
from nc_jax.streams.reader import batches, eval_batches, gather, read
from nc_jax.streams.replay import Replay
from nc_jax.streams.stream import Plan, Stream, local_rows, locate
from nc_jax.streams.subset import BalancedSubset
from nc_jax.streams.tasks import Tasks

__all__ = [
    "BalancedSubset",
    "Clients",
    "Epochs",
    "Exemplars",
    "Plan",
    "Replay",
    "Staged",
    "Stream",
    "Tasks",
    "Weighted",
    "batches",
    "epoch_indices",
    "epoch_order",
    "eval_batches",
    "gather",
    "local_rows",
    "locate",
    "read",
    "steps_per_epoch",
]
