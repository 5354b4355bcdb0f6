"""Rounds in pieces, which networks with convolutions have on a CPU, are the rounds of one program."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_machines as toy
from toy_training import NUM_CLASSES, blobs

from nc_jax.data.clients import ClientArrays
from nc_jax.federated import Exchange, Federation, Rounds
from nc_jax.federated.stepwise import Stepwise
from nc_jax.heads import learned
from nc_jax.models import BatchNorm, Classifier, HeadModule
from nc_jax.streams import read
from nc_jax.training import LoopOptions, Trainer
from nc_jax.training.resident import slow_in_loops

ROUNDED = {"rtol": 1e-5, "atol": 2e-6}


class Convolutions(nn.Module):
    """The smallest network of its kind, on six pixels in a row."""

    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        hidden = nn.Conv(4, (3,))(inputs[..., None])
        return nn.relu(BatchNorm()(hidden, train=train, mask=mask)).reshape(len(inputs), -1)


def make_trainer(number: int, federation: Federation = Federation(), **options) -> Trainer:
    rounds = Rounds(federation, clients=number, local_batch=toy.BATCH, **options)
    model = Classifier(Convolutions(), HeadModule(learned(NUM_CLASSES)))
    return Trainer(model, optax.sgd(0.05, 0.9), LoopOptions(batch_size=toy.BATCH, devices=1), rounds=rounds)


def some_clients() -> ClientArrays:
    return ClientArrays.of(blobs(40), np.repeat(np.arange(3), (8, 20, 12)), 3)


def whole(trainer: Trainer):
    """The round as one program."""
    made = trainer.rounds.make_step(trainer.model, trainer.optimizer, options=trainer.step_options)
    return jax.jit(made)


def assert_equal(found, expected):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **ROUNDED), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dropouts", [0.0, 0.5])
def test_a_round_in_pieces_is_the_round_of_one_program(dropouts):
    source = some_clients()
    trainer = make_trainer(3, Federation(controlled=True, remembers=True), keep_optimizer=True)
    stream = toy.stream_of(source, rounds=3, dropouts=dropouts, stragglers=0.5)
    one = other = trainer.init(source, 0)
    step, pieces = (
        whole(trainer),
        Stepwise(trainer.rounds.halves(trainer.model, trainer.optimizer, trainer.step_options)),
    )
    for batch in read(source, stream, seed=0):
        one, metrics = step(one, batch)
        other, found = pieces(other, batch)
        assert_equal(found, metrics)
    assert_equal(other, one)


@pytest.mark.slow
def test_a_client_that_is_not_finite_is_left_out_in_pieces_too():
    source = some_clients()
    inputs = source.inputs.copy()
    inputs[source.clients == 1] = 3e38
    trainer, stream = make_trainer(3), toy.stream_of(source, rounds=1)
    broken = dataclasses.replace(source, inputs=inputs)
    (batch,) = read(broken, stream, seed=0)
    state = trainer.init(source, 0)
    found, metrics = Stepwise(trainer.rounds.halves(trainer.model, trainer.optimizer, trainer.step_options))(
        state, batch
    )
    assert found.clients.dropped.tolist() == [0, 1, 0]
    assert metrics.finite
    assert_equal(found, whole(trainer)(state, batch)[0])


@pytest.mark.slow
def test_convolutions_train_in_pieces_on_a_cpu(monkeypatch):
    made = []
    call = Stepwise.__call__
    monkeypatch.setattr(Stepwise, "__call__", lambda self, *values: made.append(1) or call(self, *values))
    source, trainer = some_clients(), make_trainer(3)
    (batch,) = read(source, toy.stream_of(source, rounds=1), seed=0)
    state = trainer.init(source, 0)
    found, _ = trainer.step(state, batch)
    assert made
    assert_equal(found.params, whole(trainer)(trainer.init(source, 0), batch)[0].params)
    assert slow_in_loops(None, lambda x: jnp.convolve(x, x), jnp.ones(3))
    assert not slow_in_loops(None, lambda x: x @ x, jnp.ones(3))
    # A network without convolutions trains in one program.
    made.clear()
    plain, source = toy.trainer(), toy.everything()
    (batch,) = read(source, toy.stream_of(source, rounds=1), seed=0)
    plain.step(plain.init(source, 0), batch)
    assert not made


@pytest.mark.slow
def test_a_machine_with_convolutions_answers_what_a_simulation_computes():
    source = some_clients()
    trainer, stream = make_trainer(3), toy.stream_of(source, rounds=1)
    exchange, begin = Exchange(trainer), trainer.init(source, 0)
    offer = exchange.offer(begin)
    answers = [exchange.answer(begin, offer, stream, 0, 0, client, {})[0] for client in range(3)]
    (batch,) = read(source, stream, seed=0)
    assert_equal(exchange.join(begin, [0, 1, 2], answers)[0].params, whole(trainer)(begin, batch)[0].params)
