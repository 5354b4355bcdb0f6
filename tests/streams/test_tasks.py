"""Task after task, and training on a balanced subset."""

import numpy as np
import pytest
from scipy import stats

from nc_jax.data import LabelledArrays
from nc_jax.streams import BalancedSubset, Tasks

LABELS = np.repeat(np.arange(4), [10, 7, 3, 20])
SOURCE = LabelledArrays(np.zeros((40, 1)), LABELS, 4)


def test_every_epoch_of_a_task_shows_its_examples_once():
    tasks = np.array([0, 0, 1, -1])[LABELS]  # class 3 is never visited
    stream = Tasks(SOURCE, tasks, batch_size=4, epochs=3)
    assert stream.ends == (5, 10, 15, 16, 17, 18)  # 17 examples are five batches, 3 are one
    orders = set()
    for segment in range(6):
        index = stream.plan(0, segment).index
        shown = index[index >= 0]
        np.testing.assert_array_equal(np.sort(shown), np.flatnonzero(tasks == segment // 3))
        assert index.shape[1] == 4
        orders.add(tuple(shown.tolist()))
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tasks": np.zeros(39, int)}, "a whole number for each of the 40 examples; got int64 of shape"),
        ({"tasks": np.zeros(40)}, "a whole number for each of the 40 examples; got float64"),
        ({"tasks": np.where(LABELS == 3, 2, 0)}, r"every task needs an example; task 1 of 0\.\.2 has none"),
        ({"tasks": LABELS - 2}, r"numbers of tasks count from 0, or are -1; got -2\.\.1"),
        ({"tasks": np.full(40, -1)}, r"numbers of tasks count from 0, or are -1; got -1\.\.-1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
    ],
)
def test_tasks_are_checked(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Tasks(**({"source": SOURCE, "tasks": LABELS, "batch_size": 4, "epochs": 1} | wrong))


def test_a_balanced_subset_takes_equally_many_of_each_class():
    stream = BalancedSubset(Tasks(SOURCE, LABELS, 4, 2), SOURCE, capacity=18, segments=2)
    # Class 2 has three examples only, so the others have five each.
    np.testing.assert_array_equal(np.bincount(LABELS[stream.memory(0)]), [5, 5, 3, 5])
    assert stream.ends[-1] == stream.stream.ends[-1]
    shown = np.concatenate([stream.plan(0, segment).index.ravel() for segment in range(2)])
    assert set(shown.tolist()) == set(stream.memory(0).tolist())
    # Passes follow each other without padding, so all are shown equally often, up to once.
    counts = np.bincount(shown, minlength=40)[stream.memory(0)]
    assert counts.max() - counts.min() <= 1


def test_a_balanced_subset_is_the_same_in_any_order_of_calls():
    one, other = (BalancedSubset(Tasks(SOURCE, LABELS, 4, 2), SOURCE, capacity=9, segments=5) for _ in range(2))
    plans = [one.plan(3, segment).index for segment in range(5)]
    for segment in (4, 1, 3, 0, 2):
        np.testing.assert_array_equal(other.plan(3, segment).index, plans[segment])
        other.plan(4, segment)  # another seed in between
    assert set(one.memory(3)) != set(one.memory(4))


def test_every_member_of_a_class_is_chosen_with_the_same_probability():
    stream = BalancedSubset(Tasks(SOURCE, LABELS, 4, 2), SOURCE, capacity=8, segments=1)
    counts = np.zeros(40)
    for seed in range(500):
        counts[stream.memory(seed)] += 1
    for label in range(4):
        assert stats.chisquare(counts[label == LABELS]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"capacity": 41}, "a subset must hold 1 to all 40 examples; got 41"),
        ({"capacity": 0}, "a subset must hold 1 to all 40 examples; got 0"),
        ({"segments": 0}, "have 1 to as many segments; got 0"),
    ],
)
def test_a_subset_is_checked(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        BalancedSubset(
            **({"stream": Tasks(SOURCE, LABELS, 4, 2), "source": SOURCE, "capacity": 8, "segments": 1} | wrong)
        )
