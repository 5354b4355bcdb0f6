"""Logit adjustment: in training or in evaluation, never in both, and as the formula says."""

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training import Context, LogitAdjustment

COUNTS = (6, 3, 1)
OUTPUT = HeadOutput(jnp.array([[1.0, 0.0, -1.0]]), jnp.ones((1, 2)), jnp.ones((2, 3)), jnp.zeros(3))
BATCH = Batch.of(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32))
SHIFTS = np.log(np.array(COUNTS) / 10)


def adjusted(adjustment, *, train):
    context = Context(jnp.zeros((), jnp.int32), train=train)
    return adjustment.on_output(context, None, OUTPUT, BATCH)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_class_sizes_enter_in_training_and_leave_no_trace_in_evaluation(tau):
    found = adjusted(LogitAdjustment(COUNTS, tau), train=True)
    np.testing.assert_allclose(found.logits, OUTPUT.logits + tau * SHIFTS, rtol=1e-6)
    assert adjusted(LogitAdjustment(COUNTS, tau), train=False) is OUTPUT


def test_after_training_class_sizes_leave_the_logits_and_the_bias_in_evaluation():
    adjustment = LogitAdjustment(COUNTS, after=True)
    found = adjusted(adjustment, train=False)
    np.testing.assert_allclose(found.logits, OUTPUT.logits - SHIFTS, rtol=1e-6)
    np.testing.assert_allclose(found.bias, -SHIFTS, rtol=1e-6)
    assert adjusted(adjustment, train=True) is OUTPUT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((6, 0, 1),), r"^counts must be finite and above 0 for every class; got 0 for class 1$"),
        ((COUNTS, -1.0), r"^tau must be at least 0 and finite; got -1\.0$"),
        ((COUNTS, float("nan")), r"^tau must be at least 0 and finite; got nan$"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustment(*arguments)


def test_other_classes_than_the_counts_are_refused():
    with pytest.raises(ValueError, match="counts"):
        adjusted(LogitAdjustment((6, 3)), train=True)
