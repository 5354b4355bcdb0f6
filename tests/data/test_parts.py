"""A share of every class: how many, which, and that they never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nc_jax.data.parts import share_of_each_class


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=8), share=st.floats(0.01, 0.99))
def test_every_class_gives_its_share_and_keeps_an_example(counts, share):
    labels = np.repeat(np.arange(len(counts)), counts)
    found = np.bincount(labels[share_of_each_class(labels, share)], minlength=len(counts))
    for count, chosen in zip(counts, found, strict=True):
        assert chosen <= max(count - 1, 0)
        assert chosen >= (count > 1)
        assert abs(chosen - share * count) <= 1 or count < 2


def test_a_class_is_shared_by_itself():
    # What is chosen of a class depends on its size alone, and not on the other classes or where its examples lie.
    labels = np.array([1] * 9)
    alone = share_of_each_class(labels, 0.4, seed=3)
    mixed = share_of_each_class(np.stack([labels, labels + 1], axis=1).ravel(), 0.4, seed=3)
    np.testing.assert_array_equal(mixed[::2], alone)
    assert np.flatnonzero(alone).tolist() == [3, 5, 7, 8]  # measured once: the parts of a set must stay the same


def test_every_group_gives_a_share_of_each_of_its_classes():
    groups, labels = np.repeat([0, 4, 4], [8, 6, 1]), np.repeat([0, 0, 1], [8, 6, 1])
    chosen = share_of_each_class(labels, 0.25, groups=groups)
    assert [chosen[:8].sum(), chosen[8:14].sum(), chosen[14]] == [2, 2, 0]
    one = share_of_each_class(labels, 0.25, groups=np.zeros(15, int))
    np.testing.assert_array_equal(one, share_of_each_class(labels, 0.25))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_every_example_is_as_likely(share):
    # Times that each of 12 examples is chosen with 2000 seeds. The largest standard deviation is sqrt(2000 / 4) = 22.
    labels = np.zeros(12, int)
    times = sum(share_of_each_class(labels, share, seed=seed).astype(int) for seed in range(2000))
    assert np.abs(times - 2000 * share).max() < 5 * 22
