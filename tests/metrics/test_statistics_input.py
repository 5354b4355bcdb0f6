"""Class statistics: what is refused, and what is read."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import ClassStatistics

NUM_CLASSES, DIM = 4, 3


WRONG = {
    "features and labels of other lengths": (
        np.ones((5, DIM)),
        np.zeros(4, int),
        "labels must have shape (5,), one label",
    ),
    "one-hot labels": (np.ones((5, DIM)), np.eye(5), "got shape (5, 5); take argmax(axis=1) of one-hot labels"),
    "labels in a column": (np.ones((5, DIM)), np.zeros((5, 1), int), "got shape (5, 1); take labels[:, 0]"),
    "floating labels": (np.ones((2, DIM)), np.zeros(2), "labels must be integers of shape (batch,); got dtype float64"),
    "boolean labels": (
        np.ones((2, DIM)),
        np.zeros(2, bool),
        "labels must be integers of shape (batch,); got dtype bool",
    ),
    "labels from one": (
        np.ones((2, DIM)),
        [1, 4],
        "got 4 at index 1 (1 such label); subtract 1 from labels that begin at 1",
    ),
    "negative labels": (
        np.ones((2, DIM)),
        [-2, 4],
        "in 0..3 for num_classes=4, or be -1 for padding; got -2 at index 0",
    ),
    "labels beyond int32": (
        np.ones((1, DIM)),
        [2**32],
        "in 0..3 for num_classes=4, or be -1 for padding; got 4294967296",
    ),
    "too wide": (
        np.ones((5, 7)),
        np.zeros(5, int),
        "features must have shape (batch, 3) like these statistics; got (5, 7)",
    ),
    "no width": (np.ones((5, 0)), np.zeros(5, int), "features must have shape (batch, dim) with dim >= 1; got (5, 0)"),
    "words": (np.array([["a"]]), [0], "features must be real numbers of at most 64 bits; got dtype <U1"),
    "ragged": ([[1.0], [1.0, 2.0]], [0, 0], "features must be an array; got a list that NumPy cannot read"),
    "too large": (
        np.full((1, DIM), 1e300),
        [0],
        "features must fit into float32, in which JAX keeps float64; got 1e+300",
    ),
}


@pytest.mark.parametrize(("features", "labels", "sentence"), WRONG.values(), ids=WRONG)
def test_refuses_with_one_sentence_that_names_the_argument(features, labels, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ClassStatistics.init(NUM_CLASSES, DIM).update(features, labels)


def test_shapes_and_dtypes_are_checked_under_jit_too():
    with pytest.raises(ValueError, match="take argmax"):
        jax.jit(ClassStatistics.from_batch, static_argnums=2)(np.ones((5, DIM)), np.eye(5), NUM_CLASSES)


def test_too_few_classes_are_refused_and_not_cut():
    with pytest.raises(ValueError, match=r"labels must lie in 0..99 for num_classes=100.*\(900 such labels\)"):
        ClassStatistics.from_batch(np.ones((1000, 2)), np.arange(1000), 100)


@pytest.mark.slow
def test_lists_and_numpy_arrays_are_read():
    stats = ClassStatistics.from_batch([[1, 2], [3, 4]], [0, 1], 2)
    assert stats.means.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    far = ClassStatistics.from_batch(np.array([[2**40]]), np.array([0], np.uint8), 300)
    assert float(far.means[0, 0]) == 2.0**40
    assert far.counts.sum() == 1


# The library's own error messages, without the shape checks that the tests install around every function.
def test_errors_say_what_was_expected_and_what_came():
    stats = ClassStatistics.init(NUM_CLASSES, DIM)
    update = inspect.unwrap(ClassStatistics.update)
    with pytest.raises(ValueError, match=r"num_classes must be at least 1; got 0"):
        ClassStatistics.init(0, DIM)
    with pytest.raises(
        ValueError, match=r"labels must have shape \(5,\), one label for each row of features; got shape \(4,\)"
    ):
        update(stats, jnp.ones((5, DIM)), jnp.zeros(4, int))
    with pytest.raises(ValueError, match=r"features must have shape \(batch, 3\) like these statistics; got \(5, 7\)"):
        stats.update(jnp.ones((5, 7)), jnp.zeros(5, int))
    with pytest.raises(ValueError, match=r"must agree in \(dim, classes\); got \(3, 4\) and \(3, 5\)"):
        stats.merge(ClassStatistics.init(5, DIM))
    with pytest.raises(ValueError, match=r"centre must be one of balanced, sample, origin; got 'median'"):
        inspect.unwrap(ClassStatistics.centred_means)(stats, "median")
