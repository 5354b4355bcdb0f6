"""The nearest frame: the solution, the numbers of the released program, and the derivatives in every argument."""

from functools import partial
from typing import NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import HUBER, SOLVERS
from hypothesis import given, settings
from hypothesis import strategies as st

from nc_jax import NearestFrame, nearest_frame
from nc_jax.discrepancies import huber, squared_frobenius
from nc_jax.frames import simplex_template
from nc_jax.solvers import Status, TrustRegionOptions, describe

F64_SOLUTION = 2e-15  # rounding, times condition and square root of the size of a problem; ten times observed errors
F64_GOLDEN = 1e-8  # the numbers in the file have about ten digits
F32_GOLDEN = 1e-3  # the condition is up to 3e3
F64_DIFFERENCES = 1e-8  # of fourth order, steps of 1e-3 of the least singular value; a hundred times observed errors
F64_MODES = 1e-13  # the same products in another order
F64_EXACT = 1e-12  # rounding in a well-conditioned problem


class Derivatives(NamedTuple):
    found: NearestFrame
    gradients: tuple  # of <cotangent, rotation>, in means, template, prox point and prox weight
    slope: np.ndarray  # of <cotangent, rotation> along the tangents, in forward mode


@partial(jax.jit, static_argnames=("solver", "cost", "options"))
def differentiate(arguments, cotangent, tangents, **how):
    """Solve once and differentiate in both modes: one compilation serves most tests of a shape."""

    def rotation(means, template, prox_point, prox_weight):
        found = nearest_frame(means, template, prox_point=prox_point, prox_weight=prox_weight, **how)
        return found.rotation, found

    _, push, found = jax.linearize(rotation, *arguments, has_aux=True)
    pull = jax.linear_transpose(push, *arguments)
    return Derivatives(found, pull(cotangent), jnp.vdot(cotangent, push(*tangents)))


def solve(problem, how, cotangent=None, tangents=None, dtype=np.float64) -> Derivatives:
    """Solve a problem of the catalogue and differentiate the solution; everything comes back as NumPy arrays."""
    cotangent = np.zeros_like(problem.prox_point) if cotangent is None else cotangent
    tangents = [np.zeros_like(argument) for argument in problem.arguments] if tangents is None else tangents
    arrays = jax.tree.map(lambda array: array.astype(dtype), (problem.arguments, cotangent, tuple(tangents)))
    return jax.device_get(differentiate(*arrays, **how))


def draw_like(arrays, rng):
    return [np.asarray(rng.normal(size=np.shape(array))) for array in arrays]


# --- The solution. ---


@pytest.mark.parametrize("solver", ["polar", pytest.param("trust region", marks=pytest.mark.slow)])
@pytest.mark.parametrize("problem", cases.PROCRUSTES_PROBLEMS, ids=str)
def test_reaches_the_polar_factor(x64, problem, solver):
    found = solve(problem, SOLVERS[solver]).found
    expected = oracles.polar_by_svd(problem.matrix)
    tolerance = F64_SOLUTION * problem.condition * np.sqrt(problem.matrix.size)
    assert np.linalg.norm(found.rotation - expected) < tolerance
    assert np.linalg.norm(found.frame - expected @ problem.template) < tolerance
    assert describe(int(found.solution.status)) == "converged: the gradient norm is below the tolerance"


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solution_reports_the_objective(x64, solver):
    problem = cases.RELEASED_PROBLEMS[0].problem  # whose program other tests share
    found = solve(problem, SOLVERS[solver]).found
    np.testing.assert_allclose(found.solution.value, oracles.objective(found.rotation, *problem.arguments), rtol=1e-13)
    np.testing.assert_array_equal(found.solution.point, found.rotation)
    assert found.solution.grad_norm < 1e-14 * np.linalg.norm(problem.matrix)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_huber_reaches_the_reweighted_solution(x64, seed):
    problem = cases.random_problem("outlier class", seed)
    found = from_start(*problem.arguments[:3], problem.prox_point, prox_weight=problem.prox_weight, cost=huber)
    np.testing.assert_allclose(found.rotation, oracles.huber_rotation(*problem.arguments), atol=1e-11)


STARTS = {  # the signs that the start gives to the singular directions of the solution, and whether it is then moved
    "warm": ([1, 1, 1, 1], True),
    "far": ([-1, 1, 1, -1], True),
    "in the other component": ([1, 1, 1, -1], True),
    "at the solution": ([1, 1, 1, 1], False),
    "at a saddle": ([-1, 1, 1, -1], False),
    "at the maximum": ([-1, -1, -1, -1], False),
}


