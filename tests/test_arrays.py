"""Angles and turns between columns: small angles, ends of the way, and columns without a way."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.arrays import angles, slerp

turn = jax.jit(slerp)
derivatives = jax.jit(jax.jacrev(slerp, argnums=(0, 1)))


def random_pair():
    return np.random.default_rng(0).normal(size=(2, 4, 5))


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-6, 1.0, np.pi / 2, np.pi - 1e-3, np.pi])
def test_angles_of_any_size(angle):
    left = jnp.array([3.0, 0.0])
    right = jnp.array([np.cos(angle), np.sin(angle)], jnp.float32)
    np.testing.assert_allclose(angles(left, right), angle, rtol=1e-6, atol=1e-30)


@pytest.mark.slow
def test_slerp_turns_by_its_share_and_keeps_lengths(x64):
    vectors, targets = jnp.array(random_pair())
    whole = angles(vectors, targets)
    for t in (0.1, 0.5, 0.9):
        found = turn(vectors, targets, t)
        np.testing.assert_allclose(np.linalg.norm(found, axis=0), np.linalg.norm(vectors, axis=0), rtol=1e-12)
        np.testing.assert_allclose(angles(vectors, found), t * whole, rtol=1e-12)
        np.testing.assert_allclose(angles(found, targets), (1 - t) * whole, rtol=1e-12)


@pytest.mark.slow
def test_slerp_is_exact_at_its_ends():
    vectors, targets = jnp.asarray(random_pair(), jnp.float32)
    scale = np.linalg.norm(vectors, axis=0) / np.linalg.norm(targets, axis=0)
    for moved in (turn, slerp):
        np.testing.assert_array_equal(moved(vectors, targets, 0.0), vectors)
        np.testing.assert_allclose(moved(vectors, targets, 1.0), targets * scale, rtol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-30, 1e-6, 2.9e-3, 3.1e-3])
def test_slerp_between_nearly_equal_directions(apart):
    vectors = jnp.array([[2.0], [0.0]])
    target = jnp.array([[1.0], [apart]])
    np.testing.assert_allclose(turn(vectors, target, 0.25), [[2.0], [0.5 * apart]], rtol=1e-5)
    jacobian = derivatives(vectors, target, 0.25)
    np.testing.assert_allclose(jacobian[0][:, 0, :, 0], np.diag([1, 0.75]), atol=3e-3)
    np.testing.assert_allclose(jacobian[1][:, 0, :, 0], np.diag([0, 0.5]), atol=3e-3)


@pytest.mark.slow
def test_the_weights_of_slerp_have_one_derivative_on_both_sides_of_the_series(x64):
    t, angle, step = 0.3, 3e-3, 1e-5
    below, above = (jnp.array([[np.cos(x)], [np.sin(x)]]) for x in (angle - step, angle + step))
    vectors = jnp.array([[1.0], [0.0]])
    before, after = derivatives(vectors, below, t), derivatives(vectors, above, t)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), before, after)
    for target, x in ((below, angle - step), (above, angle + step)):
        np.testing.assert_allclose(turn(vectors, target, t)[1, 0], np.sin(t * x), rtol=1e-14)


@pytest.mark.slow
def test_columns_without_a_shortest_arc_stay():
    vectors = jnp.array([[0.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0]])
    targets = jnp.array([[1.0, 0.0, -2.0, -1.0], [1.0, 0.0, -4.0, 1e-4]])
    for t in (0.5, 1.0):
        np.testing.assert_array_equal(turn(vectors, targets, t), vectors)
    assert all(jnp.isfinite(jacobian).all() for jacobian in derivatives(vectors, targets, 0.5))


def test_slerp_needs_one_target_for_each_column():
    with pytest.raises(ValueError, match=r"one shape \(dim, classes\); got \(4, 5\) and \(4, 4\)"):
        inspect.unwrap(slerp)(jnp.ones((4, 5)), jnp.ones((4, 4)), 0.5)
