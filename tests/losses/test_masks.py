"""Masks of a softmax: published values, and why logits are filled and not multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.losses import cross_entropy, mask_logits, same_task

# Two classes a task; values of the released program of Kim and Kim (2024).
TASKS = np.array([0, 0, 1, 1, 2, 2])
LOGITS = jnp.array([[2.0, -1, 0.5, 0.3, -2, 1], [0.1, 0.2, -0.3, 1.4, 2.2, -0.6], [-0.5, -0.4, -0.3, -0.2, -0.1, 0]])
LABELS = jnp.array([1, 3, 4])
SOFTMAX = [
    [0.9525741338729858, 0.04742587357759476, 0, 0, 0, 0],
    [0, 0, 0.15446527302265167, 0.8455348014831543, 0, 0],
    [0, 0, 0, 0, 0.47502079606056213, 0.5249791741371155],
]
GRADIENT = [
    [0.3175247311592102, -0.3175247311592102, 0, 0, 0, 0],
    [0, 0, 0.051488421857357025, -0.051488399505615234, 0, 0],
    [0, 0, 0, 0, -0.17499306797981262, 0.17499306797981262],
]


def mean_loss(logits):
    return jnp.mean(cross_entropy(mask_logits(logits, same_task(LABELS, TASKS)), LABELS))


@pytest.mark.slow
def test_the_masked_softmax_is_the_published_one():
    masked = mask_logits(LOGITS, same_task(LABELS, TASKS))
    np.testing.assert_allclose(jax.nn.softmax(masked), SOFTMAX, atol=1e-6)
    value, gradient = jax.value_and_grad(mean_loss)(LOGITS)
    np.testing.assert_allclose(value, 1.3202567100524902, rtol=1e-6)
    np.testing.assert_allclose(gradient, GRADIENT, atol=1e-6)
    np.testing.assert_allclose(jnp.mean(cross_entropy(LOGITS, LABELS)), 2.2274112701416016, rtol=1e-6)


def test_a_product_would_be_wrong():
    product = LOGITS.at[0, 2].set(0) * jnp.where(same_task(LABELS, TASKS), 1.0, -jnp.inf)
    assert jnp.isposinf(product).any()  # of negative logits
    assert jnp.isnan(product).any()  # of zeros


@pytest.mark.slow
def test_padding_has_all_classes():
    allowed = same_task(jnp.array([-1, 2]), TASKS)
    assert allowed[0].all()
    assert allowed[1].tolist() == [False, False, True, True, False, False]
    assert jnp.isfinite(cross_entropy(mask_logits(LOGITS[:2], allowed), jnp.array([-1, 2]))).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"logits must have shape \(batch, classes\), and a mask that or \(classes,\)"):
        mask_logits(LOGITS, jnp.ones((2, 6), bool))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.5 for num_classes=6, or be -1 for padding; got 6"):
        same_task(jnp.array([6]), TASKS)
