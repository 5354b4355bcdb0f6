"""A backbone and a head."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from nc_jax.heads import HeadOutput


class Classifier(nn.Module):
    """Network of a backbone, inputs -> features, and a head, features -> logits.

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
            labels: shape (N,); heads that learn from them need them in training, and ignore them else.
            train: whether this is a training step.
            mask: which rows are examples, shape (N,); the others are padding. None: all whose label is not negative.
        """
        if mask is None and labels is not None:
            mask = labels >= 0
        return self.classify(self.features(inputs, train=train, mask=mask), labels, train=train, mask=mask)

    def features(
        self, inputs: Num[Array, "batch ..."], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Return the backbone's features, (N, d). Padding does not enter its batch statistics."""
        return self.backbone(inputs, train=train, mask=mask)

    def classify(
        self,
        features: Float[Array, "batch dim"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
    ) -> HeadOutput:
        """Classify features of the backbone."""
        return self.head(features, labels, train=train, mask=mask)._replace(raw_features=features)
