"""Rounds of clients: who takes part, which examples are visited, and that all of it depends on (seed, round) only."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from toy_federated import spread
from toy_training import blobs

from nc_jax.data import ClientArrays
from nc_jax.streams import Clients, Epochs, read

SIZES = (7, 12, 3, 9, 5)
DATA = spread(SIZES)
BATCH = 4
STREAM = Clients(DATA, BATCH, rounds=50)


def cut(stream, segment, seed=0):
    """Return the clients of a round, and their examples by step, shape (M, S, B)."""
    plan = stream.plan(seed, segment)
    shape = stream.clients_per_round, stream.steps, stream.local_batch
    client = plan.client.reshape(shape)
    assert (client == client[:, :1, :1]).all()
    assert plan.index.dtype == plan.client.dtype == np.int32
    return client[:, 0, 0].tolist(), plan.index.reshape(shape)


def steps_of(places):
    return (places >= 0).any(axis=-1).sum(axis=-1).tolist()


# --- Examples. ---


def test_every_example_of_a_client_comes_once_a_pass_and_padding_last():
    clients, places = cut(dataclasses.replace(STREAM, local_epochs=2), 3)
    assert clients == [0, 1, 2, 3, 4]
    assert steps_of(places) == [4, 6, 2, 6, 4]
    for client, own in zip(clients, places, strict=True):
        each = -(-SIZES[client] // BATCH)
        for passed in own[: 2 * each].reshape(2, -1):
            visited = passed[passed >= 0]
            assert (passed[: len(visited)] >= 0).all()
            assert sorted(visited) == np.flatnonzero(DATA.clients == client).tolist()
        assert (own[2 * each :] == -1).all()


def test_orders_of_rounds_passes_clients_and_seeds_differ():
    """Clients of equal size, whose examples are numbered alike: no two passes have the same order."""
    data = ClientArrays.of(blobs(60), np.repeat(np.arange(3), 20), 3)
    stream = Clients(data, 20, rounds=4, local_epochs=2)
    orders = [
        tuple((order % 20).tolist())
        for seed in (0, 1, 2**64 - 1)
        for segment in range(4)
        for own in cut(stream, segment, seed)[1]
        for order in own
    ]
    assert len(orders) == len(set(orders)) == 3 * 4 * 3 * 2


def test_a_round_is_a_function_of_seed_and_number():
    stream = dataclasses.replace(STREAM, per_round=2, dropouts=0.3, stragglers=0.5)
    forward = [stream.plan(5, segment) for segment in range(6)]
    again = dataclasses.replace(stream, rounds=9)
    for segment in (4, 0, 5, 2):
        for one, two in zip(forward[segment], again.plan(5, segment), strict=True):
            np.testing.assert_array_equal(one, two)
    assert any((forward[0].index != stream.plan(6, 0).index).ravel())


def test_a_number_of_steps_goes_on_to_new_passes():
    clients, places = cut(dataclasses.replace(STREAM, local_steps=5), 1)
    assert steps_of(places) == [5] * 5
    for client, own in zip(clients, places, strict=True):
        visited = own[own >= 0]
        members = np.flatnonzero(DATA.clients == client)
        whole, rest = divmod(5, -(-SIZES[client] // BATCH))
        counts = np.bincount(visited, minlength=len(DATA))[members]
        assert counts.min() >= whole
        assert counts.max() <= whole + (rest > 0)
        assert set(visited) <= set(members)


def test_one_client_with_all_examples_has_the_batches_of_epochs():
    whole = blobs(22)
    stream = Clients(ClientArrays.of(whole, np.zeros(22, int), 1), 8, rounds=3)
    epochs = Epochs(whole, 8, 3)
    for segment in range(3):
        np.testing.assert_array_equal(stream.plan(7, segment).index.reshape(-1, 8), epochs.plan(7, segment).index)


def test_examples_of_no_client_are_not_visited():
    owners = np.array([0, -1, 1, 1, -1, 0])
    stream = Clients(ClientArrays.of(blobs(6), owners, 2), 2, rounds=1)
    assert sorted(stream.plan(0, 0).index.ravel().tolist()) == [0, 2, 3, 5]


def test_batches_are_those_of_the_plan_and_name_their_clients():
    stream = dataclasses.replace(STREAM, rounds=3, per_round=2)
    for segment, batch in enumerate(read(DATA, stream, seed=4, start_step=1)):
        plan = stream.plan(4, segment + 1)
        np.testing.assert_array_equal(batch.client, plan.client[0])
        np.testing.assert_array_equal(batch.mask, plan.index[0] >= 0)
        np.testing.assert_array_equal(DATA.clients[plan.index[0][batch.mask]], batch.client[batch.mask])
        np.testing.assert_array_equal(batch.inputs[batch.mask], DATA.inputs[plan.index[0][batch.mask]])
    assert segment == 1


# --- Who takes part. ---


@pytest.mark.slow
def test_clients_are_drawn_uniformly_without_replacement():
    stream = dataclasses.replace(STREAM, per_round=2)
    rounds = [tuple(cut(stream, segment)[0]) for segment in range(2000)]
    assert all(len(set(one)) == 2 for one in rounds)
    counts = Counter(rounds)
    assert len(counts) == 10
    # Each pair of clients is as likely as any other; the plans are fixed, so this is no matter of luck.
    assert chisquare(list(counts.values())).pvalue > 0.01
    assert chisquare(list(Counter(client for one in rounds for client in one).values())).pvalue > 0.01


def test_a_client_that_drops_out_has_padding_and_one_always_stays():
    stream = dataclasses.replace(STREAM, dropouts=0.6)
    steps = np.array([steps_of(cut(stream, segment)[1]) for segment in range(400)])
    full = np.array([2, 3, 1, 3, 2])
    assert ((steps == 0) | (steps == full)).all()
    assert (steps > 0).any(axis=1).all()
    present = (steps > 0).sum(axis=1)
    # One of five stays if all would drop out, so 1 has also the share of 0.
    expected = np.array(
        [0.6**5 + 5 * 0.6**4 * 0.4, 10 * 0.6**3 * 0.4**2, 10 * 0.6**2 * 0.4**3, 5 * 0.6 * 0.4**4, 0.4**5]
    )
    assert chisquare(np.bincount(present, minlength=6)[1:], 400 * expected).pvalue > 0.01
    alone = steps[present == 1].argmax(axis=1)
    assert set(alone.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_stragglers_make_their_first_steps_only():
    stream = dataclasses.replace(STREAM, stragglers=0.5, local_epochs=2)
    whole = dataclasses.replace(STREAM, local_epochs=2)
    made, full = [], np.array([4, 6, 2, 6, 4])
    for segment in range(400):
        (_, late), (_, places) = cut(stream, segment), cut(whole, segment)
        for client, steps in enumerate(steps_of(late)):
            np.testing.assert_array_equal(late[client, :steps], places[client, :steps])
            assert (late[client, steps:] == -1).all()
        made.append(steps_of(late))
    made = np.array(made)
    for client, most in enumerate(full):
        expected = np.array([0.5 / (most - 1)] * (most - 1) + [0.5])
        assert chisquare(np.bincount(made[:, client], minlength=most + 1)[1:], 400 * expected).pvalue > 0.001
    everyone = dataclasses.replace(whole, stragglers=1.0)
    assert (np.array([steps_of(cut(everyone, one)[1]) for one in range(9)]) < full).all()


# --- Training in one place. ---


def test_together_is_one_client_with_the_examples_of_all():
    stream = dataclasses.replace(STREAM, together=True, local_epochs=2)
    assert (stream.clients_per_round, stream.steps) == (1, 18)
    clients, places = cut(stream, 2)
    assert clients == [0]
    for passed in places.reshape(2, -1):
        assert sorted(passed[passed >= 0].tolist()) == list(range(36))


def test_together_visits_as_many_examples_as_the_clients_of_a_round():
    assert dataclasses.replace(STREAM, together=True, per_round=2).steps == round(9 * 2 / 5)
    assert dataclasses.replace(STREAM, together=True, per_round=2, local_steps=3).steps == 6
    _, places = cut(dataclasses.replace(STREAM, together=True, per_round=3, local_steps=5), 0)
    assert steps_of(places) == [15]
    counts = np.bincount(places[places >= 0], minlength=36)
    assert (counts.min(), counts.max()) == (1, 2)


# --- Refusals. ---

WRONG = {
    "local_batch": (0, "local_batch must be at least 1; got 0"),
    "rounds": (0, "rounds must be at least 1; got 0"),
    "local_epochs": (0, "local_epochs must be at least 1; got 0"),
    "local_steps": (0, "local_steps must be at least 1, or None; got 0"),
    "per_round": (6, r"per_round must lie in 1\.\.5, the number of clients; got 6"),
    "dropouts": (1.0, r"dropouts must lie in \[0, 1\) and stragglers in \[0, 1\]; got dropouts=1\.0, stragglers=0\.0"),
    "stragglers": (
        1.5,
        r"dropouts must lie in \[0, 1\) and stragglers in \[0, 1\]; got dropouts=0\.0, stragglers=1\.5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_out_of_range_are_refused(name):
    value, told = WRONG[name]
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(STREAM, **{name: value})


def test_a_client_without_examples_is_refused():
    for owners, lacking in (([0, 0, 2], 1), ([0, 0, 1], 2)):
        data = ClientArrays.of(blobs(3), np.array(owners), 3, empty=True)
        with pytest.raises(ValueError, match=f"every client needs an example; client {lacking} of 0..2 has none"):
            Clients(data, 2, rounds=1)
