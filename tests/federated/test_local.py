"""FedProx, SCAFFOLD and FedRep: wrappers of an optimiser, alone and in rounds."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_federated import LOCAL_BATCH, ByHand, after_rounds, batches_of, mean_of, small_model, spread, trainer_of

from nc_jax.federated import Federation, alternating, corrected, proximal
from nc_jax.federated.local import continued, scheduled
from nc_jax.models import MLP
from nc_jax.streams import Clients

F32_SUMS = 2e-6
RATE = 0.2
DATA = spread()
STREAM = Clients(DATA, LOCAL_BATCH, rounds=2, local_epochs=2)


def gradient_of(batch):
    """Return the gradient of the mean cross-entropy at the parameters, written down once more."""

    def loss(params):
        output = small_model().apply({"params": params}, jnp.asarray(batch.inputs))
        each = optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.asarray(batch.labels))
        return jnp.sum(jnp.where(batch.mask, each, 0)) / jnp.sum(batch.mask)

    return jax.grad(loss)


@jax.jit
def gradient(params, batch):
    return gradient_of(batch)(params)


def add(tree, other, factor=1.0):
    return jax.tree.map(lambda one, two: one + factor * two, tree, other)


# --- FedProx. ---


def test_the_proximal_term_is_the_gradient_of_the_squared_distance():
    start, point = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 1.0])}
    optimizer = proximal(optax.sgd(1.0), mu=0.5)
    update, _ = optimizer.update({"w": jnp.zeros(2)}, optimizer.init(start), point)
    squares = jax.grad(lambda one: 0.25 * jnp.sum((one["w"] - start["w"]) ** 2))(point)
    np.testing.assert_allclose(update["w"], -squares["w"], rtol=1e-6)


@pytest.mark.slow
def test_clients_of_fedprox_stay_near_the_model_of_their_round():
    mu = 2.0

    def trained(start, batches):
        params = start
        for batch in batches:
            pull = jax.tree.map(lambda one, two: mu * (one - two), params, start)
            params = add(params, add(gradient(params, batch), pull), -RATE)
        return params

    expected = ByHand(small_model(), optax.sgd(RATE)).initial(DATA).params
    sizes = DATA.client_counts().sum(axis=1)
    for segment in range(2):
        expected = mean_of([trained(expected, own) for own in batches_of(STREAM, segment).values()], sizes)
    found, _ = after_rounds(trainer_of(STREAM, proximal(optax.sgd(RATE), mu)), STREAM)
    chex.assert_trees_all_close(found.params, jax.device_get(expected), rtol=0, atol=F32_SUMS)


@pytest.mark.slow
def test_a_weight_of_zero_is_federated_averaging():
    optimizers = optax.sgd(RATE), proximal(optax.sgd(RATE), 0.0)
    plain, found = (after_rounds(trainer_of(STREAM, one), STREAM)[0] for one in optimizers)
    chex.assert_trees_all_close(found.params, plain.params, rtol=0, atol=1e-7)


# --- SCAFFOLD. ---


def scaffold(stream, rounds):
    """Algorithm 1 of Karimireddy et al. (2020) with option II and a global rate of 1, for clients of equal size."""
    total = stream.source.num_clients
    params = ByHand(small_model(), optax.sgd(RATE)).initial(stream.source).params
    zeros = jax.tree.map(jnp.zeros_like, params)
    control, controls = zeros, [zeros] * total
    for segment in range(rounds):
        moves, changes = [], []
        for number, batches in batches_of(stream, segment).items():
            local = params
            for batch in batches:
                step = add(add(gradient(local, batch), controls[number], -1.0), control)
                local = add(local, step, -RATE)
            new = add(add(controls[number], control, -1.0), add(params, local, -1.0), 1 / (len(batches) * RATE))
            moves.append(add(local, params, -1.0))
            changes.append((number, add(new, controls[number], -1.0)))
        for move in moves:
            params = add(params, move, 1 / len(moves))
        for number, change in changes:
            controls[number] = add(controls[number], change)
            control = add(control, change, 1 / total)
    return params, control, controls


@pytest.mark.slow
def test_scaffold_is_the_algorithm_of_its_paper():
    stream = Clients(spread((7,) * 4), LOCAL_BATCH, rounds=3, per_round=3, local_epochs=2)
    params, control, controls = scaffold(stream, 3)
    trainer = trainer_of(stream, optax.sgd(RATE), federation=Federation(controlled=True), at_once=2)
    found, _ = after_rounds(trainer, stream)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *controls)
    assert float(optax.tree.norm(control)) > 0.1
    # The paper's variates are differences of parameters, divided by the rate and the number of steps.
    chex.assert_trees_all_close(found.params, params, rtol=0, atol=5 * F32_SUMS)
    chex.assert_trees_all_close(found.clients.control, control, rtol=0, atol=10 * F32_SUMS)
    chex.assert_trees_all_close(found.clients.kept["control"], stacked, rtol=0, atol=10 * F32_SUMS)


@pytest.mark.slow
def test_control_variates_count_like_models_so_unequal_clients_agree_on_the_minimum():
    """One full step a round: the corrections cancel in the mean, which is gradient descent over all examples."""
    data = spread((4, 12))
    stream = Clients(data, 12, rounds=2, local_steps=1)
    found, _ = after_rounds(trainer_of(stream, optax.sgd(RATE), federation=Federation(controlled=True)), stream)
    own = found.clients.kept["control"]
    chex.assert_trees_all_close(
        found.clients.control, jax.tree.map(lambda leaf: (4 * leaf[0] + 12 * leaf[1]) / 16, own), rtol=0, atol=F32_SUMS
    )
    start = ByHand(small_model(), optax.sgd(RATE)).initial(data).params
    expected = start
    every = Clients(data, 16, rounds=1, together=True)
    (batch,) = batches_of(every, 0)[0]
    for _ in range(2):
        expected = add(expected, gradient(expected, batch), -RATE)
    chex.assert_trees_all_close(found.params, expected, rtol=0, atol=F32_SUMS)


@pytest.mark.slow
def test_scaffold_of_unequal_clients_finds_the_minimum_of_the_mean_over_all_examples():
    """Many full steps in each round: FedAvg ends elsewhere, and so would variates that count all clients alike."""
    data = spread((4, 36))
    labels = np.random.default_rng(0).integers(0, 4, 40)  # that no model can learn, so the minimum is a point
    data = dataclasses.replace(data, inputs=data.inputs / 4, labels=labels)
    stream = Clients(data, 36, rounds=600, local_steps=8)
    model = small_model(backbone=MLP((), 4))

    def slope(params):
        def loss(params):
            output = model.apply({"params": params}, jnp.asarray(data.inputs))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.asarray(labels)))

        return float(optax.tree.norm(jax.grad(loss)(params)))

    for controlled, low, high in ((True, 0, 1e-5), (False, 0.1, 1)):
        federation = Federation(controlled=controlled)
        state, _ = after_rounds(trainer_of(stream, optax.sgd(0.3), model=model, federation=federation), stream)
        assert low <= slope(state.params) <= high


def test_the_correction_is_added_and_gradients_are_summed_without_it():
    optimizer = corrected(optax.sgd(1.0))
    state = optimizer.init(jnp.zeros(2))._replace(correction=jnp.array([0.5, 0.0]))
    for _ in range(2):
        update, state = optimizer.update(jnp.array([1.0, 2.0]), state)
    assert update.tolist() == [-1.5, -2.0]
    assert (state.gradients.tolist(), int(state.steps)) == ([2.0, 4.0], 2)


# --- FedRep. ---


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 9])
def test_fedrep_moves_the_head_first_and_then_the_rest(steps):
    """After two steps of the head, the body moves; with more steps for the head than there are, it never does."""
    stream = Clients(DATA, LOCAL_BATCH, rounds=1, local_steps=3)
    by_hand = ByHand(small_model(), optax.sgd(RATE, 0.9))
    start, sizes = by_hand.initial(DATA).params, DATA.client_counts().sum(axis=1)
    ends = []
    for batches in batches_of(stream, 0).values():
        params, speed = start, jax.tree.map(jnp.zeros_like, start)
        for number, batch in enumerate(batches):
            speed = add(gradient(params, batch), speed, 0.9)
            moved = add(params, speed, -RATE)
            part = "head" if number < steps else "backbone"
            params = {**params, part: moved[part]}
        ends.append(params)
    optimizer = alternating(optax.sgd(RATE, 0.9), "head", steps)
    found, _ = after_rounds(trainer_of(stream, optimizer, federation=Federation(personal=("head",))), stream)
    chex.assert_trees_all_close(found.params, mean_of(ends, sizes), rtol=0, atol=F32_SUMS)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(end["head"] for end in ends))
    chex.assert_trees_all_close(found.clients.kept["params"]["head"], stacked, rtol=0, atol=F32_SUMS)
    # The mean of equal numbers is off by a rounding.
    body = optax.tree.norm(add(found.params["backbone"], start["backbone"], -1.0))
    assert (float(body) > 0.01) == (steps == 2)


# --- States from round to round. ---


def test_what_a_wrapper_holds_of_a_round_begins_anew_at_any_depth():
    params = {"head": jnp.ones(2), "backbone": jnp.ones(2)}
    adam = optax.chain(optax.clip(1.0), proximal(alternating(optax.adam(0.1), "head", 1), 1.0))
    old = adam.init(params)
    _, old = adam.update(params, old, params)
    fresh = adam.init({"head": jnp.zeros(2), "backbone": jnp.zeros(2)})
    found = continued(fresh, old)
    assert found[1].anchor["head"].tolist() == [0, 0]
    assert int(found[1].inner.count) == 0
    chex.assert_trees_all_equal(found[1].inner.inner, old[1].inner.inner)
    assert int(found[1].inner.inner[0].count) == 1


def test_only_schedules_stand_at_a_step():
    optimizer = proximal(optax.adam(optax.linear_schedule(1.0, 0.0, 10)), 1.0)
    state = scheduled(optimizer.init(jnp.zeros(2)), jnp.int32(7))
    assert int(state.inner[0].count) == 0
    assert int(state.inner[1].count) == 7
    injected = optax.inject_hyperparams(optax.adam)(optax.linear_schedule(1.0, 0.0, 10), b1=0.0, b2=0.0)
    update, _ = injected.update(jnp.ones(2), scheduled(injected.init(jnp.zeros(2)), jnp.int32(7)))
    np.testing.assert_allclose(update, -0.3, rtol=1e-5)


@pytest.mark.slow
def test_the_schedule_goes_on_from_round_to_round():
    """A client with fewer steps skips some rates, so all clients have the same rates in a round."""
    stream = Clients(DATA, LOCAL_BATCH, rounds=2)
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    schedule = lambda count: jnp.asarray(rates)[count]  # noqa: E731
    expected, sizes = ByHand(small_model(), optax.sgd(RATE)).initial(DATA).params, DATA.client_counts().sum(axis=1)
    for segment in range(2):
        ends = []
        for batches in batches_of(stream, segment).values():
            params = expected
            for number, batch in enumerate(batches):
                params = add(params, gradient(params, batch), -rates[3 * segment + number])
            ends.append(params)
        expected = mean_of(ends, sizes)
    found, _ = after_rounds(trainer_of(stream, optax.sgd(schedule)), stream)
    chex.assert_trees_all_close(found.params, jax.device_get(expected), rtol=0, atol=F32_SUMS)


# --- Refusals. ---


@pytest.mark.parametrize("mu", [-1.0, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_refused(mu):
    with pytest.raises(ValueError, match="mu must be at least 0 and finite; got"):
        proximal(optax.sgd(1.0), mu)


def test_parts_and_steps_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        alternating(optax.sgd(1.0), "head", 0)
    with pytest.raises(ValueError, match="part must be one of backbone, head; got 'neck'"):
        alternating(optax.sgd(1.0), "neck", 1).init({"backbone": jnp.zeros(1), "head": jnp.zeros(1)})
