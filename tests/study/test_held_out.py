"""Which quarter of a training set learning rates are judged on."""

import numpy as np
import pytest

from nc_jax.data import LabelledArrays
from nc_jax.methods import ContinualOptions, TailOptions
from nc_jax.study import Comparison
from nc_jax.study.data import Data
from nc_jax.study.trainers import held_out_parts

PLAIN = Comparison()


def data_of(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    arrays = LabelledArrays(np.arange(float(len(labels)))[:, None], labels, len(counts))
    return Data(arrays, arrays, None, None, 1)


@pytest.mark.parametrize("counts", [(30, 40, 60), (0, 5, 10)])
def test_classes_of_similar_sizes_are_drawn_from_together(counts):
    data = data_of(counts)
    for split, part in enumerate(held_out_parts(data, PLAIN)):
        mask = np.random.default_rng(split).permutation(len(data.train)) % 4 == 0  # as it always was
        np.testing.assert_array_equal(part.test.inputs, data.train.inputs[mask])
        np.testing.assert_array_equal(part.train.inputs, data.train.inputs[~mask])


def test_of_unequal_classes_a_quarter_of_each_is_held_out():
    data = data_of((400, 41, 7, 3, 2, 1, 0))
    parts = held_out_parts(data, PLAIN)
    for part in parts:
        assert part.test.class_counts().tolist() == [100, 10, 2, 1, 1, 0, 0]
        assert part.train.class_counts().tolist() == [300, 31, 5, 2, 1, 1, 0]
        both = np.concatenate([part.train.inputs, part.test.inputs])
        np.testing.assert_array_equal(np.sort(both[:, 0]), data.train.inputs[:, 0])
    assert not np.array_equal(parts[0].test.inputs, parts[1].test.inputs)
    for part, again in zip(parts, held_out_parts(data, PLAIN), strict=True):
        np.testing.assert_array_equal(part.test.inputs, again.test.inputs)


@pytest.mark.parametrize(
    "changes",
    [{"continual": ContinualOptions(tasks=2, base=2)}, {"tail": TailOptions(ratio=0.1)}],
    ids=["base", "tail"],
)
def test_for_a_base_session_or_a_long_tail_a_quarter_of_each_class_is_held_out(changes):
    for part in held_out_parts(data_of((12, 12, 16)), Comparison(**changes)):
        assert part.train.class_counts().tolist() == [9, 9, 12]
