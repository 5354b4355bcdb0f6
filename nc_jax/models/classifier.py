"""A backbone and a head joined to one network."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from nc_jax.heads import HeadOutput


class Classifier(nn.Module):
    """A network made of a backbone (inputs -> features) and a head (features -> logits).

    Attributes:
        backbone: module (inputs, train=..., mask=...) -> (N, d); the mask says which rows are examples.
        head: module (features, labels, train=..., mask=...) -> HeadOutput, such as `NearestHead`.
    """

    backbone: nn.Module
    head: nn.Module

    def __call__(
        self,
        inputs: Num[Array, "batch ..."],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
    ) -> HeadOutput:
        """Classify a batch.

        Args:
            inputs: shape (N, ...).
            labels: shape (N,), negative for padding. Heads that learn from labels need them in training; evaluation
                does not use them.
            train: whether this is a training step.
            mask: True for examples, False for padding, shape (N,). None takes rows with a negative label for padding,
                or none if there are no labels.
        """
        if mask is None and labels is not None:
            mask = labels >= 0
        return self.classify(self.features(inputs, train=train, mask=mask), labels, train=train, mask=mask)

    def features(
        self, inputs: Num[Array, "batch ..."], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Return the backbone's features, (N, d). Padding does not count in the batch statistics."""
        return self.backbone(inputs, train=train, mask=mask)

    def classify(
        self,
        features: Float[Array, "batch dim"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
    ) -> HeadOutput:
        """Classify features (N, d) of the backbone."""
        return self.head(features, labels, train=train, mask=mask)._replace(raw_features=features)
