"""Steps of a nearest head on a few Gaussian batches, for the tests of heads in models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

K, DIM, N = 4, 6, 24
KEY = jax.random.key(0)


def batch(seed, *, absent=(), padding=0):
    """Features and labels of Gaussian classes; some classes may be absent, and the last labels padding (-1)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize([k for k in range(K) if k not in absent], N))
    centres = np.random.default_rng(99).normal(size=(K, DIM))
    features = 0.5 + centres[labels] + 0.5 * rng.normal(size=(N, DIM))
    labels[N - padding :] = -1
    return features.astype(np.float32), labels.astype(np.int32)


@partial(jax.jit, static_argnums=0)
def train(head, variables, features, labels):
    """One training step of a head: its output and its variables afterwards."""
    return head.apply(variables, features, labels, train=True, mutable=["nearest"])


@partial(jax.jit, static_argnums=0)
def evaluate(head, variables, features):
    return head.apply(variables, features)


@partial(jax.jit, static_argnums=0)
def value_and_gradient(head, variables, features, labels):
    """Cross-entropy of a training step, summed, and its gradient in the features."""

    def loss(features):
        logits = head.apply(variables, features, labels, train=True, mutable=["nearest"])[0].logits
        return cross_entropy(logits, labels)

    return jax.value_and_grad(loss)(features)


def cross_entropy(logits, labels):
    return -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, K))


def init(head, key=KEY):
    return head.init(key, jnp.zeros((1, DIM)))


def run(head, batches):
    """Train over batches; return the last output and variables."""
    variables = init(head)
    for features, labels in batches:
        output, variables = train(head, variables, features, labels)
    return output, variables


def scaled(features, radius=5.0):
    return radius * features / np.linalg.norm(features, axis=1, keepdims=True)


# The first batch has every class: without one the first rotation is not unique (the centred means of the others span
# one dimension less than the template). The second lacks a class, the third another one, and ends with padding.
BATCHES = [batch(1), batch(2, absent=[0]), batch(3, absent=[3], padding=5)]
