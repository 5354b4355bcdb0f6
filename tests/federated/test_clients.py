"""What clients keep: personal parts, optimisers, remembered models, and a client's model as the server sees it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_federated import LOCAL_BATCH, ByHand, after_rounds, batches_of, mean_of, small_model, spread, trainer_of
from toy_training import NUM_CLASSES, NormalisedMLP, blobs

from nc_jax import heads
from nc_jax.data import ClientArrays
from nc_jax.federated import Federation, client_state
from nc_jax.models import HeadModule
from nc_jax.streams import Clients
from nc_jax.training import Extension, StepOptions
from nc_jax.training.evaluate import Evaluated
from nc_jax.training.extensions import LocalLengths, ModelContrast

F32_SUMS = 2e-6
DATA, TEST = spread(), blobs(20, seed=1)
SIZES = DATA.client_counts().sum(axis=1)
STREAM = Clients(DATA, LOCAL_BATCH, rounds=3)
SOME = Clients(DATA, LOCAL_BATCH, rounds=4, per_round=2)
OPTIMIZER = optax.sgd(0.2, 0.9)
ALL = ("backbone", "head")


def of_client(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


# --- Personal parts. ---


@pytest.mark.slow
def test_personal_heads_go_on_and_bodies_are_shared():
    """FedPer, with clients that do not take part in every round."""
    by_hand = ByHand(small_model(), OPTIMIZER)
    server = by_hand.initial(DATA).params
    own = [server["head"]] * len(SIZES)
    for segment in range(SOME.rounds):
        ends = {
            number: by_hand.client(
                by_hand.initial(DATA).replace(params={**server, "head": own[number]}), batches
            ).params
            for number, batches in batches_of(SOME, segment).items()
        }
        server = mean_of(list(ends.values()), SIZES[list(ends)])
        for number, params in ends.items():
            own[number] = params["head"]
    found, _ = after_rounds(trainer_of(SOME, OPTIMIZER, federation=Federation(personal=("head",))), SOME)
    chex.assert_trees_all_close(found.params, jax.device_get(server), rtol=0, atol=F32_SUMS)
    for number, head in enumerate(own):
        state = client_state(found, number)
        chex.assert_trees_all_close(state.params["head"], head, rtol=0, atol=F32_SUMS)
        chex.assert_trees_all_equal(state.params["backbone"], found.params["backbone"])


@pytest.mark.slow
def test_local_training_is_separate_training_of_each_client():
    model = small_model(backbone=NormalisedMLP())
    by_hand = ByHand(model, OPTIMIZER)
    trainer = trainer_of(
        STREAM, OPTIMIZER, model=model, keep_optimizer=True, federation=Federation(personal=ALL), at_once=1
    )
    found, _ = after_rounds(trainer, STREAM)
    for number in range(len(SIZES)):
        state = by_hand.initial(DATA)
        for segment in range(STREAM.rounds):
            for batch in batches_of(STREAM, segment)[number]:
                state, _ = by_hand.compiled(state, batch)
        own = client_state(found, number)
        chex.assert_trees_all_equal(own.params, jax.device_get(state.params))
        chex.assert_trees_all_equal(own.variables, jax.device_get(state.variables))


# --- States of optimisers and extensions. ---


@pytest.mark.slow
def test_clients_go_on_with_their_momentum():
    by_hand = ByHand(small_model(), OPTIMIZER)
    server = by_hand.initial(DATA)
    momenta = [server.opt_state] * len(SIZES)
    for segment in range(SOME.rounds):
        ends = {}
        for number, batches in batches_of(SOME, segment).items():
            state = server.replace(opt_state=momenta[number])
            for batch in batches:
                state, _ = by_hand.compiled(state, batch)
            ends[number], momenta[number] = state.params, state.opt_state
        server = server.replace(params=mean_of(list(ends.values()), SIZES[list(ends)]))
    found, _ = after_rounds(trainer_of(SOME, OPTIMIZER, keep_optimizer=True), SOME)
    chex.assert_trees_all_close(found.params, jax.device_get(server.params), rtol=0, atol=2 * F32_SUMS)
    for number, momentum in enumerate(momenta):
        chex.assert_trees_all_close(of_client(found.clients.kept["opt_state"], number), momentum, rtol=0, atol=1e-5)


class CountsExamples(Extension):
    """Remembers how many examples its client has trained on."""

    def init(self, key, output):
        return jnp.zeros((), jnp.int32)

    def update(self, context, state, output, batch):
        return state + jnp.sum(batch.mask)


@pytest.mark.slow
def test_the_state_of_an_extension_belongs_to_a_client():
    step = StepOptions(extensions=(CountsExamples(),))
    found, _ = after_rounds(trainer_of(SOME, OPTIMIZER, step=step), SOME)
    rounds = np.zeros(len(SIZES), int)
    for segment in range(SOME.rounds):
        rounds[list(batches_of(SOME, segment))] += 1
    assert found.clients.kept["extensions"]["CountsExamples"].tolist() == (rounds * SIZES).tolist()
    assert int(client_state(found, 3).extensions["CountsExamples"]) == rounds[3] * SIZES[3]


# --- Remembered models. ---


@pytest.mark.slow
def test_a_client_remembers_its_own_last_model():
    federation = Federation(remembers=True)
    by_hand = ByHand(small_model(), OPTIMIZER)
    server = by_hand.initial(DATA).params
    last = [server] * len(SIZES)
    for segment in range(SOME.rounds):
        ends = {}
        for number, batches in batches_of(SOME, segment).items():
            ends[number] = last[number] = by_hand.client(by_hand.initial(DATA).replace(params=server), batches).params
        server = mean_of(list(ends.values()), SIZES[list(ends)])
    found, _ = after_rounds(trainer_of(SOME, OPTIMIZER, federation=federation), SOME)
    for number, params in enumerate(last):
        previous, _ = of_client(found.clients.kept["previous"], number)
        chex.assert_trees_all_close(previous, jax.device_get(params), rtol=0, atol=F32_SUMS)


@pytest.mark.slow
def test_moon_compares_with_the_model_of_the_round_and_with_the_last_own_one():
    """Against steps whose penalty is written down once more."""
    optimizer, mu, tau = optax.sgd(0.2), 2.0, 0.5
    stream = Clients(DATA, LOCAL_BATCH, rounds=3, per_round=3)
    model = small_model()

    @jax.jit
    def slope(params, received, previous, batch):
        def loss(params):
            inputs = jnp.asarray(batch.inputs)
            output, *others = (model.apply({"params": one}, inputs) for one in (params, received, previous))
            # The features of padding may be zero.
            norms = [jnp.sqrt(jnp.sum(one.features**2, axis=1, keepdims=True) + 1e-20) for one in (output, *others)]
            unit = [one.features / norm for one, norm in zip((output, *others), norms, strict=True)]
            near, far = (jnp.exp(jnp.sum(unit[0] * one, axis=1) / tau) for one in unit[1:])
            each = optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.asarray(batch.labels))
            each = each - mu * jnp.log(near / (near + far))
            return jnp.sum(jnp.where(batch.mask, each, 0)) / jnp.sum(batch.mask)

        return jax.grad(loss)(params)

    server = ByHand(model, optimizer).initial(DATA).params
    last = [server] * len(SIZES)
    for segment in range(stream.rounds):
        ends = {}
        for number, batches in batches_of(stream, segment).items():
            params = server
            for batch in batches:
                moved = slope(params, server, last[number], batch)
                params = jax.tree.map(lambda one, by: one - 0.2 * by, params, moved)
            ends[number] = last[number] = params
        server = mean_of(list(ends.values()), SIZES[list(ends)])
    trainer = trainer_of(
        stream,
        optimizer,
        federation=Federation(remembers=True),
        step=StepOptions(extensions=(ModelContrast(mu, tau),)),
    )
    found, _ = after_rounds(trainer, stream)
    chex.assert_trees_all_close(found.params, jax.device_get(server), rtol=0, atol=5 * F32_SUMS)


@pytest.mark.slow
def test_moon_without_memory_is_refused():
    trainer = trainer_of(STREAM, OPTIMIZER, step=StepOptions(extensions=(ModelContrast(),)))
    with pytest.raises(
        ValueError, match=r"needs clients that remember theirs \(Federation\(remembers=True\)\); got none"
    ):
        after_rounds(trainer, STREAM)


# --- FedGELA. ---


@pytest.mark.slow
def test_fedgela_moves_no_frame_and_gives_every_client_its_lengths():
    model = small_model(HeadModule(heads.fixed(NUM_CLASSES, radius=3.0)))
    step = StepOptions(extensions=(LocalLengths(),))
    trainer = trainer_of(STREAM, OPTIMIZER, model=model, step=step)
    initial = jax.device_get(trainer.init(DATA, seed=0))
    found, _ = after_rounds(trainer, STREAM)
    chex.assert_trees_all_equal(found.variables, initial.variables)
    assert float(optax.tree.norm(jax.tree.map(np.subtract, found.params, initial.params))) > 0.1
    found = jax.tree.map(jnp.asarray, found)
    frame = found.variables["frame"]["head"]["frame"]
    output_of, batch = Evaluated(model, step), TEST.take(np.arange(8))
    generic = output_of(found, batch)
    np.testing.assert_allclose(generic.logits, generic.features @ frame, atol=F32_SUMS)
    np.testing.assert_array_equal(generic.frame, frame)
    personal = jax.vmap(lambda number: output_of(client_state(found, number), batch))(jnp.arange(len(SIZES)))
    for number, counts in enumerate(DATA.client_counts()):
        lengths = NUM_CLASSES * counts / counts.sum()
        np.testing.assert_allclose(personal.logits[number], generic.logits * lengths, atol=10 * F32_SUMS)
        np.testing.assert_allclose(np.linalg.norm(personal.frame[number], axis=0), lengths, atol=F32_SUMS)


@pytest.mark.slow
def test_clients_of_fedgela_train_with_their_lengths():
    """One client without two of the classes: two steps, against the loss with its lengths written down."""
    arrays = blobs(24)
    arrays = arrays.subset(arrays.labels < 2)
    data = ClientArrays.of(arrays, np.zeros(len(arrays), int), 1)
    stream = Clients(data, 6, rounds=1)
    model = small_model(HeadModule(heads.fixed(NUM_CLASSES, radius=3.0)))
    trainer = trainer_of(stream, optax.sgd(0.2), model=model, step=StepOptions(extensions=(LocalLengths(),)))
    state = trainer.init(data, seed=0)
    params, lengths = state.params, jnp.array([2.0, 2.0, 0.0, 0.0])

    def loss(params, batch):
        output = model.apply({"params": params, **state.variables}, jnp.asarray(batch.inputs))
        logits = output.logits * lengths
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch.labels)))

    for batch in batches_of(stream, 0)[0]:
        params = jax.tree.map(lambda one, by: one - 0.2 * by, params, jax.jit(jax.grad(loss))(params, batch))
    found, _ = after_rounds(trainer, stream)
    chex.assert_trees_all_close(found.params, jax.device_get(params), rtol=0, atol=F32_SUMS)


# --- A client's model as the server sees it. ---


@pytest.mark.parametrize("number", [-1, 5, jnp.int32(-1)])
def test_numbers_of_no_client_are_refused(number):
    state = trainer_of(STREAM, OPTIMIZER).init(DATA, seed=0)
    with pytest.raises(ValueError, match=f"clients have numbers in 0..4; got {number}"):
        client_state(state, number)


def test_a_state_without_clients_is_refused():
    with pytest.raises(ValueError, match="the state of a server has clients; got one without"):
        client_state(ByHand(small_model(), OPTIMIZER).initial(DATA), 0)


def test_parts_that_the_model_does_not_have_are_refused():
    with pytest.raises(ValueError, match="parts that clients keep must be among backbone, head; got 'neck'"):
        trainer_of(STREAM, OPTIMIZER, federation=Federation(personal=("neck",))).init(DATA, seed=0)


def test_clients_know_their_class_counts():
    state = trainer_of(STREAM, OPTIMIZER).init(DATA, seed=0)
    assert client_state(state, 2).client.counts.tolist() == DATA.client_counts()[2].tolist()
    assert state.clients.dropped.tolist() == [0] * 5
    assert state.clients.kept == {}
