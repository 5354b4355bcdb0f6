"""Schedules by their values, AGD against NumPy, line searches on several devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nc_jax.models import MLP, Classifier, LearnedHead
from nc_jax.streams import batches
from nc_jax.training import AXIS, create_state, data_parallel, make_train_step
from nc_jax.training.optimizers import OptimizerOptions, agd, agd_init, frozen, make_optimizer, make_schedule

SCHEDULES = {
    "constant": ({}, [0.5] * 10),
    "step": ({"period": 4.0}, [0.5] * 4 + [0.05] * 4 + [0.005] * 2),
    "multistep": ({"milestones": (2.0, 9.0), "factor": 0.5}, [0.5] * 2 + [0.25] * 7 + [0.125]),
    "cosine": ({}, [0.25 * (1 + np.cos(np.pi * epoch / 10)) for epoch in range(10)]),
    # Five steps of linear warm-up, then the schedule over the remaining steps; milestones count from the start.
    "cosine, warm-up": (
        {"warmup": 5.0},
        [0.5 * (7 * i + 1) / 35 for i in range(5)] + [0.25 * (1 + np.cos(np.pi * i / 5)) for i in range(5)],
    ),
    "multistep, warm-up": ({"warmup": 2.0, "milestones": (5.0,)}, [0.5 / 14, 0.5 * 8 / 14, 0.5, 0.5, 0.5] + [0.05] * 5),
    # Milestones that the warm-up has passed count together at its end.
    "multistep, early": ({"warmup": 2.0, "milestones": (1.0, 2.0)}, [0.5 / 14, 0.5 * 8 / 14] + [0.005] * 8),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules_by_epoch(case):
    settings, expected = SCHEDULES[case]
    options = OptimizerOptions(learning_rate=0.5, schedule=case.partition(",")[0], **settings)
    schedule = make_schedule(options, epochs=10, epoch_steps=7)
    np.testing.assert_allclose([schedule(7 * epoch) for epoch in range(10)], expected, rtol=1e-5, atol=1e-7)


def test_a_schedule_begins_anew_with_each_task():
    options = OptimizerOptions(learning_rate=0.5, schedule="cosine")
    schedule = make_schedule(options, epochs=2, epoch_steps=(5, 1, 3))
    each = [make_schedule(options, epochs=2, epoch_steps=steps) for steps in (5, 1, 3)]
    expected = [one(step) for one, steps in zip(each, (10, 2, 6), strict=True) for step in range(steps)]
    np.testing.assert_allclose([schedule(step) for step in range(18)], expected, rtol=1e-6)
    constant = make_schedule(OptimizerOptions(learning_rate=0.5), epochs=2, epoch_steps=(5, 1))
    assert [constant(step) for step in (0, 10, 11)] == [0.5] * 3


@pytest.mark.slow
def test_one_cycle_rises_and_falls():
    schedule = make_schedule(OptimizerOptions(schedule="one-cycle"), epochs=10, epoch_steps=10)
    rates = np.array([schedule(step) for step in range(101)])
    assert np.argmax(rates) == 30
    assert rates[30] == pytest.approx(0.1)
    assert rates[0] < 0.01
    assert rates[-1] < 1e-4


@pytest.mark.slow
def test_agd_is_the_algorithm(x64):
    rng = np.random.default_rng(0)
    params = {"dense": rng.normal(size=(5, 3)), "conv": rng.normal(size=(3, 3, 2, 4))}
    gradients = {name: rng.normal(size=value.shape) for name, value in params.items()}
    gradients["conv"][0, 0] = 0  # a tap without a gradient stays
    # Per matrix: factor and gradient, by loops over the taps.
    matrices = [(np.sqrt(3 / 5), gradients["dense"])]
    matrices += [(np.sqrt(4 / 2) / 3, gradients["conv"][row, column]) for row in range(3) for column in range(3)]
    summary = sum(factor * np.linalg.norm(gradient) for factor, gradient in matrices) / 2
    step = 1.5 * np.log((1 + np.sqrt(1 + 4 * summary)) / 2) / 2
    optimizer = agd(gain=1.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.asarray, gradients), optimizer.init(params), params)
    found = [updates["dense"], *updates["conv"].reshape(9, 2, 4)]
    for (factor, gradient), update in zip(matrices, found, strict=True):
        norm = np.linalg.norm(gradient)
        np.testing.assert_allclose(update, -step * factor * gradient / norm if norm else 0 * gradient, rtol=1e-12)


@pytest.mark.slow
def test_agd_starts_semi_orthogonal(x64):
    params = agd_init({"dense": jnp.zeros((5, 3)), "conv": jnp.zeros((3, 3, 2, 4))}, jax.random.key(0))
    np.testing.assert_allclose(params["dense"].T @ params["dense"], 3 / 5 * np.eye(3), atol=1e-12)
    for tap in params["conv"].reshape(9, 2, 4):
        np.testing.assert_allclose(tap @ tap.T, 4 / 2 / 9 * np.eye(2), atol=1e-12)


def test_agd_refuses_biases():
    with pytest.raises(ValueError, match=r"AGD needs matrices and convolutions only; got a/bias of shape \(3,\)"):
        agd().init({"a": {"bias": jnp.zeros(3)}})


@pytest.mark.parametrize("name", ["adam", "adamw", "lbfgs"])
@pytest.mark.slow
def test_every_optimiser_trains_alike_on_one_device_and_on_eight(name, train_set):
    """A line search evaluates the loss on all devices, and so its gradient."""
    options = OptimizerOptions(name, learning_rate=1e-2, clip_norm=None if name == "lbfgs" else 1.0)
    optimizer = make_optimizer(options, epochs=1, epoch_steps=4)
    model = Classifier(MLP((), 4), LearnedHead(4))
    batch = next(batches(train_set, 96, seed=0, num_steps=1))
    losses = []
    for devices in (1, 8):
        step = data_parallel(make_train_step(model, optimizer, axis_name=AXIS), devices=jax.devices()[:devices])
        state = create_state(model, optimizer, jax.random.key(0), train_set.inputs[:1])
        found = []
        for _ in range(4):
            state, metrics = step(state, batch)
            found.append(float(metrics.loss))
        losses.append(found)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0] == sorted(losses[0], reverse=True)


def test_weight_decay_is_added_to_the_gradient():
    options = OptimizerOptions(learning_rate=0.1, momentum=0.0, weight_decay=0.5)
    optimizer = make_optimizer(options, epochs=1, epoch_steps=1)
    params = jnp.array([2.0])
    updates, _ = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates), 2 - 0.1 * (1 + 0.5 * 2))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decayed", ["all", "kernels"])
def test_weight_decay_reaches_what_it_is_said_to_reach(name, decayed):
    """Without a gradient, only the decay moves a parameter."""
    options = OptimizerOptions(name, learning_rate=0.1, weight_decay=0.5, decayed=decayed)
    optimizer = make_optimizer(options, epochs=1, epoch_steps=1)
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "norm": {"scale": jnp.ones(2)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved == {"kernel": True, "bias": decayed == "all", "norm": {"scale": decayed == "all"}}


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_step_of_a_warm_up_has_the_rate_zero(steps):
    schedule = make_schedule(OptimizerOptions(learning_rate=0.5, warmup=float(steps)), epochs=10, epoch_steps=1)
    expected = [0.5 * step / steps for step in range(1, steps + 1)] + [0.5]
    np.testing.assert_allclose([schedule(step) for step in range(steps + 1)], expected, rtol=1e-6)


REFUSED = {
    "learning_rate must be positive; got 0.0": {"learning_rate": 0.0},
    "momentum must lie in [0, 1); got 1.0": {"momentum": 1.0},
    "weight_decay must be at least 0; got -1.0": {"weight_decay": -1.0},
    "clip_norm must be positive, or None; got 0.0": {"clip_norm": 0.0},
    "milestones must be positive and ascending epochs; got ()": {"schedule": "multistep"},
    "milestones must be positive and ascending epochs; got (3.0, 2.0)": {
        "schedule": "multistep",
        "milestones": (3.0, 2.0),
    },
    '"one-cycle" has its own warm-up; got warmup=1.0': {"schedule": "one-cycle", "warmup": 1.0},
    'momentum and nesterov are settings of "sgd"; got momentum=0.5 and nesterov=False for "adam"': {
        "name": "adam",
        "momentum": 0.5,
    },
    'momentum and nesterov are settings of "sgd"; got momentum=0.9 and nesterov=True for "adamw"': {
        "name": "adamw",
        "nesterov": True,
    },
    'decayed="kernels" needs a weight_decay above 0; got 0': {"decayed": "kernels"},
    '"agd" sets its own step, without schedule, warm-up or weight decay': {"name": "agd", "schedule": "cosine"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_options_are_refused(sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        OptimizerOptions(**REFUSED[sentence])
    assert str(error.value) == sentence


def test_a_warm_up_as_long_as_the_training_is_refused():
    with pytest.raises(ValueError, match="the warm-up must be shorter than the training of 2 epochs; got 2"):
        make_schedule(OptimizerOptions(warmup=2.0), epochs=2, epoch_steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_frozen_part_keeps_its_parameters_bit_for_bit(name, train_set):
    """The backbone from step 2 on, the bias until step 3; momentum and decay would move both."""
    options = OptimizerOptions(name, learning_rate=0.05, weight_decay=0.1)
    plain = make_optimizer(options, epochs=2, epoch_steps=5)
    optimizer = frozen(frozen(plain, "backbone", after=2), "head/bias", before=3)
    model = Classifier(MLP((8,), 6), LearnedHead(4))
    trained = []
    for one in (optimizer, plain):
        step = jax.jit(make_train_step(model, one))
        state = create_state(model, one, jax.random.key(0), train_set.inputs[:1])
        seen = [state.params]
        for batch in batches(train_set, 24, seed=0, num_steps=5):
            state, metrics = step(state, batch)
            assert bool(metrics.finite)
            seen.append(state.params)
        trained.append(jax.device_get(seen))
    here, free = trained

    def moved(part):
        return [
            not all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, map(part, pair)), strict=True))
            for pair in itertools.pairwise(here)
        ]

    assert moved(lambda params: params["backbone"]) == [True, True, False, False, False]
    assert moved(lambda params: params["head"]["bias"]) == [False, False, False, True, True]
    assert all(moved(lambda params: params["head"]["kernel"]))
    # Until its freeze the backbone moves as without it: the head's bias has no part in its first gradient.
    jax.tree.map(np.testing.assert_array_equal, here[1]["backbone"], free[1]["backbone"])


def test_a_part_may_move_in_the_middle_alone():
    optimizer = frozen(optax.sgd(1.0), "a", before=1, after=3)
    params = {"a": {"w": jnp.ones(2)}, "ab": jnp.ones(2)}
    state, moves = optimizer.init(params), []
    for _ in range(5):
        updates, state = optimizer.update(params, state, params)
        moves.append(bool(jnp.all(updates["a"]["w"] == -1)))
        assert jnp.all(updates["ab"] == -1), "another name that begins alike"
    assert moves == [False, True, True, False, False]


@pytest.mark.parametrize("steps", [{}, {"before": 3, "after": 3}, {"before": -1}, {"after": 0}])
def test_a_part_is_frozen_in_some_steps_and_moves_in_others(steps):
    named = {"before": None, "after": None} | steps
    sentence = (
        "a part must be frozen before a step, from a later one on, or both; "
        f"got before={named['before']} and after={named['after']}"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        frozen(optax.sgd(1.0), "a", **steps)


def test_the_frozen_part_must_exist():
    with pytest.raises(ValueError, match=r"^no parameter has a path that begins with 'backbones'$"):
        frozen(optax.sgd(1.0), "backbones", after=1).init({"backbone": jnp.ones(2)})
