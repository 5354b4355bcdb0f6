"""Parametrisations against published values, SciPy, NumPy and finite differences, and where their draws fall."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest
import scipy.linalg

from nc_jax.manifolds import PARAMETRISATIONS, Stiefel, cayley, exponential, householder, polar

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())["orthogonal_params"]
F64_EXACT = 1e-12
F32_EXACT = 3e-6
KEY = jax.random.key(0)
NAMES = sorted(PARAMETRISATIONS)
SHAPES = [(5, 3), (4, 4)]  # (d, r)


@partial(jax.jit, static_argnums=(0, 2, 3))
def point_of(name, free, dim, rank):
    return PARAMETRISATIONS[name].point(free, dim, rank)


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def draw(name, key, dim, rank, dtype=jnp.float32):
    return PARAMETRISATIONS[name].init(key, dim, rank, dtype)


@partial(jax.jit, static_argnums=(0, 2, 3))
def point_and_gradient(name, free, dim, rank):
    """The point, and the gradient of <W, point> in reverse mode."""
    point, pull_back = jax.vjp(lambda free: PARAMETRISATIONS[name].point(free, dim, rank), free)
    return point, *pull_back(weights(dim, rank))


def weights(dim, rank):
    return jnp.sin(1 + jnp.arange(dim * rank, dtype=float)).reshape(dim, rank)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def skew(free, dim):
    """A, with the strict upper triangle of the free matrix."""
    upper = np.triu(np.vstack([free, np.zeros((dim - len(free), dim))]), 1)
    return upper - upper.T


def cayley_by_inverse(free, rank):
    matrix, eye = skew(free, free.shape[1]), np.eye(free.shape[1])
    return ((eye + matrix) @ np.linalg.inv(eye - matrix))[:, :rank]


def reflections(free, rank):
    """The product of the reflections, one by one, each column with the sign that makes R's diagonal positive."""
    product, left, signs = np.eye(len(free)), free.copy(), np.ones(rank)
    for i in range(rank):
        x = left[i:, i]
        signs[i] = -1 if x[0] >= 0 else 1
        normal = np.zeros(len(free))
        normal[i:] = x - signs[i] * np.linalg.norm(x) * np.eye(len(x))[0]
        reflection = np.eye(len(free)) - 2 * np.outer(normal, normal) / (normal @ normal)
        product, left = product @ reflection, reflection @ left
    return product[:, :rank] * signs


ORACLES = {
    "cayley": cayley_by_inverse,
    "exponential": lambda free, rank: scipy.linalg.expm(skew(free, len(free)))[:, :rank],
    "householder": reflections,
    "polar": lambda free, rank: oracles.polar_by_svd(free),
}


