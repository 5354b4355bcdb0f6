"""Data sets spread over clients, and trainers in rounds, as experiments make them."""

import dataclasses

import numpy as np
import pytest

from nc_jax.data import ClientArrays, LabelledArrays
from nc_jax.methods import METHODS, ContinualOptions, FederatedOptions, federated
from nc_jax.study import Comparison
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.clients import spread
from nc_jax.study.data import Data
from nc_jax.study.settings import Group
from nc_jax.study.trainers import make_stream, make_trainer, of_run, setting_of
from nc_jax.training import LoopOptions, OptimizerOptions

K = 6
FOUR = FederatedOptions(clients=4)


def arrays(count: int, seed: int) -> LabelledArrays:
    inputs = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return LabelledArrays(inputs, np.arange(count) % K, K)


DATA = Data(arrays(96, 0), arrays(48, 1), augment=None, preprocess=None, size=8)
SETTINGS = Comparison(
    backbone=BackboneOptions(hidden=(8,), dim=6),
    optimizer=OptimizerOptions(learning_rate=0.1),
    loop=LoopOptions(epochs=3, batch_size=5, devices=1),
    federated=FOUR,
)


def with_options(**changes) -> Comparison:
    return dataclasses.replace(SETTINGS, federated=dataclasses.replace(FOUR, **changes))


def grouped(data: Data) -> Data:
    """Return the data set with three natural groups."""
    train, test = (ClientArrays.of(part, np.arange(len(part)) % 3, 3) for part in (data.train, data.test))
    return data._replace(train=train, test=test)


# --- Partitions. ---

