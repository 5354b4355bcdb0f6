"""A backbone and a head joined to one network."""

import flax.linen as nn
from jaxtyping import Array, Float, Num

from nc_jax.checks import Labels, Mask, checked_labels
from nc_jax.heads import HeadOutput
from nc_jax.models.layers import call_layer


class Classifier(nn.Module):
    """A network made of a backbone (inputs -> features) and a head (features -> logits).

    Attributes:
        backbone: module (inputs, train=..., mask=...) -> (N, d); the mask says which rows are examples. A module whose
            `__call__` has neither keyword, such as `nn.Dense`, is called with the inputs alone.
        head: module (features, labels, train=..., mask=...) -> HeadOutput, such as `NearestHead`.
    """

    backbone: nn.Module
    head: nn.Module

    def __call__(
        self,
        inputs: Num[Array, "batch ..."],
        labels: Labels | None = None,
        *,
        train: bool = False,
        mask: Mask | None = None,
    ) -> HeadOutput:
        """Classify a batch.

        Args:
            inputs: shape (N, ...).
            labels: integers of shape (N,), -1 for padding. Heads that learn from labels need them in training, together
                with `train`; evaluation does not use them.
            train: whether this is a training step.
            mask: True for examples, False for padding, shape (N,). None takes rows with the label -1 for padding, or
                none if there are no labels.

        Raises:
            ValueError: if the backbone takes only one of the keywords `train` and `mask`, or
                `nc_jax.heads.Head.apply` raises one.
        """
        if mask is None and labels is not None:
            mask = checked_labels(labels) >= 0
        return self.classify(self.features(inputs, train=train, mask=mask), labels, train=train, mask=mask)

    def features(
        self, inputs: Num[Array, "batch ..."], *, train: bool = False, mask: Mask | None = None
    ) -> Float[Array, "batch dim"]:
        """Return the backbone's features, (N, d). Padding does not count in the batch statistics."""
        return call_layer(self.backbone, inputs, train=train, mask=mask)

    def classify(
        self,
        features: Float[Array, "batch dim"],
        labels: Labels | None = None,
        *,
        train: bool = False,
        mask: Mask | None = None,
    ) -> HeadOutput:
        """Classify features (N, d) of the backbone."""
        return self.head(features, labels, train=train, mask=mask)._replace(raw_features=features)
