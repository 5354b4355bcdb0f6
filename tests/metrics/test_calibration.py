"""Calibration: a loop as oracle, edges of bins, padding, and the sums as a monoid."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import CalibrationSums, expected_calibration_error

from_batch = jax.jit(CalibrationSums.from_batch)


def random_problem(num_examples=60, num_classes=4, seed=0):
    """Logits of all confidences, and labels; every seventh label is padding."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_examples)
    logits = 2 * rng.normal(size=(num_examples, num_classes)) + 2 * np.eye(num_classes)[labels]
    labels[::7] = -1
    return logits, labels


def loop_error(logits, labels, num_bins=15):
    confidences = [[] for _ in range(num_bins)]
    answers = [[] for _ in range(num_bins)]
    for row, label in zip(logits, labels, strict=True):
        if label >= 0:
            probabilities = np.exp(row) / np.exp(row).sum()
            place = next(m for m in range(num_bins) if probabilities.max() <= (m + 1) / num_bins)
            confidences[place].append(probabilities.max())
            answers[place].append(row.argmax() == label)
    gaps = [len(c) * abs(np.mean(a) - np.mean(c)) for c, a in zip(confidences, answers, strict=True) if c]
    return sum(gaps) / (labels >= 0).sum()


def assert_sums_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_bins", [1, 15])
def test_equals_a_loop(x64, num_bins):
    logits, labels = random_problem()
    expected = loop_error(logits, labels, num_bins)
    assert expected > 0.01
    np.testing.assert_allclose(expected_calibration_error(logits, labels, num_bins), expected, rtol=1e-12)


@pytest.mark.slow
def test_a_confidence_at_an_edge_belongs_to_the_lower_bin():
    logits = jnp.array([[0.0, 0.0], [30.0, 0.0], [0.0, 200.0]])
    sums = CalibrationSums.from_batch(logits, jnp.array([0, 0, 0]), num_bins=4)
    assert sums.count.tolist() == [0, 1, 0, 2]
    assert sums.correct.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(sums.confidence, [0, 0.5, 0, 1])
    np.testing.assert_allclose(sums.compute(), (0.5 + 1) / 3, rtol=1e-6)


@pytest.mark.slow
def test_is_a_commutative_monoid_and_merging_equals_one_pass(x64):
    logits, labels = map(jnp.array, random_problem())
    labels = labels.at[20:30].set(-1)
    whole = from_batch(logits, labels)
    parts = [from_batch(logits[cut], labels[cut]) for cut in (slice(0, 20), slice(20, 30), slice(30, 60))]
    a, b, c = parts
    assert_sums_close(a.merge(b).merge(c), whole)
    assert_sums_close(c.merge(a.merge(b)), whole)
    assert_sums_close(CalibrationSums.init(dtype=jnp.float64).merge(a), a)
    reduced = jax.vmap(lambda part: part.all_reduce("batch"), axis_name="batch", out_axes=None)
    assert_sums_close(reduced(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)), whole)


@pytest.mark.slow
def test_padding_counts_for_nothing():
    logits, labels = random_problem()
    sums = from_batch(jnp.asarray(logits), labels)
    assert_sums_close(from_batch(jnp.where(labels[:, None] < 0, jnp.nan, logits), labels), sums)
    assert sums.count.sum() == (labels >= 0).sum()
    for empty in (CalibrationSums.init(), from_batch(jnp.ones((3, 4)), jnp.full(3, -1))):
        assert jnp.isnan(empty.compute())


def test_what_has_no_confidence_shows():
    logits, labels = map(jnp.asarray, random_problem())
    assert jnp.isnan(from_batch(logits.at[1, 2].set(jnp.nan), labels).compute())
    for wrong in (4, -2):  # only running code can meet a label that is no class
        spoilt = from_batch(logits, labels.at[1].set(wrong))
        assert jnp.isnan(spoilt.compute())
        assert jnp.isnan(spoilt.merge(from_batch(logits, labels)).compute())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_measured_in_float32(dtype):
    logits, labels = random_problem()
    found = from_batch(jnp.asarray(logits, dtype), labels)
    assert found.confidence.dtype == jnp.float32
    assert_sums_close(found, from_batch(jnp.asarray(logits, dtype).astype(jnp.float32), labels))


def test_errors_say_what_was_expected_and_what_came():
    plain = inspect.unwrap(expected_calibration_error)
    with pytest.raises(ValueError, match=r"a calibration error needs num_bins >= 1; got 0"):
        plain(jnp.ones((2, 3)), jnp.zeros(2, int), 0)
    with pytest.raises(ValueError, match=r"logits must have shape \(batch, classes\); got \(3,\)"):
        plain(jnp.ones(3), jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"must have the same bins; got \(15,\) and \(4,\)"):
        CalibrationSums.init().merge(CalibrationSums.init(4))
