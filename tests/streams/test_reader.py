"""Batches: shapes, padding, exact resume, slices per process, refusals."""

import itertools
import re
import threading

import jax
import numpy as np
import pytest

from nc_jax.data import LabelledArrays
from nc_jax.streams import batches, eval_batches

NUM_EXAMPLES, BATCH_SIZE, STEPS = 23, 6, 4
ORDERS = [dict(), dict(stratified=True), dict(shuffle=False)]
orders = pytest.mark.parametrize("order", ORDERS, ids=str)


@pytest.fixture(scope="module")
def arrays():
    """Inputs that tell which example they belong to; one class in three has a single member."""
    inputs = np.stack([np.arange(NUM_EXAMPLES), -np.arange(NUM_EXAMPLES)], axis=1).astype(np.float32) + 1
    labels = np.where(np.arange(NUM_EXAMPLES) == 7, 2, np.arange(NUM_EXAMPLES) % 2)
    return LabelledArrays(inputs, labels, num_classes=4)


def examples_of(batch):
    """Example numbers of a batch, without the padding."""
    return (batch.inputs[batch.mask, 0] - 1).astype(int).tolist()


def examples_in(several):
    return list(itertools.chain.from_iterable(map(examples_of, several)))


def assert_same_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)


def joined(*slices):
    """The batches of several processes, put together."""
    return [jax.tree.map(lambda *parts: np.concatenate(parts), *step) for step in zip(*slices, strict=True)]


@orders
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_every_example_once_per_epoch_in_static_shapes(arrays, order, prefetch):
    found = list(batches(arrays, BATCH_SIZE, seed=3, num_steps=3 * STEPS, prefetch=prefetch, **order))
    assert len(found) == 3 * STEPS
    for batch in found:
        assert batch.inputs.shape == (BATCH_SIZE, 2)
        assert batch.inputs.dtype == np.float32
        assert batch.labels.shape == (BATCH_SIZE,)
        assert (batch.labels.dtype, batch.mask.dtype, batch.slot) == (np.int32, bool, None)
        np.testing.assert_array_equal(batch.index[batch.mask], examples_of(batch))
        np.testing.assert_array_equal(batch.labels[batch.mask], arrays.labels[examples_of(batch)])
        np.testing.assert_array_equal(batch.inputs[batch.mask], arrays.inputs[examples_of(batch)])
    for epoch in (found[:STEPS], found[STEPS : 2 * STEPS], found[2 * STEPS :]):
        assert sorted(examples_in(epoch)) == list(range(NUM_EXAMPLES))
        assert [len(examples_of(batch)) for batch in epoch] == [6, 6, 6, 5]
        assert (epoch[-1].labels[-1], epoch[-1].index[-1], bool(epoch[-1].mask[-1])) == (-1, -1, False)
        assert not epoch[-1].inputs[-1].any()


@orders
def test_resumes_exactly_from_every_step(arrays, order):
    unbroken = list(batches(arrays, BATCH_SIZE, seed=3, num_steps=3 * STEPS, **order))
    for start in range(3 * STEPS + 1):
        resumed = batches(arrays, BATCH_SIZE, seed=3, start_step=start, num_steps=3 * STEPS - start, **order)
        assert_same_batches(resumed, unbroken[start:])


def test_goes_on_without_end_and_from_anywhere(arrays):
    endless = list(itertools.islice(batches(arrays, BATCH_SIZE, seed=0, start_step=10**12), 3))
    assert len(endless) == 3
    assert_same_batches(endless, batches(arrays, BATCH_SIZE, seed=0, start_step=10**12, num_steps=3))


@orders
@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_slices_of_the_processes_make_the_global_batch(arrays, order, process_count):
    options = dict(seed=5, start_step=2, num_steps=2 * STEPS, **order)
    expected = list(batches(arrays, BATCH_SIZE, **options))
    parts = [
        batches(arrays, BATCH_SIZE, process_index=index, process_count=process_count, **options)
        for index in range(process_count)
    ]
    assert_same_batches(joined(*parts), expected)


def test_eval_batches_come_once_and_in_order(arrays):
    found = list(eval_batches(arrays, BATCH_SIZE))
    assert examples_in(found) == list(range(NUM_EXAMPLES))
    assert found[-1].labels.tolist() == [*arrays.labels[18:].tolist(), -1]
    halves = [eval_batches(arrays, BATCH_SIZE, process_index=index, process_count=2) for index in (0, 1)]
    assert_same_batches(joined(*halves), found)


def test_a_batch_larger_than_the_set_is_padded():
    images = LabelledArrays(np.full((3, 2, 2, 1), 9, np.uint8), np.array([2, 0, 1]), num_classes=3)
    (batch,) = eval_batches(images, 8)
    assert batch.labels.tolist() == [2, 0, 1, -1, -1, -1, -1, -1]
    assert batch.inputs.dtype == np.uint8
    assert batch.inputs.sum(axis=(1, 2, 3)).tolist() == [36, 36, 36, 0, 0, 0, 0, 0]


def test_batches_are_copies(arrays):
    before = arrays.inputs.copy()
    for batch in batches(arrays, BATCH_SIZE, seed=0, num_steps=STEPS):
        batch.inputs[:] = np.nan
    np.testing.assert_array_equal(arrays.inputs, before)


def test_leaves_no_threads_behind(arrays):
    before = threading.active_count()
    for _ in range(20):
        next(batches(arrays, BATCH_SIZE, seed=0))
    assert threading.active_count() <= before + 2  # those of the last iterators may still be on their way out


REFUSED = [
    (dict(batch_size=0), "batch_size must be at least 1; got 0"),
    (dict(seed=-1), "seed must be a whole number in 0..2^64-1; got -1"),
    (dict(seed=2**64), "seed must be a whole number in 0..2^64-1; got 18446744073709551616"),
    (dict(start_step=-1), "start_step must be at least 0; got -1"),
    (dict(num_steps=-1), "num_steps must be at least 0, or None for all that are left; got -1"),
    (dict(prefetch=-1), "prefetch must be at least 0; got -1"),
    (dict(process_count=4), "batch_size must be a multiple of process_count=4; got 6"),
    (dict(process_count=0), "process_index must lie in 0..process_count-1; got 0 of 0"),
    (dict(process_index=2, process_count=2), "process_index must lie in 0..process_count-1; got 2 of 2"),
    (
        dict(stratified=True, shuffle=False),
        "stratified batches are shuffled; got stratified=True with shuffle=False",
    ),
]


@pytest.mark.parametrize(("wrong", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence_before_the_first_batch(arrays, wrong, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        batches(arrays, **(dict(batch_size=BATCH_SIZE, seed=0) | wrong))


def test_refuses_an_empty_set(arrays):
    with pytest.raises(ValueError, match=r"^an epoch needs at least one example; got 0$"):
        eval_batches(arrays.subset(np.array([], int)), 2)
