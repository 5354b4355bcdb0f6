"""Cosine alignment and its mixture: the released program's values and gradient, every schedule, zero vectors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.losses import cosine_alignment, cosine_embedding, cross_entropy, mixing_schedule

FILE = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())
GOLDEN = FILE["haf_losses"]
FRAME = jnp.asarray(GOLDEN["W"], jnp.float32).T
FEATURES = jnp.asarray(GOLDEN["X"], jnp.float32)
LABELS = jnp.asarray(GOLDEN["y"])
SIMILARITY = jnp.asarray(GOLDEN["S"], jnp.float32)
F32 = 1e-6
MIXTURES = [(0.4, "beta0.6_alpha0.4"), (0.5, "beta0.5_alpha0.5"), (0.0, "beta1.0_alpha0.0"), (2.0, "beta1.0_alpha2.0")]


@pytest.mark.slow
def test_the_released_programs_losses():
    np.testing.assert_allclose(cross_entropy(FEATURES @ FRAME, LABELS).mean(), GOLDEN["CE_mean"], rtol=F32)
    losses = cosine_alignment(FEATURES, LABELS, FRAME, SIMILARITY)
    np.testing.assert_allclose(losses.mean(), GOLDEN["GSCSL_batchmean"], rtol=F32)
    np.testing.assert_allclose(losses.sum(), GOLDEN["sum_reduction"]["GSCSL_sum"], rtol=F32)


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "name"), MIXTURES)
def test_the_mixture(alpha, name):
    beta, alpha = mixing_schedule(alpha)(0)

    def mixture(features):
        alignment = cosine_alignment(features, LABELS, FRAME, SIMILARITY)
        return jnp.mean(beta * cross_entropy(features @ FRAME, LABELS) + alpha * alignment)

    value, gradient = jax.value_and_grad(mixture)(FEATURES)
    np.testing.assert_allclose(value, GOLDEN["mixed"][name], rtol=F32)
    if name == "beta0.6_alpha0.4":
        np.testing.assert_allclose(gradient, GOLDEN["grad_X_beta0.6_alpha0.4"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FILE["haf_mixing_schedule"]["table"])
def test_every_schedule_of_alpha(name):
    alpha = float(name) if name[0].isdigit() else name
    schedule = mixing_schedule(alpha, epochs=10, period=4)
    found = [[float(weight) for weight in schedule(epoch)] for epoch in range(10)]
    np.testing.assert_allclose(found, FILE["haf_mixing_schedule"]["table"][name], atol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(3), found[3], atol=1e-7)


@pytest.mark.slow
def test_scale_and_zero_vectors_and_padding():
    scaled = cosine_alignment(7 * FEATURES, LABELS, 3 * FRAME, SIMILARITY)
    np.testing.assert_allclose(scaled, cosine_alignment(FEATURES, LABELS, FRAME, SIMILARITY), rtol=1e-5)
    zero = jnp.zeros((1, 3))
    gradient = jax.grad(lambda h: cosine_alignment(h, jnp.array([-1]), FRAME, SIMILARITY)[0])(zero)
    np.testing.assert_array_equal(gradient, zero)


@pytest.mark.slow
def test_an_embedding_loss_is_one_minus_a_cosine():
    losses = cosine_embedding(FEATURES, LABELS, FRAME)
    expected = [1 - GOLDEN["cos"][n][k] for n, k in enumerate(GOLDEN["y"])]
    np.testing.assert_allclose(losses, expected, atol=1e-6)


def test_schedules_that_do_not_exist():
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        mixing_schedule(-0.1)
    with pytest.raises(ValueError, match="epochs must be at least 1; got 0"):
        mixing_schedule(0.5, epochs=0)
