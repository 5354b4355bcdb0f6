"""A run belongs to its settings, says so, and is read back without its program."""

import dataclasses
import json
import logging
import re

import chex
import flax.linen as nn
import numpy as np
import optax
import pytest
from toy_training import blobs, fit, make_trainer, rows_of

from nc_jax.data import LabelledArrays
from nc_jax.files import exclusive
from nc_jax.models import Classifier, NearestHead
from nc_jax.training import BusyError, LoopOptions, StepOptions, Trainer, load_run


def files_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def begun(one_device, train_set, test_set, tmp_path_factory):
    """A finished run, which the tests below must leave as it is."""
    directory = tmp_path_factory.mktemp("begun")
    trained = fit(one_device, train_set, test_set, directory)
    return directory, trained


OTHER_TRAINERS = {
    "optimizer": ({"learning_rate": 0.1}, r"optimizer\.\S* is -0.1 instead of -0.05"),
    "head": ({"prox_weight": 0.5}, r"model\.head\.\S*prox_weight is 0.5 instead of 0.001"),
    "accumulate": ({"step": StepOptions(accumulate=2)}, r"step.accumulate is 2 instead of 1"),
    "augmentation": ({"step": StepOptions(augment=lambda key, x: x)}, r"step.augment is .*lambda.* instead of None"),
    "epochs": (
        {"epochs": 2},
        r"must be asked for at least the 15 steps that it has been trained for; got 10, which is 2 epochs",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("keywords", "sentence"), OTHER_TRAINERS.values(), ids=OTHER_TRAINERS)
def test_another_trainer_is_refused_and_nothing_is_changed(begun, train_set, test_set, keywords, sentence):
    directory, _ = begun
    before = files_of(directory)
    with pytest.raises(ValueError, match=sentence):
        fit(make_trainer(1, **keywords), train_set, test_set, directory)
    assert files_of(directory) == before


def other_inputs(arrays):
    inputs = arrays.inputs.copy()
    inputs[3, 2] += 1e-6
    return dataclasses.replace(arrays, inputs=inputs)


OTHER_CALLS = {
    "seed": ({"seed": 1}, {}, "seed is 1 instead of 0"),
    "data": ({}, {"train_set": other_inputs}, r"training set.inputs is float32\[100, 6\] \w+ instead of float32"),
    "size": ({}, {"train_set": lambda one: one.subset(np.arange(99))}, r"training set.inputs is float32\[99, 6\]"),
    "test data": ({}, {"test_set": other_inputs}, r"test set.inputs is"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("keywords", "changes", "sentence"), OTHER_CALLS.values(), ids=OTHER_CALLS)
def test_another_seed_or_data_set_is_refused(begun, one_device, train_set, test_set, keywords, changes, sentence):
    directory, _ = begun
    sets = {"train_set": train_set, "test_set": test_set}
    sets |= {name: change(sets[name]) for name, change in changes.items()}
    with pytest.raises(ValueError, match=f"run 'run' in .* was begun with other settings: {sentence}") as error:
        fit(one_device, **sets, directory=directory, **keywords)
    assert "give the run another name, or restart it (restart=True, --restart)" in str(error.value)


@pytest.mark.slow
def test_another_batch_size_is_refused(begun, train_set, test_set):
    directory, _ = begun
    trainer = make_trainer(1)
    other = Trainer(trainer.model, trainer.optimizer, dataclasses.replace(trainer.options, batch_size=48))
    with pytest.raises(ValueError, match=r"stream\.batch_size is 48 instead of 24"):
        fit(other, train_set, test_set, directory)


@pytest.mark.slow
def test_a_run_starts_anew_where_it_is_asked_to(one_device, train_set, test_set, tmp_path, caplog):
    fit(one_device, train_set, test_set, tmp_path)
    again = fit(one_device, train_set, test_set, tmp_path, seed=1, restart=True)
    assert (tmp_path / "superseded" / "run" / "15").is_dir()
    assert "the checkpoints of run 'run' so far are now in" in caplog.text
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]
    fresh = fit(one_device, train_set, test_set, tmp_path, seed=1, run="fresh")
    biases = [one.state.params["backbone"]["features"]["bias"] for one in (again, fresh)]
    np.testing.assert_array_equal(*biases)


@pytest.mark.slow
def test_more_epochs_continue_a_run_and_say_so(begun, one_device, train_set, test_set, tmp_path, caplog):
    fit(make_trainer(1, epochs=2), train_set, test_set, tmp_path)
    longer = fit(one_device, train_set, test_set, tmp_path)
    assert "run 'run' was planned for 10 steps, and now ends after 15" in caplog.text
    chex.assert_trees_all_equal(longer.state, begun[1].state)


@pytest.mark.slow
def test_checkpoints_without_a_description_are_refused(one_device, train_set, test_set, tmp_path):
    fit(one_device, train_set, test_set, tmp_path)
    path = tmp_path / "checkpoints" / "run" / "run.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"run.json must describe a run; got JSONDecodeError"):
        fit(one_device, train_set, test_set, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"checkpoints must come with a run.json that describes the run"):
        fit(one_device, train_set, test_set, tmp_path)


def test_a_run_is_trained_by_one_process_at_a_time(one_device, train_set, test_set, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with (
        exclusive(tmp_path / "checkpoints" / ".run.lock", "this"),
        pytest.raises(BusyError, match="only one process at a time may work on run 'run' in"),
    ):
        fit(one_device, train_set, test_set, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [tmp_path / "checkpoints" / ".run.lock"]


@pytest.mark.parametrize("seed", [-1, 2**64, True])
def test_seeds_are_checked(one_device, train_set, test_set, tmp_path, seed):
    with pytest.raises(ValueError, match=re.escape(f"seed must be a whole number in 0..2^64-1; got {seed}")):
        fit(one_device, train_set, test_set, tmp_path, seed=seed)
    assert not (tmp_path / "checkpoints").exists()


def test_seeds_beyond_32_bits_differ(one_device, train_set):
    one, other = (one_device.init(train_set, seed).params["backbone"]["features"]["kernel"] for seed in (3, 3 + 2**32))
    assert np.abs(one - other).max() > 0.1


def named(arrays, *names):
    return dataclasses.replace(arrays, class_names=names)


MISFITS = {
    "more classes": (
        lambda one: LabelledArrays(one.inputs, one.labels, 5),
        "the test set must have the number of classes of the training set, 4; got 5",
    ),
    "renamed": (
        lambda one: named(one, "0", "1", "2", "x"),
        "the test set must have the class names of the training set, 0, 1, 2, 3; got 0, 1, 2, x",
    ),
    "wider": (
        lambda one: dataclasses.replace(one, inputs=np.zeros((40, 7), np.float32)),
        r"test inputs must be like the training inputs, of shape \(6,\) and dtype float32; got shape \(7,\) and dtype",
    ),
    "bytes": (
        lambda one: dataclasses.replace(one, inputs=np.zeros((40, 6), np.uint8)),
        r"got shape \(6,\) and dtype uint8",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), MISFITS.values(), ids=MISFITS)
def test_a_test_set_of_another_kind_is_refused(one_device, train_set, test_set, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(one_device, train_set, change(test_set), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_head_with_other_classes_than_the_data_is_refused(train_set, test_set, tmp_path):
    model = Classifier(make_trainer(1).model.backbone, NearestHead(3))
    trainer = Trainer(model, optax.sgd(0.1), LoopOptions(epochs=1, batch_size=24, devices=1))
    with pytest.raises(ValueError, match="the head must have the 4 classes of the training set; got 3"):
        fit(trainer, train_set, test_set, tmp_path)


# --- reading back ---


@pytest.mark.slow
def test_a_run_is_read_back_without_its_program(begun, one_device, test_set):
    directory, trained = begun
    loaded = load_run(directory)
    predicted = loaded.predict(test_set.inputs)
    here = one_device.predict(trained.state, test_set)
    np.testing.assert_array_equal(predicted.labels, here.labels)
    np.testing.assert_allclose(predicted.probabilities, here.probabilities, atol=1e-6)
    assert np.mean(predicted.labels == test_set.labels) == pytest.approx(trained.test.metrics["accuracy"])
    assert loaded.class_names == ("0", "1", "2", "3")
    assert (loaded.step, loaded.facts.input_shape) == (15, (6,))
    np.testing.assert_array_equal(
        loaded.arrays["params/backbone/features/kernel"], trained.state.params["backbone"]["features"]["kernel"]
    )
    assert loaded.outputs(test_set.inputs[:1])["features"].shape == (1, 8)
    assert predicted.names[:2] == tuple(str(label) for label in predicted.labels[:2])
    np.testing.assert_array_equal(one_device.predict(trained.state, test_set.inputs).labels, here.labels)


@pytest.mark.slow
def test_preprocessing_averages_and_names_are_read_back(test_set, tmp_path):
    arrays = blobs(40)
    inputs = (40 * arrays.inputs + 120).clip(0, 255).astype(np.uint8)
    train = LabelledArrays(inputs, arrays.labels, 4, ("a", "b", "c", "d"))
    step = StepOptions(preprocess=lambda inputs: (inputs - 120.0) / 40, average_decay=0.9)
    trainer = make_trainer(1, epochs=1, step=step)
    trained = fit(trainer, train, train, tmp_path)
    loaded = load_run(tmp_path / "checkpoints" / "run")
    labels = trainer.predict(trained.state, train).labels
    assert loaded.predict(train.inputs).names == tuple(train.class_names[label] for label in labels)
    with pytest.raises(ValueError, match="inputs must have the dtype uint8 of the training set; got float32"):
        loaded.predict(train.inputs.astype(np.float32))


BAD_INPUTS = {"wider": np.zeros((2, 7)), "one example": np.zeros(6), "none": np.zeros((0, 6))}


@pytest.mark.slow
@pytest.mark.parametrize("inputs", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_other_inputs_are_refused(begun, inputs):
    with pytest.raises(ValueError, match=re.escape(f"inputs must have shape (N, 6), N >= 1; got {inputs.shape}")):
        load_run(begun[0]).predict(inputs)


@pytest.mark.slow
def test_the_run_to_read_must_be_there_and_be_named(begun, one_device, train_set, test_set, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold a run; got none"):
        load_run(tmp_path)
    for run in ("a", "b"):
        fit(one_device, train_set, test_set, tmp_path, run=run)
    with pytest.raises(ValueError, match=r"the run must be named, since .* has several; got none of a, b"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold the run c; got a, b"):
        load_run(tmp_path, "c")
    (tmp_path / "checkpoints" / "a" / "model.stablehlo").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model.stablehlo must be a stored model; got"):
        load_run(tmp_path, "a")
    (tmp_path / "checkpoints" / "b" / "model.stablehlo").unlink()
    with pytest.raises(FileNotFoundError, match=r"a run is read back from run.json and model.stablehlo; got"):
        load_run(tmp_path, "b")


@pytest.mark.slow
def test_a_model_that_cannot_be_stored_trains_all_the_same(train_set, test_set, tmp_path, caplog):
    class OneBatchSize(nn.Module):
        @nn.compact
        def __call__(self, inputs, *, train=False, mask=None):
            return nn.Dense(8)(inputs.reshape(len(inputs), -1))  # len() of a batch of any size does not exist

    with caplog.at_level(logging.WARNING):
        fit(make_trainer(1, epochs=1, backbone=OneBatchSize()), train_set, test_set, tmp_path)
    assert "the model cannot be stored with the run, so load_run will not find it" in caplog.text
    stored = json.loads((tmp_path / "checkpoints" / "run" / "run.json").read_text())
    assert stored["class_names"] == ["0", "1", "2", "3"]
