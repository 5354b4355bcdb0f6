"""The nearest frame over the whole input space: any scale, condition, rank and dtype; weights, masks, general costs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nc_jax import nearest_frame, nearest_simplex_etf
from nc_jax.discrepancies import cosine, huber
from nc_jax.frames import SimplexTemplate, simplex_template
from nc_jax.implicit import polar_factor
from nc_jax.solvers import Status

DIM, K = 12, 5
GRAM = (K * np.eye(K) - 1) / (K - 1)
# A frame is a simplex ETF to this many eps: a few roundings per entry of the Gram matrix.
ETF_EPS = 30


@jax.jit
def solve_all(means, prox_point, cotangent):
    """Frame, status and gradient with both solvers, with and without a prox point: compiled once for all examples."""
    found = {}
    for solver in ("polar", "trust_region"):
        for prox in (None, prox_point):

            def objective(means, solver=solver, prox=prox):
                result = nearest_simplex_etf(means, prox_point=prox, solver=solver)
                return jnp.vdot(cotangent, result.frame), result

            (_, result), gradient = jax.value_and_grad(objective, has_aux=True)(means)
            found[f"{solver}{'' if prox is None else ', prox'}"] = (result.frame, result.solution.status, gradient)
    return found


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
    condition=st.sampled_from([1.0, 1e3, 1e8]),
    missing=st.integers(0, K),
    equal=st.integers(1, K),
)
def test_the_frame_is_a_simplex_etf_and_the_gradient_finite_whatever_the_means(seed, scale, condition, missing, equal):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(DIM, K)))[0]
    right = np.linalg.qr(rng.normal(size=(K, K)))[0]
    means = scale * (left * np.logspace(0, -np.log10(condition), K)) @ right
    means[:, :equal] = means[:, :1]
    means[:, K - missing :] = 0
    prox = np.linalg.qr(rng.normal(size=(DIM, K - 1)))[0]
    arguments = (np.float32(means), np.float32(prox), np.float32(rng.normal(size=(DIM, K))))
    for frame, status, gradient in solve_all(*map(jnp.asarray, arguments)).values():
        frame = np.asarray(frame, float)
        np.testing.assert_allclose(frame.T @ frame, GRAM, atol=ETF_EPS * np.finfo(np.float32).eps)
        assert int(status) <= Status.NOT_UNIQUE
        assert np.all(np.isfinite(gradient))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "expected"), [(0, Status.CONVERGED), (1, Status.CONVERGED), (2, Status.NOT_UNIQUE)]
)
def test_the_status_says_when_the_means_leave_the_rotation_open(missing, expected):
    """K - 1 class means determine the K - 1 directions of a simplex; with fewer, a prox point determines the others."""
    rng = np.random.default_rng(0)
    means = jnp.asarray(rng.normal(size=(DIM, K)), jnp.float32).at[:, :missing].set(0)
    prox = jnp.asarray(np.linalg.qr(rng.normal(size=(DIM, K - 1)))[0], jnp.float32)
    for name, (_, status, _) in solve_all(means, prox, means).items():
        assert int(status) == (Status.CONVERGED if "prox" in name else expected), name


@partial(jax.jit, static_argnames="solver")
def rotation_and_gradient(means, template, cotangent, *, solver):
    rotation, pull_back = jax.vjp(lambda means: nearest_frame(means, template, solver=solver).rotation, means)
    return rotation, pull_back(cotangent)[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["polar", "trust_region"])
@pytest.mark.parametrize("condition", [1e1, 1e3])
def test_float32_agrees_with_float64(solver, condition):
    rng = np.random.default_rng(1)
    template = np.asarray(simplex_template(K), float)
    left = np.linalg.qr(rng.normal(size=(DIM, K - 1)))[0]
    means = (left * np.logspace(0, -np.log10(condition), K - 1)) @ np.linalg.qr(rng.normal(size=(K - 1,) * 2))[0]
    arguments = (means @ template, template, rng.normal(size=(DIM, K - 1)))
    with jax.enable_x64(True):
        exact = jax.device_get(rotation_and_gradient(*arguments, solver=solver))
    found_in_float32 = jax.device_get(rotation_and_gradient(*map(np.float32, arguments), solver=solver))
    for found, expected, tolerance in zip(found_in_float32, exact, (1e-4, 1e-3), strict=True):
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["polar", "trust_region"])
def test_weights_count_classes(x64, solver):
    rng = np.random.default_rng(2)
    template = np.asarray(simplex_template(K), float)
    means, weights = jnp.asarray(rng.normal(size=(DIM, K))), jnp.array([1.0, 0.5, 2.0, 0.0, 3.0])
    found = nearest_frame(means, jnp.asarray(template), weights=weights, solver=solver)
    expected = oracles.polar_by_svd(np.asarray(means * weights) @ template.T)
    np.testing.assert_allclose(found.rotation, expected, atol=1e-9)
    value = np.sum(np.asarray(weights) * np.sum((np.asarray(means) - expected @ template) ** 2, axis=0))
    np.testing.assert_allclose(found.solution.value, value, rtol=1e-12)
    # A class of weight zero may hold anything, and its mean gets no gradient.
    hidden = means.at[:, 3].set(jnp.nan)
    again = nearest_frame(hidden, jnp.asarray(template), weights=weights, solver=solver)
    np.testing.assert_array_equal(again.rotation, found.rotation)
    gradient = jax.grad(lambda m: jnp.sum(nearest_simplex_etf(m, weights=weights, solver=solver).frame ** 3))(hidden)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[:, 3] == 0)


@pytest.mark.parametrize("cost", [huber, cosine])
@pytest.mark.slow
def test_weights_and_general_costs_are_differentiated_exactly(x64, cost):
    rng = np.random.default_rng(3)
    means, weights = jnp.asarray(rng.normal(size=(DIM, K))), jnp.array([1.0, 0.5, 2.0, 1.5, 3.0])
    cotangent, direction = jnp.asarray(rng.normal(size=(2, DIM, K)))

    @jax.jit
    def objective(means, weights):
        found = nearest_simplex_etf(means, weights=weights, cost=cost)
        return jnp.vdot(cotangent, found.frame)

    by_means, by_weights = jax.jit(jax.grad(objective, argnums=(0, 1)))(means, weights)
    step = 1e-5
    moved = [float(objective(means + sign * step * direction, weights)) for sign in (1, -1)]
    np.testing.assert_allclose(jnp.vdot(by_means, direction), (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-7)
    moved = [float(objective(means, weights + sign * step * direction[0, :K])) for sign in (1, -1)]
    expected = (moved[0] - moved[1]) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(by_weights, direction[0, :K]), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cost", [huber, cosine])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.slow
def test_general_costs_at_any_scale(cost, scale):
    """Template and means scaled alike, and not normalised: the rotation stays, and its gradient scales back."""
    rng = np.random.default_rng(8)
    means, cotangent = jnp.asarray(rng.normal(size=(2, DIM, K)), jnp.float32)

    @jax.jit
    def solve(means, factor):
        found = nearest_frame(factor * means, factor * simplex_template(K), cost=cost)
        return jnp.vdot(cotangent, found.frame / factor), found.solution.status

    (value, status), gradient = jax.value_and_grad(solve, has_aux=True)(means, scale)
    (expected, _), expected_gradient = jax.value_and_grad(solve, has_aux=True)(means, 1.0)
    assert status <= Status.CONVERGED_TO_PRECISION
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert oracles.relative_error(gradient, expected_gradient) < 1e-4


@pytest.mark.parametrize("cost", [huber, cosine])
@pytest.mark.parametrize("missing", [2, 3])
@pytest.mark.slow
def test_a_general_cost_says_what_it_leaves_open_and_gives_no_gradient_there(x64, cost, missing):
    rng = np.random.default_rng(9)
    means = jnp.asarray(rng.normal(size=(DIM, K))).at[:, :missing].set(0)
    cotangent = jnp.asarray(rng.normal(size=(DIM, K)))

    def objective(means):
        found = nearest_simplex_etf(means, cost=cost)
        return jnp.vdot(cotangent, found.frame), found.solution.status

    (_, status), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(means)
    assert status == Status.NOT_UNIQUE
    # The determined directions have curvatures of order one, so their pullback is of the order of the cotangent.
    assert np.linalg.norm(gradient) < 10 * np.linalg.norm(cotangent)


@pytest.mark.slow
def test_cosine_is_the_procrustes_problem_of_the_normalised_means(x64):
    means = jnp.asarray(np.random.default_rng(4).normal(size=(DIM, K)))
    found = jax.jit(partial(nearest_simplex_etf, cost=cosine))(means)
    expected = oracles.polar_by_svd(means / jnp.linalg.norm(means, axis=0) @ simplex_template(K, dtype=jnp.float64).T)
    np.testing.assert_allclose(found.rotation, expected, atol=1e-10)


def test_a_cost_of_all_classes_together_cannot_be_weighted():
    means = jnp.eye(DIM, K)
    with pytest.raises(ValueError, match=r"a cost to be weighted must return shape \(5,\); got \(\)"):
        nearest_simplex_etf(means, weights=jnp.ones(K), cost=lambda aligned, means: jnp.sum((aligned - means) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svd", "gram", "qdwh", "newton_schulz"])
@pytest.mark.parametrize("shape", [(9, 4), (5, 5)])
def test_every_method_and_both_derivatives_agree(x64, method, shape):
    rng = np.random.default_rng(5)
    matrix, cotangent = jnp.asarray(rng.normal(size=(2, *shape)))
    expected = cotangent.ravel() @ oracles.polar_jacobian(np.asarray(matrix))

    @jax.jit
    def gradient(matrix, cotangent):
        factors = [partial(polar_factor, method=method, derivative=derivative) for derivative in ("eigh", "products")]
        return [jax.vjp(factor, matrix)[1](cotangent)[0] for factor in factors]

    for found in gradient(matrix, cotangent):
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-10 * np.linalg.norm(expected))


def test_the_template_as_an_operator_is_the_dense_one(x64):
    rng = np.random.default_rng(6)
    operator, dense = SimplexTemplate(K, 0.5), 0.5 * simplex_template(K, dtype=jnp.float64)
    means, rotation = jnp.asarray(rng.normal(size=(DIM, K))), jnp.asarray(rng.normal(size=(DIM, K - 1)))
    np.testing.assert_allclose(operator.correlate(means), means @ dense.T, atol=1e-14)
    np.testing.assert_allclose(operator.rotate(rotation), rotation @ dense, atol=1e-14)
    assert operator.shape == dense.shape


@pytest.mark.slow
def test_problems_in_a_batch_stop_each_on_its_own(x64):
    """One member starts at its solution, one far away: the first takes no step in the batch either."""
    rng = np.random.default_rng(7)
    means = jnp.asarray(rng.normal(size=(2, DIM, K)))
    solved = nearest_simplex_etf(means[0], solver="polar").rotation
    starts = jnp.stack([solved, -solved])
    batch = jax.vmap(lambda m, start: nearest_simplex_etf(m, init=start))(means, starts)
    assert int(batch.solution.iterations[0]) <= 1
    assert int(batch.solution.iterations[1]) > 2
    np.testing.assert_array_equal(batch.solution.status, Status.CONVERGED)
