"""The oblique manifold against its definition; derivatives through the slope tests; solvers and optimisers on it."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from nc_jax.energies import riesz_energy
from nc_jax.manifolds import Oblique, checks
from nc_jax.optim import on_manifold
from nc_jax.solvers import Status, trust_region

F64_EXACT = 1e-13
F32_EXACT = 3e-6
MANIFOLDS = [Oblique(3, 5), Oblique(4, 1), Oblique(1, 3)]
KEY = jax.random.key(0)


@partial(jax.jit, static_argnums=0)
def evaluate(manifold, point, u, v):
    """Everything that the manifold computes at a point, from two vectors of the surrounding space."""
    tangent = manifold.project(point, u)
    hessian = manifold.hessian(point, u)
    return {
        "tangent": tangent,
        "projected again": manifold.project(point, tangent),
        "other tangent": manifold.project(point, v),
        "gradient": manifold.gradient(point, u),
        "hessian": hessian(tangent, jnp.zeros_like(u)),
        "other hessian": hessian(manifold.project(point, v), jnp.zeros_like(u)),
        "inner": manifold.inner(point, u, v),
        "norm": manifold.norm(point, u),
        "retracted": manifold.retract(point, tangent),
        "nowhere": manifold.retract(point, jnp.zeros_like(u)),
        "distance": manifold.distance_from(point + tangent),
        "random tangent": manifold.random_tangent(KEY, point),
    }


def point_and_vectors(manifold, seed=0):
    rng = np.random.default_rng(seed)
    point = rng.normal(size=manifold.shape)
    return [point / np.linalg.norm(point, axis=0), *rng.normal(size=(2, *manifold.shape))]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_equals_the_definition(x64, manifold):
    point, u, v = point_and_vectors(manifold)
    found = jax.device_get(evaluate(manifold, point, u, v))
    tangent = np.stack([z - w * (w @ z) for w, z in zip(point.T, u.T, strict=True)], axis=1)
    lengths = np.linalg.norm(point + tangent, axis=0)
    expected = {
        "tangent": tangent,
        "projected again": tangent,
        "gradient": tangent,
        "inner": np.trace(u.T @ v),
        "norm": np.linalg.norm(u),
        "retracted": (point + tangent) / lengths,
        "nowhere": point,
        "distance": np.linalg.norm(lengths**2 - 1),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=F64_EXACT, err_msg=key)
    for vector in (found["tangent"], found["hessian"], found["random tangent"]):
        np.testing.assert_allclose(np.sum(point * vector, axis=0), 0, atol=F64_EXACT)
    # Both are self-adjoint.
    np.testing.assert_allclose(np.vdot(tangent, v), np.vdot(u, found["other tangent"]), atol=F64_EXACT)
    left, right = np.vdot(found["hessian"], found["other tangent"]), np.vdot(tangent, found["other hessian"])
    np.testing.assert_allclose(left, right, atol=F64_EXACT)
    length = 1 if manifold.dimension else 0
    np.testing.assert_allclose(np.linalg.norm(found["random tangent"]), length, atol=F64_EXACT)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_the_dimension_is_the_rank_of_the_projection(x64, manifold):
    point, _, _ = point_and_vectors(manifold)
    basis = np.eye(point.size).reshape(-1, *manifold.shape)
    projection = jax.vmap(manifold.project, in_axes=(None, 0))(jnp.asarray(point), jnp.asarray(basis))
    assert np.linalg.matrix_rank(np.reshape(projection, (point.size, -1)), tol=1e-10) == manifold.dimension
    assert manifold.diameter == pytest.approx(np.linalg.norm(point))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, F64_EXACT), (np.float32, F32_EXACT)])
def test_the_retraction_stays_on_the_manifold_however_long_the_step(x64, dtype, tolerance):
    manifold = MANIFOLDS[0]
    point, u, _ = (array.astype(dtype) for array in point_and_vectors(manifold))
    for length in (1e-8, 1e-2, 1, 100, 1e25):
        found = evaluate(manifold, point, (length * u).astype(dtype), u)["retracted"]
        assert manifold.distance_from(found) < tolerance


def test_random_points_are_uniform():
    """On the manifold, with mean zero, and each column with covariance I / d."""
    manifold, count = MANIFOLDS[0], 4000
    points = np.asarray(jax.jit(jax.vmap(manifold.random_point))(jax.random.split(KEY, count)))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=F32_EXACT)
    five_sigma = 5 / np.sqrt(count * manifold.dim)
    assert np.abs(points.mean(axis=0)).max() < five_sigma
    covariances = np.einsum("cip,cjp->pij", points, points) / count
    assert np.abs(covariances - np.eye(manifold.dim) / manifold.dim).max() < five_sigma


@pytest.mark.slow
def test_random_points_have_the_dtype_that_is_asked_for(x64):
    assert Oblique(3, 2).random_point(KEY).dtype == jnp.float32
    assert Oblique(3, 2).random_point(KEY, jnp.float64).dtype == jnp.float64


def test_batches_are_computed_like_their_members(x64):
    manifold = MANIFOLDS[0]
    batch = [np.stack(arrays) for arrays in zip(*(point_and_vectors(manifold, seed) for seed in range(3)), strict=True)]
    together = jax.vmap(partial(evaluate, manifold))(*batch)
    for number in range(3):
        alone = evaluate(manifold, *(array[number] for array in batch))
        for key, value in alone.items():
            np.testing.assert_allclose(together[key][number], value, atol=F64_EXACT, err_msg=key)


def quartic(point):
    """A cost with nothing special about it: every derivative up to the fourth is there."""
    weights = jnp.cos(jnp.arange(point.size, dtype=point.dtype)).reshape(point.shape)
    return jnp.sum(weights * point) + jnp.sum(jnp.sin(3 * weights) * point**2) + jnp.sum(point**4)


@pytest.mark.slow
def test_slopes(x64):
    manifold = MANIFOLDS[0]
    assert checks.check_retraction(manifold, KEY, order=2).passed
    assert checks.check_gradient(manifold, quartic, KEY).passed
    assert checks.check_hessian(manifold, quartic, KEY).passed


# --- Solvers and optimisers. ---


@pytest.mark.slow
def test_the_trust_region_finds_the_eigenvectors(x64):
    """The sum of Rayleigh quotients: every column goes to the first eigenvector, up to its sign."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix = jnp.asarray(vectors * np.array([1.0, 2.0, 3.0]) @ vectors.T)
    manifold = MANIFOLDS[0]
    found = trust_region(manifold, lambda w: jnp.vdot(w, matrix @ w), manifold.random_point(KEY, jnp.float64))
    assert found.status == Status.CONVERGED
    np.testing.assert_allclose(found.value, 5, rtol=1e-13)
    np.testing.assert_allclose(np.abs(found.point.T @ vectors[:, 0]), 1, atol=1e-11)


@pytest.mark.slow
def test_an_optimiser_stays_on_the_manifold():
    """Five vectors in the plane repel each other into a pentagon."""
    manifold = Oblique(2, 5)
    optimizer = on_manifold(optax.sgd(0.1, momentum=0.9), manifold)

    def step(carry, _):
        point, state = carry
        updates, state = optimizer.update(jax.grad(riesz_energy)(point, 0), state, point)
        return (optax.apply_updates(point, updates), state), None

    start = manifold.random_point(KEY)
    (point, _), _ = jax.jit(lambda init: jax.lax.scan(step, init, length=200))((start, optimizer.init(start)))
    assert manifold.distance_from(point) < F32_EXACT
    np.testing.assert_allclose(riesz_energy(point, 0), -np.log(5) / 4, rtol=1e-5)  # -log(K) / (K - 1)


REFUSED = {
    "dim must be at least 1; got 0": lambda: Oblique(0, 3),
    "num_columns must be at least 1; got 0": lambda: Oblique(3, 0),
    "num_columns must be a whole number; got 2.0": lambda: Oblique(3, 2.0),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_what_is_no_manifold_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
