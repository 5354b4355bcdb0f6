"""Implicit derivatives against dense linear algebra, and against autodiff of the solver where that is defined."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax import implicit, nearest_frame
from nc_jax.discrepancies import huber
from nc_jax.manifolds.stiefel import orthogonal_factor

F64_DENSE = 1e-12  # rounding of the least-squares oracle, times the condition
F64_UNROLLED = 1e-9  # what a few hundred unrolled steps leave
SHAPE = (5, 3)


@jax.jit
def polar_derivatives(matrix, tangent, cotangent):
    """The factor and its derivatives in forward and reverse mode: one program for every test of a shape."""
    factor, push = jax.linearize(implicit.polar_factor, matrix)
    return factor, push(tangent), jax.linear_transpose(push, matrix)(cotangent)[0]


def polar_vjp(matrix, cotangent):
    return polar_derivatives(matrix, np.zeros_like(matrix), cotangent)[2]


def matrix_with(values, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return cases.random_rotation(rng, *shape) * np.asarray(values) @ cases.random_rotation(rng, shape[1], shape[1]).T


MATRICES = {
    "random": np.random.default_rng(0).normal(size=SHAPE),
    "square": np.random.default_rng(0).normal(size=(3, 3)),
    "one column": np.random.default_rng(0).normal(size=(5, 1)),
    "equal values": matrix_with([2, 2, 2]),
    "nearly equal values": matrix_with([2, 2 + 1e-9, 1]),
    "condition 1e3": matrix_with([1, 0.1, 0.001]),
    # In O(n) one vanishing singular value leaves two factors, one in each component of the manifold, and each of them
    # has a well defined derivative: only sums of two singular values are divided by.
    "square, of rank two": matrix_with([2, 1, 0], shape=(3, 3)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_polar_factor_has_the_dense_jacobian(x64, name):
    matrix = MATRICES[name]
    rng = np.random.default_rng(1)
    cotangent, tangent = rng.normal(size=(2, *matrix.shape))
    factor, slope, gradient = polar_derivatives(matrix, tangent, cotangent)
    np.testing.assert_allclose(factor.T @ factor, np.eye(matrix.shape[1]), atol=F64_DENSE)
    np.testing.assert_allclose(factor.T @ matrix, matrix.T @ factor, atol=F64_DENSE)
    np.testing.assert_allclose(np.vdot(factor, matrix), np.linalg.norm(matrix, ord="nuc"), rtol=F64_DENSE)
    # LAPACK's rounding of a zero decides which of two factors is found. Compare the derivative at the one found.
    jacobian = oracles.polar_jacobian(matrix, np.asarray(factor))
    tolerance = F64_DENSE * np.linalg.norm(jacobian)
    np.testing.assert_allclose(np.ravel(slope), jacobian @ tangent.ravel(), atol=tolerance)
    np.testing.assert_allclose(np.ravel(gradient), jacobian.T @ cotangent.ravel(), atol=tolerance)


@pytest.mark.parametrize("exponent", [-6, -9])
def test_products_reach_the_precision_of_float64_at_a_large_condition_number(x64, exponent):
    """Conjugate gradients alone would leave errors of 8 and 21 percent after 500 steps."""
    shape = (48, 40)
    matrix = matrix_with(np.geomspace(1, 10.0**exponent, 40), shape)
    cotangent = np.random.default_rng(1).normal(size=shape)
    factor, values, right = np.linalg.svd(matrix, full_matrices=False)
    rotation, rows = factor @ right, right.T / values @ right  # U, and S^-1
    inner = right @ (rotation.T @ cotangent - cotangent.T @ rotation) @ right.T / (values[:, None] + values)
    expected = rotation @ (right.T @ inner @ right) + (cotangent - rotation @ (rotation.T @ cotangent)) @ rows
    slope = jax.jit(jax.grad(lambda at: jnp.vdot(implicit.polar_factor(at, derivative="products"), cotangent)))
    error = np.linalg.norm(slope(matrix) - expected) / np.linalg.norm(expected)
    assert error < 1e-16 / 10.0**exponent  # eps times the condition number is twice that at worst


@pytest.mark.parametrize("name", ["random", "square", "one column"])
def test_equals_autodiff_of_the_svd_where_that_is_regular(x64, name):
    matrix = MATRICES[name]
    cotangent = np.random.default_rng(1).normal(size=matrix.shape)
    np.testing.assert_allclose(polar_vjp(matrix, cotangent), svd_vjp(matrix, cotangent), atol=F64_DENSE)


def test_stays_regular_where_autodiff_of_the_svd_is_not(x64):
    """Collapsed means have equal singular values: the factor is smooth there, the singular vectors are not."""
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=SHAPE)
    matrix = 2 * np.eye(*SHAPE)
    assert not np.isfinite(svd_vjp(matrix, cotangent)).all()
    jacobian = oracles.polar_jacobian(matrix)
    np.testing.assert_allclose(np.ravel(polar_vjp(matrix, cotangent)), jacobian.T @ cotangent.ravel(), atol=F64_DENSE)


@jax.jit
def svd_vjp(matrix, cotangent):
    def factor(matrix):
        left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
        return left @ right

    return jax.vjp(factor, matrix)[1](cotangent)[0]


@pytest.mark.parametrize("name", ["random", "square"])
def test_equals_an_unrolled_newton_schulz_iteration(x64, name):
    matrix = MATRICES[name]
    cotangent = np.random.default_rng(1).normal(size=matrix.shape)

    @jax.jit
    def unrolled_vjp(matrix, cotangent):
        def factor(matrix):
            start = matrix / jnp.linalg.norm(matrix)

            def step(point, _):
                return 1.5 * point - 0.5 * point @ (point.T @ point), None

            return jax.lax.scan(step, start, length=60)[0]

        return jax.vjp(factor, matrix)[1](cotangent)[0]

    np.testing.assert_allclose(polar_vjp(matrix, cotangent), unrolled_vjp(matrix, cotangent), atol=F64_UNROLLED)


@pytest.mark.slow
def test_equals_unrolled_gradient_descent_on_a_general_cost(x64):
    problem = cases.random_problem("outlier class", seed=0)
    arguments = [jnp.asarray(argument) for argument in problem.arguments]
    cotangent = np.random.default_rng(1).normal(size=problem.prox_point.shape)

    def unrolled(means, template, prox_point, prox_weight):
        def objective(point):
            prox = jnp.sum((point - prox_point) ** 2)
            return jnp.sum(huber(point @ template, means)) + prox_weight / 2 * prox

        def step(point, _):
            gradient = jax.grad(objective)(point)
            tangent = gradient - point @ (point.T @ gradient + gradient.T @ point) / 2
            return orthogonal_factor(point - 0.3 * tangent), None

        return jax.lax.scan(step, start, length=400)[0]

    def by_trust_region(means, template, prox_point, prox_weight):
        return nearest_frame(means, template, prox_point=prox_point, prox_weight=prox_weight, cost=huber).rotation

    @partial(jax.jit, static_argnums=0)
    def differentiate(rotation, *arguments):
        point, pull = jax.vjp(rotation, *arguments)
        return point, pull(cotangent)

    start = oracles.polar_by_svd(problem.matrix)
    expected_point, expected = differentiate(unrolled, *arguments)
    point, gradients = differentiate(by_trust_region, *arguments)
    np.testing.assert_allclose(point, expected_point, atol=F64_UNROLLED)
    for found, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, other, atol=F64_UNROLLED)


def test_directions_that_are_not_determined_contribute_nothing(x64):
    """B of rank 2: turning its null direction within the complement costs nothing, so it has no derivative."""
    rank_two = np.eye(*SHAPE) * [2, 1, 0]
    cotangent = np.random.default_rng(1).normal(size=SHAPE)
    gradient = np.asarray(polar_vjp(rank_two, cotangent))
    assert np.isfinite(gradient).all()
    assert np.linalg.norm(gradient) < 2 * np.linalg.norm(cotangent)
    np.testing.assert_array_equal(gradient[3:, 2], 0)
    np.testing.assert_array_equal(polar_vjp(np.zeros(SHAPE), cotangent), 0)
    by_products = jax.vjp(partial(implicit.polar_factor, derivative="products"), jnp.asarray(rank_two))[1]
    np.testing.assert_allclose(by_products(cotangent)[0], gradient, atol=1e-15)


@pytest.mark.parametrize(("exponent", "solved"), [(-2, True), (-11, False)])
def test_a_derivative_that_conjugate_gradients_do_not_reach_is_nan(x64, exponent, solved):
    dim = 500
    point, rhs = np.eye(dim, 1), np.random.default_rng(0).normal(size=(dim, 1))
    curvatures = np.geomspace(1, 10.0**exponent, dim)[:, None]
    solve = implicit.conjugate_gradient_solver(lambda point: -2 * point)(jnp.asarray(point), jnp.asarray(True))
    found = solve(lambda x: curvatures * x, jnp.asarray(rhs))
    if solved:
        expected = np.concatenate([rhs[:1] / 2, (rhs / curvatures)[1:]])  # the normal direction, and the tangent ones
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    else:
        assert np.isnan(found).all()


@jax.jit
def directional_derivatives(matrix, tangent, cotangent):
    """Derivatives of <cotangent, factor(matrix + t tangent)> at t = 0, to third order: implicit, and of a formula."""

    def formula(matrix):
        values, vectors = jnp.linalg.eigh(matrix.T @ matrix)
        return matrix @ (vectors / jnp.sqrt(values)) @ vectors.T

    def orders(factor):
        functions = [lambda t: jnp.vdot(cotangent, factor(matrix + t * tangent))]
        for _ in range(3):
            functions.append(lambda t, last=functions[-1]: jax.jvp(last, (t,), (1.0,))[1])
        return jnp.stack([function(0.0) for function in functions])

    return orders(implicit.polar_factor), orders(formula)


@pytest.mark.slow
def test_derivatives_of_higher_order(x64):
    matrix = MATRICES["random"]
    found, expected = directional_derivatives(matrix, *np.random.default_rng(1).normal(size=(2, *matrix.shape)))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("random", "eigh"),
        ("equal values", "eigh"),
        pytest.param("square", "eigh", marks=pytest.mark.slow),
        pytest.param("random", "products", marks=pytest.mark.slow),
        pytest.param("square", "products", marks=pytest.mark.slow),
    ],
)
def test_second_derivatives_of_the_polar_factor(x64, name, derivative):
    matrix = MATRICES[name]
    rng = np.random.default_rng(1)
    cotangent, first, second = rng.normal(size=(3, *matrix.shape))

    @jax.jit
    def hessian_product(matrix, tangent):
        def scalar(matrix):
            return jnp.vdot(cotangent, implicit.polar_factor(matrix, derivative=derivative))

        return jax.jvp(jax.grad(scalar), (matrix,), (tangent,))[1]

    found = hessian_product(matrix, first)
    expected = oracles.central_difference(lambda t: np.asarray(polar_vjp(matrix + t * first, cotangent)), 1e-3)
    assert oracles.relative_error(found, expected) < 1e-8
    np.testing.assert_allclose(np.vdot(second, found), np.vdot(first, hessian_product(matrix, second)), rtol=1e-11)


def test_the_derivative_does_not_depend_on_the_length_of_the_cotangent():
    """In float32 a cotangent of 1e-25 has squares that underflow."""
    matrix, cotangent = (np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) for seed in (0, 1))
    expected = polar_vjp(matrix, cotangent)
    for scale in (1e-25, 1e25):
        assert oracles.relative_error(polar_vjp(matrix, np.float32(scale) * cotangent) / scale, expected) < 1e-5


# --- The rule for any root: the symmetric square root of a matrix, which has no manifold in it. ---


def square_root(init, matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors * jnp.sqrt(values) @ vectors.T, init


def sylvester(point, aux, matrix):
    del aux, matrix
    values, vectors = jnp.linalg.eigh(point)

    def solve(matvec, rhs):
        del matvec
        return vectors @ (vectors.T @ rhs @ vectors / (values[:, None] + values)) @ vectors.T

    return solve


root = implicit.implicit_root(square_root, lambda point, matrix: point @ point - matrix, sylvester)


def test_the_rule_serves_any_root(x64):
    rng = np.random.default_rng(0)
    factor, tangent, cotangent = rng.normal(size=(3, 4, 4))
    matrix, tangent = factor @ factor.T + np.eye(4), tangent + tangent.T

    (point, aux), (slope, aux_slope) = jax.jit(
        lambda matrix: jax.jvp(lambda matrix: root(jnp.ones(3), matrix), (matrix,), (tangent,))
    )(matrix)
    gradient = jax.jit(jax.grad(lambda matrix: jnp.vdot(cotangent, root(jnp.ones(3), matrix)[0])))(matrix)
    np.testing.assert_allclose(point @ point, matrix, atol=F64_DENSE)
    np.testing.assert_array_equal(aux, np.ones(3))
    np.testing.assert_array_equal(aux_slope, np.zeros(3))

    def moved(t):
        values, vectors = np.linalg.eigh(matrix + t * tangent)
        return vectors * np.sqrt(values) @ vectors.T

    np.testing.assert_allclose(slope, oracles.central_difference(moved, 1e-3), atol=1e-9)
    np.testing.assert_allclose(np.vdot(gradient, tangent), np.vdot(cotangent, slope), atol=F64_DENSE)


@pytest.mark.slow
def test_the_init_is_a_constant(x64):
    gradient = jax.grad(lambda init: jnp.sum(root(init, jnp.eye(4))[0]) + jnp.sum(root(init, jnp.eye(4))[1]))
    np.testing.assert_array_equal(gradient(jnp.ones(3)), 0)
