"""A batch: one structure on the host and on devices, with a mask that says which rows are examples."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PADDING_LABEL = -1  # outside every class: what a careless reader of labels meets then is no class at all


class Partner(NamedTuple):
    """The second class of mixed examples.

    Attributes:
        labels: of the examples that were mixed in, shape (N,).
        weight: of an example's own class, in [0, 1], shape (N,); its partner's is 1 - weight.
    """

    labels: Int[Array, " batch"]
    weight: Float[Array, " batch"]


class Batch(NamedTuple):
    """Examples of a step. A JAX tree; fields that a method does not use are None.

    Attributes:
        inputs: what the network takes, shape (N, ...); rows of padding are zero.
        labels: the examples' own classes, shape (N,), int32. Mixed examples keep theirs here, for heads that count
            classes. Padding has `PADDING_LABEL`.
        mask: which rows are examples, shape (N,), bool. Losses, counts and statistics ask this, not the labels.
        index: numbers of the examples in their set, shape (N,); -1 for padding, None where nobody knows.
        slot: place of each example in a replay memory, shape (N,); -1 without one.
        replayed: which examples come out of the memory, shape (N,), bool.
        partner: second classes, if examples were mixed.
    """

    # Arrays of NumPy or of JAX, and shapes or shardings in trees that have a batch's structure.
    inputs: Any
    labels: Any
    mask: Any
    index: Any = None
    slot: Any = None
    replayed: Any = None
    partner: Partner | None = None

    @classmethod
    def of(cls, inputs: Any, labels: Any) -> "Batch":
        """Make a batch of examples without padding."""
        return cls(inputs, labels, np.ones(len(labels), bool))


def known_labels(batch: Batch) -> Int[Array, " batch"]:
    """Return the labels with `PADDING_LABEL` where the mask says padding, as `nc_jax.metrics` takes them."""
    return jnp.where(batch.mask, batch.labels, PADDING_LABEL)


def rows_with(mask: Any, like: Any) -> Any:
    """Return the mask with axes of size 1 behind it, so that it broadcasts against an array of the batch."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))
