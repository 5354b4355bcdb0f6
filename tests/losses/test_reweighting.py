"""Effective numbers and the focal loss: sums, limits, precision at both ends, gradients, wrong calls."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from nc_jax.losses import cross_entropy, effective_number_weights, effective_numbers, focal

FOLDER = Path(__file__).parents[1] / "golden"
LT = json.loads((FOLDER / "orthogonal.json").read_text())["fno"]["fno_lt_losses"]
DR = json.loads((FOLDER / "methods.json").read_text())["dr_loss"]
COUNTS = np.array([5000, 300, 1])
RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(8, 3)), RNG.integers(0, 3, size=8)


def test_effective_numbers_are_sums_of_powers(x64):
    sums = [np.sum(0.9999 ** np.arange(count)) for count in COUNTS]
    np.testing.assert_allclose(effective_numbers(COUNTS), sums, rtol=1e-11)
    weights = effective_number_weights(COUNTS)
    np.testing.assert_allclose(weights, 3 / np.array(sums) / np.sum(1 / np.array(sums)), rtol=1e-11)
    np.testing.assert_allclose(jax.jit(effective_number_weights)(COUNTS), weights, rtol=1e-12)
    np.testing.assert_array_equal(effective_numbers([0, 2]) > 0, [False, True])


def test_effective_numbers_at_the_ends_of_beta(x64):
    np.testing.assert_array_equal(effective_numbers([0, 1, 7], beta=0.0), [0, 1, 1])
    np.testing.assert_array_equal(effective_numbers([0, 1, 7], beta=1.0), [0, 1, 7])
    np.testing.assert_allclose(effective_numbers(COUNTS, beta=1 - 1e-12), COUNTS, rtol=1e-4)
    np.testing.assert_array_equal(effective_number_weights([9, 2], beta=0.0), 1)
    np.testing.assert_allclose(effective_number_weights([9, 2], beta=1.0), [4 / 11, 18 / 11], rtol=1e-12)


def test_effective_numbers_are_precise_in_float32():
    found = effective_numbers(np.array([1, 2, 10], np.float32))
    np.testing.assert_allclose(found, [1, 1.9999, np.sum(0.9999 ** np.arange(10))], rtol=1e-6)


@pytest.mark.slow
def test_focal_is_its_formula_and_cross_entropy_for_gamma_zero(x64):
    own = softmax(LOGITS, axis=1)[np.arange(8), LABELS]
    for gamma in (0.0, 0.5, 2.0):
        expected = -((1 - own) ** gamma) * np.log(own)
        np.testing.assert_allclose(focal(LOGITS, LABELS, gamma), expected, rtol=1e-12)
    np.testing.assert_allclose(focal(LOGITS, LABELS, 0.0), cross_entropy(LOGITS, LABELS), rtol=1e-12)
    found = jnp.mean(focal(np.array(LT["output"]), np.array(LT["targets"]), 0.0))
    np.testing.assert_allclose(found, LT["CE"], rtol=1e-6)  # golden value in float32
    features, labels = np.array(DR["H"]), np.array(DR["labels"])
    logits = features / np.linalg.norm(features, axis=1, keepdims=True) @ np.array(DR["ETF_d6_K4"])
    np.testing.assert_allclose(jnp.mean(focal(logits, labels, 0.0)), DR["CE_on_fixed_ETF_unit_features"], rtol=1e-9)


@pytest.mark.slow
def test_the_gradient_of_focal(x64):
    total = jax.jit(lambda logits: jnp.sum(focal(logits, LABELS)))
    aside, step = RNG.normal(size=LOGITS.shape), 1e-5
    rise = (total(LOGITS + step * aside) - total(LOGITS - step * aside)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(total)(LOGITS) * aside), rise, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_and_precise_where_the_class_is_sure_or_hopeless(gamma):
    gaps = np.array([20.0, 28.0, 1e4, 1e30, 0.0, -1e4, -1e30], np.float32)
    logits = np.stack([gaps, np.zeros_like(gaps)], axis=1)
    labels = np.zeros(len(gaps), int)
    value = focal(logits, labels, gamma)
    slope = jax.grad(lambda z: jnp.sum(focal(z, labels, gamma)))(logits)
    np.testing.assert_allclose(value[:2], np.exp(-(1 + gamma) * gaps[:2]), rtol=1e-4)  # exp of a rounded exponent
    np.testing.assert_allclose(slope[:2, 0], -(1 + gamma) * np.exp(-(1 + gamma) * gaps[:2]), rtol=1e-4)
    np.testing.assert_array_equal(value[2:4], 0)
    np.testing.assert_allclose(value[5:], -gaps[5:], rtol=1e-6)
    np.testing.assert_allclose(slope[2:4], 0)
    np.testing.assert_allclose(slope[5:], [[-1, 1]] * 2, rtol=1e-6)


@pytest.mark.slow
def test_focal_of_one_class_or_with_masked_others_is_zero():
    alone = jnp.array([[3.0]])
    masked = jnp.array([[-jnp.inf, 1.0, -jnp.inf]])
    for logits, label in ((alone, 0), (masked, 1)):
        value, slope = jax.value_and_grad(lambda z, y: focal(z, jnp.array([y]))[0])(logits, label)
        assert value == 0
        np.testing.assert_array_equal(slope, 0)


def test_padding_is_finite_and_a_label_that_is_no_class_is_nan():
    found = jax.jit(focal)(LOGITS[:4], np.array([-1, 2, 3, -2]))
    assert np.isfinite(found).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: effective_number_weights([1, 0]),
            "counts must be finite and above 0 for every class; got 0 for class 1",
        ),
        (lambda: effective_numbers([-1]), "counts must be finite and at least 0 for every class; got -1 for class 0"),
        (lambda: effective_numbers([[1]]), "counts must hold one number for each class; got shape (1, 1)"),
        (lambda: effective_numbers([1], beta=1.1), "beta must lie in 0..1; got 1.1"),
        (lambda: focal(LOGITS, LABELS, gamma=-1.0), "gamma must be at least 0 and finite; got -1.0"),
        (lambda: focal(LOGITS[0], LABELS), "logits must have shape (batch, classes); got (3,)"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
