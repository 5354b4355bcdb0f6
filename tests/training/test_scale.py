"""Training at scale: scans on the device, parts of a batch, averages, augmentation, a scheduler that says stop."""

import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import NormalisedMLP, blobs, fit, make_trainer, rows_of

from nc_jax.data import LabelledArrays
from nc_jax.models import MLP, Classifier, LearnedHead
from nc_jax.streams import batches
from nc_jax.training import PreemptedError, ResidentSet, StepOptions, create_state, make_train_step, resident

FLOAT32_TRAINING = 1e-5  # what sums in another order leave in the parameters after three epochs


def run_steps(trainer, arrays, num_steps=5):
    state = trainer.init(arrays, seed=0)
    for batch in batches(arrays, 24, seed=0, num_steps=num_steps, parts=trainer.step_options.accumulate):
        state, _ = trainer.step(state, batch)
    return jax.device_get(state)


# --- Epochs on the device. ---


@pytest.mark.slow
def test_a_resident_set_trains_like_a_streamed_one(train_set, test_set, tmp_path):
    """BatchNorm, the nearest head, a padded last batch: the same numbers, scanned or step by step."""
    found = []
    for on_devices in (True, False):
        trainer = make_trainer(1, resident=on_devices, backbone=NormalisedMLP())
        found.append(fit(trainer, train_set, test_set, tmp_path / str(on_devices)))
    chex.assert_trees_all_close(found[0], found[1], rtol=0, atol=FLOAT32_TRAINING)
    for ours, theirs in zip(rows_of(tmp_path / "True"), rows_of(tmp_path / "False"), strict=True):
        assert ours.pop("run") == theirs.pop("run")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_sets_that_are_alike_share_one_array(monkeypatch):
    """So one program serves both. Bytes beside 16-bit numbers do not: preprocessing tells them apart."""
    sets = [blobs(7), blobs(50, seed=1)]
    content = [one.content for one in ResidentSet.side_by_side(sets, 4)]
    assert content[0]["inputs"] is content[1]["inputs"]
    np.testing.assert_array_equal(content[0]["inputs"], np.concatenate([one.inputs for one in sets]))
    assert [int(one["first"]) for one in content] == [0, 7]
    bytes_, numbers = (LabelledArrays(np.ones((3, 2), dtype), np.zeros(3, int), 1) for dtype in (np.uint8, np.uint16))
    apart = [one.content["inputs"].dtype for one in ResidentSet.side_by_side([bytes_, numbers], 4)]
    assert apart == [np.uint8, np.uint16]
    monkeypatch.setattr(resident, "LIMIT", sets[0].inputs.nbytes)
    content = [one.content for one in ResidentSet.side_by_side(sets, 4)]
    assert [len(one["labels"]) for one in content] == [7, 50]


@pytest.mark.slow
def test_eight_devices_train_a_resident_set_as_one(train_set, test_set, tmp_path):
    found = [
        fit(make_trainer(n, backbone=NormalisedMLP(), epochs=2), train_set, test_set, tmp_path / str(n)).state.params
        for n in (1, 8)
    ]
    chex.assert_trees_all_close(found[0], found[1], rtol=0, atol=FLOAT32_TRAINING)


# --- Options of the step. ---


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_its_gradient(train_set):
    """If nothing couples the examples, the step does not depend on how the batch is cut."""
    model, optimizer = Classifier(MLP((16,), 8), LearnedHead(4)), optax.sgd(0.1)
    batch = next(batches(train_set, 24, seed=0, start_step=4, num_steps=1))  # mostly padding
    found = []
    for accumulate in (1, 3):
        state = create_state(model, optimizer, jax.random.key(0), train_set.inputs[:1])
        step = jax.jit(make_train_step(model, optimizer, options=StepOptions(accumulate=accumulate)))
        found.append(step(state, batch))
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_parts_hold_the_same_examples_on_any_number_of_devices(train_set):
    """The nearest head and BatchNorm see parts, so the examples of a part must not depend on the number of devices."""
    options = StepOptions(accumulate=3)
    states = [run_steps(make_trainer(n, step=options, backbone=NormalisedMLP()), train_set) for n in (1, 8)]
    chex.assert_trees_all_close(states[0], states[1], rtol=0, atol=FLOAT32_TRAINING)
    assert states[0].variables["nearest"]["head"]["steps"] >= 13  # three solves a step, two or so in the padded one


