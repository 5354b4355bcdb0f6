"""Multilayer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from nc_jax.checks import check_at_least


class MLP(nn.Module):
    """Fully connected network with ReLU after every hidden layer. The last layer is linear and gives the features.

    Attributes:
        hidden: widths of the hidden layers.
        dim: feature dimension d.

    Raises:
        ValueError: from `init`, if a width is not a whole number of at least 1.
    """

    hidden: Sequence[int]
    dim: int

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch ..."], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Return the features (N, d) of a batch; images are flattened. `train` and `mask` have no effect."""
        del train, mask
        for width in (*self.hidden, self.dim):
            check_at_least("a width", width)
        activations = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            activations = nn.relu(nn.Dense(width)(activations))
        return nn.Dense(self.dim, name="features")(activations)
