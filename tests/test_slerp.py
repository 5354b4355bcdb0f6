"""Turning columns along the shorter arc: golden values, lengths, derivatives where formulas divide by zero."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax.arrays import slerp

GOLDEN = json.loads((Path(__file__).parent / "golden" / "space_alignment.json").read_text())["slerp"]
RNG = np.random.default_rng(0)
VECTORS, TARGETS, WAY = (RNG.normal(size=(5, 3)) for _ in range(3))


def by_hand(vectors, targets, t):
    """In the plane of both: the angle grows linearly in t."""
    found = []
    for vector, target in zip(vectors.T, targets.T, strict=True):
        own = vector / np.linalg.norm(vector)
        across = target - own * (own @ target)
        across /= np.linalg.norm(across)
        angle = t * np.arctan2(across @ target, own @ target)
        found.append(np.linalg.norm(vector) * (np.cos(angle) * own + np.sin(angle) * across))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_golden_values(x64, t):
    found = slerp(jnp.asarray(GOLDEN["W0"]).T, 3 * jnp.asarray(GOLDEN["t1"]["W"]).T, t)  # they are rows in the file
    np.testing.assert_allclose(found.T, GOLDEN[f"t{t:g}"]["W"], atol=1e-9)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_columns_turn_in_their_plane_and_keep_their_lengths(x64, t):
    found = jax.jit(partial(slerp, t=t))(VECTORS, TARGETS)
    np.testing.assert_allclose(found, by_hand(VECTORS, TARGETS, t), rtol=1e-12)
    np.testing.assert_allclose(found, slerp(jnp.asarray(VECTORS), jnp.asarray(TARGETS), t), rtol=1e-12)
    back = slerp(jnp.asarray(VECTORS), jnp.asarray(-VECTORS + 1e-3 * TARGETS), t)  # nearly opposite
    np.testing.assert_allclose(back, by_hand(VECTORS, -VECTORS + 1e-3 * TARGETS, t), rtol=1e-9)


# The angles are on both sides of the switch to the power series, at 3e-3.
@pytest.mark.parametrize("angle", [1e-5, 2e-3, 4e-3, 1.0, 3.0])
def test_small_angles_are_as_accurate_as_large_ones(x64, angle):
    column = jnp.array([[2.0], [0.0]])
    found = slerp(column, jnp.array([[np.cos(angle)], [np.sin(angle)]]), 0.3)[:, 0]
    np.testing.assert_allclose(found, [2 * np.cos(0.3 * angle), 2 * np.sin(0.3 * angle)], rtol=1e-11)


@pytest.mark.parametrize("apart", [None, 1e-2, 1e-4, 0.0])
def test_the_gradient(x64, apart):
    """At equal directions, too: there the result is (1 - t) v + t |v| b to first order."""
    targets = TARGETS if apart is None else VECTORS + apart * TARGETS
    weights = np.arange(15.0).reshape(5, 3)

    def value(step, which):
        moved = (VECTORS + (which == 0) * step * WAY, targets + (which == 1) * step * WAY)
        return jnp.sum(weights * slerp(*map(jnp.asarray, moved), 0.3))

    for which in (0, 1):
        slope = jax.jit(jax.grad(partial(value, which=which)))(0.0)
        np.testing.assert_allclose(slope, oracles.central_difference(partial(value, which=which), 1e-4), rtol=1e-7)


def test_what_has_no_direction_stays_with_finite_gradients():
    vectors = jnp.array([[0.0, 1.0, 1.0], [0.0, 2.0, 2.0]])
    targets = jnp.array([[1.0, 0.0, -2.0], [0.0, 0.0, -4.0]])
    np.testing.assert_array_equal(slerp(vectors, targets, 0.5), vectors)
    slopes = jax.grad(lambda *both: jnp.sum(slerp(*both, 0.5) ** 3), argnums=(0, 1))(vectors, targets)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_allclose(slopes[0][:, 1:], 3 * vectors[:, 1:] ** 2)


def test_each_column_may_have_a_share_of_its_own():
    found = slerp(jnp.asarray(VECTORS, jnp.float32), jnp.asarray(TARGETS, jnp.float32), jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(found[:, 0], VECTORS[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], by_hand(VECTORS, TARGETS, 0.5)[:, 1], rtol=1e-5, atol=1e-6)
