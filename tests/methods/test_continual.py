"""Strategies of continual learning: which softmax, which memory and which examples each has."""

import re

import numpy as np
import pytest

from nc_jax.data import LabelledArrays
from nc_jax.data.images import ImageSource
from nc_jax.methods import METHODS, ContinualOptions, Setting
from nc_jax.streams import BalancedSubset, Epochs, Replay, Tasks
from nc_jax.training import BatchSoftmax, LogitMemory, TaskSoftmax

K, N = 4, 24
TASKS = (0, 0, 1, 1)
SOURCE = LabelledArrays(np.zeros((N, 2)), np.arange(N) % K, K)
STREAM = Tasks(SOURCE, np.array(TASKS)[SOURCE.labels], batch_size=5, epochs=2)
MASK, TOLD = TaskSoftmax(TASKS), TaskSoftmax(TASKS, replayed=True)
STORED = {"der": LogitMemory(9, 0.4, draws=1), "derpp": LogitMemory(9, 0.4, draws=2)}


def setting(task_of_class=TASKS, **options):
    chosen = ContinualOptions(**({"tasks": 2, "memory": 9, "draw_size": 3, "alpha": 0.4} | options))
    return Setting(num_classes=K, epochs=2, num_examples=N, continual=chosen, task_of_class=task_of_class)


EXTENSIONS = {  # with the mask, without it, and in the scenario "task"
    "finetune": ((MASK,), (), (TOLD,)),
    "joint": ((), (), (TOLD,)),
    "er": ((MASK,), (), (TOLD,)),
    "er-ace": ((BatchSoftmax(),), (BatchSoftmax(),), (BatchSoftmax(), TOLD)),
    "der": ((STORED["der"], MASK), (STORED["der"],), (STORED["der"], TOLD)),
    "derpp": ((STORED["derpp"], MASK), (STORED["derpp"],), (STORED["derpp"], TOLD)),
    "gdumb": ((), (), (TOLD,)),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_strategy_has_its_softmax_and_its_memory(name):
    settings = (setting(), setting(mask=False), setting(scenario="task"))
    for head in ("", "-fno"):
        assert tuple(METHODS[name + head].extensions(one) for one in settings) == EXTENSIONS[name]
    # Where all tasks have all classes, there is nothing to mask.
    assert METHODS[name].extensions(setting(None, scenario="domain")) == EXTENSIONS[name][1]


def test_every_strategy_takes_as_many_steps_but_joint_which_visits_as_often():
    for name in EXTENSIONS:
        stream = METHODS[name].stream(setting(), STREAM)
        if name == "joint":
            shown = np.concatenate([stream.plan(0, segment).index.ravel() for segment in range(len(stream.ends))])
            np.testing.assert_array_equal(np.bincount(shown[shown >= 0], minlength=N), 2)
        else:
            assert stream.ends[-1] == STREAM.ends[-1]


def test_a_strategy_sees_its_examples():
    streams = {name: METHODS[name].stream(setting(), STREAM) for name in EXTENSIONS}
    assert streams["finetune"] is STREAM
    for name, draws in (("er", 1), ("er-ace", 1), ("der", 1), ("derpp", 2)):
        assert isinstance(streams[name], Replay)
        assert (streams[name].stream, streams[name].capacity, streams[name].batch_size) == (STREAM, 9, 5 + 3 * draws)
    first = streams["joint"].plan(0, 0).index
    assert set(first[first >= 0].tolist()) == set(range(N))
    assert isinstance(streams["gdumb"], BalancedSubset)
    assert len(streams["gdumb"].memory(0)) == 9


@pytest.mark.parametrize("name", ["er", "der", "derpp", "er-ace", "gdumb"])
def test_a_memory_is_at_most_the_training_set(name):
    assert METHODS[name].stream(setting(memory=N), STREAM).capacity == N
    sentence = "a replay memory must hold 1 to all 24 training examples; got 25 (method joint trains on all of them)"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        METHODS[name].stream(setting(memory=N + 1), STREAM)


def test_a_balanced_memory_needs_labels_at_once():
    records = [{"image": np.zeros((4, 4), np.uint8), "label": 0}] * N
    streamed = ImageSource(records, channels=1, num_classes=1, class_names=("black",))
    with pytest.raises(ValueError, match="a class-balanced memory needs a training set in memory; got ImageSource"):
        METHODS["gdumb"].stream(setting(), Epochs(streamed, 5, 2))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tasks": 0}, "tasks must be at least 1; got 0"),
        ({"memory": 0}, "memory must be at least 1; got 0"),
        ({"base": 0}, "base must be at least 1, or None; got 0"),
        ({"tasks": 2, "shots": 0}, "shots must be at least 1, or None; got 0"),
        ({"base": 2}, 'base needs at least two tasks that are parts of the classes; got tasks=1 and scenario="class"'),
        ({"tasks": 2, "scenario": "domain", "shots": 2}, 'shots needs at least .*; got tasks=2 and scenario="domain"'),
        ({"draw_size": 0}, "draw_size must be at least 1; got 0"),
        ({"alpha": 0.0}, "alpha must be positive and finite; got 0"),
        ({"beta": float("inf")}, "beta must be positive and finite; got inf"),
    ],
)
def test_options_are_checked(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        ContinualOptions(**wrong)
