"""Energies of a run's class means and class vectors, above the least one."""

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import hyperspherical, simplex_etf
from nc_jax.metrics import ClassStatistics
from nc_jax.study.uniformity import energy_gaps, least_known_energy
from nc_jax.training import Evaluation


def evaluation(means, frame, present):
    """Return an evaluation with one example at the mean of each class that is present."""
    stats = ClassStatistics.from_batch(means.T[present], jnp.arange(means.shape[1])[present], means.shape[1])
    return Evaluation({}, stats, frame, jnp.zeros(frame.shape[1]))


@pytest.mark.slow
def test_gaps_are_zero_at_generalized_collapse():
    vectors = hyperspherical(10, 3, s=2.0)
    everyone = jnp.ones(10, bool)
    # An offset of all means, and their length, do not count. Class vectors of least energy sum to nearly zero only.
    gaps = energy_gaps(evaluation(2 * vectors + jnp.ones((3, 1)), vectors, everyone))
    np.testing.assert_allclose([gaps["energy_gap"], gaps["frame_gap"]], 0, atol=2e-3)


@pytest.mark.slow
def test_absent_classes_leave_a_smaller_problem():
    """Four of five class means form a simplex, which is collapse of four classes; five class vectors do not."""
    four = jnp.concatenate([simplex_etf(4, 3), jnp.zeros((3, 1))], axis=1)
    frame = jnp.concatenate([simplex_etf(4, 3), jnp.array([[1.0], [0.2], [0.0]])], axis=1)
    gaps = energy_gaps(evaluation(four, frame, jnp.arange(5) < 4))
    assert gaps["energy_gap"] == pytest.approx(0, abs=1e-5)
    assert gaps["frame_gap"] > 0.1


def test_the_least_energy_of_a_simplex_does_not_depend_on_the_dimension():
    assert least_known_energy(10, 64) == pytest.approx(0.45, rel=1e-6)  # (K - 1) / (2 K)
    assert least_known_energy(10, 3) > 0.45


@pytest.mark.slow
def test_one_class_has_no_energy():
    one = simplex_etf(4, 3)
    gaps = energy_gaps(evaluation(one, one, jnp.arange(4) < 1))
    assert np.isnan(gaps["energy_gap"])
    assert gaps["frame_gap"] == pytest.approx(0, abs=1e-5)
