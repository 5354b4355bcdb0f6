"""Arc-mixup's weights and log loss: the released program's numbers, the optimum, and what has no gradient."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.arrays import normalized
from nc_jax.frames import nonnegative_orthogonal
from nc_jax.losses import arc_log_loss, arc_weights, features_of_classes, log_loss

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["fno"]
FLOOR = GOLDEN["fno_lt_losses"]["LogLoss_zero_target"]


def test_weights_are_the_released_programs():
    rows = GOLDEN["arc_mixup_lambda"]["table"]
    own, other = arc_weights(np.array([row["u"] for row in rows], np.float32))
    np.testing.assert_allclose(own, [row["arc_lam"] for row in rows], atol=1e-6)
    np.testing.assert_allclose(other, [row["sqrt_1_minus_arc_lam_sq"] for row in rows], atol=1e-6)
    np.testing.assert_allclose(own**2 + other**2, 1, atol=1e-6)
    assert other.min() >= 0


@pytest.mark.slow
def test_the_log_loss_is_the_released_programs():
    case = GOLDEN["fno_lt_losses"]
    scores = jnp.asarray(case["output"])[jnp.arange(2), jnp.asarray(case["targets"])]
    np.testing.assert_allclose(jnp.mean(log_loss(scores)), case["LogLoss"], rtol=1e-6)
    np.testing.assert_allclose(log_loss(jnp.array([0.0, -3.0])), FLOOR, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda s: jnp.sum(log_loss(s)))(jnp.array([0.0, -3.0, 0.5])), [0, 0, -2])


def masked_case():
    case = GOLDEN["arc_mixup_masked_loss"]
    frame = jnp.asarray(case["Q"]).T
    mask = features_of_classes(frame, jnp.array([True, False, True, False]))
    own, other = arc_weights(jnp.full(2, 0.25))
    return case, frame, mask, (own, other)


@pytest.mark.slow
def test_masked_features_and_their_loss_are_the_released_programs():
    case, frame, mask, weights = masked_case()
    np.testing.assert_array_equal(mask, case["feature_mask"])
    masked = jnp.asarray(case["H_raw"]) * mask
    np.testing.assert_allclose(normalized(masked, axis=1)[0], case["H_masked_normalised"], atol=1e-6)
    found = arc_log_loss(masked, frame, jnp.array([0, 2]), jnp.array([2, 0]), weights)
    np.testing.assert_allclose(jnp.exp(-found), case["prob"], atol=1e-6)
    np.testing.assert_allclose(jnp.mean(found), case["loss"], atol=1e-6)
    scaled = arc_log_loss(100 * masked, frame, jnp.array([0, 2]), jnp.array([2, 0]), weights)
    np.testing.assert_allclose(scaled, found, rtol=1e-5)  # lengths do not matter, so neither does scaling before


@pytest.mark.slow
def test_the_loss_is_zero_for_the_mixture_only(x64):
    rng = np.random.default_rng(0)
    frame = nonnegative_orthogonal(3, 8, key=jax.random.key(0), dtype=jnp.float64)
    own, other = (jnp.full(50, weight) for weight in arc_weights(0.3))
    labels, partners = jnp.arange(50) % 3, (jnp.arange(50) + 1) % 3
    loss = jax.jit(lambda h: arc_log_loss(h, frame, labels, partners, (own, other)))
    optimum = (own[:, None] * frame.T[labels] + other[:, None] * frame.T[partners]) * np.exp(rng.normal(size=(50, 1)))
    np.testing.assert_allclose(loss(optimum), 0, atol=1e-12)
    lengths = jnp.linalg.norm(optimum, axis=1, keepdims=True)
    aside = jnp.abs(optimum + 0.1 * rng.normal(size=optimum.shape) * lengths)
    angles = np.sum(normalized(aside, axis=1)[0] * normalized(optimum, axis=1)[0], axis=1)
    np.testing.assert_allclose(loss(aside), -np.log(angles), rtol=1e-9)  # the overlap is the cosine with the mixture
    assert loss(aside).min() > 1e-4
    # And features that descend on the loss come to it.
    features = aside
    step = jax.jit(jax.grad(lambda h: jnp.sum(loss(h))))
    for _ in range(200):
        features = normalized(jnp.maximum(features - 0.3 * step(features), 0), axis=1)[0]
    np.testing.assert_allclose(features, normalized(optimum, axis=1)[0], atol=1e-6)


@pytest.mark.slow
def test_features_without_overlap_have_the_floor_and_no_gradient():
    frame = jnp.eye(4, 3)
    weights = (jnp.ones(4), jnp.zeros(4))
    features = jnp.array([[0.0, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [1, 1, 0, 0]])
    labels = jnp.zeros(4, int)
    value, slope = jax.value_and_grad(lambda h: jnp.sum(arc_log_loss(h, frame, labels, labels, weights)[:3]))(features)
    np.testing.assert_allclose(value, 3 * FLOOR, rtol=1e-6)
    np.testing.assert_array_equal(slope[:3], 0)


def test_padding_is_finite_and_a_label_that_is_no_class_is_nan():
    frame, weights = jnp.eye(4, 3), (jnp.ones(3), jnp.zeros(3))
    found = jax.jit(arc_log_loss)(jnp.ones((3, 4)), frame, jnp.array([-1, 3, 0]), jnp.array([-1, 0, 3]), weights)
    assert np.isfinite(found).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: features_of_classes(jnp.eye(4, 3), np.ones(4, bool)),
            "present must be booleans of shape (3,), one for each class; got bool of shape (4,)",
        ),
        (lambda: log_loss(jnp.ones((2, 2))), "scores must have shape (batch,); got (2, 2)"),
        (
            lambda: inspect.unwrap(arc_log_loss)(
                jnp.ones((2, 3)), jnp.eye(4, 3), jnp.zeros(2, int), jnp.zeros(2, int), (jnp.ones(2), jnp.zeros(2))
            ),
            "features and frame must have shapes (batch, dim) and (dim, classes); got (2, 3) and (4, 3): "
            "transpose the latter",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
