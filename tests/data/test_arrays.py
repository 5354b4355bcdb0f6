"""What `LabelledArrays` accepts and counts, and what it refuses, with which message."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nc_jax.data import LabelledArrays


def with_defaults(inputs=None, labels=None, num_classes=10, class_names=()):
    inputs = np.zeros((8, 4), np.float32) if inputs is None else inputs
    labels = np.arange(8) if labels is None else labels
    return LabelledArrays(inputs, labels, num_classes, class_names)


def spoiled(value, *examples):
    inputs = np.zeros((8, 2, 2), np.float32)
    inputs[list(examples), 1, 0] = value
    return inputs


REFUSED = [
    (
        dict(labels=np.array([0, 1, 2, 12, 4, 5, 6, -1])),
        "labels must lie in 0..9 for num_classes=10; got 12 at index 3 (2 such labels)",
    ),
    (
        dict(labels=np.array([0, 1, 2, 3, 4, -1, 6, 7])),
        "labels must lie in 0..9 for num_classes=10; got -1 at index 5 (1 such label)",
    ),
    (
        dict(labels=np.array([0, 1, 2, 3, 4, 5, 6, 2**32 + 1])),  # would wrap round to 1 as int32
        "labels must lie in 0..9 for num_classes=10; got 4294967297 at index 7 (1 such label)",
    ),
    (
        dict(labels=np.arange(8.0)),
        "labels must be integers of shape (batch,); got dtype float64; convert class numbers by labels.astype(int)",
    ),
    (
        dict(labels=np.array(list("abcdefgh"))),
        "labels must be integers of shape (batch,); got dtype <U1; "
        "number words by numpy.unique(labels, return_inverse=True)[1]",
    ),
    (
        dict(labels=np.zeros((8, 10), np.int32)),
        "labels must be integers of shape (batch,); got shape (8, 10); take argmax(axis=1) of one-hot labels",
    ),
    (
        dict(labels=np.zeros((8, 1), np.int32)),
        "labels must be integers of shape (batch,); got shape (8, 1); take labels[:, 0]",
    ),
    (
        dict(labels=np.arange(1, 9), num_classes=8),
        "labels must lie in 0..7 for num_classes=8; got 8 at index 7 (1 such label); "
        "subtract 1 from labels that begin at 1",
    ),
    (
        dict(inputs=np.full((8, 2), 2**40)),  # would be 0 on the device
        "inputs must fit into int32, in which JAX keeps int64; got 1.09951e+12 (scale them, or set jax_enable_x64)",
    ),
    (
        dict(inputs=np.full((8, 2), -1e300)),  # would be an infinity on the device
        "inputs must fit into float32, in which JAX keeps float64; got -1e+300 (scale them, or set jax_enable_x64)",
    ),
    (dict(inputs=np.zeros((8, 0))), "inputs must have at least one number per example; got shape (8, 0)"),
    (
        dict(inputs=np.zeros((8, 2), np.longdouble)),
        "inputs must be real numbers of at most 64 bits; got dtype float128",
    ),
    (dict(inputs=np.full((8, 2), None)), "inputs must be real numbers of at most 64 bits; got dtype object"),
    (dict(labels=np.arange(7)), "inputs and labels must have the same length; got 8 inputs and 7 labels"),
    (dict(inputs=spoiled(np.nan, 7)), "inputs must be finite; got NaN at example 7"),
    (dict(inputs=spoiled(-np.inf, 3, 5)), "inputs must be finite; got an infinity at example 3"),
    (
        dict(inputs=np.zeros(8)),
        "inputs must have shape (examples, ...) with at least two axes; got (8,)",
    ),
    (dict(inputs=np.zeros((8, 2), complex)), "inputs must be real numbers of at most 64 bits; got dtype complex128"),
    (dict(num_classes=0), "num_classes must be at least 1; got 0"),
    (dict(class_names=("cat", "dog")), "class_names must hold num_classes=10 names; got 2"),
]


@pytest.mark.parametrize(("wrong", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        with_defaults(**wrong)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64, np.uint8])
def test_keeps_the_dtype_of_inputs_without_copying(dtype):
    inputs = np.ones((8, 3, 3, 1), dtype)
    assert with_defaults(inputs=inputs).inputs is inputs


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_stores_labels_as_int32(dtype):
    arrays = with_defaults(labels=np.arange(8, dtype=dtype))
    assert arrays.labels.dtype == np.int32
    np.testing.assert_array_equal(arrays.labels, np.arange(8))


def test_arrays_that_were_handed_in_cannot_change_the_checked_set():
    whole, labels = np.ones((8, 4, 2), np.float32), np.arange(8, dtype=np.int32)
    arrays = with_defaults(inputs=whole.reshape(8, 8), labels=labels)
    labels[0] = 77
    assert arrays.labels[0] == 0
    for array in (whole, arrays.inputs, arrays.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    batch = arrays.take(np.array([0]))
    batch.inputs[0] = 5
    assert arrays.inputs[0, 0] == 1


def test_large_numbers_are_right_where_jax_keeps_them(x64):
    assert with_defaults(inputs=np.full((8, 2), 2**40)).inputs[0, 0] == 2**40
    assert with_defaults(inputs=np.full((8, 2), 1e300)).inputs[0, 0] == 1e300


def test_is_frozen_and_names_its_classes():
    arrays = with_defaults()
    assert arrays.class_names == tuple("0123456789")
    with pytest.raises(dataclasses.FrozenInstanceError):
        arrays.labels = np.zeros(8, np.int32)


def test_an_empty_set_is_valid_and_lacks_every_class():
    arrays = with_defaults(inputs=np.zeros((0, 4)), labels=np.zeros(0, int), num_classes=3)
    assert len(arrays) == 0
    assert arrays.absent_classes() == (0, 1, 2)


@pytest.mark.slow
@given(labels=st.lists(st.integers(0, 6), max_size=40))
def test_counts_and_absent_classes_agree_with_plain_python(labels):
    arrays = with_defaults(inputs=np.zeros((len(labels), 1)), labels=np.array(labels, int), num_classes=7)
    assert arrays.class_counts().tolist() == [labels.count(label) for label in range(7)]
    assert arrays.absent_classes() == tuple(sorted(set(range(7)) - set(labels)))


def test_subset_takes_numbers_in_order_and_masks():
    arrays = with_defaults(inputs=np.arange(8.0)[:, None], class_names=tuple("abcdefghij"))
    chosen = arrays.subset(np.array([5, 1, 5]))
    np.testing.assert_array_equal(chosen.labels, [5, 1, 5])
    np.testing.assert_array_equal(chosen.inputs[:, 0], [5, 1, 5])
    assert (chosen.num_classes, chosen.class_names) == (10, arrays.class_names)
    np.testing.assert_array_equal(arrays.subset(arrays.labels > 5).labels, [6, 7])
    assert len(arrays.subset(np.array([], int))) == 0


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [
        (np.array([0, 8]), "indices must lie in 0..7; got 8 at position 1"),
        (np.array([-1]), "indices must lie in 0..7; got -1 at position 0"),
        (np.ones(7, bool), "a mask must have shape (8,), one entry per example; got (7,)"),
    ],
)
def test_subset_refuses_what_numpy_would_wrap_round(indices, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        with_defaults().subset(indices)
