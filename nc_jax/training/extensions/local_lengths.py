"""FedGELA: clients set the lengths of the class vectors that they share."""

from dataclasses import dataclass
from typing import Any

from nc_jax.data import Batch
from nc_jax.frames import local_lengths
from nc_jax.heads import HeadOutput
from nc_jax.losses import mask_logits
from nc_jax.training.extension import Context, Extension


@dataclass(frozen=True)
class LocalLengths(Extension):
    """A client's class vectors are as long as its class is frequent there: `nc_jax.frames.local_lengths`.

    Acts on the steps of a client and on a client's own model in evaluation. The server's model has the shared frame.

    Attributes:
        mask_missing: leave the classes without an example at the client out of its softmax. By default their logits are
            0, as in the paper, and they can win.

    Raises:
        ValueError: when a training step is traced, if it is not that of a client.

    Reference: Fan et al., Federated learning with bilateral curation for partially class-disjoint data (2023), section
    4; masks are in no paper.
    """

    mask_missing: bool = False

    def on_output(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Scale the class vectors and their logits."""
        del state, batch
        if context.client is None:
            if context.train:
                raise ValueError("lengths of local class vectors need a step of a client; got one without")
            return output
        counts = context.client.counts
        lengths = local_lengths(counts).astype(output.logits.dtype)
        logits = (output.logits - output.bias) * lengths + output.bias
        if self.mask_missing:
            logits = mask_logits(logits, counts > 0)
        return output._replace(logits=logits, frame=output.frame * lengths.astype(output.frame.dtype))
