"""Dark experience replay: the logits that examples had when they were seen are what they are later pulled to."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.checks import check_at_least
from nc_jax.collective import all_sum
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training.extension import Context, Extension


@dataclass(frozen=True)
class LogitMemory(Extension):
    r"""Stores the logits of the examples in a replay memory, and pulls replayed examples towards them.

    The cost gets the penalty

    .. math:: \alpha \, \frac1M \sum_{i=1}^M \frac1K \|f(x_i) - z_i\|^2

    over the M examples of the first draw from the memory (`nc_jax.streams.Replay`). Here f(x) are the logits now,
    before any mask, and z_i the stored ones. Whenever an example is seen as a new one and is in the memory afterwards,
    its logits are stored as they are before the step changes the parameters. So those of its last visit stay.

    (The released program puts an example into its buffer again at every visit. Here the memory holds it once.)

    Attributes:
        capacity: number of places in the replay memory.
        weight: :math:`\alpha > 0`.
        draws: number of draws from the memory in each step; the penalty is on the first.

    Raises:
        ValueError: if the weight is not positive and finite, or a number is not a whole one of at least 1.

    Reference: Buzzega et al., Dark experience for general continual learning (2020), section 3.
    """

    capacity: int
    weight: float
    draws: int = 1

    def __post_init__(self):
        check_at_least("capacity", self.capacity)
        check_at_least("draws", self.draws)
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of stored logits must be positive and finite; got {self.weight}")

    def init(self, key: PRNGKeyArray, output: HeadOutput) -> Float[Array, "capacity classes"]:
        """Return an empty memory."""
        del key
        return jnp.zeros((self.capacity, output.logits.shape[-1]))

    def penalties(
        self, context: Context, state: Any, output: HeadOutput, batch: Batch
    ) -> dict[str, Float[Array, " batch"]]:
        """Return the penalty of each example, such that the mean over the batch is the formula above."""
        scale = self.weight * context.mean_over_draw(self.draws)
        gaps = jnp.mean((_unmasked(output) - state[jnp.maximum(batch.slot, 0)]) ** 2, axis=1)
        return {"stored_logits": jnp.where(batch.replayed == 1, scale * gaps, 0)}

    def update(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> Any:
        """Store the logits of the new examples that are in the memory after this step."""
        del context
        new = batch.mask & (batch.replayed == 0) & (batch.slot >= 0)
        place = jnp.where(new, batch.slot, self.capacity)  # out of range: dropped
        written = jnp.zeros_like(state).at[place].set(_unmasked(output), mode="drop")
        touched = jnp.zeros((self.capacity,)).at[place].set(1, mode="drop")
        # An example, and so a slot, comes at most once in a batch, so the sums over devices have one term.
        written, touched = all_sum((written, touched))
        return jnp.where(touched[:, None] > 0, written, state)


def _unmasked(output: HeadOutput) -> Float[Array, "batch classes"]:
    """Return the logits before an extension masked them; XLA finds that the head has computed them already."""
    features = output.features.astype(jnp.promote_types(output.features.dtype, jnp.float32))
    return features @ output.frame + output.bias[None]
