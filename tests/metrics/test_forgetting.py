"""Forgetting and transfer: published values, one task, wrong shapes."""

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import average_accuracy, backward_transfer, forgetting, forward_transfer

# Values of the released program of Kim and Kim (2024), in percent; accuracies on tasks far ahead were not measured.
MATRIX = np.array([[90.0, 10.0, np.nan], [60.0, 85.0, 11.0], [40.0, 70.0, 80.0]])


def test_values_are_the_published_ones():
    assert float(backward_transfer(MATRIX)) == -32.5
    assert float(forgetting(MATRIX)) == 32.5
    np.testing.assert_allclose(forward_transfer(MATRIX, np.array([11.0, 9.0, 10.0])), 1.0, rtol=1e-6)
    np.testing.assert_allclose(average_accuracy(MATRIX), 190 / 3, rtol=1e-6)


def test_a_task_that_gains_is_forgotten_less_than_nothing():
    assert float(forgetting(np.array([[0.5, 0.0], [0.7, 0.9]]))) == pytest.approx(-0.2)
    # Its best is the best of all times, not the first.
    assert float(forgetting(np.array([[0.5, 0, 0], [0.9, 0.9, 0], [0.4, 0.8, 1]]))) == pytest.approx(0.3)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_one_task_has_nothing_to_forget():
    one = jnp.array([[0.9]])
    assert float(average_accuracy(one)) == pytest.approx(0.9)
    for value in (forgetting(one), backward_transfer(one), forward_transfer(one, jnp.array([0.1]))):
        assert jnp.isnan(value)


def test_what_was_not_measured_is_not_a_number():
    last = np.full((3, 3), np.nan)
    last[2] = 0.8
    assert float(average_accuracy(last)) == pytest.approx(0.8)
    assert jnp.isnan(forgetting(last))
    assert jnp.isnan(backward_transfer(last))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"accuracies must have shape \(tasks, tasks\); got \(2, 3\)"):
        forgetting(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"an accuracy for each of the 3 tasks; got shape \(2,\)"):
        forward_transfer(MATRIX, np.zeros(2))
