"""FedGELA's local class vectors in a step and in evaluation."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_federated import small_model
from toy_training import NUM_CLASSES, blobs

from nc_jax import heads, losses
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.models import HeadModule
from nc_jax.training import Client, Context, StepOptions, create_state, make_train_step
from nc_jax.training.extensions import LocalLengths

F32 = 2e-6  # of logits of size 10
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fedgela.json").read_text())
LOCAL = GOLDEN["local_loss"]
COUNTS = [np.bincount(labels, minlength=4) for labels in GOLDEN["Phi_K4"]["client_labels"]]
FEATURES, FRAME = (jnp.asarray(rows, jnp.float32) for rows in (LOCAL["H"], GOLDEN["get_etf_d6_K4_npseed0"]))
LABELS = jnp.asarray(LOCAL["labels"])
BATCH = Batch.of(FEATURES, LABELS)


def output_at(temperature: float = 1.0, bias=None) -> HeadOutput:
    bias = jnp.zeros(4) if bias is None else bias
    features = FEATURES / temperature
    return HeadOutput(features @ FRAME + bias, features, FRAME, bias)


def scaled(output, counts=COUNTS[0], *, train=True, **options) -> HeadOutput:
    client = None if counts is None else Client(jnp.int32(0), jnp.asarray(counts, jnp.int32))
    return LocalLengths(**options).on_output(Context(jnp.int32(0), train=train, client=client), None, output, BATCH)


def test_logits_are_those_of_the_released_program():
    found = scaled(output_at())
    np.testing.assert_allclose(found.logits, LOCAL["logits_client0_T1"], atol=F32)
    np.testing.assert_allclose(found.frame, FRAME * np.array(GOLDEN["Phi_K4"]["Phi=C*n_kc/n_k"][0]), atol=F32)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_loss_is_that_of_the_released_program(temperature):
    for counts, name in ((COUNTS[0], "client0"), (None, "global(Phi=1)")):
        output = scaled(output_at(temperature), counts, train=False)
        loss = jnp.mean(losses.cross_entropy(output.logits, LABELS))
        np.testing.assert_allclose(loss, LOCAL[f"CE_T{temperature}_{name}"], rtol=F32)


def test_a_missing_class_can_win_unless_it_is_masked():
    decisions = [jnp.argmax(scaled(output_at(), mask_missing=mask).logits, axis=1) for mask in (False, True)]
    assert decisions[0].tolist() == LOCAL["argmax_unmasked"]
    assert decisions[1].tolist() == LOCAL["argmax_masked_to_existing_classes"]


def test_the_servers_model_and_a_balanced_client_have_the_shared_frame_to_the_last_bit():
    plain = output_at(bias=jnp.arange(4.0))
    assert scaled(plain, None, train=False) is plain
    found = scaled(output_at(), COUNTS[2])
    np.testing.assert_array_equal(found.logits, output_at().logits)
    np.testing.assert_array_equal(found.frame, FRAME)


def test_a_bias_is_not_scaled():
    bias = jnp.arange(4.0)
    found = scaled(output_at(bias=bias))
    np.testing.assert_allclose(found.logits, np.array(LOCAL["logits_client0_T1"]) + bias, atol=10 * F32)


def test_a_plain_step_is_refused():
    model = small_model(HeadModule(heads.fixed(NUM_CLASSES)))
    train, extensions = blobs(4), (LocalLengths(),)
    state = create_state(model, optax.sgd(0.1), jax.random.key(0), train.inputs[:1], extensions=extensions)
    step = make_train_step(model, optax.sgd(0.1), options=StepOptions(extensions=extensions))
    with pytest.raises(ValueError, match="lengths of local class vectors need a step of a client; got one without"):
        jax.eval_shape(step, state, Batch.of(train.inputs, train.labels.astype(np.int32)))
