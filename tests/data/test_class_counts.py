"""Profiles of class sizes: their ends, their shape against the formula, and what is refused."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nc_jax.data import exponential_counts, majority_counts, pareto_counts, profile_counts

PROFILES = ("exponential", "step", "pareto", "majority")


@given(
    classes=st.integers(2, 200),
    largest=st.integers(1, 10**6),
    factor=st.floats(1e-4, 1),
    shape=st.floats(1e-3, 5),
)
def test_pareto_counts_fall_from_the_first_class_to_the_last(classes, largest, factor, shape):
    counts = pareto_counts(classes, largest, factor, shape)
    assert (counts[0], counts[-1]) == (largest, int(largest * factor + 1e-6))
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("shape", [0.2, 1.0, 3.0])
def test_pareto_counts_are_quantiles_of_the_law(shape):
    # SciPy's truncated Pareto law on [10, 10000]; whole numbers are rounded down.
    found = pareto_counts(101, 10_000, 0.001, shape)
    exact = stats.truncpareto(shape, 1000.0, scale=10.0).ppf(np.linspace(1, 0, 101))
    np.testing.assert_allclose(found, exact - 0.5, atol=0.501)


def test_a_small_shape_is_the_exponential_profile():
    found = pareto_counts(100, 500, 0.01, 1e-9) - exponential_counts(100, 500, 0.01)
    assert np.abs(found).max() <= 1  # next to a whole number, rounding down may differ


def test_the_default_shape_gives_about_imagenet_lt():
    counts = pareto_counts(1000, 1280, 5 / 1280)
    assert (counts[0], counts[-1]) == (1280, 5)
    assert counts.sum() == 115_841  # Liu et al. (2019) have 115,846


def test_one_class_is_large_and_the_others_are_equal():
    assert majority_counts(10, 100, 0.57).tolist() == [100] + [57] * 9  # 0.57 * 100 is 56.99999999999999


@pytest.mark.parametrize("counts", [pareto_counts, majority_counts])
def test_one_class_or_a_factor_of_one_keeps_the_size(counts):
    assert counts(1, 7, 0.01).tolist() == [7]
    assert counts(4, 7, 1.0).tolist() == [7] * 4


@pytest.mark.parametrize("profile", PROFILES)
def test_the_remedy_of_the_message_gives_every_class_an_example(profile):
    with pytest.raises(ValueError, match=r"^every class must keep an example \(a factor of at least 0\.025 does that"):
        profile_counts(profile, 8, 40, 0.024)
    assert profile_counts(profile, 8, 40, 0.025).min() == 1


REFUSED = [
    (
        lambda: profile_counts("linear", 8, 40, 0.1),
        "profile must be one of 'exponential', 'step', 'pareto', 'majority'; got 'linear'",
    ),
    (
        lambda: profile_counts("step", 8, 40, 100.0),
        "factor must lie in (0, 1], such as 0.01 for an imbalance ratio of 100; got 100.0",
    ),
    (
        lambda: profile_counts("exponential", 10, 20, 0.01),
        "every class must keep an example (a factor of at least 0.05 does that); class 6 of 10 would have none with "
        "profile='exponential', largest=20 and factor=0.01",
    ),
    (
        lambda: profile_counts("majority", 10, 0, 0.01),
        "every class must keep an example (largest must be at least 1); class 0 of 10 would have none with "
        "profile='majority', largest=0 and factor=0.01",
    ),
    (lambda: pareto_counts(3, 10, 0.1, 0.0), "shape of a Pareto law must be a number above 0; got 0.0"),
    (lambda: majority_counts(0, 10, 0.1), "num_classes must be at least 1; got 0"),
    (lambda: pareto_counts(3, -1, 0.1), "largest must be at least 0; got -1"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_refuses_with_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
