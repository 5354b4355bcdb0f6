"""A batch: one structure on the host and on devices, with a mask that separates examples from padding."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax.checks import PADDING_LABEL


class Partner(NamedTuple):
    """The second class of mixed examples.

    Attributes:
        labels: labels of the examples that were mixed in, shape (N,).
        weight: weight of an example's own class, in [0, 1], shape (N,).
        other_weight: weight of the second class, shape (N,). None: 1 - weight, as in mixup.
    """

    labels: Int[Array, " batch"]
    weight: Float[Array, " batch"]
    other_weight: Float[Array, " batch"] | None = None

    def weights(self) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """Return the weights of the own and of the second class, each of shape (N,)."""
        return self.weight, 1 - self.weight if self.other_weight is None else self.other_weight


class Batch(NamedTuple):
    """The examples of a step, with padding. A JAX tree; fields that a method does not use are None.

    Attributes:
        inputs: inputs of the network, shape (N, ...); zero for padding.
        labels: the examples' own classes, shape (N,), int32; `PADDING_LABEL` for padding. Mixed examples keep their own
            class here, for heads that count classes.
        mask: True for examples, False for padding, shape (N,), bool. Losses, counts and statistics use the mask, not
            the labels, to leave out padding.
        index: numbers of the examples in their set, shape (N,); -1 for padding. None if unknown.
        slot: place of each example in a replay memory, shape (N,); -1 for examples without a place. None if there is no
            replay memory.
        replayed: 0 for new examples, m for those of the m-th draw from the replay memory, shape (N,), int32. None if
            there is no replay memory.
        partner: second classes of mixed examples; None if no examples were mixed.
        client: number of the client in federated learning, shape (N,), int32, also of padding. None if there are no
            clients.
    """

    # All Any: NumPy or JAX arrays, and shapes or shardings in trees with the structure of a batch.
    inputs: Any
    labels: Any
    mask: Any
    index: Any = None
    slot: Any = None
    replayed: Any = None
    partner: Partner | None = None
    client: Any = None

    @classmethod
    def of(cls, inputs: Any, labels: Any) -> "Batch":
        """Make a batch of examples without padding."""
        return cls(inputs, labels, np.ones(len(labels), bool))

    def without_padding(self, rows: Any) -> np.ndarray:
        """Return the rows of an array that belong to examples, as a NumPy array: of N rows, those in the mask."""
        return np.asarray(rows)[np.asarray(self.mask)]


def known_labels(batch: Batch) -> Int[Array, " batch"]:
    """Return the labels, shape (N,), with `PADDING_LABEL` where the mask is False, as `nc_jax.metrics` needs them."""
    return jnp.where(batch.mask, batch.labels, PADDING_LABEL)


def rows_with(mask: Any, like: Any) -> Any:
    """Return the mask, shape (N,), reshaped to (N, 1, ..., 1) so that it broadcasts against `like`, shape (N, ...)."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))
