"""What a trained model gives for all examples of a set."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nc_jax.training import Trainer, TrainState


class Outputs(NamedTuple):
    """What the model gives for all examples of a set, in their order.

    Attributes:
        logits: shape (N, K).
        features: those that the head has classified, shape (N, d).
        lengths: of the backbone's features, which a head may scale to one length, shape (N,).
        labels: shape (N,).
    """

    logits: np.ndarray
    features: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, trainer: Trainer, state: TrainState, examples: Any) -> "Outputs":
        """Compute them.

        Args:
            trainer: the compiled steps.
            state: the trained state.
            examples: a set of examples.
        """
        parts = []
        for output, batch in trainer.outputs(state, examples):
            lengths = jnp.linalg.norm(output.raw_features, axis=1)
            parts.append(map(batch.without_padding, (output.logits, output.features, lengths, batch.labels)))
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def units(self) -> np.ndarray:
        """Return the features, scaled to unit length; zeros stay zero."""
        return unit_rows(self.features)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return rows scaled to unit length; zeros stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
