"""Batches: shapes, padding, determinism, exact resume, stratification, slices per process, refusals."""

import itertools
import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nc_jax.data import LabelledArrays, batches, eval_batches, steps_per_epoch
from nc_jax.data.pipeline import epoch_order

NUM_EXAMPLES, BATCH_SIZE, STEPS = 23, 6, 4
ORDERS = [dict(), dict(stratified=True), dict(shuffle=False)]
orders = pytest.mark.parametrize("order", ORDERS, ids=str)


@pytest.fixture(scope="module")
def arrays():
    """Features that tell which example they belong to; one class in three has a single member."""
    features = np.stack([np.arange(NUM_EXAMPLES), -np.arange(NUM_EXAMPLES)], axis=1).astype(np.float32) + 1
    labels = np.where(np.arange(NUM_EXAMPLES) == 7, 2, np.arange(NUM_EXAMPLES) % 2)
    return LabelledArrays(features, labels, num_classes=4)


def examples_of(batch):
    """Example numbers of a batch, without the padding."""
    return (batch["features"][batch["labels"] >= 0, 0] - 1).astype(int).tolist()


def examples_in(several):
    return list(itertools.chain.from_iterable(map(examples_of, several)))


def assert_same_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"features", "labels"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)


@orders
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_every_example_once_per_epoch_in_static_shapes(arrays, order, prefetch):
    found = list(batches(arrays, BATCH_SIZE, seed=3, num_steps=3 * STEPS, prefetch=prefetch, **order))
    assert len(found) == 3 * STEPS
    for batch in found:
        assert batch["features"].shape == (BATCH_SIZE, 2)
        assert batch["features"].dtype == np.float32
        assert batch["labels"].shape == (BATCH_SIZE,)
        assert batch["labels"].dtype == np.int32
        valid = batch["labels"] >= 0
        np.testing.assert_array_equal(batch["labels"][valid], arrays.labels[examples_of(batch)])
        np.testing.assert_array_equal(batch["features"][valid], arrays.features[examples_of(batch)])
    for epoch in (found[:STEPS], found[STEPS : 2 * STEPS], found[2 * STEPS :]):
        assert sorted(examples_in(epoch)) == list(range(NUM_EXAMPLES))
        assert [len(examples_of(batch)) for batch in epoch] == [6, 6, 6, 5]
        assert epoch[-1]["labels"][-1] == -1
        assert not epoch[-1]["features"][-1].any()


@orders
def test_resumes_exactly_from_every_step(arrays, order):
    unbroken = list(batches(arrays, BATCH_SIZE, seed=3, num_steps=3 * STEPS, **order))
    for start in range(3 * STEPS + 1):
        resumed = batches(arrays, BATCH_SIZE, seed=3, start_step=start, num_steps=3 * STEPS - start, **order)
        assert_same_batches(resumed, unbroken[start:])


def test_goes_on_without_end_and_from_anywhere(arrays):
    endless = batches(arrays, BATCH_SIZE, seed=0, start_step=10**12)
    assert_same_batches(
        itertools.islice(endless, 3), batches(arrays, BATCH_SIZE, seed=0, start_step=10**12, num_steps=3)
    )


def test_the_order_depends_on_seed_and_epoch_alone(arrays):
    seen = {
        tuple(epoch_order(arrays.labels, seed, epoch, stratified).tolist())
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1, 2)
        for stratified in (False, True)
    }
    assert len(seen) == 18
    again = epoch_order(arrays.labels, 1, 2)
    assert tuple(again.tolist()) in seen


def test_the_order_never_changes():
    # Measured once: a run must resume exactly under later versions of NumPy and of this package.
    labels = np.arange(10) % 2
    assert epoch_order(labels, seed=7, epoch=1).tolist() == [3, 9, 1, 6, 2, 5, 4, 8, 0, 7]
    assert epoch_order(labels, seed=7, epoch=1, stratified=True).tolist() == [3, 6, 9, 2, 1, 4, 5, 8, 7, 0]


