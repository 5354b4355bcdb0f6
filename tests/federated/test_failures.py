"""Clients that fail: who is left out, what stays as it was, and what a run says of it."""

import dataclasses
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_federated import LOCAL_BATCH, after_rounds, spread, trainer_of
from toy_training import NUM_CLASSES, blobs, fit, rows_of

from nc_jax.data import ClientArrays
from nc_jax.federated import Federation
from nc_jax.streams import Clients
from nc_jax.training import Checkpoints, NonFiniteError

SICK = 3
DATA, TEST = spread(), blobs(20, seed=1)
STREAM = Clients(DATA, LOCAL_BATCH, rounds=2)
FEDERATION = Federation(personal=("head",), controlled=True, remembers=True)
F32_SUMS = 2e-6  # the shares of all clients are divided by their sum, in another order


@pytest.fixture(scope="module")
def trainer():
    return trainer_of(STREAM, optax.sgd(0.1, 0.9), federation=FEDERATION, keep_optimizer=True, at_once=2)


def huge(batch):
    """The inputs of one client overflow in float32."""
    return batch._replace(inputs=np.where((batch.client == SICK)[:, None], 1e38, batch.inputs).astype(np.float32))


def wrong(batch):
    """The labels of one client are no class."""
    return batch._replace(labels=np.where((batch.client == SICK) & batch.mask, NUM_CLASSES, batch.labels))


def absent(batch):
    """One client drops out."""
    return batch._replace(mask=batch.mask & (batch.client != SICK))


@pytest.mark.slow
@pytest.mark.parametrize("failure", [huge, wrong])
def test_a_client_that_fails_is_left_out_as_if_it_had_not_taken_part(trainer, failure):
    expected, reports = after_rounds(trainer, STREAM, change=absent)
    found, failed = after_rounds(trainer, STREAM, change=failure)
    assert found.clients.dropped.tolist() == [0, 0, 0, 2, 0]
    assert expected.clients.dropped.tolist() == [0] * 5
    chex.assert_trees_all_close(
        found.replace(clients=found.clients._replace(dropped=expected.clients.dropped), totals=None),
        expected.replace(totals=None),
        rtol=0,
        atol=F32_SUMS,
    )
    initial = jax.device_get(trainer.init(DATA, seed=0))
    first, last = (jax.tree.map(lambda leaf: leaf[SICK], one.clients.kept) for one in (initial, found))
    chex.assert_trees_all_equal(first, last)
    for report, other in zip(failed, reports, strict=True):
        assert bool(report.finite)
        np.testing.assert_allclose(report.loss, other.loss, rtol=F32_SUMS)
        assert int(report.without_class) == (9 if failure is wrong else 0)


@pytest.mark.slow
def test_a_round_without_a_finite_client_changes_nothing_but_its_totals(trainer):
    before = jax.device_get(trainer.init(DATA, seed=0))
    stream = dataclasses.replace(STREAM, rounds=1)
    state, (report,) = after_rounds(
        trainer, stream, change=lambda batch: batch._replace(inputs=np.full_like(batch.inputs, 1e38))
    )
    assert not bool(report.finite)
    assert not bool(state.totals.finite)
    chex.assert_trees_all_equal(state.replace(totals=None), before.replace(totals=None))


def poisoned(sick) -> ClientArrays:
    """Return the examples, of which those of some clients overflow in float32."""
    inputs = np.where(np.isin(DATA.clients, sick)[:, None], 1e38, DATA.inputs).astype(np.float32)
    return dataclasses.replace(DATA, inputs=inputs)


@pytest.mark.slow
def test_the_log_names_clients_that_were_left_out_since_the_last_report(tmp_path, caplog):
    data = poisoned([SICK])
    stream = Clients(data, LOCAL_BATCH, rounds=3)
    trainer = trainer_of(stream, optax.sgd(0.1), evaluate_every=2)
    with caplog.at_level(logging.WARNING, "nc_jax"):
        fit(trainer, data, TEST, tmp_path, stream=stream)
        fit(trainer, data, TEST, tmp_path, stream=stream)  # nothing is left to train, and nothing new to say
    cause = "run left out clients that sent a NaN or an infinity, or had labels that are no class:"
    said = [message for message in caplog.messages if "left out" in message]
    assert said == [f"{cause} client 3 in 2 rounds", f"{cause} client 3 in 1 round"]
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 2, 3]


@pytest.mark.slow
def test_a_run_of_which_no_client_is_finite_ends_with_a_sentence_and_the_good_state(tmp_path):
    stream = Clients(DATA, LOCAL_BATCH, rounds=2, per_round=1)
    first, second = (stream.plan(0, segment).client[0, 0] for segment in range(2))
    assert first != second, "the toy problem has another client in round 2"
    data = poisoned([second])
    stream = dataclasses.replace(stream, source=data)
    trainer = trainer_of(stream, optax.sgd(0.1))
    expected = (
        r"run met a NaN or an infinity in round 2, from all of its clients or in the step of the server, and the last "
        r"good state \(step 1\) is in"
    )
    with pytest.raises(NonFiniteError, match=expected):
        fit(trainer, data, TEST, tmp_path, stream=stream)
    with Checkpoints(tmp_path / "checkpoints" / "run") as checkpoints:
        saved = checkpoints.restore(trainer.init(data, seed=0))
    good, _ = after_rounds(trainer, dataclasses.replace(stream, rounds=1))
    chex.assert_trees_all_equal(saved.replace(totals=None), good.replace(totals=None))


@pytest.mark.slow
def test_a_server_that_overflows_is_not_finite(tmp_path):
    stream = dataclasses.replace(STREAM, rounds=1)
    trainer = trainer_of(stream, optax.sgd(0.1), federation=Federation(server=optax.sgd(jnp.inf)))
    state, (report,) = after_rounds(trainer, stream)
    assert not bool(report.finite)
    chex.assert_trees_all_equal(state.params, jax.device_get(trainer.init(DATA, seed=0)).params)
