"""Weighted draws: their probabilities by class and within a class, and that they never change; and two stages."""

import re

import numpy as np
import pytest
from scipy import stats

from nc_jax.data import LabelledArrays, labels_of
from nc_jax.data.folders import FolderRecords
from nc_jax.data.images import ImageSource
from nc_jax.streams import Epochs, Staged, Tasks, Weighted, read
from nc_jax.training.fingerprint import describe

COUNTS = np.array([40, 10, 0, 2, 1])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))
SOURCE = LabelledArrays(np.zeros((53, 1)), LABELS, 5)
EXPECTED = {  # shares of the classes, by hand
    0.0: np.array([1, 1, 0, 1, 1]) / 4,
    0.5: np.sqrt(COUNTS) / np.sqrt(COUNTS).sum(),
    1.0: COUNTS / 53,
    -1.0: np.array([1 / 40, 1 / 10, 0, 1 / 2, 1]) / (1 / 40 + 1 / 10 + 1 / 2 + 1),
}


def drawn(stream, epochs, seed=0):
    index = np.concatenate([stream.plan(seed, epoch).index.ravel() for epoch in range(epochs)])
    return index[index >= 0]


@pytest.mark.parametrize(("power", "shares"), EXPECTED.items())
def test_classes_are_drawn_by_their_weights_and_members_evenly(power, shares):
    found = drawn(Weighted(SOURCE, 8, 400, power), 400)
    assert len(found) == 400 * 53
    times = np.bincount(found, minlength=53)
    by_class = np.bincount(LABELS, times, minlength=5)
    assert by_class[2] == 0
    present = COUNTS > 0
    assert stats.chisquare(by_class[present], len(found) * shares[present]).pvalue > 1e-3
    for label in (0, 1, 3):
        assert stats.chisquare(times[label == LABELS]).pvalue > 1e-3


def test_draws_are_independent():
    # Pairs of consecutive draws of the four classes, against the product of their shares.
    found = LABELS[drawn(Weighted(SOURCE, 8, 400), 400)]
    table = np.zeros((5, 5))
    np.add.at(table, (found[:-1:2], found[1::2]), 1)
    assert stats.chi2_contingency(table[COUNTS > 0][:, COUNTS > 0]).pvalue > 1e-3


def test_only_the_last_batch_of_an_epoch_has_padding():
    stream = Weighted(SOURCE, 8, 3)
    assert stream.ends == Epochs(SOURCE, 8, 3).ends == range(7, 22, 7)
    index = stream.plan(0, 1).index
    assert (index.shape, index.dtype) == ((7, 8), np.int32)
    np.testing.assert_array_equal((index < 0).nonzero(), [[6, 6, 6], [5, 6, 7]])


def test_an_epoch_depends_on_seed_and_number_alone():
    one, other = Weighted(SOURCE, 8, 3), Weighted(SOURCE, 8, 3)
    epochs = {(seed, epoch): one.plan(seed, epoch).index.tobytes() for seed in (0, 2**64 - 1) for epoch in range(3)}
    assert len(set(epochs.values())) == 6
    assert all(other.plan(*key).index.tobytes() == epochs[key] for key in reversed(epochs))
    # Measured once: a run must resume exactly under later versions of NumPy and of this package.
    small = LabelledArrays(np.zeros((9, 1)), np.array([0] * 6 + [1] * 2 + [2]), 3)
    assert Weighted(small, 3, 2, 0.5).plan(7, 1).index.tolist() == [[8, 2, 7], [7, 1, 6], [7, 7, 8]]


def test_extreme_powers_do_not_overflow():
    for power, label in ((1000.0, 0), (-1000.0, 4)):
        assert (LABELS[drawn(Weighted(SOURCE, 8, 1, power), 1)] == label).all()


def test_it_needs_labels_that_are_known():
    listed = ImageSource(FolderRecords([], [0, 1, 1]), 3, 2, ("a", "b"))
    assert labels_of(listed).tolist() == [0, 1, 1]
    assert Weighted(SOURCE, 8, 1).plan(0, 0).index.max() < 53
    unknown = ImageSource([{"image": b"", "label": 0}], 3, 2, ("a", "b"))
    assert labels_of(unknown) is None
    with pytest.raises(ValueError, match=r"^weighted draws need a set whose labels are known; got ImageSource"):
        Weighted(unknown, 8, 1)


def test_a_second_stage_goes_on_with_the_other_stream():
    first, second = Epochs(SOURCE, 8, 5), Weighted(SOURCE, 8, 5)
    stream = Staged(first, second, 3)
    assert (stream.ends, stream.batch_size) == (first.ends, 8)
    for epoch in range(5):
        expected = (first if epoch < 3 else second).plan(1, epoch).index
        np.testing.assert_array_equal(stream.plan(1, epoch).index, expected)
    batches = list(read(SOURCE, stream, seed=1, start_step=20, num_steps=2))
    np.testing.assert_array_equal(batches[1].labels, LABELS[second.plan(1, 3).index[0]])
    said = describe(stream)
    assert (said["segments"], said["second.power"], said["first.stratified"]) == ("3", "0", "False")


REFUSED = [
    (lambda: Weighted(SOURCE, 0, 1), "batch_size must be at least 1; got 0"),
    (lambda: Weighted(SOURCE, 8, 0), "epochs must be at least 1; got 0"),
    (lambda: Weighted(SOURCE, 8, 1, float("nan")), "power of weighted draws must be finite; got nan"),
    (
        lambda: Staged(Epochs(SOURCE, 8, 2), Weighted(SOURCE, 8, 3), 1),
        "both stages must have the same steps; got batches of 8, 2 segments and 14 steps, and batches of 8, 3 segments "
        "and 21 steps",
    ),
    (
        lambda: Staged(Tasks(SOURCE, LABELS // 3, 8, 1), Weighted(SOURCE, 7, 2), 1),
        "both stages must have the same steps; got batches of 8, 2 segments and 8 steps, and batches of 7, 2 segments "
        "and 16 steps",
    ),
    (lambda: Staged(Epochs(SOURCE, 8, 2), Weighted(SOURCE, 8, 2), 3), "the first stage must have 0..2 segments; got 3"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_refuses_with_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
