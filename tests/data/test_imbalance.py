"""Subsets and label noise: published counts, order, determinism, rates, refusals."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nc_jax.data import (
    LabelledArrays,
    asymmetric_noise,
    exponential_counts,
    long_tailed,
    step_counts,
    step_imbalanced,
    subsample,
    symmetric_noise,
    take_per_class,
)


@pytest.fixture(scope="module")
def arrays():
    """Features that tell which example they belong to; 40, 60 and 80 examples of three shuffled classes."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 60, 80]))
    return LabelledArrays(np.arange(180.0)[:, None], labels, num_classes=3, class_names=("a", "b", "c"))


def numbers(arrays):
    return arrays.inputs[:, 0].astype(int).tolist()


# Sizes of CIFAR-10-LT and CIFAR-100-LT, of 5000 and 500 images per class, in released training code.
@pytest.mark.parametrize(
    ("classes", "largest", "factor", "total"),
    [
        (10, 5000, 0.01, 12406),
        (10, 5000, 0.02, 13996),
        (10, 5000, 0.1, 20431),
        (100, 500, 0.01, 10847),
        (100, 500, 0.02, 12608),
        (100, 500, 0.1, 19573),
    ],
)
def test_exponential_counts_are_the_published_ones(classes, largest, factor, total):
    counts = exponential_counts(classes, largest, factor)
    assert counts.sum() == total
    assert (counts[0], counts[-1]) == (largest, round(largest * factor))


@given(classes=st.integers(1, 200), largest=st.integers(0, 10**6), factor=st.floats(1e-4, 1), fraction=st.floats(0, 1))
def test_counts_fall_from_the_first_class_to_the_last(classes, largest, factor, fraction):
    for counts in (exponential_counts(classes, largest, factor), step_counts(classes, largest, factor, fraction)):
        assert counts.shape == (classes,)
        assert (np.diff(counts) <= 0).all()
        assert counts.max(initial=0) <= largest
        assert counts.min() >= np.floor(largest * factor * (1 - 1e-12))


def test_whole_numbers_survive_rounding():
    assert exponential_counts(2, 100, 0.57).tolist() == [100, 57]  # 0.57 * 100 is 56.99999999999999
    assert step_counts(10, 100, 0.57, 0.3).tolist() == [100] * 7 + [57] * 3


def test_one_class_keeps_its_size():
    assert exponential_counts(1, 7, 0.01).tolist() == [7]


SUBSETS = {
    "long-tailed": (lambda arrays, seed: long_tailed(arrays, 0.1, seed=seed), [40, 12, 4]),
    "long-tailed, largest": (lambda arrays, seed: long_tailed(arrays, 0.25, seed=seed, largest=20), [20, 10, 5]),
    "step": (lambda arrays, seed: step_imbalanced(arrays, 0.1, seed=seed, fraction=0.7), [40, 4, 4]),
    "per class": (lambda arrays, seed: take_per_class(arrays, 5, seed=seed), [5, 5, 5]),
    "counts": (lambda arrays, seed: subsample(arrays, np.array([0, 60, 1]), seed=seed), [0, 60, 1]),
}


@pytest.mark.parametrize(("take", "counts"), SUBSETS.values(), ids=SUBSETS.keys())
def test_a_subset_keeps_order_names_and_inputs(arrays, take, counts):
    found = take(arrays, 3)
    assert found.class_counts().tolist() == counts
    assert numbers(found) == sorted(numbers(found))
    np.testing.assert_array_equal(found.labels, arrays.labels[numbers(found)])
    assert (found.num_classes, found.class_names) == (3, ("a", "b", "c"))
    assert numbers(take(arrays, 3)) == numbers(found)


@pytest.mark.parametrize("take", [take for take, _ in SUBSETS.values()][:4], ids=list(SUBSETS)[:4])
def test_a_subset_depends_on_the_seed(arrays, take):
    assert len({tuple(numbers(take(arrays, seed))) for seed in (0, 1, 2**64 - 1)}) == 3


def test_less_is_a_subset_of_more(arrays):
    few, many = take_per_class(arrays, 5, seed=1), take_per_class(arrays, 20, seed=1)
    assert set(numbers(few)) < set(numbers(many))


