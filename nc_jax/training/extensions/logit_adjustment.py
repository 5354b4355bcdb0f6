"""Logit adjustment: the class sizes of the training set, put into the softmax or taken out of it."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.losses import adjusted_logits
from nc_jax.training.extension import Context, Extension


@dataclass(frozen=True)
class LogitAdjustment(Extension):
    r"""Adds :math:`\tau \log \pi_k` to the logits in training, or subtracts it in evaluation.

    Here :math:`\pi_k` is the share of class k among the training examples. In training, the network learns logits to
    which the class sizes are added, and evaluation uses them without: the adjustment plays no part in the reported
    accuracy. After training, the class sizes are taken out of what a network has learned from unequal classes.

    Attributes:
        counts: number of training examples of each class, at least 1.
        tau: :math:`\tau \ge 0`. 1 makes up for the class sizes, if training finds the probabilities.
        after: subtract in evaluation instead of adding in training.

    Raises:
        ValueError: if a class has no example, or tau is negative or not finite.

    Reference: Menon et al., Long-tail learning via logit adjustment (2021), section 4; with :math:`\tau = 1` in
    training also Ren et al., Balanced meta-softmax for long-tailed visual recognition (2020).
    """

    counts: tuple[int, ...]
    tau: float = 1.0  # Menon et al. (2021), section 4.2: the value that is consistent
    after: bool = False

    def __post_init__(self):
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"tau must be at least 0 and finite; got {self.tau}")
        adjusted_logits(jnp.zeros((1, len(self.counts))), jnp.asarray(self.counts))

    def on_output(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Adjust the logits."""
        del state, batch
        if context.train == self.after:
            return output
        tau = -self.tau if self.after else self.tau
        logits = adjusted_logits(output.logits, jnp.asarray(self.counts), tau)
        if not self.after:
            return output._replace(logits=logits)
        # The decision that a user gets has this bias, and metrics of the classifier should see it.
        (bias,) = adjusted_logits(output.bias[None], jnp.asarray(self.counts), tau)
        return output._replace(logits=logits, bias=bias.astype(output.bias.dtype))
