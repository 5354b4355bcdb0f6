"""MOON: a client's features should be nearer to those of the server's model than to those of its own last model."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import normalized
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training.extension import Context, Extension


@dataclass(frozen=True)
class ModelContrast(Extension):
    r"""Contrastive loss between three models, for the rounds of federated learning.

    With the features z of an example in the client's model, :math:`z_s` in the model that it has received and
    :math:`z_p` in its own model at the end of its last round, the penalty is

    .. math:: \mu \log \big(1 + \exp((\cos(z, z_p) - \cos(z, z_s)) / \tau) \big).

    The other two models are constants, run as in evaluation. Each costs a forward pass in every step.

    Attributes:
        weight: mu, >= 0.
        temperature: tau, > 0.

    Raises:
        ValueError: if a number is out of its range; when the step is traced, if its client does not remember models.

    Reference: Li, He and Song, Model-contrastive federated learning (2021), equation 3.
    """

    weight: float = 1.0  # Li, He and Song (2021), section 4.1: between 0.1 and 10
    temperature: float = 0.5  # Li, He and Song (2021), section 4.1

    def __post_init__(self):
        if not 0 <= self.weight < float("inf") or not 0 < self.temperature < float("inf"):
            raise ValueError(
                "weight must be at least 0 and temperature positive, both finite; "
                f"got weight={self.weight}, temperature={self.temperature}"
            )

    def penalties(
        self, context: Context, state: Any, output: HeadOutput, batch: Batch
    ) -> dict[str, Float[Array, " batch"]]:
        """Return the contrastive loss of each example."""
        del state
        client = context.client
        if client is None or client.received is None or client.previous is None or context.apply is None:
            raise ValueError(
                "a contrast of models needs clients that remember theirs (Federation(remembers=True)); got none"
            )
        received, previous = (
            _cosines(output.features, jax.lax.stop_gradient(context.apply(*model, batch).features))
            for model in (client.received, client.previous)
        )
        return {"contrast": self.weight * jax.nn.softplus((previous - received) / self.temperature)}


def _cosines(one: Float[Array, "batch dim"], other: Float[Array, "batch dim"]) -> Float[Array, " batch"]:
    """Return the cosine of each row with the same row of the other matrix; 0 for a row of zeros."""
    return jnp.sum(normalized(one, axis=1)[0] * normalized(other, axis=1)[0], axis=1)
