"""Data sets as tasks of a run, and runs over tasks: killed, resumed, mixed up, and what they measure."""

import dataclasses
import os
import signal

import chex
import jax
import numpy as np
import pytest
from deadly import Deadly, KilledError

from nc_jax.data import LabelledArrays
from nc_jax.hierarchy import from_nested
from nc_jax.methods import ContinualOptions
from nc_jax.study import Comparison
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.continual import _of_sessions, check_tasks, watching
from nc_jax.study.data import Data
from nc_jax.study.settings import Group
from nc_jax.study.tasks import arranged
from nc_jax.study.trainers import make_stream, make_trainer, setting_of
from nc_jax.training import LoopOptions, MetricsLog, OptimizerOptions, PreemptedError, read_metrics

K, T = 6, 3


def blobs(seed: int, count: int) -> LabelledArrays:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % K
    centres = 2 * np.random.default_rng(9).normal(size=(K, 8))
    inputs = centres[labels] + generator.normal(size=(count, 8))
    return LabelledArrays(inputs.astype(np.float32), labels, K, tuple("abcdef"))


DATA = Data(blobs(0, 96), blobs(1, 48), augment=None, preprocess=None, size=8)
SETTINGS = Comparison(
    methods=("derpp-fno",),
    backbone=BackboneOptions(hidden=(), dim=12, neck="relu"),
    optimizer=OptimizerOptions(learning_rate=0.1, momentum=0.0),
    loop=LoopOptions(epochs=2, batch_size=8, checkpoint_every=1, devices=2),
    continual=ContinualOptions(tasks=T, memory=9, draw_size=4),
)
GROUP = Group("", "", "derpp-fno", SETTINGS)


# --- Data sets as tasks. ---


def test_a_seed_orders_classes_and_results_are_numbered_back():
    parts = [arranged(DATA, SETTINGS.continual, seed) for seed in range(4)]
    assert len({part.class_names for part in parts}) > 1
    for part in parts:
        train = part.train
        assert isinstance(train, LabelledArrays)
        np.testing.assert_array_equal(part.tasks[0], train.labels // (K // T))
        names = [train.class_names[label] for label in train.labels]
        assert names == [DATA.class_names[label] for label in DATA.train.labels]
        # Numbers of classes that are named after them come back to their places.
        ranks = np.array(["abcdef".index(name) for name in part.class_names])
        np.testing.assert_array_equal(part.as_numbered(ranks), np.arange(K))
        np.testing.assert_array_equal(
            part.as_numbered(10 * ranks[:, None] + ranks), 10 * np.arange(K)[:, None] + np.arange(K)
        )
    given = arranged(DATA, dataclasses.replace(SETTINGS.continual, order="given"), 3)
    assert given.order is None
    assert given.class_names == DATA.class_names


def test_a_base_session_has_more_classes_and_later_ones_few_examples():
    options = dataclasses.replace(SETTINGS.continual, base=4, shots=5)
    for seed in range(3):
        part = arranged(DATA, options, seed)
        assert np.bincount(part.train.labels).tolist() == [16] * 4 + [5] * 2
        for numbers, examples in zip(part.tasks, (part.train, part.test), strict=True):
            np.testing.assert_array_equal(numbers, np.array([0, 0, 0, 0, 1, 2])[examples.labels])
        assert len(part.test) == len(DATA.test)
    setting = setting_of(dataclasses.replace(SETTINGS, continual=options), part)
    assert setting.task_of_class == (0, 0, 0, 0, 1, 2)
    assert setting.task_steps == (2 * 8, 2, 2)  # of two epochs each, in batches of eight


def test_accuracies_over_classes_count_every_test_example_once():
    part = arranged(DATA, dataclasses.replace(SETTINGS.continual, base=4), 0)
    found = _of_sessions(np.array([[0.9, 0.0, 0.0], [0.6, 0.9, 0.0], [0.5, 0.4, 0.8]]), part)
    assert found["sessions"] == pytest.approx([0.9, (4 * 0.6 + 0.9) / 5, (4 * 0.5 + 0.4 + 0.8) / 6], abs=1e-4)
    assert found["accuracy_seen"] == pytest.approx(3.2 / 6)
    assert (found["accuracy_base"], found["accuracy_new"]) == pytest.approx((0.5, 0.6))
    assert found["drop"] == pytest.approx(0.9 - 3.2 / 6)


def test_domains_have_all_classes_in_each_task():
    part = arranged(DATA, dataclasses.replace(SETTINGS.continual, scenario="domain"), 0)
    assert len(part.train) == T * len(DATA.train)
    for numbers, examples in zip(part.tasks, (part.train, part.test), strict=True):
        for task in range(T):
            assert set(examples.labels[numbers == task].tolist()) == set(range(K))


def test_one_task_is_the_set_itself():
    assert arranged(DATA, ContinualOptions(), 0) is DATA


@pytest.mark.parametrize(
    ("data", "changes", "sentence"),
    [
        (
            DATA._replace(train=DATA.train.subset(DATA.train.labels < K - 1)),
            {"tasks": K, "order": "given"},
            r"every task needs an example; task 5 of 0\.\.5 has none",
        ),
        (
            DATA._replace(test=DATA.test.subset(DATA.test.labels > 1)),
            {"order": "given"},
            r"every task needs an example; task 0 of 0\.\.2 has none",
        ),
        (DATA, {"base": 5}, "at least one, to each task after it; got 5 of 6 classes and 3 tasks"),
        (DATA, {"base": 4, "shots": 17}, "of each class after the first task; got 17, and class 4 has 16"),
        (DATA, {"tasks": 4}, "tasks must divide the classes into equal parts; got 4 for 6 classes"),
        (
            DATA._replace(tree=from_nested({"root": list("abcdef")}).ordered(tuple("abcdef"))),
            {},
            r"the classes of a label tree keep their order \(--continual.order given\)",
        ),
    ],
)
def test_tasks_that_cannot_be_are_refused(data, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        arranged(data, dataclasses.replace(SETTINGS.continual, **changes), 0)


def test_evaluations_come_after_each_task():
    loop = dataclasses.replace(SETTINGS.loop, epochs=3, evaluate_every=2)
    with pytest.raises(ValueError, match=r"evaluate_every must divide the epochs of a task.*; got 2 and 3"):
        check_tasks(dataclasses.replace(SETTINGS, loop=loop))


# --- Runs. ---


@pytest.fixture(scope="module")
def trainer():
    return make_trainer(GROUP, DATA)


def fit(trainer, folder, data, seed=0, stream=None, **keywords):
    folder.mkdir(exist_ok=True)
    own = arranged(data, SETTINGS.continual, seed)
    with MetricsLog(folder) as log:
        options = {"seed": seed, "run": "run", "directory": folder, "log": log} | keywords
        options |= {"stream": stream or make_stream(GROUP, own), "watch": watching(trainer, own, SETTINGS)}
        return trainer.fit(own.train, own.test, **options)


@pytest.mark.slow
def test_a_run_killed_between_or_inside_tasks_resumes_bit_for_bit(trainer, tmp_path):
    own = arranged(DATA, SETTINGS.continual, 0)
    stream = make_stream(GROUP, own)
    unbroken = fit(trainer, tmp_path / "unbroken", DATA)

    for deadly in (2, 3):  # the first epoch of the second task, and the second
        folder = tmp_path / f"broken-{deadly}"
        with pytest.raises(KilledError):
            fit(trainer, folder, DATA, stream=Deadly(stream, deadly))
        broken = fit(trainer, folder, DATA)
        chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))
        rows, theirs = (
            [{**row, "step/seconds": 0} for row in read_metrics(path)] for path in (folder, tmp_path / "unbroken")
        )
        assert rows == theirs
    assert np.abs(unbroken.state.extensions["LogitMemory"]).max() > 0
    # The numbers of each task are those of the whole test set.
    row = theirs[-1]
    assert np.mean([row[f"class_il/{task}"] for task in range(T)]) == pytest.approx(row["test/accuracy"])
    assert all(row[f"task_il/{task}"] >= row[f"class_il/{task}"] for task in range(T))