def test_every_example_is_as_likely(arrays):
    # Times that each of class 0's 40 examples is among 10 chosen, in 400 draws: 100, with a standard deviation of 8.7.
    times = np.bincount(
        np.concatenate([numbers(take_per_class(arrays, 10, seed=seed)) for seed in range(400)]), minlength=180
    )
    assert np.abs(times[arrays.labels == 0] - 100).max() < 5 * 8.7


def test_a_choice_never_changes():
    # Measured once: the subsets of a paper must be the same under later versions of NumPy and of this package.
    arrays = LabelledArrays(np.arange(20.0)[:, None], np.arange(20) % 2, num_classes=2)
    assert numbers(take_per_class(arrays, 3, seed=7)) == [1, 3, 4, 8, 16, 19]
    assert "".join(map(str, symmetric_noise(arrays, 0.5, seed=7).labels)) == "10101101101000100011"


def test_symmetric_noise_has_its_rate_and_spreads_evenly():
    labels = np.repeat(np.arange(4), 5000)
    clean = LabelledArrays(np.zeros((20000, 1)), labels, num_classes=4)
    noisy = symmetric_noise(clean, 0.3, seed=0)
    table = np.zeros((4, 4))
    np.add.at(table, (labels, noisy.labels), 1 / 5000)
    # Standard deviations: sqrt(0.3 * 0.7 / 5000) = 0.0065 on the diagonal, sqrt(0.1 * 0.9 / 5000) = 0.0042 beside it.
    np.testing.assert_allclose(table, 0.7 * np.eye(4) + 0.1 * (1 - np.eye(4)), atol=5 * 0.0065)
    assert noisy.inputs is clean.inputs
    assert clean.labels[0] == 0


def test_asymmetric_noise_follows_its_matrix():
    transition = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]])
    labels = np.repeat(np.arange(3), 10000)
    arrays = LabelledArrays(np.zeros((30000, 1)), labels, num_classes=3)
    found = asymmetric_noise(arrays, transition, seed=5).labels
    table = np.zeros((3, 3))
    np.add.at(table, (labels, found), 1 / 10000)
    np.testing.assert_allclose(table, transition, atol=5 * 0.005)  # standard deviation at most sqrt(0.25 / 10000)
    assert not table[transition == 0].any()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_noise_at_the_ends_of_its_range_is_certain(arrays, rate):
    changed = symmetric_noise(arrays, rate, seed=0).labels != arrays.labels
    assert changed.all() if rate else not changed.any()


FACTOR = "factor must lie in (0, 1], such as 0.01 for an imbalance ratio of 100"
REFUSED = [
    (lambda a: exponential_counts(0, 1, 1.0), "num_classes must be at least 1; got 0"),
    (lambda a: exponential_counts(2, -1, 1.0), "largest must be at least 0; got -1"),
    (lambda a: long_tailed(a, 100.0, seed=0), f"{FACTOR}; got 100.0"),
    (lambda a: step_counts(2, 1, 0.0), f"{FACTOR}; got 0.0"),
    (lambda a: step_imbalanced(a, 0.1, seed=0, fraction=1.5), "fraction must lie in [0, 1]; got 1.5"),
    (lambda a: take_per_class(a, 61, seed=0), "class 0 must have at least 61 examples; got 40"),
    (
        lambda a: subsample(a, np.array([1, 2]), seed=0),
        "counts must hold 3 integers from 0 up, one per class; got [1 2]",
    ),
    (lambda a: take_per_class(a, 1, seed=-1), "seed must be a whole number in 0..2^64-1; got -1"),
    (lambda a: symmetric_noise(a, 1.1, seed=0), "rate must lie in [0, 1]; got 1.1"),
    (lambda a: asymmetric_noise(a, np.eye(2), seed=0), "transition must have shape (3, 3); got (2, 2)"),
    (
        lambda a: asymmetric_noise(a, np.diag([1.0, 0.5, 1.0]), seed=0),
        "the rows of transition must be from 0 up and sum to 1; got row 1 with sum 0.5 and minimum 0",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence(arrays, call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call(arrays)
