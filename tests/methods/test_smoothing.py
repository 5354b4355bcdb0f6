"""Label smoothing is cross-entropy with smoothed one-hot labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.methods import METHODS, Setting
from nc_jax.methods.smoothing import SMOOTHING
from nc_jax.training import Context


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    logits, labels = jax.random.normal(jax.random.key(0), (6, 4)), jnp.arange(6) % 4
    output = HeadOutput(logits, jnp.zeros((6, 2)), jnp.zeros((2, 4)), jnp.zeros(4))
    loss = METHODS["random"].loss(Setting(num_classes=4))
    found = loss(output, Batch.of(jnp.zeros((6, 1)), labels), Context(jnp.zeros((), jnp.int32), train=True))
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, 4), SMOOTHING)
    np.testing.assert_allclose(found, optax.safe_softmax_cross_entropy(logits, smoothed), rtol=1e-5)