@pytest.mark.slow
def test_a_run_stopped_inside_an_epoch_of_a_later_task_ends_as_the_unbroken_one(trainer, tmp_path, monkeypatch):
    one_by_one = dataclasses.replace(trainer.options, resident=False, checkpoint_every=100)
    monkeypatch.setattr(trainer, "options", one_by_one)
    unbroken = fit(trainer, tmp_path / "unbroken", DATA)
    calls, step = [], trainer.step

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    # Four steps are an epoch, and eight a task: step 11 is the third of the second task.
    monkeypatch.setattr(trainer, "step", interrupted)
    with pytest.raises(PreemptedError, match="step 11 is saved in"):
        fit(trainer, tmp_path / "broken", DATA)
    monkeypatch.setattr(trainer, "step", step)
    broken = fit(trainer, tmp_path / "broken", DATA)
    chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))
    assert (np.abs(broken.state.extensions["LogitMemory"]).max(axis=1) > 0).all()


@pytest.mark.slow
def test_no_test_image_is_seen_in_training(trainer, tmp_path):
    other = DATA._replace(test=blobs(7, 48))
    first, second = (fit(trainer, tmp_path / name, data) for name, data in (("first", DATA), ("second", other)))
    chex.assert_trees_all_equal(*(jax.device_get(one.state.params) for one in (first, second)))
    assert first.test.metrics["loss"] != second.test.metrics["loss"]


@pytest.mark.slow
def test_another_order_of_the_tasks_is_another_run(trainer, tmp_path):
    folder = tmp_path / "run"
    before = fit(trainer, folder, DATA)
    kept = sorted(path.name for path in (folder / "checkpoints" / "run").iterdir())
    given = arranged(DATA, dataclasses.replace(SETTINGS.continual, order="given"), 0)
    with MetricsLog(folder) as log:
        options = {"seed": 0, "run": "run", "directory": folder, "log": log, "stream": make_stream(GROUP, given)}
        with pytest.raises(ValueError, match="was begun with other settings: training set"):
            trainer.fit(given.train, given.test, **options)
    # The same data, visited in another order of the tasks.
    own = arranged(DATA, SETTINGS.continual, 0)
    swapped = make_stream(GROUP, own._replace(tasks=(T - 1 - own.tasks[0], own.tasks[1])))
    with pytest.raises(ValueError, match=r"was begun with other settings: stream\.stream\.tasks is int32\[96\]"):
        fit(trainer, folder, DATA, stream=swapped)
    with pytest.raises(ValueError, match="was begun with other settings: seed is 1 instead of 0"):
        fit(trainer, folder, DATA, seed=1)
    assert sorted(path.name for path in (folder / "checkpoints" / "run").iterdir()) == kept
    again = fit(trainer, folder, DATA)
    chex.assert_trees_all_equal(jax.device_get(again.state.params), jax.device_get(before.state.params))
