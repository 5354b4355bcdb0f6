"""The methods with a non-negative orthogonal frame: their heads, and arc-mixup's loss with the mask of a batch."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import collective
from nc_jax.data import Batch, Partner
from nc_jax.frames import owner
from nc_jax.heads import HeadOutput
from nc_jax.losses import arc_weights
from nc_jax.methods import METHODS, Setting
from nc_jax.training import Context, Mixup

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["fno"]
CONTEXT = Context(jnp.zeros((), jnp.int32), train=True)
CASE = GOLDEN["arc_mixup_masked_loss"]
FRAME = jnp.asarray(CASE["Q"]).T
LOSS = METHODS["fno-arc"].loss(Setting(num_classes=4))


@jax.jit
def loss_of(output, batch):
    return LOSS(output, batch, CONTEXT._replace(whole=batch))


def output_of(features):
    features = jnp.asarray(features)
    return HeadOutput(features @ FRAME, features, FRAME, jnp.zeros(4))


def batch_of(labels, partners, share=0.25):
    own, other = (jnp.full(len(labels), weight) for weight in arc_weights(share))
    batch = Batch.of(jnp.zeros((len(labels), 1)), jnp.asarray(labels))
    return batch._replace(partner=Partner(jnp.asarray(partners), own, other))


@pytest.mark.parametrize(("name", "params"), [("fno", set()), ("fno-weighted", {"scale"}), ("fno-arc", set())])
def test_heads_have_disjoint_class_vectors_and_no_bias(name, params):
    found, state = METHODS[name].head(Setting(num_classes=4)).init(jax.random.key(0), 10)
    assert set(found) == params
    assert sorted(np.bincount(owner(state["frame"]))) == [2, 2, 3, 3]
    assert [type(one) for one in METHODS[name].extensions(Setting(num_classes=4))] == [Mixup] * (name == "fno-arc")


def test_the_loss_of_arc_mixup_is_the_released_programs():
    found = loss_of(output_of(CASE["H_raw"]), batch_of([0, 2], [2, 0]))
    np.testing.assert_allclose(jnp.mean(found), CASE["loss"], atol=1e-6)
    np.testing.assert_allclose(jnp.exp(-found), CASE["prob"], atol=1e-6)


def test_padding_adds_no_class_to_the_mask():
    batch = batch_of([0, 2, 1], [2, 0, 3])._replace(mask=jnp.array([True, True, False]))
    found = loss_of(output_of([*CASE["H_raw"], np.ones(10)]), batch)
    np.testing.assert_allclose(jnp.exp(-found[:2]), CASE["prob"], atol=1e-6)


@pytest.mark.slow
def test_the_mask_has_the_classes_of_all_devices():
    features = jnp.abs(jax.random.normal(jax.random.key(0), (4, 10)))
    labels, partners = jnp.array([0, 0, 1, 1]), jnp.array([1, 1, 3, 3])
    whole = loss_of(output_of(features), batch_of(labels, partners))

    def on_a_device(*share):
        with collective.over("devices"):
            rows, *classes = share
            return loss_of(output_of(rows), batch_of(*classes))

    shares = (part.reshape(2, 2, *part.shape[1:]) for part in (features, labels, partners))
    together = jax.jit(jax.vmap(on_a_device, axis_name="devices"))(*shares).ravel()
    np.testing.assert_allclose(together, whole, rtol=1e-6)
    alone = loss_of(output_of(features[:2]), batch_of(labels[:2], partners[:2]))
    assert np.all(alone < whole[:2])  # fewer classes, so less of a feature counts as another class's


def test_an_example_without_a_partner_is_pulled_to_its_class():
    batch = Batch.of(jnp.zeros((4, 1)), jnp.arange(4))
    np.testing.assert_allclose(loss_of(output_of(3 * FRAME.T), batch), 0, atol=1e-6)
