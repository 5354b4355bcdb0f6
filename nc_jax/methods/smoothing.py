"""Fixed random class vectors with label smoothing: a control that fixes the frame but has no special geometry."""

import jax
import jax.numpy as jnp

from nc_jax import heads, losses
from nc_jax.frames import random_unit
from nc_jax.methods.method import Method, Setting
from nc_jax.training import Loss

SMOOTHING = 0.1  # Szegedy et al. (2016), section 7


def label_smoothing(_: Setting) -> Loss:
    r"""Cross-entropy with the label's probability spread over all classes.

    .. math:: \ell(z, y) = -(1 - \epsilon) \log p_y - \tfrac{\epsilon}{K} \sum_k \log p_k,
        \qquad p = \operatorname{softmax}(z)

    for logits z, label y, K classes and :math:`\epsilon` = `SMOOTHING`.

    Reference: Szegedy et al., Rethinking the inception architecture (2016), section 7.
    """

    def loss(output, batch, _):
        log_probabilities = jax.nn.log_softmax(output.logits)
        own = losses.cross_entropy(output.logits, batch.labels)
        return (1 - SMOOTHING) * own - SMOOTHING * jnp.mean(log_probabilities, axis=1)

    return loss


METHODS = {
    "random": Method(
        "random, smoothed",
        lambda setting: heads.fixed(setting.num_classes, frame=random_unit, radius=setting.head.radius),
        label_smoothing,
    ),
}