@pytest.mark.slow
def test_the_average_is_that_of_the_parameters(train_set):
    trainer = make_trainer(1, step=StepOptions(average_decay=0.5))
    state = trainer.init(train_set, seed=0)
    expected = jax.device_get(state.params)
    for batch in batches(train_set, 24, seed=0, num_steps=3):
        state, _ = trainer.step(state, batch)
        expected = jax.tree.map(lambda old, new: (old + new) / 2, expected, jax.device_get(state.params))
    chex.assert_trees_all_close(jax.device_get(state.average), expected, rtol=1e-6, atol=1e-7)
    assert state.evaluated_params is state.average


@pytest.mark.slow
def test_augmentation_does_not_depend_on_the_devices(train_set):
    def noise(key, inputs):
        return inputs + jax.random.normal(key, inputs.shape)

    def twice(inputs):
        return 2.0 * inputs

    options = StepOptions(preprocess=twice, augment=noise, accumulate=3)
    states = [run_steps(make_trainer(n, step=options), train_set) for n in (1, 8)]
    chex.assert_trees_all_close(states[0], states[1], rtol=0, atol=FLOAT32_TRAINING)
    plain = run_steps(make_trainer(1, step=StepOptions(preprocess=twice, accumulate=3)), train_set)
    assert not np.allclose(
        plain.params["backbone"]["Dense_0"]["kernel"], states[0].params["backbone"]["Dense_0"]["kernel"]
    )


@pytest.mark.slow
def test_evaluation_preprocesses_and_does_not_augment(train_set, test_set):
    halved = blobs(40, seed=1)
    halved = type(halved)(halved.inputs / 2, halved.labels, 4)
    plain = make_trainer(1)
    options = StepOptions(preprocess=lambda inputs: 2 * inputs, augment=lambda key, inputs: 0 * inputs)
    state = plain.init(train_set, seed=0)
    expected = plain.evaluate(state, lambda: batches(test_set, 24, seed=0, num_steps=2)).metrics
    found = make_trainer(1, step=options).evaluate(state, lambda: batches(halved, 24, seed=0, num_steps=2)).metrics
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1; got 0"),
        ({"average_decay": 1.0}, r"average_decay must lie in \(0, 1\), or be None; got 1.0"),
    ],
)
def test_options_are_checked(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        StepOptions(**settings)


# --- SIGTERM. ---


STOPS = {  # resident?, the part of the trainer that is at work when the signal comes, in which call, the step saved
    "between the steps": (False, "step", 7, 7),
    "in an epoch on the device": (True, "segment", 1, 8),
    "in the report of an epoch": pytest.param(False, "evaluate", 3, 9, marks=pytest.mark.slow),
    "after the last step": pytest.param(False, "step", 27, 27, marks=pytest.mark.slow),
}


@pytest.mark.slow
@pytest.mark.parametrize(("resident", "part", "call", "step"), STOPS.values(), ids=STOPS)
def test_a_run_that_was_told_to_stop_ends_as_the_unbroken_one(test_set, tmp_path, resident, part, call, step):
    """Training stops after the step, and saves it before anything else; after resuming, the log is complete."""
    train_set = blobs(200)  # nine steps an epoch: more than run on the device before the host looks for a signal
    trainer = make_trainer(1, resident=resident, checkpoint_every=100, backbone=NormalisedMLP())
    unbroken = fit(trainer, train_set, test_set, tmp_path / "unbroken")
    calls, original = [], getattr(trainer, part)

    def interrupted(*arguments, **keywords):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    setattr(trainer, part, interrupted)
    with pytest.raises(PreemptedError, match=f"run was asked to stop; step {step} is saved in"):
        fit(trainer, train_set, test_set, tmp_path / "broken")
    setattr(trainer, part, original)
    assert [row["epoch"] for row in rows_of(tmp_path / "broken")] == list(range((step - 1) // 9 + 1))
    resumed = fit(trainer, train_set, test_set, tmp_path / "broken")
    chex.assert_trees_all_equal(resumed, unbroken)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")


@pytest.mark.slow
def test_the_handler_of_sigterm_is_put_back(one_device, train_set, test_set, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    fit(one_device, train_set, test_set, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(train_set, test_set, tmp_path):
    unbroken = fit(make_trainer(1), train_set, test_set, tmp_path / "unbroken")
    fit(make_trainer(1, epochs=1), train_set, test_set, tmp_path / "broken")
    resumed = fit(make_trainer(8), train_set, test_set, tmp_path / "broken")
    chex.assert_trees_all_close(resumed.state, unbroken.state, rtol=0, atol=FLOAT32_TRAINING)
    assert isinstance(jax.tree.leaves(resumed.state)[0], jax.Array)
    assert jnp.all(jnp.isfinite(resumed.state.totals.loss))
