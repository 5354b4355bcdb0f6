"""Dot regression: the released programs' values and gradients, the direction of the pull, zero vectors, wrong calls."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.losses import class_lengths, cosine_embedding, dot_regression

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "methods.json").read_text())["dr_loss"]
SINGLE = json.loads((FOLDER / "orthogonal.json").read_text())["fno"]["etf_dr"]
FRAME, FEATURES, LABELS = (np.array(GOLDEN[name]) for name in ("ETF_d6_K4", "H", "labels"))
UNITS = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
COUNTS = np.bincount(LABELS, minlength=4)
F64 = 1e-9


def mean_loss(features, lengths=None):
    return jnp.mean(dot_regression(features, LABELS, FRAME, lengths=lengths))


def test_lengths_are_the_released_programs(x64):
    np.testing.assert_allclose(class_lengths(COUNTS), GOLDEN["Ew_batch"], rtol=F64)
    np.testing.assert_allclose(class_lengths([5, 4, 2, 3]), GOLDEN["global_Ew_cls_num[5,4,2,3]"], rtol=F64)
    found = class_lengths(np.bincount(SINGLE["labels"], minlength=4))
    np.testing.assert_allclose(found, SINGLE["Ew"][0], rtol=2e-7)  # golden values in float32


def test_lengths_give_every_class_the_same_weight(x64):
    counts = jnp.array([7.5, 2.0, 0.0, 1.0])  # shares of mixed examples need not be whole
    lengths = jax.jit(class_lengths)(counts)
    np.testing.assert_allclose(lengths**2 * counts, [3.5, 3.5, 0, 3.5], rtol=1e-12)
    assert lengths[2] == 1
    np.testing.assert_array_equal(class_lengths(np.zeros(3, int)), 1)  # a batch of padding
    np.testing.assert_array_equal(class_lengths(jnp.zeros(3)), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "lengthened"), [("unit_features_plain_ETF", False), ("unit_features_batchEw", True)])
def test_values_and_gradients_are_the_released_programs(x64, case, lengthened):
    value, slope = jax.value_and_grad(mean_loss)(UNITS, class_lengths(COUNTS) if lengthened else None)
    np.testing.assert_allclose(value, GOLDEN[case]["loss"], rtol=F64)
    np.testing.assert_allclose(slope, GOLDEN[case]["grad_wrt_normalised_H"], rtol=F64, atol=1e-12)


@pytest.mark.slow
def test_features_of_any_length(x64):
    np.testing.assert_allclose(mean_loss(FEATURES), GOLDEN["raw_features_plain_ETF"]["loss"], rtol=F64)
    penalty = 0.01 * np.mean(np.linalg.norm(FEATURES, axis=1))
    found = mean_loss(FEATURES, class_lengths(COUNTS)) + penalty
    np.testing.assert_allclose(found, GOLDEN["raw_features_batchEw_reglam0.01"]["loss"], rtol=F64)


@pytest.mark.slow
def test_the_second_released_program(x64):
    features, frame, labels = (np.array(SINGLE[name]) for name in ("H", "M", "labels"))
    lengths = class_lengths(np.bincount(labels, minlength=4))
    found = np.mean(dot_regression(features, labels, frame, lengths=lengths))
    np.testing.assert_allclose(found, SINGLE["DR_reg0"], rtol=1e-6)  # golden values in float32
    penalty = 0.01 * np.mean(np.linalg.norm(features, axis=1))
    np.testing.assert_allclose(found + penalty, SINGLE["DR_reg0_01"], rtol=1e-6)


@pytest.mark.slow
def test_the_few_shot_form(x64):
    # The class vectors have eight digits, so their lengths are 1 up to 1e-8, and the program takes them to be 1.
    np.testing.assert_allclose(10 * mean_loss(UNITS), GOLDEN["FSCIL_DRLoss_unit_weight10"], rtol=5e-9)
    frame = FRAME / np.linalg.norm(FRAME, axis=0)

    def directions(features):
        return features / jnp.linalg.norm(features, axis=1, keepdims=True)

    def ours(features):
        return 10 * jnp.mean(dot_regression(directions(features), LABELS, frame))

    def theirs(features):
        return 10 * jnp.mean((jnp.sum(directions(features) * frame.T[LABELS], axis=1) - 1) ** 2) / 2

    found, expected = jax.value_and_grad(ours)(FEATURES), jax.value_and_grad(theirs)(FEATURES)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=F64, atol=1e-12)


@pytest.mark.slow
def test_the_gradient_is_a_pull_along_the_own_class_vector_alone(x64):
    lengths = class_lengths(COUNTS)
    slope = jax.grad(lambda h: jnp.sum(dot_regression(h, LABELS, FRAME, lengths=lengths)))
    own = (FRAME * np.array(lengths)).T[LABELS]
    gaps = np.array(cosine_embedding(FEATURES, LABELS, FRAME))[:, None]
    expected = -gaps * np.linalg.norm(own, axis=1, keepdims=True) * own
    np.testing.assert_allclose(slope(FEATURES), expected, rtol=F64, atol=1e-12)
    np.testing.assert_allclose(slope(1e3 * FEATURES), expected, rtol=F64, atol=1e-12)
    np.testing.assert_allclose(slope(3 * own), 0, atol=1e-12)
    values = dot_regression(FEATURES, LABELS, FRAME, lengths=lengths)
    scale = np.linalg.norm(FEATURES, axis=1) * np.linalg.norm(own, axis=1) ** 2
    np.testing.assert_allclose(values, scale * gaps[:, 0] ** 2 / 2, rtol=F64)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences_with_constant_norms(x64):
    def frozen(features):
        own = FRAME.T[LABELS]
        size, own_size = np.linalg.norm(FEATURES, axis=1), np.linalg.norm(own, axis=1)
        return np.mean((np.sum(features * own, axis=1) - size * own_size) ** 2 / size) / 2

    slope, step = jax.grad(mean_loss)(FEATURES), 1e-6
    for row, column in ((0, 0), (3, 2), (6, 5)):
        aside = np.zeros_like(FEATURES)
        aside[row, column] = step
        rise = (frozen(FEATURES + aside) - frozen(FEATURES - aside)) / (2 * step)
        np.testing.assert_allclose(slope[row, column], rise, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_zero_and_extreme_features_are_finite_and_pulled(size):
    features = (size * UNITS).astype(np.float32)
    frame = FRAME.astype(np.float32)
    value, slope = jax.value_and_grad(lambda h: jnp.sum(dot_regression(h, LABELS, frame)))(features)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    if size < 1e-8:  # as if the cosine were 0
        np.testing.assert_allclose(slope, -frame.T[LABELS], rtol=2e-4, atol=2e-4)


def test_zero_class_vectors_and_bfloat16_are_finite():
    frame = FRAME.astype(np.float32) * np.array([0, 1, 1, 1], np.float32)
    value, slope = jax.value_and_grad(lambda h: jnp.sum(dot_regression(h, LABELS, frame)))(UNITS.astype(np.float32))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    found = dot_regression(jnp.asarray(UNITS, jnp.bfloat16), LABELS, jnp.asarray(FRAME, jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, dot_regression(UNITS, LABELS, FRAME), atol=0.02)


@pytest.mark.slow
def test_padding_is_finite_and_a_label_that_is_no_class_is_nan():
    labels, lengths = np.array([-1, 1, 2, 4, 0, -2, 3]), class_lengths([4, 3, 2, 1])
    found = jax.jit(dot_regression)(FEATURES, labels, FRAME, lengths=lengths)
    assert np.isfinite(found).tolist() == [True, True, True, False, True, False, True]
    kept = [1, 2, 4, 6]
    expected = dot_regression(FEATURES[kept], labels[kept], FRAME, lengths=lengths)
    np.testing.assert_allclose(found[np.array(kept)], expected, rtol=1e-6)


def regression(features=FEATURES, labels=LABELS, frame=FRAME, lengths=None):
    return inspect.unwrap(dot_regression)(features, labels, frame, lengths=lengths)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: class_lengths([[1, 2]]), "counts must hold one number for each class; got shape (1, 2)"),
        (lambda: class_lengths([]), "counts must hold one number for each class; got shape (0,)"),
        (lambda: class_lengths(["a"]), "counts must be real numbers of at most 64 bits; got dtype <U1"),
        (lambda: class_lengths([True]), "counts must be real numbers of at most 64 bits; got dtype bool"),
        (lambda: class_lengths([3, -1]), "counts must be finite and at least 0 for every class; got -1 for class 1"),
        (
            lambda: class_lengths(jnp.array([jnp.nan])),
            "counts must be finite and at least 0 for every class; got nan for class 0",
        ),
        (
            lambda: regression(lengths=np.ones(3)),
            "lengths must hold one number for each of the 4 classes; got shape (3,)",
        ),
        (
            lambda: regression(lengths=[1, 1, np.inf, 1]),
            "lengths must be finite and at least 0 for every class; got inf for class 2",
        ),
        (
            lambda: regression(frame=FRAME.T),
            "features and frame must have shapes (batch, dim) and (dim, classes); got (7, 6) and (4, 6): "
            "transpose the latter",
        ),
        (
            lambda: regression(labels=LABELS[:3]),
            "labels must have shape (7,), one label for each row of features; got shape (3,)",
        ),
        (
            lambda: regression(labels=LABELS + 1),
            "labels must lie in 0..3 for num_classes=4, or be -1 for padding; got 4 at index 6 (1 such label); "
            "subtract 1 from labels that begin at 1",
        ),
        (
            lambda: regression(labels=LABELS.astype(float)),
            "labels must be integers of shape (batch,); got dtype float64; convert class numbers by labels.astype(int)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
