"""The cost that spreads points: the energy that it stands for, its derivatives, blocks, and scales of exponents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.energies import riesz_energy, separation
from nc_jax.frames import spreading
from nc_jax.manifolds import Oblique, checks

KEY = jax.random.key(0)
SHAPES = [(3, 7), (9, 7)]  # distances from differences, and from a Gram matrix
EXPONENTS = (-1.0, 0.0, 1.0, 7.0)


@jax.jit
def evaluate(points, tangent, s):
    return {
        "cost": spreading.cost(points, s),
        "gradient": spreading.gradient(points, s),
        "product": spreading.hessian_vector(points, tangent, s),
        "repulsion": spreading.repulsion(points, s),
    }


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of three columns, which do not divide seven."""
    monkeypatch.setattr(spreading, "_ONE_BLOCK", 5)
    monkeypatch.setattr(spreading, "_BLOCK", 3)
    jax.clear_caches()
    yield
    jax.clear_caches()


def points_and_tangent(shape):
    manifold = Oblique(*shape)
    points = manifold.random_point(KEY, jnp.float64)
    return points, manifold.random_tangent(jax.random.key(1), points)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_a_monotone_function_of_the_energy(x64, shape):
    points, tangent = points_and_tangent(shape)
    for s in EXPONENTS:
        energy = riesz_energy(points, s)
        expected = energy if s == 0 else np.log(abs(energy)) / s
        np.testing.assert_allclose(evaluate(points, tangent, s)["cost"], expected, rtol=1e-12)
    # Kernels of 1e300 and beyond: what is left is the least distance.
    np.testing.assert_allclose(evaluate(points, tangent, 1e6)["cost"], -np.log(separation(points)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_slopes(x64, shape):
    s = jnp.array(3.0)
    of = {
        "gradient": lambda points: spreading.gradient(points, s),
        "hessian_vector": lambda points, tangent: spreading.hessian_vector(points, tangent, s),
    }
    cost = partial(spreading.cost, s=s)
    assert checks.check_gradient(Oblique(*shape), cost, KEY, gradient=of["gradient"]).passed
    assert checks.check_hessian(Oblique(*shape), cost, KEY, **of).passed


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_change_nothing(x64, shape, request):
    points, tangent = points_and_tangent(shape)
    whole = [jax.device_get(evaluate(points, tangent, s)) for s in EXPONENTS]
    request.getfixturevalue("blocks")
    for s, expected in zip(EXPONENTS, whole, strict=True):
        for name, value in evaluate(points, tangent, s).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_the_repulsion_is_the_gradient_without_cancellation(x64):
    """Of two opposite points each is pushed by one force, along the radius; between equal forces nothing is left."""
    pair = jnp.array([[1.0, -1.0], [0.0, 0.0]])
    assert spreading.repulsion(pair, jnp.array(1.0)) == pytest.approx(2 * np.sqrt(2) / 4)
    assert jnp.linalg.norm(Oblique(2, 2).project(pair, spreading.gradient(pair, jnp.array(1.0)))) == 0


def test_more_starts_begin_with_the_same_ones():
    few, many = (spreading.random_starts(KEY, num_classes=4, dim=3, starts=n, dtype="float32") for n in (2, 3))
    np.testing.assert_array_equal(few, many[:2])
