"""Arc-mixup: pairs of examples of two different classes, drawn class by class, on the arc between them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from nc_jax.data import Batch, Partner
from nc_jax.data.batch import rows_with
from nc_jax.losses import arc_weights
from nc_jax.training.extension import Context, Extension


@dataclass(frozen=True)
class ArcMixup(Extension):
    r"""Replaces each example by a mixture :math:`\lambda x_a + \sqrt{1 - \lambda^2}\, x_b` of two classes.

    For the whole batch, one :math:`u \sim \text{Beta}(\alpha, \alpha)` is drawn, and :math:`\lambda = \sin(\pi u / 2)`.
    For each example, a class is drawn uniformly among the classes in the batch, and an example of it (a); then one of
    the *other* classes, and an example of it (b). So the classes of a mixture always differ, and rare classes of the
    batch are drawn as often as frequent ones. A batch of a single class stays as it is.

    The classes of a and b go to `batch.labels` and `batch.partner`, with both weights. Padding is neither drawn nor
    changed. The result does not depend on the number of devices.

    The two weights sum to more than 1, as the released program has it. Losses that take the weighted sum over the two
    classes are scaled by as much; `nc_jax.losses.arc_log_loss` takes the mixture itself.

    Attributes:
        alpha: :math:`\alpha > 0`. The default is for CIFAR; 5 for ImageNet-LT, 0.2 for Places-LT.

    Raises:
        ValueError: if alpha is not positive.

    Reference: Kim and Kim, Fixed non-negative orthogonal classifier (FNO, 2024), for the mixture; their released
    program for the drawing of pairs.
    """

    alpha: float = 1.0  # Kim and Kim (2024), released program, CIFAR-10 and CIFAR-100

    def __post_init__(self):
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive; got {self.alpha}")

    def on_batch(self, context: Context, state: Any, batch: Batch) -> Batch:
        """Mix the inputs; the row of an example keeps its place and its mask."""
        del state
        assert context.key is not None and context.places is not None, "the step has drawn them"  # noqa: PT018
        labels, used = context.everyone(batch.labels), context.everyone(batch.mask)
        rows = len(labels)
        draw, pairing = jax.random.split(context.key)
        # Parts of a batch (`accumulate`) share u, but not their pairs.
        pairs = class_balanced_pairs(jax.random.fold_in(pairing, context.places[0] // rows), labels, used)
        first, second = (chosen[context.places % rows] for chosen in pairs)
        mixed = batch.mask & (labels[first] != labels[second])

        def taken(part: Array, chosen: Int[Array, " batch"]) -> Array:
            return jnp.where(rows_with(mixed, part), context.everyone(part)[chosen], part)

        own, other = arc_weights(jax.random.beta(draw, self.alpha, self.alpha))
        own, other = jnp.where(mixed, own, 1), jnp.where(mixed, other, 0)
        drawn = jax.tree.map(lambda part: taken(part, first), batch)
        inputs = sum(
            rows_with(weight, part).astype(part.dtype) * part
            for weight, part in ((own, drawn.inputs), (other, taken(batch.inputs, second)))
        )
        return drawn._replace(inputs=inputs, partner=Partner(taken(batch.labels, second), own, other))


def class_balanced_pairs(
    key: PRNGKeyArray, labels: Int[Array, " batch"], used: Bool[Array, " batch"]
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """Draw pairs of examples of two different classes, each class of the batch with the same probability.

    Args:
        key: random key.
        labels: classes, integers of shape (N,).
        used: True for examples, False for padding, shape (N,).

    Returns:
        Row numbers of the first and of the second examples, with replacement, each of shape (N,). Both are those of the
        rows themselves, 0..N-1, if fewer than two classes are there.

    Reference: Kim and Kim (2024), released program (get_indices_balancely).
    """
    rows = jnp.arange(len(labels))
    order = jnp.lexsort((labels, ~used))  # examples by class, then padding
    sorted_labels, sorted_used = labels[order], used[order]
    begins = sorted_used & jnp.concatenate([jnp.ones(1, bool), sorted_labels[1:] != sorted_labels[:-1]])
    # Classes of the batch, numbered from 0 on: how many, their sizes, and where they begin in `order`.
    number = jnp.cumsum(begins) - 1
    classes = jnp.sum(begins)
    sizes = jnp.bincount(jnp.where(sorted_used, number, len(rows)), length=len(rows))
    starts = jnp.cumsum(sizes) - sizes
    of_class, of_step, of_first, of_second = jax.random.split(key, 4)
    one = jax.random.randint(of_class, rows.shape, 0, jnp.maximum(classes, 1))
    another = (one + jax.random.randint(of_step, rows.shape, 1, jnp.maximum(classes, 2))) % jnp.maximum(classes, 1)

    def example(key: PRNGKeyArray, chosen: Int[Array, " batch"]) -> Int[Array, " batch"]:
        place = starts[chosen] + jax.random.randint(key, rows.shape, 0, jnp.maximum(sizes[chosen], 1))
        return jnp.where(classes > 1, order[place], rows)

    return example(of_first, one), example(of_second, another)
