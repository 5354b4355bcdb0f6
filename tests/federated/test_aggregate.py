"""Servers with an optimiser of their own, against optax on the difference of models."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from toy_federated import LOCAL_BATCH, ByHand, after_rounds, small_model, spread, trainer_of
from toy_training import NormalisedMLP

from nc_jax.federated import Federation
from nc_jax.federated.aggregate import sent, updated
from nc_jax.streams import Clients

F32_SUMS = 2e-6
DATA = spread()
STREAM = Clients(DATA, LOCAL_BATCH, rounds=1)
LOCAL = optax.sgd(0.2)
SERVERS = {
    "fedavgm": (optax.sgd(1.0, 0.9), F32_SUMS),
    # Adam divides by gradients that are as small as the rounding of a difference of models.
    "fedadam": (optax.adam(0.01, 0.9, 0.99, eps=1e-3), 50 * F32_SUMS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_the_server_steps_along_the_difference_to_the_mean(name):
    server, tolerance = SERVERS[name]
    stream, by_hand = dataclasses.replace(STREAM, rounds=3), ByHand(small_model(), LOCAL)
    params = by_hand.initial(DATA).params
    state = server.init(params)
    for segment in range(3):
        mean = by_hand.one_round(by_hand.initial(DATA).replace(params=params), stream, segment).params
        updates, state = server.update(jax.tree.map(jnp.subtract, params, mean), state, params)
        params = optax.apply_updates(params, updates)
    found, _ = after_rounds(trainer_of(stream, LOCAL, federation=Federation(server=server)), stream)
    chex.assert_trees_all_close(found.params, params, rtol=0, atol=tolerance)
    chex.assert_trees_all_close(found.opt_state, state, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_server_of_rate_one_takes_the_mean():
    plain, _ = after_rounds(trainer_of(STREAM, LOCAL), STREAM)
    found, _ = after_rounds(trainer_of(STREAM, LOCAL, federation=Federation(server=optax.sgd(1.0))), STREAM)
    chex.assert_trees_all_close(found.params, plain.params, rtol=0, atol=F32_SUMS)


@pytest.mark.slow
def test_batch_statistics_are_the_mean_whatever_the_server_does():
    model = small_model(backbone=NormalisedMLP())
    state = ByHand(model, LOCAL).initial(DATA)
    mean = jax.tree.map(lambda leaf: leaf + 1, sent(state))
    found, norm = updated(state.replace(opt_state=optax.sgd(0.0).init(state.params)), mean, optax.sgd(0.0))
    chex.assert_trees_all_equal(found.params, state.params)
    chex.assert_trees_all_equal(found.variables["batch_stats"], mean["batch_stats"])
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert abs(float(norm) - count**0.5) < 1e-3
