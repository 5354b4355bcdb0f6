"""The nearest frame's status and gradient where floating point is hard: scales, offsets, ties, bad conditions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax import nearest_frame, nearest_simplex_etf
from nc_jax.discrepancies import cosine, squared_frobenius
from nc_jax.frames import DenseTemplate, properties, simplex_template
from nc_jax.implicit import decompose_at
from nc_jax.solvers import Status, polar_decomposition

DIM, K = 12, 5
F32_GRADIENT = 1e-5  # condition 5, a hundred roundings
SOLVERS = ("polar", "trust_region")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(dim, rank, seed=0):
    return np.linalg.qr(normal(dim, rank, seed=seed))[0]


@partial(jax.jit, static_argnames=("solver", "cost"))
def simplex(means, cotangent, prox_point=None, weights=None, **how):
    """Frame, status and gradients in means and weights."""

    def objective(means, weights):
        found = nearest_simplex_etf(means, prox_point=prox_point, prox_weight=1.0, weights=weights, **how)
        return jnp.vdot(cotangent, found.frame), found

    if weights is None:
        (_, found), gradient = jax.value_and_grad(objective, has_aux=True)(means, None)
        return found, gradient, None
    (_, found), gradients = jax.value_and_grad(objective, (0, 1), has_aux=True)(means, weights)
    return found, *gradients


# --- Scale. ---

SCALES = np.array([1e-30, 1e-21, 1e-10, 1e10, 1e19, 1e30, 1e33])  # beyond, the gradient itself is too small for float32


@pytest.mark.parametrize("prox", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_gradient_is_as_accurate_at_every_scale(solver, prox):
    means, cotangent = jnp.asarray(normal(DIM, K), "float32"), jnp.asarray(normal(DIM, K, seed=1), "float32")
    prox_point = jnp.asarray(rotation(DIM, K - 1), "float32") if prox else None
    solve = jax.vmap(lambda means: simplex(means, cotangent, prox_point, solver=solver)[:2])
    found, gradients = solve(jnp.stack([means, *(np.float32(scale) * means for scale in SCALES)]))
    np.testing.assert_array_equal(found.solution.status, Status.CONVERGED)
    for scale, gradient in zip(SCALES, gradients[1:], strict=True):
        assert oracles.relative_error(np.asarray(gradient, float) * scale, gradients[0]) < F32_GRADIENT, scale


@pytest.mark.parametrize("solver", ["polar", pytest.param("trust_region", marks=pytest.mark.slow)])
def test_the_gradient_of_bfloat16_means_at_every_scale(solver):
    means, cotangent = jnp.asarray(normal(DIM, K), "bfloat16"), jnp.asarray(normal(DIM, K, seed=1), "bfloat16")
    scales = 2.0 ** np.array([0, -100, 100])  # powers of two, so that all are the same problem
    _, gradients = jax.vmap(lambda means: simplex(means, cotangent, solver=solver)[:2])(
        jnp.stack([jnp.asarray(scale, "bfloat16") * means for scale in scales])
    )
    for scale, gradient in zip(scales, gradients, strict=True):
        np.testing.assert_array_equal(np.asarray(gradient, float) * scale, np.asarray(gradients[0], float))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_gradients_in_template_and_columns_are_as_accurate_at_every_scale(scale):
    def frame(means, template):
        return jnp.sum(nearest_frame(means, DenseTemplate(template).unit()[0], solver="polar").frame ** 3)

    template, means = simplex_template(K), jnp.asarray(normal(DIM, K), "float32")
    for function, argument in [
        (partial(frame, means), template + 0.1),
        (lambda frame: properties.cosines(frame)[0, 1], means),
        (lambda means: jnp.sum(cosine(jnp.roll(means, 1), jnp.asarray(normal(DIM, K), "float32"))), means),
    ]:
        gradient = jax.grad(function)
        assert oracles.relative_error(gradient(scale * argument) * scale, gradient(argument)) < F32_GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_class_of_weight_zero_leaves_the_gradient_in_the_weights_finite(solver):
    means, cotangent = jnp.asarray(normal(DIM, K)), jnp.asarray(normal(DIM, K, seed=1))
    _, _, gradient = simplex(means, cotangent, weights=jnp.array([1.0, 1, 0, 1, 1]), solver=solver)
    assert np.isfinite(gradient).all()


# --- Offset. ---


@pytest.mark.parametrize(
    ("solver", "prox"), [("polar", True), pytest.param("trust_region", False, marks=pytest.mark.slow)]
)
def test_a_common_offset_costs_no_digits(solver, prox):
    offsets = 10.0 ** np.arange(9) * normal(DIM, 1, seed=2)
    means = np.stack([np.float32(normal(DIM, K) + offsets[:, [power]]) for power in range(9)])
    prox_point, cotangent = rotation(DIM, K - 1), normal(DIM, K, seed=1)

    def solve(dtype):
        point = jnp.asarray(prox_point, dtype) if prox else None
        one = lambda means: simplex(means, jnp.asarray(cotangent, dtype), point, solver=solver)[:2]  # noqa: E731
        return jax.device_get(jax.vmap(one)(jnp.asarray(means, dtype)))

    with jax.enable_x64(True):
        exact, exact_gradients = solve(jnp.float64)
    found, gradients = solve(jnp.float32)
    # The means of the largest offset are whole multiples of their rounding, and may coincide.
    clear = exact.solution.status == Status.CONVERGED
    assert clear[:8].all()
    np.testing.assert_array_equal(found.solution.status[clear], Status.CONVERGED)
    assert oracles.relative_error(found.frame[clear], exact.frame[clear]) < 2e-6
    for gradient, expected in zip(gradients[clear], exact_gradients[clear], strict=True):
        assert oracles.relative_error(gradient, expected) < F32_GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_status_says_that_an_offset_drowns_the_spread_for_a_template_with_an_offset(solver):
    template = simplex_template(K) + 0.1
    means = jnp.asarray(normal(DIM, K) + 1e7 * normal(DIM, 1, seed=2), "float32")
    found = jax.jit(partial(nearest_frame, solver=solver))(means, template)
    assert found.solution.status == Status.NOT_UNIQUE


def test_the_value_counts_the_offset(x64):
    means = normal(DIM, K) + 3 * normal(DIM, 1, seed=2)
    found = nearest_simplex_etf(jnp.asarray(means), solver="polar")
    unit = np.asarray(simplex_template(K, dtype=jnp.float64)) / np.sqrt(K - 1)
    expected = np.sum((means / np.linalg.norm(means) - found.rotation @ unit) ** 2)
    np.testing.assert_allclose(found.solution.value, expected, rtol=1e-13)


# --- What decides the rotation. ---

WAYS = {
    "polar": {"solver": "polar"},
    "trust region": {"solver": "trust_region"},
    "general cost": {"solver": "trust_region", "cost": squared_frobenius},
}


@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_two_equal_means_of_two_classes_decide_nothing(x64, dtype, way, weighted):
    means = jnp.asarray(np.repeat(normal(DIM, 1), 2, axis=1), dtype)
    weights = jnp.full(2, 0.7, dtype) if weighted else None
    found, gradient, _ = simplex(means, jnp.asarray(normal(DIM, 2), dtype), weights=weights, **WAYS[way])
    assert found.solution.status == Status.NOT_UNIQUE
    np.testing.assert_allclose(found.frame.T @ found.frame, oracles.gram_of_simplex(2), atol=1e-6)
    assert np.linalg.norm(gradient) < 10


@pytest.mark.parametrize("method", ["svd", "gram", "qdwh", "newton_schulz"])
@pytest.mark.parametrize(
    ("shape", "rank"), [((12, 4), 2), ((12, 4), 1), ((40, 9), 8), ((5, 5), 3), ((12, 4), 4)], ids=str
)
def test_all_methods_agree_on_uniqueness(method, shape, rank):
    lefts, rights = normal(50, shape[0], rank), normal(50, rank, shape[1], seed=1)
    matrices = jnp.asarray(lefts @ rights, "float32")
    unique = jax.jit(jax.vmap(lambda matrix: polar_decomposition(matrix, method=method).unique))(matrices)
    assert unique.all() if rank == shape[1] else not unique.any()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [130, 131])
def test_on_accelerators_a_factor_without_eigenvalues_is_judged_too(monkeypatch, rank):
    matrix = jnp.asarray(rotation(140, rank) @ rotation(131, rank).T, "float32")
    point = polar_decomposition(matrix, method="svd").factor
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = decompose_at(point, matrix, 0.0)
    assert (found.values, bool(found.unique)) == (None, rank == 131)


@pytest.mark.slow
def test_a_badly_conditioned_solve_ends_soon_and_right(x64):
    template = np.asarray(simplex_template(25, dtype=jnp.float64))
    means = rotation(30, 24) * np.logspace(0, -8, 24) @ rotation(24, 24, seed=1) @ template
    found = nearest_simplex_etf(jnp.asarray(means), solver="trust_region")
    assert found.solution.inner_iterations == 3000
    assert found.solution.status == Status.CONVERGED
    expected = nearest_simplex_etf(jnp.asarray(means), solver="polar")
    np.testing.assert_allclose(found.frame, expected.frame, atol=1e-7)  # eps times the condition


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_means_that_are_not_finite_print_nothing(capfd, solver):
    for value in (np.nan, np.inf):
        found = nearest_simplex_etf(jnp.full((DIM, K), value), solver=solver)
        assert found.solution.status == Status.NON_FINITE
        assert np.isnan(found.frame).all()
    assert "SLASCL" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("start", [2 * np.eye(DIM, K - 1), np.ones((DIM, K - 1)), np.float32(rotation(DIM, K - 1))])
def test_a_start_that_is_no_rotation_is_not_returned(x64, start):
    """All means are zero, so B is the proximal point, and a start there is stationary."""
    found = nearest_simplex_etf(jnp.zeros((DIM, K)), prox_point=jnp.asarray(start, jnp.float64))
    np.testing.assert_allclose(found.frame.T @ found.frame, oracles.gram_of_simplex(K), atol=1e-13)
