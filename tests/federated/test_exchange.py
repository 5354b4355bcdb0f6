"""A round in two halves, with arrays that go from one to the other, is the round of a simulation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_machines as toy
from toy_training import NUM_CLASSES, NormalisedMLP

from nc_jax.federated import Exchange, Federation, NoAnswerError, Rounds, alone
from nc_jax.federated.exchange import check_arrays, participants
from nc_jax.heads import learned, pooled
from nc_jax.models import Classifier, HeadModule
from nc_jax.streams import read
from nc_jax.training import LoopOptions, NonFiniteError, Trainer

SUMMED = {"rtol": 0, "atol": 2e-6}  # both sum over clients, in another order and precision
POOLED = pooled(NUM_CLASSES, radius=1.0)
FEDERATIONS = {
    "averages": (Federation(), {}),
    "control variates and a server's optimiser": (
        Federation(server=optax.sgd(0.7, 0.9), controlled=True),
        {},
    ),
    "a pooled head and optimisers that are kept": (
        Federation(remembers=True),
        {"pool": POOLED, "keep_optimizer": True},
    ),
    "a head of one's own": (Federation(personal=("head",)), {}),
}


def make_trainer(federation: Federation = Federation(), backbone=NormalisedMLP(), **options) -> Trainer:
    head = options.get("pool") or learned(NUM_CLASSES)
    rounds = Rounds(federation, clients=2, local_batch=toy.BATCH, **options)
    model = Classifier(backbone, HeadModule(head))
    return Trainer(model, optax.sgd(0.05, 0.9), LoopOptions(batch_size=toy.BATCH, devices=1), rounds=rounds)


@pytest.mark.slow
@pytest.mark.parametrize("case", FEDERATIONS)
def test_machines_end_where_a_simulation_ends(case):
    federation, options = FEDERATIONS[case]
    trainer, source = make_trainer(federation, **options), toy.everything()
    stream, exchange = toy.stream_of(source, rounds=3), Exchange(trainer)
    simulated = trainer.init(source, toy.SEED)
    server = exchange.begin(toy.own(-1), toy.SEED)
    machines = {client: (exchange.begin(toy.own(client), toy.SEED), {}) for client in range(2)}
    for number, batch in enumerate(read(source, stream, seed=toy.SEED)):
        simulated, expected = trainer.step(simulated, batch)
        offer, answers = exchange.offer(server), []
        for client, (begin, kept) in machines.items():
            own = dataclasses.replace(stream, source=toy.own(client))
            answer, kept = exchange.answer(begin, offer, own, toy.SEED, number, client, kept)
            machines[client] = begin, kept
            exchange.check(server, answer)
            answers.append(answer)
        server, metrics = exchange.join(server, [0, 1], answers[::-1])
        for name in ("loss", "accuracy", "solve_status", "without_class", "finite"):
            np.testing.assert_allclose(getattr(metrics, name), getattr(expected, name), rtol=1e-5, err_msg=name)
    found, wanted = toy.arrays_of(server), toy.arrays_of(simulated)
    for name, array in wanted.items():
        if not any(f"/{part}/" in name for part in federation.personal):  # of these, a server has the initial ones
            np.testing.assert_allclose(found[name], array, err_msg=name, **SUMMED)
    assert int(server.step) == 3
    for client, (_, kept) in machines.items():
        own = {name: np.asarray(leaf)[client] for name, leaf in toy.named(simulated.clients.kept).items()}
        assert kept.keys() == own.keys()
        for name, array in own.items():
            np.testing.assert_allclose(kept[name], array, err_msg=name, **SUMMED)


def first_round():
    """The state of a server, and what its two clients answer."""
    source = toy.everything()
    exchange, stream = Exchange(toy.trainer()), toy.stream_of(source)
    begin = exchange.begin(source, toy.SEED)
    offer = exchange.offer(begin)
    answers = [exchange.answer(begin, offer, stream, toy.SEED, 0, client, {})[0] for client in range(2)]
    return exchange, begin, answers


@pytest.mark.slow
def test_a_client_counts_as_much_as_it_has_examples():
    exchange, begin, answers = first_round()
    found = exchange.offer(exchange.join(begin, [0, 1], answers)[0])
    for name, array in found.items():
        whole = sum(size * answer.arrays[name] for size, answer in zip(toy.SIZES, answers, strict=True))
        np.testing.assert_allclose(array, whole / sum(toy.SIZES), rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_round_goes_on_without_one_client_and_not_without_all():
    exchange, begin, (_, answer) = first_round()
    alone_there, _ = exchange.join(begin, [0, 1], [answer])
    for name, array in exchange.offer(alone_there).items():
        np.testing.assert_array_equal(array, answer.arrays[name], err_msg=name)
    assert alone_there.clients.dropped.tolist() == [1, 0]
    with pytest.raises(NoAnswerError, match=r"an answer from one of its clients at least; got none of \[0, 1\]"):
        exchange.join(begin, [0, 1], [])


@pytest.mark.slow
def test_answers_that_cannot_be_used_are_refused():
    exchange, begin, (answer, _) = first_round()
    name = "model/params/backbone/Dense_0/kernel"
    kernel = answer.arrays[name]
    rest = {other: array for other, array in answer.arrays.items() if other != name}
    spoilt = kernel.copy()
    spoilt[0, 0] = np.nan
    cases = [
        (answer._replace(examples=15), "client 0 must have 14 training examples; got 15"),
        (answer._replace(arrays=rest), f"arrays must be those of the model; got no {name}"),
        (answer._replace(arrays=answer.arrays | {"other": kernel}), "arrays must be those of the model; got other"),
        (
            answer._replace(arrays=rest | {name: kernel[1:]}),
            r"must be float32 of shape \(6, 8\), as the model has it; got float32",
        ),
        (answer._replace(arrays=rest | {name: kernel.astype(np.float64)}), "got float64 of shape"),
        (answer._replace(arrays=rest | {name: spoilt}), f"{name} must be finite; got a NaN or an infinity"),
        (answer._replace(metrics=answer.metrics | {"loss": np.inf}), "metrics must be finite numbers for loss"),
        (answer._replace(metrics={}), "metrics must be finite numbers for loss"),
    ]
    exchange.check(begin, answer)
    for case, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            exchange.check(begin, case)


@pytest.mark.slow
def test_a_client_refuses_another_model():
    exchange, begin, _ = first_round()
    stream = toy.stream_of(toy.everything())
    offer = exchange.offer(begin)
    offer.pop("model/params/backbone/Dense_0/bias")
    with pytest.raises(ValueError, match="arrays must be those of the model; got no model/params/backbone"):
        exchange.answer(begin, offer, stream, toy.SEED, 0, 0, {})


@pytest.mark.slow
def test_a_client_with_a_step_that_is_not_finite_sends_nothing():
    exchange, begin, _ = first_round()
    stream = toy.stream_of(toy.everything())
    offer = exchange.offer(begin)
    name = "model/params/backbone/Dense_0/kernel"
    with pytest.raises(NonFiniteError, match="every local step must be finite; got a NaN or an infinity at client 0"):
        exchange.answer(begin, offer | {name: offer[name] + np.float32(3e38)}, stream, toy.SEED, 0, 0, {})


class Half(nn.Module):
    """A layer whose parameters have 16 bits."""

    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        return nn.relu(nn.Dense(8, param_dtype=jnp.bfloat16)(inputs)).astype(jnp.float32)


@pytest.mark.slow
def test_numbers_of_16_bits_travel_as_32():
    trainer, source = make_trainer(backbone=Half(), keep_optimizer=True), toy.everything()
    stream, exchange = toy.stream_of(source, rounds=2), Exchange(trainer)
    simulated = server = exchange.begin(source, toy.SEED)
    kept = [{}, {}]
    for number, batch in enumerate(read(source, stream, seed=toy.SEED)):
        simulated, _ = jax.jit(trainer.rounds.make_step(trainer.model, trainer.optimizer))(simulated, batch)
        offer = exchange.offer(server)
        assert {array.dtype for array in offer.values()} == {np.dtype(np.float32)}
        answers = []
        for client in range(2):
            answer, kept[client] = exchange.answer(server, offer, stream, toy.SEED, number, client, kept[client])
            exchange.check(server, answer)
            answers.append(answer)
        server, _ = exchange.join(server, [0, 1], answers)
    found, wanted = (jax.tree.leaves(state.params) for state in (server, simulated))
    assert [leaf.dtype for leaf in found] == [leaf.dtype for leaf in wanted]
    for one, other in zip(found, wanted, strict=True):  # 8 bits of precision, and sums in another order
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=0.02, atol=1e-5)


def test_participants_are_the_clients_with_examples():
    stream = toy.stream_of(toy.everything(), rounds=20, dropouts=0.5)
    plans = [stream.plan(0, number) for number in range(20)]
    for number, plan in enumerate(plans):
        assert participants(stream, 0, number) == np.unique(plan.client[plan.index >= 0]).tolist()
    assert {len(participants(stream, 0, number)) for number in range(20)} == {1, 2}


def test_a_machine_has_its_own_examples_only():
    whole, mine = toy.everything(), toy.own(1)
    np.testing.assert_array_equal(mine.clients, whole.clients)
    np.testing.assert_array_equal(mine.inputs[mine.clients == 1], whole.inputs[whole.clients == 1])
    assert not mine.inputs[mine.clients == 0].any()
    assert not toy.own(-1).inputs.any()
    with pytest.raises(ValueError, match=r"clients have numbers in 0\.\.1; got 2"):
        alone(whole, 2, toy.SIZES)
    with pytest.raises(ValueError, match="client 1 must have its 21 training examples; got 35"):
        alone(whole, 1, toy.SIZES)


def test_a_trainer_must_train_in_rounds():
    plain = Trainer(make_trainer().model, optax.sgd(0.1), LoopOptions(devices=1))
    with pytest.raises(ValueError, match=r"the trainer must train in rounds \(rounds=Rounds"):
        Exchange(plain)


def test_arrays_of_whole_numbers_are_finite():
    check_arrays({"seen": np.arange(3)}, {"seen": np.zeros(3, np.int64)})
