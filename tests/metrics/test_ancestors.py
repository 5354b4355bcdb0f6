"""Hierarchical precision, recall and F1: sets of names as oracle, batches and devices, relation to the distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import PAIRS, UNEVEN

from nc_jax.hierarchy import LabelTree
from nc_jax.metrics import AncestorCounts, HierarchyStatistics, ancestor_overlaps

TREE = LabelTree.from_edges(UNEVEN)
OVERLAPS = ancestor_overlaps(TREE)
K, N = len(TREE.classes), 40
RNG = np.random.default_rng(0)
LABELS, PREDICTIONS = RNG.integers(0, K, N), RNG.integers(0, K, N)


def way(tree, name):
    """The names of a class and its ancestors, without the root."""
    node, found = tree.nodes.index(name), set()
    while tree.parents[node] >= 0:
        found.add(tree.nodes[node])
        node = tree.parents[node]
    return found


def expected(predictions, labels, tree=TREE):
    pairs = [(way(tree, tree.classes[p]), way(tree, tree.classes[y])) for p, y in zip(predictions, labels, strict=True)]
    shared = sum(len(a & b) for a, b in pairs)
    precision, recall = shared / sum(len(a) for a, _ in pairs), shared / sum(len(b) for _, b in pairs)
    return {"h_precision": precision, "h_recall": recall, "h_f1": 2 * precision * recall / (precision + recall)}


def check(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_equals_sets_of_names():
    check(AncestorCounts.from_batch(PREDICTIONS, LABELS, OVERLAPS).compute(), expected(PREDICTIONS, LABELS))
    right = AncestorCounts.from_batch(LABELS, LABELS, OVERLAPS).compute()
    assert [float(value) for value in right.values()] == [1, 1, 1]


@pytest.mark.slow
def test_batches_devices_and_padding_merge():
    labels, predictions = np.append(LABELS, [-1, -1]), np.append(PREDICTIONS, [99, -7])
    step = jax.jit(lambda p, y: AncestorCounts.from_batch(p, y, OVERLAPS))
    merged = AncestorCounts.init()
    for part in np.split(np.arange(42), 3):
        merged = merged.merge(step(predictions[part], labels[part]))
    check(merged.compute(), expected(PREDICTIONS, LABELS))
    check(AncestorCounts.from_batch(predictions, labels, OVERLAPS).compute(), expected(PREDICTIONS, LABELS))
    split = [jnp.asarray(part).reshape(3, 14) for part in (predictions, labels)]
    reduced = jax.vmap(lambda p, y: step(p, y).all_reduce("devices"), axis_name="devices", out_axes=None)(*split)
    check(reduced.compute(), expected(PREDICTIONS, LABELS))


@pytest.mark.slow
def test_leaves_of_one_depth_have_the_information_of_the_distance():
    tree = LabelTree.from_edges(PAIRS)
    scores = RNG.normal(size=(30, 4)).astype(np.float32)
    labels = RNG.integers(0, 4, 30)
    by_distance = HierarchyStatistics.from_batch(scores, labels, jnp.asarray(tree.distances()), (1,)).compute((1,))
    found = AncestorCounts.from_batch(np.argmax(scores, axis=1), labels, ancestor_overlaps(tree)).compute()
    for value in found.values():
        np.testing.assert_allclose(value, 1 - by_distance["ahd@1"] / tree.height, rtol=1e-6)


def test_nothing_in_common_is_zero_and_no_example_nan():
    nothing = AncestorCounts.from_batch(
        np.array([TREE.classes.index("e")]), np.array([TREE.classes.index("a")]), OVERLAPS
    )
    assert [float(value) for value in nothing.compute().values()] == [0, 0, 0]
    assert all(np.isnan(value) for value in AncestorCounts.init().compute().values())
    wrong = jax.jit(lambda p, y: AncestorCounts.from_batch(p, y, OVERLAPS))(np.array([0, K]), np.array([0, 0]))
    assert int(wrong.without_class) == 1
    assert all(np.isnan(value) for value in wrong.compute().values())


@pytest.mark.parametrize(
    ("predictions", "labels", "sentence"),
    [
        ([0, 5], [0, 0], r"predictions must lie in 0\.\.4; got 5 at index 1"),
        ([0, -1], [0, 0], r"predictions must lie in 0\.\.4; got -1 at index 1"),
        ([0.0, 1.0], [0, 0], r"predictions must be integers of shape \(2,\), one for each label; got float64 of shape"),
        ([0, 0], [0, 5], r"labels must lie in 0\.\.4 for num_classes=5, or be -1 for padding; got 5 at index 1"),
        ([0], [0, 0], r"predictions must be integers of shape \(2,\), one for each label; got int64 of shape \(1,\)"),
    ],
)
def test_what_is_no_class_is_refused(predictions, labels, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        AncestorCounts.from_batch(np.array(predictions), np.array(labels), OVERLAPS)
