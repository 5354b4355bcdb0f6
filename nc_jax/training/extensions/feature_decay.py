"""Weight decay on the features of the backbone, with a choice of how it is summed over examples."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32
from nc_jax.checks import check_at_least
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training.extension import Context, Extension

Reduction = Literal["mean", "sum", "dataset"]


@dataclass(frozen=True)
class FeatureDecay(Extension):
    r"""Penalty on the raw features :math:`h_i` of a batch of B examples, added to its mean cross-entropy.

    .. math::
        \frac{\lambda_H}{2} \, s \sum_{i=1}^{B} \|h_i\|^2, \qquad
        s = \tfrac1B \text{ ("mean")}, \quad 1 \text{ ("sum")}, \quad \tfrac NB \text{ ("dataset")}

    Here N is the number of training examples. "dataset" estimates the sum over the training set, which is the penalty
    of `nc_jax.theory`; if the batch holds all N examples, the two are equal. With "sum", the effect of the weight
    depends on the batch size.

    Raw features are the features before a head scales them. Scaled features have a constant length, so a penalty on
    their length has no gradient.

    Attributes:
        weight: :math:`\lambda_H > 0`.
        reduction: "mean", "sum" or "dataset": how to sum over the examples of a batch, on all devices together. Padding
            does not count.
        num_examples: number of training examples N, needed for "dataset"; None for "mean" and "sum".

    Raises:
        ValueError: if the weight is not positive and finite, if the reduction is unknown, or if `num_examples` is
            missing for "dataset" or given for another reduction.

    Reference: Zhu et al. (2021) for the sum over all examples. Their released program adds the "sum" over a batch of
    scaled features. The released program of Hong and Ling uses "dataset".
    """

    weight: float
    reduction: Reduction
    num_examples: int | None = None

    def __post_init__(self):
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of a feature decay must be positive and finite; got {self.weight}")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {self.reduction!r}")
        if (self.num_examples is not None) != (self.reduction == "dataset"):
            raise ValueError(
                'num_examples goes with the reduction "dataset", and only with it; '
                f"got num_examples={self.num_examples} and reduction={self.reduction!r}"
            )
        check_at_least("num_examples", self.num_examples, optional=True)

    @property
    def name(self) -> str:
        """Name of the extension, before a slash in the name of its penalty."""
        return "feature_decay"

    def penalties(
        self, context: Context, state: Any, output: HeadOutput, batch: Batch
    ) -> dict[str, Float[Array, " batch"]]:
        """Return the penalty of each example, such that its mean over the batch is the formula above.

        Raises:
            ValueError: if the output has no raw features.
        """
        del state, batch
        if output.raw_features is None:
            raise ValueError("feature decay needs raw features in the model's output, as Classifier gives; got None")
        squares = jnp.sum(at_least_float32(output.raw_features) ** 2, axis=1)
        # The step takes the mean over the B examples of the batch, which is what "mean" asks for.
        scale = {"mean": 1.0, "sum": context.count, "dataset": self.num_examples}[self.reduction]
        return {"penalty": self.weight / 2 * scale * squares}
