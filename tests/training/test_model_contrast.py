"""MOON's penalty: its value, what its gradient reaches, and what it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_federated import small_model
from toy_training import NUM_CLASSES, blobs

from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training import Client, Context
from nc_jax.training.extensions import ModelContrast
from nc_jax.training.state import forward

F32 = 1e-6
TRAIN = blobs(8)
BATCH = Batch.of(jnp.asarray(TRAIN.inputs), jnp.asarray(TRAIN.labels, jnp.int32))
MODEL = small_model()
OWN, RECEIVED, PREVIOUS = (MODEL.init(jax.random.key(seed), BATCH.inputs[:1])["params"] for seed in range(3))


def output_of(params, variables, batch):
    return forward(MODEL, params, variables, batch, train=False)[0]


def penalty(params, received, previous, **options) -> jax.Array:
    client = Client(jnp.int32(1), jnp.ones(NUM_CLASSES, jnp.int32), (received, {}), (previous, {}))
    context = Context(jnp.int32(0), train=True, client=client, apply=output_of)
    found = ModelContrast(**options).penalties(context, None, output_of(params, {}, BATCH), BATCH)
    return found["contrast"]


@pytest.mark.slow
def test_the_penalty_is_that_of_the_equation_for_each_example():
    own, received, previous = (
        np.asarray(output_of(params, {}, BATCH).features, float) for params in (OWN, RECEIVED, PREVIOUS)
    )

    def cosine(one, other):
        return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)

    positive, negative = np.exp(cosine(own, received) / 0.3), np.exp(cosine(own, previous) / 0.3)
    expected = -2.0 * np.log(positive / (positive + negative))
    found = penalty(OWN, RECEIVED, PREVIOUS, weight=2.0, temperature=0.3)
    assert found.shape == (len(TRAIN),)
    np.testing.assert_allclose(found, expected, atol=10 * F32)


@pytest.mark.slow
def test_the_gradient_reaches_the_clients_features_only():
    gradients = jax.grad(lambda *params: jnp.sum(penalty(*params)), argnums=(0, 1, 2))(OWN, RECEIVED, PREVIOUS)
    for of_others in gradients[1:]:
        chex.assert_trees_all_equal(of_others, jax.tree.map(jnp.zeros_like, of_others))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0]["backbone"])) > 1e-3
    chex.assert_trees_all_equal(gradients[0]["head"], jax.tree.map(jnp.zeros_like, gradients[0]["head"]))


@pytest.mark.slow
def test_two_equal_models_pull_nowhere_and_zero_features_are_finite():
    value, gradient = jax.value_and_grad(lambda params: jnp.sum(penalty(params, RECEIVED, RECEIVED)))(OWN)
    np.testing.assert_allclose(value, len(TRAIN) * np.log(2), rtol=F32)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < F32
    dead = jax.tree.map(jnp.zeros_like, OWN)
    chex.assert_tree_all_finite(jax.grad(lambda params: jnp.sum(penalty(params, RECEIVED, dead)))(dead))


@pytest.mark.parametrize("client", [None, Client(jnp.int32(0), jnp.ones(NUM_CLASSES, jnp.int32))], ids=["none", "new"])
def test_a_client_that_remembers_nothing_is_refused(client):
    empty = jnp.zeros((2, 3))
    output = HeadOutput(empty, empty, jnp.zeros((3, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"a contrast of models needs clients that remember theirs .* got none"):
        ModelContrast().penalties(Context(jnp.int32(0), train=True, client=client), None, output, BATCH)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"temperature": 0.0}, {"weight": float("inf")}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="weight must be at least 0 and temperature positive, both finite; got"):
        ModelContrast(**options)
