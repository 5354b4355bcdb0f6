"""What a model gives for every single example: outputs, and the margins that are computed from them."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nc_jax.data import Batch, known_labels
from nc_jax.heads import HeadOutput
from nc_jax.metrics import ClassStatistics
from nc_jax.training.evaluate import Evaluated, centred_margins
from nc_jax.training.state import TrainState


def make_outputs(
    output_of: Evaluated,
) -> Callable[[TrainState, Iterable[Batch]], Iterator[tuple[HeadOutput, Batch]]]:
    """Compile the model in evaluation, on one device, to get its output for every single example.

    Args:
        output_of: the model in evaluation.

    Returns:
        A function (state, batches) -> iterator over pairs (output of the head, batch), both with padding.
    """
    apply = jax.jit(output_of)

    def outputs(state: TrainState, batches: Iterable[Batch]) -> Iterator[tuple[HeadOutput, Batch]]:
        state = jax.tree.map(jnp.asarray, jax.device_get(output_of.parts(state)))  # from all devices to one
        for batch in batches:
            here = jax.tree.map(jnp.asarray, batch)
            yield apply(state, here), here

    return outputs


def example_margins(
    outputs: Iterable[tuple[HeadOutput, Batch]], centres: ClassStatistics
) -> Float[np.ndarray, " examples"]:
    """Return the centred cosine margin of every example, without padding.

    Args:
        outputs: pairs (output of the head, batch), from `Trainer.outputs`.
        centres: class statistics of the training features.

    Returns:
        Shape (N,), in [-2, 2]: K / (K - 1) for all examples at collapse to a simplex ETF of K classes. See
        `nc_jax.metrics.cosine_margins`.
    """
    centres = jax.tree.map(jnp.asarray, jax.device_get(centres))  # from all devices to one
    margins_of = jax.jit(centred_margins)
    found = [batch.without_padding(margins_of(output, centres, known_labels(batch))) for output, batch in outputs]
    return np.concatenate(found)