@pytest.mark.parametrize("kind", ["random", "d = K, full"])
@pytest.mark.parametrize("start", STARTS)
def test_any_start_leads_to_the_solution(x64, kind, start):
    problem = cases.random_problem(kind, seed=0, prox_weight=1e-3)
    left, _, right = np.linalg.svd(problem.matrix, full_matrices=False)
    signs, moved = STARTS[start]
    init = left * signs[: len(right)] @ right
    if moved:
        noise = np.random.default_rng(1).normal(size=init.shape)
        init = oracles.polar_by_svd(init + (1e-3 if start == "warm" else 0.3) * noise)
    found = from_start(problem.means, problem.template, problem.prox_point, init)
    np.testing.assert_allclose(found.rotation, left @ right, atol=F64_EXACT)
    assert found.solution.status == Status.CONVERGED
    assert found.solution.iterations <= (3 if signs == [1, 1, 1, 1] else 25)


@partial(jax.jit, static_argnames="cost")
def from_start(means, template, prox_point, init, **how):
    """A solution without its derivatives, which are about half of the compilation."""
    return nearest_frame(means, template, prox_point=prox_point, init=init, **how)


@pytest.mark.slow
def test_a_batch_is_solved_like_each_of_its_members(x64):
    problems = [cases.random_problem("random", seed, prox_weight=1e-3) for seed in range(4)]
    batch = [np.stack(arrays) for arrays in zip(*(problem.arguments for problem in problems), strict=True)]
    inits = np.stack([cases.random_rotation(np.random.default_rng(seed), 12, 3) for seed in range(4)])
    together = jax.vmap(from_start)(*batch[:3], inits)
    for number, problem in enumerate(problems):
        alone = from_start(*problem.arguments[:3], inits[number])
        np.testing.assert_allclose(together.rotation[number], alone.rotation, atol=F64_EXACT)
        assert together.solution.iterations[number] == alone.solution.iterations


def test_without_a_prox_point_its_weight_counts_for_nothing(x64):
    problem = cases.random_problem("random", seed=0)
    means, template = map(jnp.asarray, problem.arguments[:2])
    found = nearest_frame(means, template, prox_weight=7.0, solver="polar")
    expected = oracles.polar_by_svd(problem.means @ problem.template.T)
    np.testing.assert_allclose(found.rotation, expected, atol=1e-14)
    np.testing.assert_allclose(found.solution.value, oracles.objective(expected, *problem.arguments[:3], 0), rtol=1e-14)


# --- The released program's numbers. ---


# Every problem has a shape of its own, which each solver and dtype compiles for: the first one is quick.
RELEASED = [
    cases.RELEASED_PROBLEMS[0],
    *(pytest.param(released, marks=pytest.mark.slow) for released in cases.RELEASED_PROBLEMS[1:]),
]


@pytest.mark.slow
@pytest.mark.parametrize("released", cases.RELEASED_PROBLEMS, ids=str)
def test_equals_the_released_program(x64, released):
    check_released(released, "polar", np.float64, F64_GOLDEN)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["trust region", "general cost"])
@pytest.mark.parametrize("released", RELEASED, ids=str)
def test_iterations_equal_the_released_program(x64, released, solver):
    check_released(released, solver, np.float64, F64_GOLDEN)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["polar", "trust region"])
@pytest.mark.parametrize("released", RELEASED, ids=str)
def test_equals_the_released_program_in_float32(released, solver):
    check_released(released, solver, np.float32, F32_GOLDEN)


def check_released(released, solver, dtype, tolerance):
    problem, cotangent, rotation, means_gradient = released
    derivatives = solve(problem, SOLVERS[solver], cotangent, dtype=dtype)
    assert derivatives.found.rotation.dtype == derivatives.gradients[0].dtype == dtype
    assert oracles.relative_error(derivatives.found.rotation, rotation) < tolerance
    assert oracles.relative_error(derivatives.gradients[0], means_gradient) < tolerance
    assert derivatives.found.solution.status <= Status.CONVERGED_TO_PRECISION


# --- Derivatives. ---


def check_derivatives(problem, how, oracle, seed):
    """Reverse and forward mode against differences of an oracle, in one argument at a time."""
    rng = np.random.default_rng(seed)
    cotangent, *tangents = draw_like([problem.prox_point, *problem.arguments], rng)
    derivatives = solve(problem, how, cotangent, tangents)
    slopes = [np.vdot(gradient, tangent) for gradient, tangent in zip(derivatives.gradients, tangents, strict=True)]
    sensitivities = []
    for number, (slope, tangent) in enumerate(zip(slopes, tangents, strict=True)):

        def moved(t, number=number, tangent=tangent):
            arguments = list(problem.arguments)
            arguments[number] = arguments[number] + t * tangent
            return arguments

        speed = np.linalg.norm(oracles.procrustes_matrix(*moved(1)) - problem.matrix)
        # A bound on the rotation's derivative; not zero where the prox weight is.
        sensitivity = max(speed, 1e-3) / np.linalg.svd(problem.matrix, compute_uv=False)[-1]
        expected = oracles.central_difference(lambda t: np.vdot(cotangent, oracle(*moved(t))), 1e-3 / sensitivity)
        assert abs(slope - expected) < F64_DIFFERENCES * (sensitivity + abs(expected)), f"argument {number}"
        sensitivities.append(sensitivity)
    assert abs(derivatives.slope - sum(slopes)) < F64_MODES * sum(sensitivities)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["polar", "trust region"])
