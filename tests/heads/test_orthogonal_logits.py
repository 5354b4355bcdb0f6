"""Logits of a fixed head with many orthogonal class vectors: sums over each class's own features, on a CPU."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import fit

from nc_jax import heads
from nc_jax.data import LabelledArrays
from nc_jax.frames import nonnegative_orthogonal, owner
from nc_jax.heads.fixed import CLASSES_FOR_SUMS
from nc_jax.losses import cross_entropy
from nc_jax.models import MLP, Classifier, HeadModule, WithNeck
from nc_jax.training import LoopOptions, Trainer, load_run

KEY, N = jax.random.key(0), 16


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [5, CLASSES_FOR_SUMS])
def test_logits_and_gradients_are_those_of_the_product(num_classes):
    dim = 2 * num_classes + num_classes // 3  # so that some classes own one feature more
    head = heads.fixed(num_classes, frame=nonnegative_orthogonal, learn_scale=True)
    with jax.enable_x64(True):
        _, state = head.init(KEY, dim, jnp.float64)
        features = jax.nn.relu(jax.random.normal(jax.random.key(1), (N, dim), jnp.float64))
        params, labels = {"scale": jnp.asarray(1.7)}, jnp.arange(N) % num_classes

        def by_product(params, features):
            return jnp.mean(cross_entropy(params["scale"] * (features @ state["frame"]), labels))

        def by_head(params, features):
            return jnp.mean(cross_entropy(head.apply(params, state, features)[0].logits, labels))

        lowered, expected = (
            jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, features) for loss in (by_head, by_product)
        )
        # Where sums are faster, the features are nowhere multiplied by the whole frame.
        assert ("dot_general" in lowered.as_text()) == (num_classes < CLASSES_FOR_SUMS)
        found, expected = (one.compile()(params, features) for one in (lowered, expected))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), found, expected)


def test_the_state_has_the_owner_of_each_feature():
    head = heads.fixed(5, frame=nonnegative_orthogonal)
    state = compiled_init(head)
    np.testing.assert_array_equal(state["owner"], owner(state["frame"]))
    assert state["owner"].dtype == jnp.int32
    assert set(compiled_init(heads.fixed(5))) == {"frame"}


def compiled_init(head):
    return jax.jit(lambda key: head.init(key, 11)[1])(KEY)


@pytest.mark.slow
def test_eight_devices_train_as_one_and_the_run_is_read_back(tmp_path):
    labels = np.arange(2 * CLASSES_FOR_SUMS) % CLASSES_FOR_SUMS
    inputs = np.random.default_rng(0).normal(size=(len(labels), 6)).astype(np.float32)
    examples = LabelledArrays(inputs, labels, CLASSES_FOR_SUMS)
    head = heads.fixed(CLASSES_FOR_SUMS, frame=nonnegative_orthogonal, learn_scale=True)
    model = Classifier(WithNeck(MLP((), 250), (jax.nn.relu,)), HeadModule(head))
    trained = {}
    for devices in (1, 8):
        options = LoopOptions(epochs=2, batch_size=80, checkpoint_every=1, devices=devices)
        trainer = Trainer(model, optax.sgd(0.1), options)
        trained[devices] = fit(trainer, examples, examples, tmp_path / str(devices))
    logits = load_run(tmp_path / "8").outputs(inputs)["logits"]
    expected = np.concatenate([output.logits for output, _ in trainer.outputs(trained[8].state, examples)])
    np.testing.assert_allclose(logits, expected[: len(labels)], atol=1e-5)
    one, eight = (trained[devices].state for devices in (1, 8))
    chex.assert_trees_all_equal(one.variables, eight.variables)
    chex.assert_trees_all_close(one.params, eight.params, atol=1e-5)
