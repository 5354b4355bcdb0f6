"""The Stiefel manifold against its definition; derivatives through the slope tests of `nc_jax.manifolds.checks`."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest

from nc_jax.manifolds import Stiefel, checks
from nc_jax.manifolds.stiefel import _gaussian_trapezoid, orthogonal_factor, random_reflections

F64_EXACT = 1e-13
F32_EXACT = 3e-6
MANIFOLDS = [Stiefel(5, 3), Stiefel(4, 4), Stiefel(6, 1), Stiefel(1, 1)]
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
        "qr": manifold.retract_qr(point, tangent),
        "polar": manifold.retract_polar(point, tangent),
        "nowhere": manifold.retract_qr(point, jnp.zeros_like(u)),
        "distance": manifold.distance_from(point + tangent),
        "random tangent": manifold.random_tangent(KEY, point),
    }


def point_and_vectors(manifold, seed=0):
    rng = np.random.default_rng(seed)
    return [np.linalg.qr(rng.normal(size=manifold.shape))[0], *rng.normal(size=(2, *manifold.shape))]


def sym(matrix):
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_equals_the_definition(x64, manifold):
    point, u, v = point_and_vectors(manifold)
    found = jax.device_get(evaluate(manifold, point, u, v))
    tangent = u - point @ sym(point.T @ u)
    q, r = np.linalg.qr(point + tangent)
    expected = {
        "tangent": tangent,
        "projected again": tangent,
        "gradient": tangent,
        "inner": np.trace(u.T @ v),
        "norm": np.linalg.norm(u),
        "qr": q * np.sign(np.diag(r)),
        "polar": oracles.polar_by_svd(point + tangent),
        "nowhere": point,
        "distance": np.linalg.norm((point + tangent).T @ (point + tangent) - np.eye(manifold.p)),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=F64_EXACT, err_msg=key)
    for vector in (found["tangent"], found["hessian"], found["random tangent"]):
        np.testing.assert_allclose(sym(point.T @ vector), 0, atol=F64_EXACT)
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
    assert np.linalg.matrix_rank(np.reshape(projection, (point.size, -1))) == manifold.dimension
    assert manifold.diameter == pytest.approx(np.linalg.norm(point))


@pytest.mark.parametrize("retraction", ["qr", "polar"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, F64_EXACT), (np.float32, F32_EXACT)])
def test_retractions_stay_on_the_manifold_however_long_the_step(x64, retraction, dtype, tolerance):
    manifold = Stiefel(5, 3, retraction=retraction)
    point, u, _ = (array.astype(dtype) for array in point_and_vectors(manifold))

    @jax.jit
    def distance(point, vector):
        return manifold.distance_from(manifold.retract(point, manifold.project(point, vector)))

    for length in (1e-8, 1e-2, 1, 10, 100):
        assert distance(point, (length * u).astype(dtype)) < tolerance


@pytest.mark.parametrize("manifold", MANIFOLDS[:3], ids=str)
def test_random_points_are_uniform(manifold):
    """On the manifold, with mean zero, and each column with covariance I / n."""
    count = 4000
    points = np.asarray(jax.jit(jax.vmap(manifold.random_point))(jax.random.split(KEY, count)))
    gram = np.swapaxes(points, 1, 2) @ points
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(manifold.p), gram.shape), atol=F32_EXACT)
    five_sigma = 5 / np.sqrt(count * manifold.n)
    assert np.abs(points.mean(axis=0)).max() < five_sigma
    covariances = np.einsum("cip,cjp->pij", points, points) / count
    assert np.abs(covariances - np.eye(manifold.n) / manifold.n).max() < five_sigma


def test_random_points_have_the_dtype_that_is_asked_for(x64):
    assert Stiefel(3, 2).random_point(KEY).dtype == jnp.float32
    assert Stiefel(3, 2).random_point(KEY, jnp.float64).dtype == jnp.float64


def test_both_components_of_the_orthogonal_group_are_drawn():
    points = jax.jit(jax.vmap(Stiefel(3, 3).random_point))(jax.random.split(KEY, 1000))
    assert abs(np.linalg.det(points).mean()) < 0.16, "five standard deviations of a fair coin"


@pytest.mark.parametrize(("n", "p"), [(3, 3), (4, 2), (5, 4), (4, 1), (2, 2)])
def test_reflections_have_the_moments_of_the_haar_distribution(n, p):
    """Of first, second and fourth order: wrong signs or lengths would show in one of them."""
    count = 20_000
    points = jax.jit(jax.vmap(lambda key: random_reflections(key, n, p)))(jax.random.split(KEY, count))
    points = np.asarray(points, np.float64)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0] @ points
    for u in (points, turned):  # a turned point has the same distribution
        expected = [(u, 0, "mean"), (u**2, 1 / n, "square"), (u**4, 3 / (n * (n + 2)), "fourth power")]
        if p > 1:
            first, second = u[:, :, 0], u[:, :, 1]
            expected.append((first**2 * second**2, 1 / (n * (n + 2)), "squares of a row"))
            across = n * (n - 1) * (n + 2)
            expected.append((first[:, 0] ** 2 * second[:, 1] ** 2, (n + 1) / across, "squares of other rows"))
            both = first[:, 0] * first[:, 1] * second[:, 0] * second[:, 1]
            expected.append((both, -1 / across, "four entries"))
        for values, wanted, name in expected:
            five_sigma = 5 * values.std(axis=0) / np.sqrt(count)
            assert np.all(np.abs(values.mean(axis=0) - wanted) < five_sigma + 1e-6), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 1e-14)])
@pytest.mark.parametrize(("n", "p"), [(200, 200), (201, 200), (300, 151), (64, 1)])
def test_products_of_reflections_are_orthonormal(x64, n, p, dtype, tolerance):
    point = random_reflections(KEY, n, p, dtype)
    assert point.dtype == dtype
    assert point.shape == (n, p)
    point = np.asarray(point, np.float64)
    np.testing.assert_allclose(point.T @ point, np.eye(p), atol=tolerance)


@pytest.mark.slow
def test_a_trapezoid_uses_every_number_once():
    """So its entries are independent: no two of them are equal, and none is missing."""
    for n, p in ((7, 7), (9, 4), (9, 5), (3, 1)):
        drawn = np.asarray(_gaussian_trapezoid(KEY, n, p, jnp.float32))
        lower = drawn[np.tril_indices(n, 0, p)]
        assert len(set(lower.tolist())) == lower.size
        assert np.all(lower != 0)
        assert np.all(np.triu(drawn, 1) == 0)


def test_many_columns_are_drawn_by_reflections(monkeypatch):
    monkeypatch.setattr("nc_jax.manifolds.stiefel._MANY_COLUMNS", 3)
    np.testing.assert_array_equal(Stiefel(5, 3).random_point(KEY), random_reflections(KEY, 5, 3))
    few = orthogonal_factor(jax.random.normal(KEY, (5, 2)))
    np.testing.assert_array_equal(Stiefel(5, 2).random_point(KEY), few)


def test_batches_are_computed_like_their_members(x64):
    manifold = Stiefel(5, 3)
    batch = [np.stack(arrays) for arrays in zip(*(point_and_vectors(manifold, seed) for seed in range(3)), strict=True)]
    together = jax.vmap(partial(evaluate, manifold))(*batch)
    for number in range(3):
        alone = evaluate(manifold, *(array[number] for array in batch))
        for key, value in alone.items():
            np.testing.assert_allclose(together[key][number], value, atol=F64_EXACT, err_msg=key)


@pytest.mark.slow
def test_the_projection_is_its_own_transpose(x64):
    """Also of a tall point, whose products take another way on a CPU."""
    manifold = Stiefel(40, 3)
    point, u, _ = map(jnp.asarray, point_and_vectors(manifold))
    (transposed,) = jax.linear_transpose(partial(manifold.project, point), u)(u)
    np.testing.assert_allclose(transposed, manifold.project(point, u), atol=F64_EXACT)


def test_the_orthogonal_factor_has_a_positive_triangle(x64):
    matrix = np.random.default_rng(0).normal(size=(5, 3))
    factor = np.asarray(orthogonal_factor(jnp.asarray(matrix)))
    triangle = factor.T @ matrix
    np.testing.assert_allclose(np.tril(triangle, -1), 0, atol=F64_EXACT)
    assert (np.diag(triangle) > 0).all()
    assert np.isfinite(orthogonal_factor(jnp.zeros((5, 3)))).all()


# --- Slopes. ---


def quartic(point):
    """A cost with nothing special about it: every derivative up to the fourth is there."""
    weights = jnp.cos(jnp.arange(point.size, dtype=point.dtype)).reshape(point.shape)
    return jnp.sum(weights * point) + jnp.sum(jnp.sin(3 * weights) * point**2) + jnp.sum(point**4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 3), (4, 4)])
def test_slopes(x64, shape):
    qr, polar = Stiefel(*shape), Stiefel(*shape, retraction="polar")
    assert checks.check_retraction(qr, KEY).passed
    assert checks.check_retraction(polar, KEY, order=2).passed
    assert checks.check_gradient(qr, quartic, KEY).passed
    assert checks.check_hessian(polar, quartic, KEY).passed


REFUSED = {
    "Stiefel(n, p) needs 1 <= p <= n; got n=3, p=4": lambda: Stiefel(3, 4),
    "Stiefel(n, p) needs 1 <= p <= n; got n=3, p=0": lambda: Stiefel(3, 0),
    'retraction must be "qr" or "polar"; got \'cayley\'': lambda: Stiefel(3, 2, retraction="cayley"),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_what_is_no_manifold_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