def test_orders_are_uniform():
    # How often each example comes first in 4000 epochs. Binomial counts have sd 25 at p = 1/5, 28 at p = 1/4.
    labels = np.array([0, 1, 1, 1, 1])
    firsts = [epoch_order(labels, 0, epoch)[0] for epoch in range(4000)]
    assert np.abs(np.bincount(firsts) - 800).max() < 5 * 25
    # Stratified: the phase of the single member is below that of the others, which is u / 4, with probability 1/8.
    firsts = [epoch_order(labels, 0, epoch, stratified=True)[0] for epoch in range(4000)]
    assert np.abs(np.bincount(firsts) - [500, 875, 875, 875, 875]).max() < 5 * 28


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
)
def test_stratified_batches_hold_each_classs_share(counts, batch_size, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    arrays = LabelledArrays(np.zeros((len(labels), 1)), labels, num_classes=len(counts))
    share = np.array(counts) / len(labels)
    bound = 1 + (np.count_nonzero(counts) - 2) * share  # the docstring of `batches`
    steps = steps_per_epoch(len(labels), batch_size)
    for batch in batches(arrays, batch_size, seed=seed, stratified=True, num_steps=steps, prefetch=0):
        valid = batch["labels"][batch["labels"] >= 0]
        found = np.bincount(valid, minlength=len(counts))
        assert (np.abs(found - len(valid) * share) <= bound + 1e-9).all()


def test_stratified_batches_of_balanced_classes_are_within_two():
    arrays = LabelledArrays(np.zeros((1000, 1)), np.arange(1000) % 10, num_classes=10)
    for batch in batches(arrays, 50, seed=1, stratified=True, num_steps=100):
        assert np.abs(np.bincount(batch["labels"], minlength=10) - 5).max() < 2


@orders
@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_slices_of_the_processes_make_the_global_batch(arrays, order, process_count):
    options = dict(seed=5, start_step=2, num_steps=2 * STEPS, **order)
    expected = list(batches(arrays, BATCH_SIZE, **options))
    parts = [
        batches(arrays, BATCH_SIZE, process_index=index, process_count=process_count, **options)
        for index in range(process_count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_same_batches(joined, expected)


def test_eval_batches_come_once_and_in_order(arrays):
    found = list(eval_batches(arrays, BATCH_SIZE))
    assert examples_in(found) == list(range(NUM_EXAMPLES))
    assert found[-1]["labels"].tolist() == [*arrays.labels[18:].tolist(), -1]
    halves = [eval_batches(arrays, BATCH_SIZE, process_index=index, process_count=2) for index in (0, 1)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_same_batches(joined, found)


def test_a_batch_larger_than_the_set_is_padded():
    images = LabelledArrays(np.full((3, 2, 2, 1), 9, np.uint8), np.array([2, 0, 1]), num_classes=3)
    (batch,) = eval_batches(images, 8)
    assert batch["labels"].tolist() == [2, 0, 1, -1, -1, -1, -1, -1]
    assert batch["features"].dtype == np.uint8
    assert batch["features"].sum(axis=(1, 2, 3)).tolist() == [36, 36, 36, 0, 0, 0, 0, 0]


def test_batches_are_copies(arrays):
    before = arrays.features.copy()
    for batch in batches(arrays, BATCH_SIZE, seed=0, num_steps=STEPS):
        batch["features"][:] = np.nan
    np.testing.assert_array_equal(arrays.features, before)


def test_leaves_no_threads_behind(arrays):
    before = threading.active_count()
    for _ in range(20):
        next(batches(arrays, BATCH_SIZE, seed=0))
    assert threading.active_count() <= before + 2  # those of the last iterators may still be on their way out


@pytest.mark.parametrize(("num_examples", "batch_size", "steps"), [(1, 1, 1), (6, 3, 2), (7, 3, 3), (2, 9, 1)])
def test_steps_per_epoch_rounds_up(num_examples, batch_size, steps):
    assert steps_per_epoch(num_examples, batch_size) == steps


REFUSED = [
    (dict(batch_size=0), "batch_size must be at least 1; got 0"),
    (dict(seed=-1), "seed must lie in 0..2^64-1; got -1"),
    (dict(seed=2**64), "seed must lie in 0..2^64-1; got 18446744073709551616"),
    (dict(start_step=-1), "start_step must be at least 0; got -1"),
    (dict(num_steps=-1), "num_steps must be at least 0, or None for an endless iterator; got -1"),
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