@given(kind=st.sampled_from(list(cases.KINDS)), seed=st.integers(0, 2**32 - 1), weight=st.sampled_from([0, 1e-2, 1]))
def test_derivatives_of_the_frobenius_cost(x64, solver, kind, seed, weight):
    # Without the prox term the full template leaves the rotation undetermined.
    problem = cases.random_problem(kind, seed, 1e-2 if "full" in kind and weight == 0 else weight)
    check_derivatives(problem, SOLVERS[solver], oracles.procrustes_rotation, seed)


@settings(max_examples=10)  # the oracle iterates, at each of 16 points
@pytest.mark.parametrize("cost", [squared_frobenius, huber])
@given(kind=st.sampled_from(["random", "outlier class"]), seed=st.integers(0, 2**32 - 1))
@pytest.mark.slow
def test_derivatives_of_a_general_cost(x64, cost, kind, seed):
    oracle = oracles.huber_rotation if cost is huber else oracles.procrustes_rotation
    check_derivatives(cases.random_problem(kind, seed), {"solver": "trust_region", "cost": cost}, oracle, seed)


@pytest.mark.parametrize(
    "how", [SOLVERS["polar"], SOLVERS["trust region"], HUBER], ids=["polar", "trust region", "huber"]
)
@pytest.mark.slow
def test_second_derivatives(x64, how):
    problem = cases.random_problem("outlier class", seed=0)
    rng = np.random.default_rng(0)
    cotangent, first, second = draw_like([problem.prox_point, problem.means, problem.means], rng)

    @jax.jit
    def hessian_product(means, template, prox_point, prox_weight, tangent):
        def scalar(means):
            found = nearest_frame(means, template, prox_point=prox_point, prox_weight=prox_weight, **how)
            return jnp.vdot(cotangent, found.rotation)

        return jax.jvp(jax.grad(scalar), (means,), (tangent,))[1]

    def gradient(t):
        return solve(problem._replace(means=problem.means + t * first), how, cotangent).gradients[0]

    product = hessian_product(*problem.arguments, first)
    assert oracles.relative_error(product, oracles.central_difference(gradient, 1e-3)) < F64_DIFFERENCES
    other = hessian_product(*problem.arguments, second)
    np.testing.assert_allclose(np.vdot(second, product), np.vdot(first, other), rtol=1e-10)


@pytest.mark.slow
def test_the_hessian_is_symmetric(x64):
    problem = cases.random_problem("d = K - 1", seed=0)

    def scalar(means):
        return jnp.sum(nearest_frame(means, jnp.asarray(problem.template), solver="polar").frame ** 3)

    hessian = np.asarray(jax.jit(jax.hessian(scalar))(problem.means)).reshape(12, 12)
    assert np.linalg.norm(hessian) > 1
    np.testing.assert_allclose(hessian, hessian.T, atol=F64_EXACT * np.linalg.norm(hessian))


@pytest.mark.slow
def test_an_unconverged_solve_raises_its_flag(x64):
    problem = cases.random_problem("random", seed=0, prox_weight=1e-3)
    cotangent = np.random.default_rng(0).normal(size=problem.prox_point.shape)
    options = TrustRegionOptions(max_iterations=1)
    unfinished = solve(problem, {"solver": "trust_region", "options": options}, cotangent)
    right = solve(problem, SOLVERS["polar"], cotangent)
    assert oracles.relative_error(unfinished.gradients[0], right.gradients[0]) > 0.5, "the gradient is silently wrong"
    assert unfinished.found.solution.status == Status.ITERATION_LIMIT
    assert describe(Status.ITERATION_LIMIT) == "not converged: the iteration limit was reached first"
    assert unfinished.found.solution.grad_norm > 0.1


@pytest.mark.slow
def test_the_length_of_the_gradient_is_estimated_for_large_templates():
    rng = np.random.default_rng(0)
    means, start = rng.normal(size=(60, 41)), np.linalg.qr(rng.normal(size=(60, 40)))[0]
    template = simplex_template(41)
    limit = TrustRegionOptions(max_iterations=2)
    found = nearest_frame(
        jnp.asarray(means, jnp.float32), template, init=jnp.asarray(start, jnp.float32), options=limit
    )
    turn, matrix = np.asarray(found.rotation, float), 2 * means @ np.asarray(template, float).T
    aligned = turn.T @ matrix
    exact = np.linalg.norm(matrix - turn @ (aligned + aligned.T) / 2)
    np.testing.assert_allclose(found.solution.grad_norm, exact, rtol=0.2)
