"""A round: what it is equal to, whatever clients, devices and chunks there are."""

import chex
import jax
import numpy as np
import optax
import pytest
from toy_federated import LOCAL_BATCH, ByHand, after_rounds, small_model, spread, trainer_of
from toy_training import NormalisedMLP, blobs, fit

from nc_jax.data import ClientArrays
from nc_jax.streams import Clients
from nc_jax.training import LoopOptions, StepOptions, Trainer

F32_SUMS = 2e-6  # sums over clients in another order, in float32
DATA = spread()
TEST = blobs(20, seed=1)


# --- One client with all examples is plain training. ---


def noisy(key, inputs):
    return inputs + 0.3 * jax.random.normal(key, inputs.shape)


PLAIN = {
    "sgd with augmentation": (optax.sgd(0.1), {}, StepOptions(augment=noisy), None),
    "momentum that is kept": (optax.sgd(0.1, 0.9), {"keep_optimizer": True}, StepOptions(), None),
    "cosine": (optax.sgd(optax.cosine_decay_schedule(0.1, 6)), {}, StepOptions(), None),
    "kept adam, cosine, batch normalisation": (
        optax.adam(optax.cosine_decay_schedule(0.1, 6)),
        {"keep_optimizer": True},
        StepOptions(accumulate=2),
        NormalisedMLP(),
    ),
}


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", PLAIN)
def test_one_client_with_all_examples_trains_as_without_federation_bit_for_bit(name, resident, tmp_path):
    optimizer, rounds, step, backbone = PLAIN[name]
    model = small_model() if backbone is None else small_model(backbone=backbone)
    arrays = blobs(22)
    source = ClientArrays.of(arrays, np.zeros(22, int), 1)
    stream = Clients(source, local_batch=8, rounds=2)
    federated = trainer_of(stream, optimizer, model=model, step=step, resident=resident, **rounds)
    options = LoopOptions(epochs=2, batch_size=8, checkpoint_every=1, resident=resident, devices=1)
    plain = Trainer(model, optimizer, options, step=step)
    found = fit(federated, source, TEST, tmp_path / "federated", stream=stream).state
    expected = fit(plain, arrays, TEST, tmp_path / "plain").state
    chex.assert_trees_all_equal(*(jax.device_get((one.params, one.variables)) for one in (found, expected)))


# --- Federated averaging against a loop of Python. ---

OPTIMIZER = optax.sgd(0.2, 0.9)
STREAM = Clients(DATA, LOCAL_BATCH, rounds=2, local_epochs=2)


@pytest.fixture(scope="module")
def by_hand():
    return ByHand(small_model(), OPTIMIZER).rounds(STREAM)


@pytest.mark.parametrize("at_once", [None, 1, 2, 3])
def test_a_round_is_the_mean_of_clients_that_train_by_themselves(by_hand, at_once):
    found, _ = after_rounds(trainer_of(STREAM, OPTIMIZER, at_once=at_once), STREAM)
    chex.assert_trees_all_close(found.params, jax.device_get(by_hand.params), rtol=0, atol=F32_SUMS)
    assert int(found.step) == 2
