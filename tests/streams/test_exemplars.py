"""Exemplars of earlier tasks: equally many of each class, drawn without replacement, a pure function of the seed."""

import numpy as np
import pytest
from scipy import stats

from nc_jax.data import LabelledArrays
from nc_jax.data.images import ImageSource
from nc_jax.streams import Exemplars, Tasks, read

# A large first task of two classes, and two small ones of a class each; class 4 is never visited.
LABELS = np.repeat(np.arange(5), [20, 15, 3, 2, 4])
TASKS = np.array([0, 0, 1, 2, -1])[LABELS]
SOURCE = LabelledArrays(np.arange(len(LABELS), dtype=np.float32)[:, None], LABELS, 5)
STREAM = Exemplars(Tasks(SOURCE, TASKS, batch_size=8, epochs=2), per_class=3, draw_size=5)
ENDS = (5, 10, 11, 12, 13, 14)
LEAST_P = 1e-3  # of chi-square tests; seeds are fixed


def test_the_memory_has_equally_many_of_each_class_of_earlier_tasks():
    assert STREAM.ends == ENDS
    assert STREAM.batch_size == 13
    for step, counts in [(0, []), (9, []), (10, [3, 3]), (11, [3, 3]), (12, [3, 3, 3]), (14, [3, 3, 3, 2])]:
        assert np.bincount(LABELS[STREAM.memory(0, step)]).tolist() == counts


def test_every_step_has_its_own_examples_and_a_draw_from_the_memory():
    for segment in range(len(ENDS)):
        plan = STREAM.plan(4, segment)
        np.testing.assert_array_equal(plan.index[:, :8], STREAM.stream.plan(4, segment).index)
        np.testing.assert_array_equal(plan.replayed, np.tile(np.repeat([0, 1], [8, 5]), (len(plan.index), 1)))
        memory = STREAM.memory(4, ENDS[segment] - 1)
        for row in plan.index[:, 8:]:
            drawn = row[row >= 0]
            assert len(set(drawn.tolist())) == len(drawn) == min(5, len(memory))
            assert set(drawn.tolist()) <= set(memory.tolist())
    batches = list(read(SOURCE, STREAM, seed=4))
    assert [int(batch.mask.sum()) for batch in batches] == [8, 8, 8, 8, 3] * 2 + [3 + 5] * 2 + [2 + 5] * 2


def test_it_does_not_depend_on_the_order_of_calls():
    plans = [STREAM.plan(1, segment).index for segment in range(len(ENDS))]
    for segment in (5, 2, 0, 4, 1, 3):
        np.testing.assert_array_equal(STREAM.plan(1, segment).index, plans[segment])
    assert set(STREAM.memory(1, 14)) != set(STREAM.memory(2, 14))


def test_every_example_of_a_class_is_kept_and_drawn_with_the_same_probability():
    kept, drawn = np.zeros(len(LABELS)), np.zeros(len(LABELS))
    for seed in range(400):
        kept[STREAM.memory(seed, 10)] += 1
        drawn[STREAM.plan(seed, 2).index[0, 8:]] += 1
    for counts in (kept, drawn):
        assert stats.chisquare(counts[LABELS == 0]).pvalue > LEAST_P
        assert stats.chisquare(counts[LABELS == 1]).pvalue > LEAST_P


@pytest.mark.parametrize("name", ["per_class", "draw_size"])
def test_its_numbers_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} of a memory of exemplars must be at least 1; got 0"):
        Exemplars(**({"stream": STREAM.stream, "per_class": 1, "draw_size": 1} | {name: 0}))


def test_it_needs_labels():
    records = [{"image": np.zeros((4, 4), np.uint8), "label": 0}] * 4
    source = ImageSource(records, channels=1, num_classes=1, class_names=("black",))
    with pytest.raises(ValueError, match="exemplars need a set whose labels are known; got ImageSource"):
        Exemplars(Tasks(source, np.zeros(4, int), batch_size=2), 1, 1)
