"""The fixed non-negative orthogonal classifier (FNO): every class owns features of its own.

The features should be non-negative, as after a ReLU: `--backbone.neck relu` makes those of any network so.
"""

import jax
import jax.numpy as jnp

from nc_jax import heads, losses
from nc_jax.collective import all_sum
from nc_jax.data import Batch, Partner
from nc_jax.frames import nonnegative_orthogonal
from nc_jax.heads import Head
from nc_jax.methods.method import Method, Setting
from nc_jax.training import Loss, Mixup, PairLoss


def _fixed(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, frame=nonnegative_orthogonal)


def _weighted(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, frame=nonnegative_orthogonal, learn_scale=True)


def arc_log(setting: Setting, *, mask: bool = True) -> Loss:
    """Log loss of arc-mixup, of features without those of the classes that the batch lacks.

    The classes of a batch, on all devices and in all of its parts together, are those of its examples and of their
    partners. An example without a partner is pulled to the vector of its class alone. Evaluation uses all features.

    Args:
        setting: gives the number of classes.
        mask: leave out the features of the classes that the batch lacks.

    Reference: Kim and Kim, Fixed non-negative orthogonal classifier (FNO, 2024), and its released program.
    """

    def loss(output, batch, context):
        partner, features = _partner(batch), output.features
        if mask:
            present = _present(context.whole, setting.num_classes)
            features = jnp.where(losses.features_of_classes(output.frame, present)[None], features, 0)
        return losses.arc_log_loss(features, output.frame, batch.labels, partner.labels, partner.weights())

    return PairLoss(loss)


def _partner(batch: Batch) -> Partner:
    return batch.partner or Partner(batch.labels, jnp.ones(len(batch.labels)))


def _present(batch: Batch, num_classes: int) -> jax.Array:
    """Return which classes the examples of all devices have, shape (K,)."""
    rows = jnp.stack([jnp.where(batch.mask, labels, num_classes) for labels in (batch.labels, _partner(batch).labels)])
    return all_sum(jnp.zeros(num_classes, jnp.int32).at[rows].add(1, mode="drop")) > 0


_PAPER = "Kim and Kim (2024), Fixed non-negative orthogonal classifier"
METHODS = {
    "fno": Method("FNO", _fixed, reference=_PAPER),
    "fno-weighted": Method("FNO, weighted", _weighted, reference=f"{_PAPER}, weighted softmax"),
    "fno-arc": Method(
        "FNO, arc-mixup",
        _fixed,
        arc_log,
        extensions=lambda setting: (Mixup(setting.tail.mixup, curve="arc", pairs="balanced"),),
        reference=f"{_PAPER}, arc-mixup, and its released program",
    ),
}
