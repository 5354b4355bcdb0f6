"""Gradients through the nearest head, on one device and several."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_steps import BATCHES, DIM, K, N, cross_entropy, init, run, train, value_and_gradient

from nc_jax import collective
from nc_jax.models import NearestHead

F32_EXACT = 2e-6  # rounding of logits of length 5
F32_DEVICES = 1e-5  # sums in another order


@pytest.mark.slow
def test_gradients_flow_through_the_solve_unless_they_are_stopped():
    features, labels = BATCHES[1]
    _, variables = run(NearestHead(K), BATCHES[:1])
    through, stopped = NearestHead(K), NearestHead(K, stop_gradient=True)
    value, gradient = value_and_gradient(through, variables, features, labels)
    same_value, other_gradient = value_and_gradient(stopped, variables, features, labels)
    np.testing.assert_allclose(value, same_value, rtol=1e-6)
    assert oracles.relative_error(other_gradient, gradient) > 0.05
    # With the gradient stopped the frame and the mean are constants.
    output, _ = train(stopped, variables, features, labels)

    def with_constants(features):
        lengths = jnp.linalg.norm(features, axis=1, keepdims=True)
        return cross_entropy(5 * features / lengths @ output.frame + output.bias, labels)

    assert oracles.relative_error(jax.grad(with_constants)(features), other_gradient) < 1e-5


@pytest.mark.slow
def test_gradients_are_stopped_in_some_steps_only():
    features, labels = BATCHES[1]
    _, variables = run(NearestHead(K), BATCHES[:1])  # the next step is number 1
    through, stopped = (
        value_and_gradient(NearestHead(K, stop_gradient=cut), variables, features, labels)[1] for cut in (False, True)
    )
    for steps, expected in [((0, 1), through), ((1, 2), stopped), ((2, 9), through)]:
        head = NearestHead(K, stop_gradient=steps)
        found = value_and_gradient(head, variables, features, labels)[1]
        np.testing.assert_allclose(found, expected, atol=F32_EXACT)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_recipe():
    """Central differences of the NumPy recipe; the previous rotation is a constant, as it is in the head."""
    features, labels = BATCHES[1]
    head = NearestHead(K, prox_weight=0.1)
    _, variables = run(head, BATCHES[:1])
    _, gradient = value_and_gradient(head, variables, features, labels)
    tangent = np.random.default_rng(0).normal(size=features.shape)

    def loss(t):
        recipe = oracles.NearestHeadRecipe(cases.reduced_template(K), DIM, delta=0.1)
        recipe.step(BATCHES[0][0].astype(float), BATCHES[0][1])
        logits, _ = recipe.step(features.astype(float) + t * tangent, labels)
        return np.sum(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(N), labels])

    expected = oracles.central_difference(loss, 1e-4)
    np.testing.assert_allclose(np.vdot(gradient, tangent), expected, rtol=1e-4)


# --- Several devices. ---


@partial(jax.jit, static_argnums=0)
def step_below(head, weights, variables, features, labels):
    """Gradient of the cross-entropy in the weights of a layer below the head; output and variables of the head."""

    def loss(weights):
        output, after = head.apply(variables, features @ weights, labels, train=True, mutable=["nearest"])
        return cross_entropy(output.logits, labels), (output, after)

    return jax.grad(loss, has_aux=True)(weights)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 8])
def test_devices_share_their_labels(num_devices):
    """Values and gradients are those of one device that sees the whole batch, wherever the classes fall."""
    features, labels = BATCHES[1]
    labels = np.sort(labels)  # each device has seen a few classes only
    weights = np.random.default_rng(0).normal(size=(DIM, DIM)).astype(np.float32)
    head = NearestHead(K)
    _, variables = run(head, BATCHES[:1])

    def device_step(weights, variables, features, labels):
        with collective.over("batch"):
            gradient, (output, after) = step_below(head, weights, variables, features, labels)
        return jax.lax.psum(gradient, "batch"), (output, after)

    gradient, (output, after) = step_below(head, weights, variables, features, labels)
    split = [array.reshape(num_devices, -1, *array.shape[1:]) for array in (features, labels)]
    parallel = jax.pmap(device_step, "batch", in_axes=(None, None, 0, 0), devices=jax.devices()[:num_devices])
    gradients, (outputs, afters) = parallel(weights, variables, *split)
    np.testing.assert_allclose(outputs.logits.reshape(N, K), output.logits, atol=F32_DEVICES * 10)
    for device in range(num_devices):
        jax.tree.map(
            lambda found, expected, device=device: np.testing.assert_allclose(
                found[device], expected, atol=F32_DEVICES
            ),
            afters,
            after,
        )
        assert oracles.relative_error(gradients[device], gradient) < 10 * F32_DEVICES


@pytest.mark.slow
def test_devices_agree_bit_for_bit():
    """Every device solves the same problem: the replicated state cannot drift apart."""
    features, labels = (array.reshape(2, -1, *array.shape[1:]) for array in BATCHES[0])
    head = NearestHead(K)

    def step(variables, features, labels):
        with collective.over("batch"):
            return head.apply(variables, features, labels, train=True, mutable=["nearest"])[1]

    after = jax.pmap(step, "batch", in_axes=(None, 0, 0), devices=jax.devices()[:2])(init(head), features, labels)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), after)


@pytest.mark.slow
def test_a_zero_feature_has_a_finite_gradient():
    features, labels = BATCHES[0]
    features = features.copy()
    features[0] = 0
    loss, gradient = value_and_gradient(NearestHead(K), init(NearestHead(K)), features, labels)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
