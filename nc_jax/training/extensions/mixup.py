"""Mixup: each example is replaced by a mixture of two, on the line or on the arc between them."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nc_jax.data import Batch, Partner
from nc_jax.data.batch import rows_with
from nc_jax.losses import arc_weights
from nc_jax.training.extension import Context, Extension

Curve = Literal["line", "arc"]
Pairs = Literal["shuffled", "balanced"]


@dataclass(frozen=True)
class Mixup(Extension):
    r"""Replaces each example by a mixture :math:`\lambda x_a + \mu x_b` of two examples of the batch.

    For the whole batch, one :math:`u \sim \text{Beta}(\alpha, \alpha)` is drawn. On the line (mixup), the weights are
    :math:`\lambda = u, \mu = 1 - u`. On the arc (arc-mixup), they are :math:`\lambda = \sin(\pi u / 2)` and
    :math:`\mu = \cos(\pi u / 2)`, which sum to more than 1; the mixture of two orthogonal class vectors of unit length
    then has unit length, too. Two examples of one class have no arc between them: they get
    :math:`\lambda / (\lambda + \mu)` and :math:`\mu / (\lambda + \mu)`.

    - Shuffled pairs: every example (a) is mixed with the one (b) that a random order of the batch puts in its place.
    - Balanced pairs: a class is drawn uniformly among the classes in the batch, and an example of it (a); then one of
      the *other* classes, and an example of it (b). So the classes of a mixture always differ, and rare classes of the
      batch are drawn as often as frequent ones. A batch of a single class stays as it is.

    The classes of a and b go to `batch.labels` and `batch.partner`, with both weights. The step takes the sum of the
    losses with the two classes in these weights; a `nc_jax.training.PairLoss`, such as `nc_jax.losses.arc_log_loss`,
    takes the mixture itself. Padding is neither drawn nor changed. The result depends neither on the number of devices
    nor on the number of parts of a batch.

    Attributes:
        alpha: :math:`\alpha > 0`. The default is for CIFAR. For ImageNet-LT and Places-LT, mixup takes 0.2, and
            arc-mixup 5 and 0.2.
        curve: "line" or "arc".
        pairs: "shuffled" or "balanced".

    Raises:
        ValueError: if alpha is not positive, or there is no such curve or kind of pairs.

    Reference: Zhang et al., mixup: beyond empirical risk minimization (2018); for the arc Kim and Kim, Fixed
    non-negative orthogonal classifier (FNO, 2024), and their released program for the balanced pairs.
    """

    alpha: float = 1.0  # Kim and Kim (2024), released program, CIFAR-10 and CIFAR-100, for the line and for the arc
    curve: Curve = "line"
    pairs: Pairs = "shuffled"

    def __post_init__(self):
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive; got {self.alpha}")
        for name, kind in (("curve", Curve), ("pairs", Pairs)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")

    def on_batch(self, context: Context, state: Any, batch: Batch) -> Batch:
        """Mix the inputs; the row of an example keeps its place and its mask."""
        del state
        assert context.key is not None and context.places is not None, "the step has drawn them"  # noqa: PT018
        labels, used = context.everyone(batch.labels), context.everyone(batch.mask)
        draw, pairing = jax.random.split(context.key)
        if self.pairs == "balanced":
            chosen = class_balanced_pairs(jax.random.fold_in(pairing, 0), labels, used)
        else:
            chosen = shuffled_pairs(jax.random.fold_in(pairing, 1), used)
        first, second = (rows[context.places] for rows in chosen)
        # Balanced pairs have two classes, unless the batch has one only: then a row is paired with itself.
        mixed = batch.mask & (first != second)
        same = labels[first] == labels[second]

        def taken(part: Array, chosen: Int[Array, " batch"]) -> Array:
            return jnp.where(rows_with(mixed, part), context.everyone(part)[chosen], part)

        own, other = self._weights(jax.random.beta(draw, self.alpha, self.alpha), same)
        own, other = jnp.where(mixed, own, 1), jnp.where(mixed, other, 0)
        drawn = jax.tree.map(lambda part: taken(part, first), batch)
        inputs = sum(
            rows_with(weight, part).astype(part.dtype) * part
            for weight, part in ((own, drawn.inputs), (other, taken(batch.inputs, second)))
        )
        return drawn._replace(inputs=inputs, partner=Partner(taken(batch.labels, second), own, other))

    def _weights(self, share: Float[Array, ""], same: Bool[Array, " batch"]) -> tuple[Array, Array]:
        """Return the weights of the first and of the second examples, each of shape (N,)."""
        own, other = (share, 1 - share) if self.curve == "line" else arc_weights(share)
        total = jnp.where(same, own + other, 1)
        return own / total, other / total


def shuffled_pairs(key: PRNGKeyArray, used: Bool[Array, " batch"]) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """Pair every example with one of a random order of the examples.

    Args:
        key: random key.
        used: True for examples, False for padding, shape (N,).

    Returns:
        Row numbers of the first and of the second examples, each of shape (N,); padding is paired with itself.
    """
    rows = jnp.arange(len(used))
    order = jnp.lexsort((jax.random.uniform(key, used.shape), ~used))  # examples in a random order, then padding
    place = jnp.cumsum(used) - 1
    return rows, jnp.where(used, order[jnp.maximum(place, 0)], rows)


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
