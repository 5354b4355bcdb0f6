"""Groups of classes: bounds, ties, and classes without test examples."""

import math

import numpy as np
import pytest

from nc_jax.metrics import balanced_accuracy, group_recall, shot_groups, thirds


def as_lists(groups):
    return {name: members.tolist() for name, members in groups.items()}


def test_bounds_belong_to_the_medium_group():
    assert as_lists(shot_groups(np.array([19, 101, 100, 20, 0, 5000], np.uint16))) == {
        "many": [1, 5],
        "medium": [2, 3],
        "few": [0, 4],
    }
    assert as_lists(shot_groups([3, 4, 5], many=4, few=4)) == {"many": [2], "medium": [1], "few": [0]}
    assert as_lists(shot_groups([500, 500])) == {"many": [0, 1], "medium": [], "few": []}


@pytest.mark.parametrize(
    ("num_classes", "sizes"), [(3, (1, 1, 1)), (5, (1, 3, 1)), (10, (3, 4, 3)), (100, (33, 34, 33))]
)
def test_thirds_split_by_rank(num_classes, sizes):
    counts = np.random.default_rng(0).permutation(num_classes).astype(np.uint8)
    groups = thirds(counts)
    assert tuple(map(len, groups.values())) == sizes
    assert sorted(np.concatenate(list(groups.values()))) == list(range(num_classes))
    assert counts[groups["many"]].min() > counts[groups["medium"]].max()
    assert counts[groups["medium"]].min() > counts[groups["few"]].max()


def test_of_equal_counts_the_smaller_number_is_the_larger_class():
    assert as_lists(thirds([7, 7, 7, 9, 7, 7])) == {"many": [0, 3], "medium": [1, 2], "few": [4, 5]}


def test_every_class_counts_once_if_it_has_test_examples():
    recalls = np.array([1.0, 0.5, np.nan, 0.25, np.nan])
    groups = {"many": np.array([0, 1, 2]), "medium": np.array([4]), "few": np.array([3]), "none": np.array([], int)}
    found = group_recall(recalls, groups)
    assert (found["many"], found["few"]) == (0.75, 0.25)
    assert math.isnan(found["medium"])
    assert math.isnan(found["none"])
    assert balanced_accuracy(recalls) == pytest.approx(1.75 / 3, rel=1e-15)
    assert math.isnan(balanced_accuracy([float("nan")]))


def test_errors_say_what_was_expected_and_what_came():
    with pytest.raises(ValueError, match=r"counts must be integers from 0 up, one per class; got \[0.5\]"):
        shot_groups([0.5])
    with pytest.raises(ValueError, match=r"counts must be integers from 0 up, one per class; got \[ 3 -1  2\]"):
        thirds([3, -1, 2])
    with pytest.raises(ValueError, match=r"few must be at most many, .*; got few=20, many=10"):
        shot_groups([1, 2], many=10)
    with pytest.raises(ValueError, match=r"thirds need at least 3 classes; got 2"):
        thirds([1, 2])
    with pytest.raises(ValueError, match=r"recalls must be real numbers, one per class; got float64 of shape \(1, 2\)"):
        balanced_accuracy([[0.5, 1.0]])
    with pytest.raises(ValueError, match=r"class numbers in 0..1, one for each recall; got 0 to 2 in 'few'"):
        group_recall([0.5, 1.0], {"few": np.array([0, 2])})
