"""A round: what it is equal to, whatever clients, devices and chunks there are."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest
from toy_federated import LOCAL_BATCH, ByHand, after_rounds, batches_of, small_model, spread, trainer_of
from toy_training import NUM_CLASSES, NormalisedMLP, blobs, fit

import nc_jax.federated.round
from nc_jax import heads
from nc_jax.data import ClientArrays, LabelledArrays
from nc_jax.federated import Federation, Rounds
from nc_jax.models import HeadModule, NearestHead
from nc_jax.streams import Clients, Epochs, read
from nc_jax.training import AXIS, LoopOptions, StepOptions, Trainer, data_parallel
from nc_jax.training.extensions import AlignmentSlerp

SLOW = pytest.mark.slow
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
WHOLE = blobs(22)  # three steps of 8 a round, the last one with padding
ONE = Clients(ClientArrays.of(WHOLE, np.zeros(22, int), 1), local_batch=8, rounds=2)


def both(name, resident=None) -> tuple[Trainer, Trainer]:
    """Return a trainer in rounds of one client, and a plain one."""
    optimizer, rounds, step, backbone = PLAIN[name]
    model = small_model() if backbone is None else small_model(backbone=backbone)
    options = LoopOptions(epochs=2, batch_size=8, checkpoint_every=1, resident=resident, devices=1)
    federated = trainer_of(ONE, optimizer, model=model, step=step, resident=resident, **rounds)
    return federated, Trainer(model, optimizer, options, step=step)


def learned(state):
    return jax.device_get((state.params, state.variables))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_one_client_with_all_examples_trains_as_without_federation_bit_for_bit(name):
    federated, plain = both(name)
    found, _ = after_rounds(federated, ONE)
    expected = plain.init(WHOLE, seed=0)
    for batch in read(WHOLE, Epochs(WHOLE, 8, 2), seed=0):
        expected, _ = plain.step(expected, batch)
    chex.assert_trees_all_equal(learned(found), learned(expected))


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", PLAIN)
def test_so_it_does_in_the_loop(name, resident, tmp_path):
    federated, plain = both(name, resident)
    found = fit(federated, ONE.source, TEST, tmp_path / "federated", stream=ONE)
    expected = fit(plain, WHOLE, TEST, tmp_path / "plain")
    chex.assert_trees_all_equal(learned(found.state), learned(expected.state))
    assert found.test.metrics == expected.test.metrics


# --- Federated averaging against a loop of Python. ---

OPTIMIZER = optax.sgd(0.2, 0.9)
STREAM = Clients(DATA, LOCAL_BATCH, rounds=2, local_epochs=2)


@pytest.fixture(scope="module")
def by_hand():
    return learned(ByHand(small_model(), OPTIMIZER).rounds(STREAM))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 5])
def test_a_round_is_the_mean_of_clients_that_train_by_themselves(by_hand, at_once):
    found, _ = after_rounds(trainer_of(STREAM, OPTIMIZER, at_once=at_once), STREAM)
    chex.assert_trees_all_close(learned(found), by_hand, rtol=0, atol=F32_SUMS)
    assert int(found.step) == 2


@pytest.mark.slow
def test_clients_count_by_their_examples_and_not_by_their_steps():
    """Clients of 8 and 4 examples make as many steps; the mean has the weights 2/3 and 1/3."""
    stream = Clients(spread((8, 4)), LOCAL_BATCH, rounds=1, local_steps=2)
    expected = ByHand(small_model(), OPTIMIZER).rounds(stream)
    found, _ = after_rounds(trainer_of(stream, OPTIMIZER), stream)
    chex.assert_trees_all_close(found.params, jax.device_get(expected.params), rtol=0, atol=F32_SUMS)


@pytest.mark.slow
def test_some_clients_a_round_that_lag_and_drop_out():
    stream = dataclasses.replace(STREAM, rounds=4, per_round=3, dropouts=0.4, stragglers=0.5)
    made = [[(batch >= 0).any() for batch in stream.plan(0, one).index.reshape(-1, LOCAL_BATCH)] for one in range(4)]
    assert len({sum(steps) for steps in made}) > 1
    expected = ByHand(small_model(), OPTIMIZER).rounds(stream)
    found, _ = after_rounds(trainer_of(stream, OPTIMIZER, at_once=2), stream)
    chex.assert_trees_all_close(learned(found), learned(expected), rtol=0, atol=2 * F32_SUMS)


@pytest.mark.slow
def test_batch_statistics_are_averaged_like_parameters():
    model = small_model(backbone=NormalisedMLP())
    expected = ByHand(model, OPTIMIZER).rounds(STREAM)
    found, _ = after_rounds(trainer_of(STREAM, OPTIMIZER, model=model), STREAM)
    # A batch of one example has the variance 0, which normalisation divides by.
    chex.assert_trees_all_close(learned(found), learned(expected), rtol=0, atol=50 * F32_SUMS)


MANY = Clients(spread((3, 7, 5, 4, 6, 9, 2, 8)), LOCAL_BATCH, rounds=2)
KEEPING = {"keep_optimizer": True, "federation": Federation(personal=("head",), controlled=True)}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_share_the_clients(devices):
    one, two = (trainer_of(MANY, OPTIMIZER, devices=number, at_once=3, **KEEPING) for number in (1, devices))
    (expected, reports), (found, others) = after_rounds(one, MANY), after_rounds(two, MANY)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=5 * F32_SUMS)
    chex.assert_trees_all_close(others, reports, rtol=0, atol=10 * F32_SUMS)


POOLED = heads.pooled(NUM_CLASSES, radius=1.0)
CHECKED = {
    "averaging": ({}, None),
    "kept and remembered parts, control variates, a server's optimiser": (
        {"keep_optimizer": True, "federation": Federation(("head",), optax.adam(0.1), remembers=True, controlled=True)},
        None,
    ),
    "a pooled head": ({"pool": POOLED}, small_model(HeadModule(POOLED))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name == "averaging" else pytest.param(name, marks=SLOW) for name in CHECKED])
def test_shard_map_proves_that_all_devices_end_a_round_alike(name):
    """JAX checks the replication of state and metrics when it compiles; the numbers are those of pmap."""
    options, model = CHECKED[name]
    trainer = trainer_of(MANY, OPTIMIZER, model=model, devices=4, at_once=1, **options)
    round_of = trainer.rounds.make_step(trainer.model, OPTIMIZER, axis_name=AXIS)
    checked = data_parallel(round_of, devices=trainer.devices, checked=True)
    state = other = trainer.init(MANY.source, seed=0)
    for batch in read(MANY.source, MANY, seed=0):
        other, reports = checked(other, batch)
        state, expected = trainer.step(jax.tree.map(jax.numpy.copy, state), batch)
        chex.assert_trees_all_close(jax.device_get((other, reports)), jax.device_get((state, expected)), atol=F32_SUMS)


@pytest.mark.slow
def test_a_round_that_forgets_the_other_devices_does_not_compile(monkeypatch):
    monkeypatch.setattr(nc_jax.federated.round, "all_sum", lambda tree: tree)
    trainer = trainer_of(MANY, OPTIMIZER, devices=2)
    forgetful = trainer.rounds.make_step(trainer.model, OPTIMIZER, axis_name=AXIS)
    batch = next(iter(read(MANY.source, MANY, seed=0)))
    with pytest.raises(ValueError, match="out_specs"):
        data_parallel(forgetful, devices=trainer.devices, checked=True)(trainer.init(MANY.source, seed=0), batch)


@pytest.mark.slow
def test_what_stands_in_padding_does_not_matter():
    def filled(batch):
        steps = batch.mask.reshape(-1, LOCAL_BATCH).any(axis=1)
        # Rows of a step that is made are large; those of other steps would spoil whatever they touch.
        padding = np.where(np.repeat(steps, LOCAL_BATCH), 1e3, np.nan)[:, None]
        inputs = np.where(batch.mask[:, None], batch.inputs, padding)
        return batch._replace(inputs=inputs.astype(np.float32))

    trainer = trainer_of(STREAM, OPTIMIZER, at_once=2)
    (expected, _), (found, _) = after_rounds(trainer, STREAM), after_rounds(trainer, STREAM, change=filled)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.slow
def test_the_metrics_are_means_over_clients_weighted_like_their_models():
    stream = dataclasses.replace(STREAM, rounds=1)
    _, (report,) = after_rounds(trainer_of(stream, OPTIMIZER), stream)
    loss, accuracy, before = [], [], ByHand(small_model(), OPTIMIZER).initial(DATA)
    hand = ByHand(small_model(), OPTIMIZER)
    for batches in batches_of(stream, 0).values():
        totals = hand.client(before, batches).totals
        loss.append(float(totals.loss) / int(totals.steps))
        accuracy.append(float(totals.accuracy) / int(totals.steps))
    sizes = DATA.client_counts().sum(axis=1)
    np.testing.assert_allclose(report.loss, np.average(loss, weights=sizes), rtol=1e-5)
    np.testing.assert_allclose(report.accuracy, np.average(accuracy, weights=sizes), rtol=1e-5)
    expected = jax.tree.map(np.subtract, before.params, hand.rounds(stream).params)
    np.testing.assert_allclose(report.grad_norm, optax.tree.norm(expected), rtol=1e-4)


# --- Random keys. ---


@pytest.mark.slow
def test_clients_and_steps_draw_from_different_keys():
    """No key of an example, and none that is split off, comes twice: of all clients, steps, places and rounds."""
    seen = []

    def recorded(key, inputs):
        for one in (key, *jax.random.split(key, LOCAL_BATCH)):
            jax.debug.callback(lambda data: seen.append(tuple(map(int, data))), jax.random.key_data(one))
        return inputs

    stream = Clients(spread((8, 8, 8)), LOCAL_BATCH, rounds=2)
    trainer = trainer_of(stream, OPTIMIZER, step=StepOptions(augment=recorded), at_once=1)
    after_rounds(trainer, stream)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 2 * 24 * (1 + LOCAL_BATCH)


# --- Refusals. ---


def test_a_set_without_clients_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rounds need training examples that belong to clients \(ClientArrays\); got"):
        fit(trainer_of(STREAM, OPTIMIZER), LabelledArrays(DATA.inputs, DATA.labels, 4), TEST, tmp_path, stream=STREAM)


def test_a_stream_or_a_batch_without_clients_is_refused(tmp_path):
    trainer = trainer_of(STREAM, OPTIMIZER)
    with pytest.raises(ValueError, match=r"rounds need a stream of clients \(nc_jax\.streams\.Clients\); got Epochs"):
        fit(trainer, DATA, TEST, tmp_path)
    batch = next(iter(read(DATA, STREAM, seed=0)))._replace(client=None)
    with pytest.raises(ValueError, match=r"a round needs a batch whose rows belong to clients .* got one without"):
        trainer.step(trainer.init(DATA, seed=0), batch)


@pytest.mark.parametrize("changed", [{"per_round": 4}, {"local_batch": 2}])
def test_a_stream_with_other_rounds_is_refused(changed, tmp_path):
    stream = dataclasses.replace(STREAM, **changed)
    told = "rounds must have the clients and the local batch of their stream, (4 and 4|5 and 2); got 5 and 4"
    with pytest.raises(ValueError, match=told):
        fit(trainer_of(STREAM, OPTIMIZER), DATA, TEST, tmp_path, stream=stream)


def test_a_stream_of_another_partition_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a stream of clients must be that of the training examples; got one in which"):
        fit(trainer_of(STREAM, OPTIMIZER), spread(seed=1), TEST, tmp_path, stream=STREAM)


def test_devices_that_cannot_share_the_clients_are_refused():
    with pytest.raises(ValueError, match="the clients of a round must be a multiple of the 2 devices; got 5"):
        trainer_of(STREAM, OPTIMIZER, devices=2)


def test_a_batch_of_another_size_is_refused():
    trainer = trainer_of(STREAM, OPTIMIZER)
    batch = next(iter(read(DATA, STREAM, seed=0)))
    short = jax.tree.map(lambda leaf: leaf[:-1], batch)
    with pytest.raises(ValueError, match="a round of 5 clients with batches of 4 needs a multiple of 20 rows; got 119"):
        trainer.step(trainer.init(DATA, seed=0), short)


def test_a_moving_average_is_refused():
    with pytest.raises(ValueError, match=r"rounds keep no moving average of parameters; got average_decay=0\.9"):
        trainer_of(STREAM, OPTIMIZER, step=StepOptions(average_decay=0.9))


def test_an_extension_whose_state_the_server_would_need_is_refused():
    step = StepOptions(extensions=(AlignmentSlerp(strength=0.5),))
    told = "outputs in rounds must not depend on the state of an extension; got that of AlignmentSlerp"
    with pytest.raises(ValueError, match=told):
        trainer_of(STREAM, OPTIMIZER, step=step)


@pytest.mark.slow
def test_a_nearest_head_without_a_pool_is_refused_unless_clients_keep_it():
    model = small_model(NearestHead(NUM_CLASSES))
    with pytest.raises(ValueError, match=r"the server needs a way to join .*; got the collection 'nearest' of head"):
        trainer_of(STREAM, OPTIMIZER, model=model).init(DATA, seed=0)
    trainer = trainer_of(STREAM, OPTIMIZER, model=model, federation=Federation(personal=("head",)))
    assert trainer.init(DATA, seed=0).clients.kept["variables"]["nearest"]["head"]["frame"].shape == (5, 6, 4)


def test_a_pool_that_cannot_be_right_is_refused():
    with pytest.raises(ValueError, match=r"the server pools a head that clients share .*; got the head 'learned'"):
        Rounds(pool=heads.learned(NUM_CLASSES))
    with pytest.raises(ValueError, match=r"the server pools a head that clients share .*; got one that clients keep"):
        Rounds(Federation(personal=("head",)), pool=heads.pooled(NUM_CLASSES))


@pytest.mark.parametrize("name", ["clients", "local_batch", "schedule_steps", "at_once"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        Rounds(**{name: 0})


@pytest.mark.slow
def test_local_batches_that_cannot_be_cut_are_refused():
    trainer = trainer_of(STREAM, OPTIMIZER, step=StepOptions(accumulate=3))
    with pytest.raises(ValueError, match="must be a multiple of accumulate=3; got 4"):
        after_rounds(trainer, STREAM)
