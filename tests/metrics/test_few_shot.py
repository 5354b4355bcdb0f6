"""Few-shot errors: a task computed in NumPy, collapse, chance, padding, and what cannot be drawn."""

import inspect
from functools import partial

import jax
import numpy as np
import pytest

from nc_jax.metrics import few_shot_errors

RNG = np.random.default_rng(0)
K, N, DIM = 5, 60, 4
LABELS = np.arange(N) % K
MEANS = 3 * RNG.normal(size=(K, DIM))
FEATURES = np.float32(MEANS[LABELS] + 2 * RNG.normal(size=(N, DIM)))
errors = partial(jax.jit, static_argnames=("num_classes", "shots", "ways", "draws"))(few_shot_errors)


@pytest.mark.slow
def test_one_left_out_of_two_is_a_task_that_numpy_can_repeat():
    """With two examples per class and one shot there are 2^K tasks, and every error must be one of theirs."""
    features, labels = FEATURES[: 2 * K], LABELS[: 2 * K]
    possible = set()
    for choice in np.ndindex(*(2,) * K):
        shots = np.arange(K) + K * np.array(choice)
        rest = np.setdiff1d(np.arange(2 * K), shots)
        nearest = np.argmin(np.linalg.norm(features[rest, None] - features[shots][None], axis=2), axis=1)
        possible.add(round(float(np.mean(nearest != labels[rest])), 6))
    found = errors(features, labels, num_classes=K, shots=1, key=jax.random.key(1), draws=64)
    assert {round(float(error), 6) for error in found.errors} <= possible
    assert len(possible) > 1
    np.testing.assert_allclose(found.mean, np.mean(found.errors), rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, np.std(found.errors, ddof=1) / 8, rtol=1e-5)


@pytest.mark.slow
def test_more_shots_help_and_collapsed_classes_need_one():
    one, five = (errors(FEATURES, LABELS, num_classes=K, shots=n, key=jax.random.key(0), draws=64) for n in (1, 5))
    assert float(five.mean) < float(one.mean) - 3 * float(one.standard_error)
    collapsed = errors(np.float32(MEANS)[LABELS], LABELS, num_classes=K, shots=1, key=jax.random.key(0), draws=64)
    assert np.all(np.asarray(collapsed.errors) == 0)


def test_a_task_of_two_of_five_equal_classes_is_chance():
    noise = np.float32(RNG.normal(size=(N, DIM)))
    found = errors(noise, LABELS, num_classes=K, shots=3, key=jax.random.key(0), ways=2, draws=64)
    # 64 tasks of 18 answers each: a standard deviation of 0.015, and a dependence between the two classes.
    assert abs(float(found.mean) - 0.5) < 0.08
    assert np.isclose(np.asarray(found.errors) * 18, np.round(np.asarray(found.errors) * 18), atol=1e-4).all()


@pytest.mark.slow
def test_padding_and_classes_with_few_examples_are_not_drawn():
    """A class of one example and rows of padding far away would change every answer."""
    features = np.concatenate([FEATURES, np.full((4, DIM), np.nan, np.float32)])
    features[-1] = 0
    labels = np.concatenate([LABELS, [-1, -1, -1, K]])
    found = few_shot_errors(features, labels, K + 1, 5, key=jax.random.key(0), ways=K, draws=8)
    assert np.isfinite(found.errors).all()
    assert float(found.mean) < 0.5


@pytest.mark.slow
def test_what_does_not_exist_is_nan():
    found = errors(FEATURES, np.zeros(N, int), num_classes=K, shots=2, key=jax.random.key(0), draws=3)
    assert np.isnan(found.errors).all()
    wrong = FEATURES * np.where(np.arange(N) == 0, np.nan, 1)[:, None]
    assert np.isnan(errors(wrong, LABELS, num_classes=K, shots=1, key=jax.random.key(0), draws=4).mean)
    assert np.isnan(errors(FEATURES, LABELS, num_classes=K, shots=1, key=jax.random.key(0), draws=1).standard_error)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shots": 0}, "shots must be at least 1; got 0"),
        ({"ways": 1}, "ways must be at least 2; got 1"),
        ({"draws": 0}, "draws must be at least 1; got 0"),
        ({"shots": 12}, "a task needs 5 classes with more than 12 examples each; got 0 such classes"),
        ({"ways": 6}, "a task needs 6 classes with more than 1 examples each; got 5 such classes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, sentence):
    given = {"shots": 1, "key": jax.random.key(0)} | options
    with pytest.raises(ValueError, match=f"^{sentence}"):
        inspect.unwrap(few_shot_errors)(FEATURES, LABELS, K, **given)