@pytest.mark.parametrize(
    ("function", "key"), [(cayley, "cayley"), (householder, "householder"), (polar, "lowdin_polar")]
)
def test_equals_the_published_programs(x64, function, key):
    np.testing.assert_allclose(function(jnp.asarray(GOLDEN["R"])), GOLDEN[key], atol=F64_EXACT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(x64, name, shape):
    free = normal(PARAMETRISATIONS[name].shape(*shape))
    point, _ = point_and_gradient(name, free, *shape)
    np.testing.assert_allclose(point, ORACLES[name](free, shape[1]), atol=F64_EXACT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", ["identity", "drawn", "scaled", "zero"])
def test_gradients_equal_finite_differences(x64, name, shape, start):
    chosen = PARAMETRISATIONS[name]
    smooth_everywhere = name in ("cayley", "exponential")
    free = {
        "identity": np.zeros if smooth_everywhere else lambda shape: np.eye(*shape),
        "drawn": normal,
        "scaled": lambda shape: 3 * np.eye(*shape) + np.eye(*shape, k=1),  # repeated singular values
        "zero": np.zeros if smooth_everywhere else lambda shape: 1e-3 * np.eye(*shape),
    }[start](chosen.shape(*shape))
    direction = normal(free.shape, seed=1)
    point, gradient = point_and_gradient(name, free, *shape)
    assert np.isfinite(gradient).all()
    size = 1e-3 * min(1, np.linalg.norm(free) or 1)
    expected = oracles.central_difference(
        lambda t: np.vdot(weights(*shape), point_and_gradient(name, free + t * direction, *shape)[0]), size
    )
    np.testing.assert_allclose(np.vdot(gradient, direction), expected, rtol=1e-6, atol=1e-8)
    if start == "identity":
        np.testing.assert_allclose(point, np.eye(*shape), atol=F64_EXACT)


def test_the_polar_factor_has_second_derivatives_and_is_transposed_when_tall(x64):
    """Autodiff of a singular value decomposition has none where singular values repeat."""
    weights, direction, free = normal((64, 9)), normal((64, 9), 1), np.eye(64, 9)
    slope = jax.jit(jax.grad(lambda free: jnp.vdot(weights, polar(free))))
    _, found = jax.jvp(slope, (jnp.asarray(free),), (jnp.asarray(direction),))
    expected = oracles.central_difference(lambda t: np.asarray(slope(free + t * direction)), 1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_orthonormal_in_float32_however_large_the_free_matrix(name):
    free = draw(name, KEY, 5, 3)
    for size in (1, 30, 1000):
        point = np.asarray(point_of(name, size * free, 5, 3), float)
        np.testing.assert_allclose(point.T @ point, np.eye(3), atol=F32_EXACT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(x64, name, dtype):
    """Free matrices have the dtype that is asked for; points are in float32 at least."""
    free = jax.eval_shape(lambda: PARAMETRISATIONS[name].init(KEY, 5, 3, dtype))
    point = jax.eval_shape(lambda free: PARAMETRISATIONS[name].point(free, 5, 3), free)
    assert free.dtype == dtype
    assert point.dtype == jnp.promote_types(dtype, jnp.float32)


# For r < d the draws of all but "cayley" are columns of the square ones, or of the same Gaussian.
@pytest.mark.parametrize(("name", "shape"), [("cayley", (3, 2)), *((name, (3, 3)) for name in NAMES)])
def test_draws_are_uniform(name, shape):
    """A uniform rotation has mean zero, covariance I / d, and looks the same from a fixed other rotation."""
    count, (dim, rank) = 4000, shape
    drawn = jax.jit(jax.vmap(lambda key: point_of(name, draw(name, key, dim, rank), dim, rank)))
    points = np.asarray(drawn(jax.random.split(KEY, count)), float)
    five_sigma = 5 / np.sqrt(count * dim)
    assert np.abs(points.mean(axis=0)).max() < five_sigma
    covariances = np.einsum("cip,cjp->pij", points, points) / count
    assert np.abs(covariances - np.eye(dim) / dim).max() < five_sigma
    # Fourth moments tell the uniform distribution from others that share its covariance.
    assert np.abs(np.mean(points**4, axis=0) - 3 / (dim * (dim + 2))).max() < five_sigma
    if dim == rank:
        determinants = np.linalg.det(points)
        expected = 1 if name in ("cayley", "exponential") else 0
        assert abs(determinants.mean() - expected) < 5 / np.sqrt(count)
        # The trace of a uniform rotation has mean 0 and square mean 1.
        traces = np.trace(points, axis1=1, axis2=2)
        assert abs(traces.mean()) < 5 / np.sqrt(count)
        assert abs((traces**2).mean() - 1) < 10 / np.sqrt(count)


@pytest.mark.slow
def test_the_drawn_free_matrix_is_an_exact_preimage(x64):
    """The two draws share a rotation for r = d: one gives its Cayley numbers, the other its logarithm."""
    drawn = [draw(name, KEY, 4, 4, jnp.float64) for name in ("cayley", "exponential")]
    points = [ORACLES[name](np.asarray(free), 4) for name, free in zip(("cayley", "exponential"), drawn, strict=True)]
    np.testing.assert_allclose(*points, atol=1e-10)
    point = cayley_by_inverse(np.asarray(draw("cayley", KEY, 5, 3, jnp.float64)), 3)
    np.testing.assert_allclose(point, Stiefel(5, 3).random_point(KEY, jnp.float64), atol=1e-10)


REFUSED = {
    "the Cayley transform needs a free matrix of shape (r, d), 1 <= r <= d; got shape (3, 2)": lambda: cayley(
        jnp.ones((3, 2))
    ),
    "the exponential needs a free matrix of shape (d, d); got shape (3, 2)": lambda: exponential(jnp.ones((3, 2))),
    "the exponential of a 3 x 3 matrix has 1 <= r <= 3; got 4": lambda: exponential(jnp.ones((3, 3)), 4),
    "Householder reflections need a free matrix of shape (d, r), 1 <= r <= d; got shape (2, 3)": lambda: householder(
        jnp.ones((2, 3))
    ),
    "the polar factor needs a free matrix of shape (d, r), 1 <= r <= d; got shape (2, 3)": lambda: polar(
        jnp.ones((2, 3))
    ),
    "a rotation has 1 <= rank <= dim; got rank=4 and dim=3": lambda: PARAMETRISATIONS["polar"].init(KEY, 3, 4),
    '"cayley" needs a free matrix of shape (2, 3); got (3, 2)': lambda: PARAMETRISATIONS["cayley"].point(
        jnp.ones((3, 2)), 3, 2
    ),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_wrong_shapes_are_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
