"""Labelled arrays that know their clients, and how different the clients are."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from nc_jax.data import ClientArrays, LabelledArrays, partition_statistics
from nc_jax.data.tasks import in_order
from nc_jax.training.fingerprint import describe

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "partition.json").read_text())["fedgela"]
ARRAYS = LabelledArrays(np.arange(12.0).reshape(6, 2), np.array([0, 0, 1, 2, 2, 2]), 3, ("a", "b", "c"))
OWNERS = np.array([1, 0, -1, 1, 1, 0])


@pytest.fixture
def arrays():
    return ClientArrays.of(ARRAYS, OWNERS, 2)


def test_arrays_of_clients_are_labelled_arrays(arrays):
    assert isinstance(arrays, LabelledArrays)
    assert repr(arrays) == "ClientArrays(6 examples of shape (2,) float64, 3 classes, 2 clients)"
    assert arrays.inputs is ARRAYS.inputs
    assert arrays.class_names == ("a", "b", "c")
    assert arrays.clients.dtype == np.int32
    assert arrays.client_counts().tolist() == [[1, 0, 1], [1, 0, 2]]
    assert arrays.client_counts().dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        arrays.clients[0] = 0
    OWNERS[0] = 1  # the array that was handed in stays writeable


def test_a_subset_keeps_the_clients_right(arrays):
    for chosen in (np.array([5, 0, 0]), arrays.labels == 2):
        found = arrays.subset(chosen)
        np.testing.assert_array_equal(found.clients, OWNERS[chosen])
        np.testing.assert_array_equal(found.inputs, ARRAYS.inputs[chosen])
    assert arrays.subset(np.array([1, 2])).client_counts().tolist() == [[1, 0, 0], [0, 0, 0]]
    assert len(arrays.subset(np.array([], int))) == 0
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.5; got 6 at position 0"):
        arrays.subset(np.array([6]))


def test_other_changes_keep_the_clients(arrays):
    found = in_order(arrays, [2, 0, 1])
    assert isinstance(found, ClientArrays)
    assert found.client_counts().tolist() == [[1, 1, 0], [2, 1, 0]]
    again = ClientArrays.of(found, np.zeros(6, int), 1)
    assert again.client_counts().tolist() == [[3, 2, 1]]


def test_clients_are_part_of_the_fingerprint(arrays):
    said = describe(arrays, "set")
    assert said["set"] == "ClientArrays"
    assert said["set.num_clients"] == "2"
    other = describe(dataclasses.replace(arrays, clients=OWNERS[::-1]), "set")
    assert [name for name in said if said[name] != other[name]] == ["set.clients"]


def test_the_lengths_of_local_class_vectors_follow_from_the_counts():
    golden = GOLDEN["Phi_K4"]
    labels = np.array(golden["client_labels"], dtype=object)
    owners = np.repeat(np.arange(3), [len(part) for part in labels])
    flat = np.concatenate(labels).astype(int)
    counts = ClientArrays.of(LabelledArrays(np.zeros((12, 1)), flat, 4), owners, 3).client_counts()
    np.testing.assert_array_equal(4 * counts / counts.sum(axis=1, keepdims=True), golden["Phi=C*n_kc/n_k"])
    np.testing.assert_array_equal(counts > 0, golden["mask"])


def test_statistics_of_equal_disjoint_and_empty_clients():
    equal = partition_statistics(np.full((4, 3), 5))
    assert equal.sizes.tolist() == [15] * 4
    assert equal.effective_clients == 4
    np.testing.assert_allclose(equal.divergence, 0, atol=1e-12)
    disjoint = partition_statistics(np.diag([1, 1, 2]))
    assert disjoint.classes_per_client.tolist() == [1, 1, 1]
    np.testing.assert_allclose(disjoint.divergence, [0.75, 0.75, 0.5])  # 1 less the share of its class
    assert disjoint.effective_clients == pytest.approx(16 / 6)
    assert np.isnan(partition_statistics(np.array([[1, 1], [0, 0]], np.uint8)).divergence).tolist() == [False, True]


REFUSED = [
    (lambda: ClientArrays.of(ARRAYS, OWNERS, 3), "every client must have an example; client 2 of 3 has none"),
    (lambda: ClientArrays.of(ARRAYS, OWNERS, 0), "num_clients must be at least 1; got 0"),
    (
        lambda: ClientArrays.of(ARRAYS, OWNERS, 1),
        "clients must lie in 0..0, or be -1 for none; got 1 at example 0",
    ),
    (
        lambda: ClientArrays.of(ARRAYS, OWNERS - 1, 2),
        "clients must lie in 0..1, or be -1 for none; got -2 at example 2",
    ),
    (
        lambda: ClientArrays.of(ARRAYS, OWNERS[:5], 2),
        "clients must be integers of shape (6,), one for each example; got int64 of shape (5,)",
    ),
    (
        lambda: ClientArrays.of(ARRAYS, OWNERS * 1.0, 2),
        "clients must be integers of shape (6,), one for each example; got float64 of shape (6,)",
    ),
    (
        lambda: partition_statistics(np.zeros((2, 2), int)),
        "counts must be integers from 0 up of shape (clients, classes), not all 0; got int64 of shape (2, 2) with sum",
    ),
    (lambda: partition_statistics(np.ones(3)), "not all 0; got float64 of shape (3,) with sum 3"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()


def test_a_test_set_may_leave_a_client_out():
    assert ClientArrays.of(ARRAYS, OWNERS, 3, empty=True).client_counts()[2].tolist() == [0, 0, 0]