KINDS = {
    "iid": {},
    "dirichlet": {"beta": 0.5, "min_size": 2},
    "classes": {"per_client": 2},
    "shards": {"per_client": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_belongs_to_a_client_in_both_sets(kind):
    options = dataclasses.replace(FOUR, partition=kind, **KINDS[kind])
    parts = [spread(DATA, options, seed) for seed in (0, 0, 1)]
    for part in parts:
        for here, there in ((part.train, DATA.train), (part.test, DATA.test)):
            assert isinstance(here, ClientArrays)
            assert here.num_clients == 4
            np.testing.assert_array_equal(here.inputs, there.inputs)
            np.testing.assert_array_equal(here.labels, there.labels)
            assert (here.clients >= 0).all()
        assert (part.train.client_counts().sum(axis=1) >= options.min_size).all()
    owners = [(part.train.clients.tolist(), part.test.clients.tolist()) for part in parts]
    assert owners[0] == owners[1] != owners[2]


def test_clients_of_classes_have_these_classes_in_both_sets():
    part = spread(DATA, dataclasses.replace(FOUR, partition="classes", per_client=2), 0)
    counts, tested = part.train.client_counts(), part.test.client_counts()
    assert ((counts > 0).sum(axis=1) == 2).all()
    np.testing.assert_array_equal(counts > 0, tested > 0)


def test_without_clients_nothing_changes():
    assert spread(DATA, FederatedOptions(), 0) is DATA
    assert of_run(DATA, dataclasses.replace(SETTINGS, federated=FederatedOptions()), 0) is DATA


def test_natural_groups_are_clients():
    data = grouped(DATA)
    part = spread(data, FederatedOptions(clients=3, partition="groups"), 0)
    assert (part.train, part.test) == (data.train, data.test)
    with pytest.raises(ValueError, match=r"need a data set with groups \(--data\.groups names the column of a table\)"):
        spread(DATA, FederatedOptions(clients=3, partition="groups"), 0)
    with pytest.raises(ValueError, match="clients must be the number of groups, 3; got 4"):
        spread(data, dataclasses.replace(FOUR, partition="groups"), 0)


def test_another_partition_replaces_groups():
    part = spread(grouped(DATA), dataclasses.replace(FOUR, partition="iid"), 0)
    assert part.train.num_clients == part.test.num_clients == 4


# --- Streams and trainers. ---


def test_a_stream_has_the_options_of_its_settings():
    settings = with_options(per_round=3, local_epochs=2, dropouts=0.25, stragglers=0.5)
    data = of_run(DATA, settings, 0)
    stream = make_stream(Group("", "", "fedavg", settings), data)
    assert stream.source is data.train
    assert (stream.local_batch, stream.rounds, stream.per_round) == (5, 3, 3)
    assert (stream.local_epochs, stream.dropouts, stream.stragglers) == (2, 0.25, 0.5)
    assert setting_of(settings, data).epoch_steps == stream.steps
    together = make_stream(Group("", "", "centralised", settings), data)
    assert together.together
    assert together.clients_per_round == 1


def test_a_table_with_groups_trains_in_epochs_if_no_clients_are_asked_for():
    settings = dataclasses.replace(SETTINGS, federated=FederatedOptions())
    assert setting_of(settings, grouped(DATA)).epoch_steps == setting_of(settings, DATA).epoch_steps == 20
    assert make_trainer(Group("", "", "ce", settings), grouped(DATA)).rounds is None


def test_a_trainer_has_the_rounds_of_its_stream_and_the_schedule_that_of_all_rounds():
    settings = with_options(per_round=2, keep_optimizer=True, at_once=1)
    settings = dataclasses.replace(settings, optimizer=OptimizerOptions(learning_rate=0.1, schedule="cosine"))
    group = Group("", "", "fed-nearest", settings)
    stream = make_stream(group, of_run(DATA, settings, 0))
    trainer = make_trainer(group, DATA)
    rounds = trainer.rounds
    assert (rounds.clients, rounds.local_batch, rounds.at_once, rounds.keep_optimizer) == (2, 5, 1, True)
    assert rounds.schedule_steps == stream.steps
    assert rounds.pool is not None
    rounds.check_stream(stream, stream.source)


@pytest.mark.parametrize("name", list(federated.METHODS))
def test_methods_of_federated_learning_need_clients(name):
    settings = dataclasses.replace(SETTINGS, federated=FederatedOptions())
    with pytest.raises(ValueError, match=r"methods of federated learning need clients \(--federated\.clients 10\)"):
        make_trainer(Group("", "", name, settings), DATA)


@pytest.mark.parametrize("name", ["er", "gdumb", "balanced-sampler", "crt"])
def test_methods_that_choose_their_examples_have_no_rounds(name):
    assert name in METHODS
    settings = dataclasses.replace(SETTINGS, continual=ContinualOptions(memory=12))
    with pytest.raises(ValueError, match=r"visit their examples by themselves|a sampler of classes needs epochs"):
        make_trainer(Group("", "", name, settings), DATA)


def test_fedrep_needs_steps_for_the_body():
    few, enough = (Group("", "", "fedrep", with_options(local_steps=steps, head_steps=3)) for steps in (3, 4))
    with pytest.raises(ValueError, match="fedrep needs more local steps in a round than its head_steps, 3; got 3"):
        make_trainer(few, DATA)
    assert make_trainer(enough, DATA).rounds is not None


def test_means_of_rotations_are_refused():
    told = "the mean of clients' models must be a model; got the head 'rotated', whose rotation must stay on a manifold"
    with pytest.raises(ValueError, match=told):
        make_trainer(Group("", "", "energy-rotated", SETTINGS), DATA)


def test_clients_of_several_tasks_are_refused():
    settings = dataclasses.replace(SETTINGS, continual=ContinualOptions(tasks=2))
    with pytest.raises(ValueError, match=r"clients learn one task; got --continual\.tasks and --federated\.clients"):
        make_stream(Group("", "", "fedavg", settings), of_run(DATA, settings, 0))


def test_devices_that_cannot_share_the_clients_are_refused():
    settings = dataclasses.replace(SETTINGS, loop=LoopOptions(epochs=3, batch_size=5, devices=3))
    with pytest.raises(ValueError, match="the clients of a round must be a multiple of the 3 devices; got 4"):
        make_trainer(Group("", "", "fedavg", settings), DATA)
