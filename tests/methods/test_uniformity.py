"""The hug methods: their loss is that of `nc_jax.losses.uniformity`, and each placement moves what it should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.data import Batch
from nc_jax.energies import riesz_energy
from nc_jax.losses import uniformity
from nc_jax.methods import METHODS, Setting, UniformityOptions
from nc_jax.training import Context

K, DIM, N = 10, 3, 30
SETTING = Setting(num_classes=K)
KEYS = jax.random.split(jax.random.key(0), 3)
FEATURES = jax.random.normal(KEYS[0], (N, DIM))
LABELS = jnp.minimum(jnp.arange(N) // 2, K - 1)  # the last class has 12 examples, the others two
MASK = jnp.arange(N) < N - 4


def cost_of(name, setting=SETTING):
    """Return the head's output, and the mean loss of a batch with padding as a function of parameters and features."""
    head, loss = METHODS[name].head(setting), METHODS[name].loss(setting)
    params, state = head.init(KEYS[1], DIM)

    @jax.jit
    def cost(params, features):
        labels = jnp.where(MASK, LABELS, -1)
        batch = Batch(features, labels, MASK)
        context = Context(jnp.zeros((), jnp.int32), train=True, whole=batch)
        output, _ = head.apply(params, state, features, labels, train=True, mask=MASK)
        return jnp.sum(jnp.where(MASK, loss(output, batch, context), 0)) / jnp.sum(MASK), output.frame

    return params, cost


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mhe", "mhs", "mgd"])
def test_the_mean_over_the_batch_is_the_loss_of_the_batch(objective):
    options = UniformityOptions(alpha=0.7, beta=1.3, objective=objective)
    params, cost = cost_of("hug-learned", dataclasses.replace(SETTING, uniformity=options))
    found, frame = cost(params, FEATURES)
    labels = jnp.where(MASK, LABELS, -1)
    wanted = uniformity.hug(FEATURES, labels, frame, alpha=0.7, beta=1.3, objective=objective)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.slow
def test_learned_class_vectors_do_not_follow_the_features():
    """With `stop_gradient`, the gradient of the class vectors is that of their energy alone, whatever the features."""
    gradient = {}
    for stop in (True, False):
        setting = dataclasses.replace(SETTING, uniformity=UniformityOptions(stop_gradient=stop))
        params, cost = cost_of("hug-sphere", setting)
        gradient[stop] = jax.grad(lambda params: cost(params, FEATURES)[0])(params)["kernel"]  # noqa: B023
    energy = jax.grad(lambda kernel: riesz_energy(kernel, 2.0))(params["kernel"])
    np.testing.assert_allclose(gradient[True], energy, atol=1e-5)
    assert jnp.linalg.norm(gradient[False] - energy) > 0.05


@pytest.mark.slow
def test_a_rotation_follows_the_features():
    """The energy does not change with the rotation, so its gradient must come from the distances."""
    params, cost = cost_of("hug-rotated")
    gradient = jax.grad(lambda params: cost(params, FEATURES)[0])(params)["rotation"]
    assert jnp.linalg.norm(gradient) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hug-optimised", "hug-rotated", "hug-nearest", "energy-fixed", "energy-nearest"])
def test_frames_of_least_energy_have_it_in_every_placement(name):
    params, cost = cost_of(name)
    _, frame = cost(params, FEATURES)
    # Thomson's problem for ten charges, at s = 2 instead of 1: no closed form, so against random search from here.
    least = min(float(riesz_energy(_relaxed(seed), 2.0)) for seed in range(2))
    assert riesz_energy(frame, 2.0) < least + 1e-4


def _relaxed(seed):
    step = jax.jit(lambda w: w - 0.5 * jax.grad(lambda w: riesz_energy(w, 2.0))(w))
    vectors = jax.random.normal(jax.random.key(seed), (DIM, K))
    for _ in range(300):
        vectors = step(vectors)
        vectors = vectors / jnp.linalg.norm(vectors, axis=0)
    return vectors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, r"alpha must be positive and finite; got 0.0"),
        ({"s": -2.0}, r"s must be finite and above -2, .*; got -2.0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        UniformityOptions(**changes)
