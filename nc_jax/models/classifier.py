"""A backbone and a head."""

import flax.linen as nn
from jaxtyping import Array, Int, Num

from nc_jax.models.heads import HeadOutput


class Classifier(nn.Module):
    """Network of a backbone, inputs -> features, and a head, features -> logits.

    Attributes:
        backbone: module (inputs, train=..., mask=...) -> (N, d); the mask says which rows are examples.
        head: module (features, labels, train=...) -> HeadOutput.
    """

    backbone: nn.Module
    head: nn.Module

    def __call__(
        self, inputs: Num[Array, "batch ..."], labels: Int[Array, " batch"] | None = None, *, train: bool = False
    ) -> HeadOutput:
        """Classify a batch; heads that need labels need them in training only."""
        mask = None if labels is None else labels >= 0  # padding must not enter a backbone's batch statistics
        features = self.backbone(inputs, train=train, mask=mask)
        return self.head(features, labels, train=train)._replace(raw_features=features)
