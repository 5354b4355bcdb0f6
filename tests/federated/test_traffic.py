"""Bytes of a round, counted by hand."""

import optax
import pytest
from toy_federated import LOCAL_BATCH, small_model, spread, trainer_of
from toy_training import NUM_CLASSES, NormalisedMLP

from nc_jax import heads
from nc_jax.federated import Federation, traffic
from nc_jax.models import HeadModule
from nc_jax.streams import Clients

DATA = spread()
STREAM = Clients(DATA, LOCAL_BATCH, rounds=1)
BODY = 6 * 8 + 8 + 8 * 6 + 6  # two layers: 6 inputs, 8 hidden units, 6 features
HEAD = 6 * NUM_CLASSES + NUM_CLASSES
FRAME, MEAN, SEEN = 6 * NUM_CLASSES, 6, NUM_CLASSES
NORMALISED = 6 * 8 + 8 + 8 + 8  # a layer, and the scales and biases of its normalisation
POOLED = heads.pooled(NUM_CLASSES)
CASES = {
    "fedavg": ({}, None, BODY + HEAD, BODY + HEAD),
    "scaffold": ({"federation": Federation(controlled=True)}, None, 2 * (BODY + HEAD), 2 * (BODY + HEAD)),
    "fedper": ({"federation": Federation(personal=("head",))}, None, BODY, BODY),
    "local": ({"federation": Federation(personal=("backbone", "head"))}, None, 0, 0),
    "moon": ({"federation": Federation(remembers=True)}, None, BODY + HEAD, BODY + HEAD),
    "momentum": ({"federation": Federation(server=optax.sgd(1.0, 0.9))}, None, BODY + HEAD, BODY + HEAD),
    "fixed": ({}, HeadModule(heads.fixed(NUM_CLASSES)), BODY, BODY),
    "pooled": ({"pool": POOLED}, HeadModule(POOLED), BODY + FRAME + MEAN, BODY + FRAME + SEEN),
}


@pytest.mark.parametrize("name", CASES)
def test_a_client_sends_and_gets_these_numbers(name):
    rounds, head, down, up = CASES[name]
    trainer = trainer_of(STREAM, optax.sgd(0.1, 0.9), model=small_model(head), keep_optimizer=True, **rounds)
    assert traffic(trainer.init(DATA, seed=0), trainer.rounds) == (4 * down, 4 * up)  # of float32 and int32


def test_batch_statistics_are_sent_unless_clients_keep_them():
    model, head = small_model(backbone=NormalisedMLP()), 8 * NUM_CLASSES + NUM_CLASSES
    shared, kept = (
        trainer_of(STREAM, optax.sgd(0.1), model=model, federation=Federation(personal=parts))
        for parts in ((), ("backbone",))
    )
    expected = 4 * (NORMALISED + head + 8 + 8)  # running mean and variance
    assert traffic(shared.init(DATA, seed=0), shared.rounds) == (expected, expected)
    assert traffic(kept.init(DATA, seed=0), kept.rounds) == (4 * head, 4 * head)
