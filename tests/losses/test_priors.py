"""Losses that know the class counts: golden values, formulas in NumPy, optima, gradients, padding, wrong calls."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from nc_jax import losses
from nc_jax.losses import (
    adjusted_logits,
    balanced_softmax,
    cross_entropy,
    label_aware_smoothing,
    ldam,
    ldam_margins,
    smoothed_cross_entropy,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["lt_peer_losses"]
COUNTS, LOGITS, LABELS = (np.array(GOLDEN[name]) for name in ("counts", "logits", "labels"))
RNG = np.random.default_rng(0)
MANY, CLASSES = RNG.normal(size=(8, 3)), RNG.integers(0, 3, size=8)
# For the tests of gradients. JAX remembers the dtype of an array of NumPy that a program holds, so counts are a list.
MARGINS, SMOOTHING = ldam_margins(COUNTS), label_aware_smoothing(COUNTS)
LOSSES = {
    "balanced": lambda logits, labels: balanced_softmax(logits, labels, GOLDEN["counts"]),
    "ldam": lambda logits, labels: ldam(logits, labels, MARGINS, 3.0, weights=1 / COUNTS),
    "smoothed": lambda logits, labels: smoothed_cross_entropy(logits, labels, SMOOTHING),
}


@pytest.mark.slow
def test_margins_and_smoothing_are_the_released_programs(x64):
    np.testing.assert_allclose(ldam_margins(COUNTS), GOLDEN["ldam_margins"], rtol=1e-9)
    np.testing.assert_allclose(label_aware_smoothing(COUNTS), GOLDEN["las_smoothing"], rtol=1e-9)
    found = jnp.mean(ldam(LOGITS, LABELS, ldam_margins(COUNTS)))
    np.testing.assert_allclose(found, GOLDEN["ldam_loss"], rtol=1e-9)
    found = jnp.mean(smoothed_cross_entropy(LOGITS, LABELS, label_aware_smoothing(COUNTS)))
    np.testing.assert_allclose(found, GOLDEN["las_loss"], rtol=1e-9)


@pytest.mark.slow
def test_values_are_those_of_the_formulas(x64):
    rows = np.arange(8)
    prior = COUNTS / COUNTS.sum()
    weighted = prior * np.exp(MANY)
    expected = -np.log(weighted[rows, CLASSES] / weighted.sum(axis=1))
    np.testing.assert_allclose(balanced_softmax(MANY, CLASSES, COUNTS), expected, rtol=1e-12)
    np.testing.assert_allclose(adjusted_logits(MANY, COUNTS, tau=1.5), MANY + 1.5 * np.log(prior), rtol=1e-12)
    margins, weights = np.array([0.1, 0.2, 0.5]), np.array([0.5, 1.0, 2.0])
    lowered = MANY.copy()
    lowered[rows, CLASSES] -= margins[CLASSES]
    expected = -weights[CLASSES] * log_softmax(5 * lowered, axis=1)[rows, CLASSES]
    np.testing.assert_allclose(ldam(MANY, CLASSES, margins, 5.0, weights), expected, rtol=1e-12)
    plain = cross_entropy(MANY, CLASSES)
    np.testing.assert_allclose(ldam(MANY, CLASSES, np.zeros(3), 1.0), plain, rtol=1e-12)
    smoothing = np.array([0.4, 0.1, 0.0])
    targets = np.eye(3)[CLASSES] * (1 - smoothing[CLASSES])[:, None] + smoothing[CLASSES][:, None] / 3
    expected = -np.sum(targets * log_softmax(MANY, axis=1), axis=1)
    np.testing.assert_allclose(smoothed_cross_entropy(MANY, CLASSES, smoothing), expected, rtol=1e-12)
    np.testing.assert_allclose(smoothed_cross_entropy(MANY, CLASSES, np.zeros(3)), plain, rtol=1e-12)


@pytest.mark.slow
def test_the_adjustment_undoes_itself_and_its_optimum_is_the_balanced_posterior(x64):
    back = adjusted_logits(adjusted_logits(MANY, COUNTS, tau=1.5), COUNTS, tau=-1.5)
    np.testing.assert_allclose(back, MANY, atol=1e-12)
    # One input, whose label is k with probability proportional to n_k likelihood_k. The expected loss is least where
    # the softmax of the plain logits is proportional to the likelihoods: no class is preferred for its frequency.
    likelihoods = np.array([0.2, 0.3, 0.5])
    posterior = COUNTS * likelihoods / (COUNTS * likelihoods).sum()

    def risk(logits):
        return jnp.sum(posterior * balanced_softmax(jnp.tile(logits, (3, 1)), np.arange(3), COUNTS))

    np.testing.assert_allclose(jax.grad(risk)(jnp.log(likelihoods)), 0, atol=1e-12)


@pytest.mark.slow
def test_smoothing_falls_from_head_to_tail(x64):
    counts = np.array([10, 40, 70, 100])
    share = np.array([0, 1, 2, 3]) / 3
    curves = {"concave": np.sin(np.pi * share / 2), "linear": share, "convex": 1 - np.cos(np.pi * share / 2)}
    for form, curve in curves.items():
        found = label_aware_smoothing(counts, head=0.4, tail=0.1, form=form)
        np.testing.assert_allclose(found, 0.1 + 0.3 * curve, rtol=1e-12, err_msg=form)
        np.testing.assert_allclose(label_aware_smoothing([7, 7], form=form), 0.3, rtol=1e-12)  # ordinary smoothing


def test_counts_may_be_traced():
    for function in (ldam_margins, label_aware_smoothing):
        np.testing.assert_allclose(jax.jit(function)(COUNTS), function(COUNTS), rtol=1e-6)
    found = jax.jit(adjusted_logits)(jnp.zeros((1, 3)), np.array([3, 0, 1]))  # a class that was not seen yet
    np.testing.assert_allclose(found, [[np.log(0.75), -np.inf, np.log(0.25)]], rtol=1e-6)


def test_integers_keep_their_digits_in_float64(x64):
    counts = np.array([2**40 + 1, 2**40])
    np.testing.assert_allclose(ldam_margins(counts)[0], 0.5 * (counts[1] / counts[0]) ** 0.25, rtol=1e-15)
    assert ldam_margins([3, 1]).dtype == jnp.float64


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_padding_and_labels_without_class(x64, loss):
    function = LOSSES[loss]
    labels = np.array([0, 1, 2, -1, 3])
    found = jax.jit(function)(MANY[:5], labels)
    assert np.isfinite(found).tolist() == [True, True, True, True, False]
    np.testing.assert_allclose(found[:4], function(MANY[:4], labels[:4]), rtol=1e-12)
    total = jax.jit(lambda logits: jnp.sum(function(logits, CLASSES)))
    aside, step = RNG.normal(size=MANY.shape), 1e-5
    rise = (total(MANY + step * aside) - total(MANY - step * aside)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(total)(MANY) * aside), rise, rtol=1e-8)
    far = jax.grad(total)(1e6 * MANY)
    assert np.isfinite(far).all()
    assert np.isfinite(jax.grad(total)(0 * MANY)).all()


def bare(name):
    """A function without beartype, which would refuse a wrong option before the function does."""
    return inspect.unwrap(getattr(losses, name))


POSITIVE = "must be finite and above 0 for every class"
THREE = "must hold one number for each of the 3 classes; got shape (2,)"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: adjusted_logits(LOGITS, [1, 2]), f"counts {THREE}"),
        (lambda: adjusted_logits(LOGITS, [1, 0, 2]), f"counts {POSITIVE}; got 0 for class 1"),
        (lambda: adjusted_logits(LOGITS, [1, 1, np.nan]), f"counts {POSITIVE}; got nan for class 2"),
        (lambda: adjusted_logits(LOGITS[0], COUNTS), "logits must have shape (batch, classes); got (3,)"),
        (lambda: adjusted_logits(LOGITS, COUNTS, tau=float("nan")), "tau must be finite; got nan"),
        (lambda: balanced_softmax(LOGITS, LABELS, [1, -2, 2]), f"counts {POSITIVE}; got -2 for class 1"),
        (
            lambda: balanced_softmax(LOGITS, [0, 3], COUNTS),
            "labels must lie in 0..2 for num_classes=3, or be -1 for padding; got 3 at index 1 (1 such label)",
        ),
        (lambda: ldam_margins([3, 0]), f"counts {POSITIVE}; got 0 for class 1"),
        (lambda: ldam_margins(COUNTS, largest=0.0), "largest must be positive and finite; got 0.0"),
        (lambda: ldam(LOGITS, LABELS, MARGINS[:2]), f"margins {THREE}"),
        (
            lambda: ldam(LOGITS, LABELS, [0.1, -0.1, 0.1]),
            "margins must be finite and at least 0 for every class; got -0.1 for class 1",
        ),
        (lambda: ldam(LOGITS, LABELS, MARGINS, scale=np.inf), "scale must be positive and finite; got inf"),
        (lambda: ldam(LOGITS, LABELS, MARGINS, weights=[1, 2]), f"weights {THREE}"),
        (
            lambda: ldam(LOGITS, LABELS[:1], MARGINS),
            "labels must have shape (2,), one label for each row of logits; got shape (1,)",
        ),
        (
            lambda: label_aware_smoothing(COUNTS, head=0.1, tail=0.2),
            "smoothing must satisfy 0 <= tail <= head <= 1; got tail=0.2 and head=0.1",
        ),
        (
            lambda: bare("label_aware_smoothing")(COUNTS, form="exp"),
            "form must be one of concave, linear, convex; got 'exp'",
        ),
        (
            lambda: label_aware_smoothing([1, -1]),
            "counts must be finite and at least 0 for every class; got -1 for class 1",
        ),
        (
            lambda: smoothed_cross_entropy(LOGITS, LABELS, [0.1, 1.1, 0]),
            "smoothing must lie in 0..1 for every class; got 1.1 for class 1",
        ),
        (lambda: smoothed_cross_entropy(LOGITS, LABELS, [0.1, 0.2]), f"smoothing {THREE}"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
