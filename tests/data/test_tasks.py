"""Data sets as tasks: which classes belong to which, how classes are renumbered, how inputs change."""

import numpy as np
import pytest
from scipy import stats

from nc_jax.data import LabelledArrays
from nc_jax.data.tasks import class_order, domains, equal_tasks, few_shots, in_order, task_of_class

IMAGES = LabelledArrays(
    np.random.default_rng(0).integers(256, size=(6, 8, 8, 1)).astype(np.uint8), np.arange(6) % 3, 3, ("a", "b", "c")
)


@pytest.mark.parametrize(("classes", "tasks"), [(10, 3), (10, 0), (4, 5)])
def test_tasks_divide_the_classes(classes, tasks):
    with pytest.raises(ValueError, match=f"divide the classes into equal parts; got {tasks} for {classes} classes"):
        equal_tasks(classes, tasks)


@pytest.mark.parametrize(("classes", "tasks", "base"), [(10, 3, 7), (10, 2, 10), (10, 1, 5), (10, 2, 0)])
def test_a_base_session_leaves_equal_parts(classes, tasks, base):
    with pytest.raises(ValueError, match=f"each task after it; got {base} of {classes} classes and {tasks} tasks"):
        equal_tasks(classes, tasks, base=base)


def test_later_classes_keep_few_examples_drawn_by_the_seed():
    labels, tasks = np.repeat(np.arange(4), [9, 2, 8, 5])[::-1], np.array([0, 0, 1, 2])
    drawn = np.zeros(len(labels))
    for seed in range(400):
        kept = few_shots(labels, tasks, 3, seed=seed)
        assert np.bincount(labels[kept]).tolist() == [9, 2, 3, 3]
        drawn += kept
    for label in (2, 3):
        assert stats.chisquare(drawn[labels == label]).pvalue > 1e-3
    sentence = "of each class after the first task; got {}, and class 3 has 5"
    for shots in (0, 6):
        with pytest.raises(ValueError, match=sentence.format(shots)):
            few_shots(labels, tasks, shots, seed=0)


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ([(0, 1), (1, 2)], "a class belongs to one task; got class 1 in tasks 0 and 1"),
        ([(0, 1), (), (2,)], "every task needs a class; task 1 has none"),
        ([(0, 2)], "every class belongs to a task; class 1 is in none"),
        ([(0, 1), (3,)], r"classes must lie in 0\.\.2; got 3 in task 1"),
    ],
)
def test_a_class_belongs_to_one_task(tasks, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of_class(tasks, 3)


def test_orders_of_the_classes_are_uniform_and_never_change():
    orders = np.array([class_order(5, seed) for seed in range(600)])
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (600, 1)))
    for place in range(5):
        assert stats.chisquare(np.bincount(orders[:, place])).pvalue > 1e-3
    # Measured once: a run must resume exactly under later versions of NumPy and of this package.
    assert class_order(5, 7).tolist() == [1, 2, 4, 0, 3]


def test_labels_and_names_are_renumbered_together():
    found = in_order(IMAGES, np.array([2, 0, 1]))
    names = [found.class_names[label] for label in found.labels]
    assert names == [IMAGES.class_names[label] for label in IMAGES.labels]
    np.testing.assert_array_equal(found.inputs, IMAGES.inputs)
    with pytest.raises(ValueError, match=r"an order must hold each of the 3 classes once; got \[0, 1, 1\]"):
        in_order(IMAGES, [0, 1, 1])


@pytest.mark.parametrize("change", ["permute", "rotate"])
def test_domains_change_the_inputs_of_all_tasks_but_the_first(change):
    found = domains(IMAGES, 3, change, seed=1)
    parts = found.inputs.reshape(3, *IMAGES.inputs.shape)
    np.testing.assert_array_equal(found.labels, np.tile(IMAGES.labels, 3))
    np.testing.assert_array_equal(parts[0], IMAGES.inputs)
    assert not np.array_equal(parts[1], parts[0])
    assert not np.array_equal(parts[1], parts[2])
    assert found.inputs.dtype == np.uint8
    # The change belongs to the task: a test set is changed like the training set.
    again = domains(IMAGES.subset(np.array([4])), 3, change, seed=1)
    np.testing.assert_array_equal(again.inputs, parts[:, 4])
    if change == "permute":
        np.testing.assert_array_equal(*(np.sort(part.reshape(6, -1), axis=1) for part in parts[:2]))
    assert not np.array_equal(domains(IMAGES, 3, change, seed=2).inputs, found.inputs)


def test_domains_are_checked():
    with pytest.raises(ValueError, match=r"images are rotated; got inputs of shape \(4,\)"):
        domains(LabelledArrays(np.zeros((3, 4)), np.zeros(3, int), 1), 2, "rotate", seed=0)
    with pytest.raises(ValueError, match="num_tasks must be at least 1; got 0"):
        domains(IMAGES, 0, "permute", seed=0)
