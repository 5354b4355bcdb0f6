"""The nearest frame: the solution, its derivatives in every argument, what the backward pass allocates, bad input."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import cases
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, Jaxpr

from nc_jax import NearestFrame, nearest_frame, nearest_simplex_etf
from nc_jax.discrepancies import huber, squared_frobenius
from nc_jax.frames import simplex_etf, simplex_template
from nc_jax.solvers import Status, TrustRegionOptions, describe

# The closed form, the trust region on -<U, B>, and the trust region on any cost.
SOLVERS = {
    "polar": {"solver": "polar"},
    "trust region": {"solver": "trust_region"},
    "general cost": {"solver": "trust_region", "cost": squared_frobenius},
}
HUBER = {"solver": "trust_region", "cost": huber}

F64_SOLUTION = 2e-15  # rounding, times condition and square root of the size of a problem; ten times observed errors
F64_GOLDEN = 1e-8  # the numbers in the file have about ten digits
F32_GOLDEN = 1e-3  # the condition is up to 3e3
F64_DIFFERENCES = (
    1e-8  # of fourth order, with steps of 1e-3 of the smallest singular value; a hundred times observed errors
)
F64_MODES = 1e-13  # the same products in another order
F64_EXACT = 1e-12  # rounding in a well-conditioned problem
F32_EXACT = 1e-5


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


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def draw_like(arrays, rng):
    return [np.asarray(rng.normal(size=np.shape(array))) for array in arrays]


# --- The solution. ---


@pytest.mark.parametrize("solver", ["polar", "trust region"])
@pytest.mark.parametrize("problem", cases.PROCRUSTES_PROBLEMS, ids=str)
def test_reaches_the_polar_factor(x64, problem, solver):
    found = solve(problem, SOLVERS[solver]).found
    expected = oracles.polar_by_svd(problem.matrix)
    tolerance = F64_SOLUTION * problem.condition * np.sqrt(problem.matrix.size)
    assert np.linalg.norm(found.rotation - expected) < tolerance
    assert np.linalg.norm(found.frame - expected @ problem.template) < tolerance
    assert describe(int(found.solution.status)) == "converged: the gradient norm is below the tolerance"


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solution_reports_the_objective(x64, solver):
    problem = cases.random_problem("random", seed=0)
    found = solve(problem, SOLVERS[solver]).found
    np.testing.assert_allclose(found.solution.value, oracles.objective(found.rotation, *problem.arguments), rtol=1e-13)
    np.testing.assert_array_equal(found.solution.point, found.rotation)
    assert found.solution.grad_norm < 1e-14 * np.linalg.norm(problem.matrix)


@pytest.mark.parametrize("seed", range(3))
def test_huber_reaches_the_reweighted_solution(x64, seed):
    problem = cases.random_problem("outlier class", seed)
    found = solve(problem, HUBER).found
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


@jax.jit
def from_start(means, template, prox_point, init):
    return nearest_frame(means, template, prox_point=prox_point, init=init)


def test_without_a_prox_point_its_weight_counts_for_nothing(x64):
    problem = cases.random_problem("random", seed=0)
    means, template = map(jnp.asarray, problem.arguments[:2])
    found = nearest_frame(means, template, prox_weight=7.0, solver="polar")
    expected = oracles.polar_by_svd(problem.means @ problem.template.T)
    np.testing.assert_allclose(found.rotation, expected, atol=1e-14)
    np.testing.assert_allclose(found.solution.value, oracles.objective(expected, *problem.arguments[:3], 0), rtol=1e-14)


# --- The released program's numbers. ---


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("released", cases.RELEASED_PROBLEMS, ids=str)
def test_equals_the_released_program(x64, released, solver):
    check_released(released, solver, np.float64, F64_GOLDEN)


@pytest.mark.parametrize("solver", ["polar", "trust region"])
@pytest.mark.parametrize("released", cases.RELEASED_PROBLEMS, ids=str)
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


def test_the_hessian_is_symmetric(x64):
    problem = cases.random_problem("d = K - 1", seed=0)

    def scalar(means):
        return jnp.sum(nearest_frame(means, jnp.asarray(problem.template), solver="polar").frame ** 3)

    hessian = np.asarray(jax.jit(jax.hessian(scalar))(problem.means)).reshape(12, 12)
    assert np.linalg.norm(hessian) > 1
    np.testing.assert_allclose(hessian, hessian.T, atol=F64_EXACT * np.linalg.norm(hessian))


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


# --- What is allocated. ---


def subjaxprs(value) -> Iterator[Jaxpr]:
    """The jaxprs in an equation's parameters, at any depth of tuples, lists and dictionaries."""
    for leaf in jax.tree.leaves(value, is_leaf=lambda node: isinstance(node, ClosedJaxpr | Jaxpr)):
        if isinstance(leaf, ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, Jaxpr):
            yield leaf


def largest_intermediate(jaxpr: Jaxpr) -> int:
    """Number of elements of the largest array that a computation makes, loops and called functions included."""
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    inner = [largest_intermediate(sub) for equation in jaxpr.eqns for sub in subjaxprs(equation.params)]
    return max(sizes + inner, default=0)


@pytest.mark.parametrize("how", [*SOLVERS.values(), HUBER], ids=[*SOLVERS, "huber"])
@pytest.mark.parametrize("kind", ["random", "d = K, full"])
def test_forward_and_backward_allocate_nothing_larger_than_the_means(x64, kind, how):
    problem = cases.random_problem(kind, seed=0)
    (dim, num_classes), rank = problem.means.shape, len(problem.template)

    def gradients(arguments, cotangent):
        def rotation(means, template, prox_point, prox_weight):
            return nearest_frame(means, template, prox_point=prox_point, prox_weight=prox_weight, **how).rotation

        return jax.vjp(rotation, *arguments)[1](cotangent)

    jaxpr = jax.make_jaxpr(gradients)(problem.arguments, problem.prox_point).jaxpr
    dense = (dim * rank) ** 2
    assert largest_intermediate(jaxpr) <= max(dim * num_classes, num_classes**2) < dense


def test_a_large_intermediate_is_found_wherever_it_hides():
    def hides(vector):
        def body(_, carry):
            return carry + jax.lax.cond(carry[0] > 0, lambda x: jnp.outer(x, x).sum(axis=0), lambda x: x, carry)

        return jax.lax.custom_linear_solve(lambda x: x, jax.lax.fori_loop(0, 3, body, vector), lambda _, x: x)

    assert largest_intermediate(jax.make_jaxpr(hides)(jnp.ones(20)).jaxpr) == 400


# --- The nearest simplex ETF. ---


@partial(jax.jit, static_argnames=("solver", "cost", "reduced"))
def simplex(means, prox_point, cotangent, **how):
    """Nearest simplex ETF with the gradient of <cotangent, frame> in the means."""

    def frame(means):
        found = nearest_simplex_etf(means, prox_point=prox_point, **how)
        return found.frame, found

    _, pull, found = jax.vjp(frame, means, has_aux=True)
    return found, pull(cotangent)[0]


@pytest.mark.parametrize("solver", ["polar", "trust_region"])
def test_the_frame_is_a_simplex_etf_at_every_scale(x64, solver):
    means, prox_point, cotangent = normal(12, 4), cases.random_rotation(np.random.default_rng(1), 12, 3), normal(12, 4)
    found, gradient = simplex(means, prox_point, cotangent, solver=solver)
    np.testing.assert_allclose(found.frame.T @ found.frame, oracles.gram_of_simplex(4), atol=F64_EXACT)
    for scale in (1e-12, 1e12):
        same, scaled = simplex(means * scale, prox_point, cotangent, solver=solver)
        np.testing.assert_allclose(same.frame, found.frame, atol=F64_EXACT)
        assert oracles.relative_error(scaled * scale, gradient) < F64_EXACT
        assert same.solution.status == Status.CONVERGED


def test_the_frame_follows_the_means_and_their_order(x64):
    means, rotation, order = normal(12, 4), cases.random_rotation(np.random.default_rng(1), 12, 12), [2, 0, 3, 1]
    frame = simplex(means, None, means, solver="polar")[0].frame
    turned = simplex(rotation @ means, None, means, solver="polar")[0].frame
    permuted = simplex(means[:, order], None, means, solver="polar")[0].frame
    np.testing.assert_allclose(turned, rotation @ frame, atol=F64_EXACT)
    np.testing.assert_allclose(permuted, np.asarray(frame)[:, order], atol=F64_EXACT)


def test_both_templates_give_one_frame(x64):
    means = normal(12, 4)
    reduced = simplex(means, None, means, solver="polar")[0]
    full = simplex(means, None, means, solver="polar", reduced=False)[0]
    assert (reduced.rotation.shape, full.rotation.shape) == ((12, 3), (12, 4))
    np.testing.assert_allclose(full.frame, reduced.frame, atol=F64_EXACT)


def test_a_simplex_etf_is_its_own_nearest(x64):
    frame = simplex_etf(4, 12, key=jax.random.key(0), dtype=jnp.float64)
    found, _ = simplex(3 * frame, None, frame, solver="polar")
    np.testing.assert_allclose(found.frame, frame, atol=F64_EXACT)
    assert found.solution.value < F64_EXACT


DEGENERATE_MEANS = {
    "zero": np.zeros((12, 4)),
    "all equal": np.repeat(normal(12, 1), 4, axis=1),
    "two equal": normal(12, 4)[:, [0, 0, 1, 2]],
    "missing class": normal(12, 4) * [1, 1, 0, 1],
}


@pytest.mark.parametrize("prox", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", DEGENERATE_MEANS)
def test_degenerate_means(x64, name, solver, prox):
    means = DEGENERATE_MEANS[name]
    prox_point = cases.random_rotation(np.random.default_rng(1), 12, 3) if prox else None
    found, gradient = simplex(means, prox_point, normal(12, 4), **SOLVERS[solver])
    np.testing.assert_allclose(found.frame.T @ found.frame, oracles.gram_of_simplex(4), atol=F64_EXACT)
    assert found.solution.status <= Status.NOT_UNIQUE
    if solver != "general cost":  # whose curvature is not looked at
        unique = prox or name == "missing class"
        assert (found.solution.status == Status.NOT_UNIQUE) == (not unique)
    assert np.isfinite(gradient).all()
    if prox:  # the prox term of weight 1e-3 bounds the singular values from below
        size = np.linalg.norm(means)
        assert np.linalg.norm(gradient) < 1e4 / (size if size > 0 else 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_non_finite_means_are_reported(x64, solver, value):
    means = normal(12, 4)
    means[3, 2] = value
    found, _ = simplex(means, cases.random_rotation(np.random.default_rng(1), 12, 3), means, **SOLVERS[solver])
    assert found.solution.status == Status.NON_FINITE
    assert describe(Status.NON_FINITE) == "failed: a NaN or an infinity in the cost, its gradient or the input"


def test_a_batch_is_solved_like_each_of_its_members(x64):
    problems = [cases.random_problem("random", seed, prox_weight=1e-3) for seed in range(4)]
    batch = [np.stack(arrays) for arrays in zip(*(problem.arguments for problem in problems), strict=True)]
    inits = np.stack([cases.random_rotation(np.random.default_rng(seed), 12, 3) for seed in range(4)])
    together = jax.vmap(from_start)(*batch[:3], inits)
    for number, problem in enumerate(problems):
        alone = from_start(*problem.arguments[:3], inits[number])
        np.testing.assert_allclose(together.rotation[number], alone.rotation, atol=F64_EXACT)
        assert together.solution.iterations[number] == alone.solution.iterations


# --- Dtypes and bad input. ---


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64",) * 2],
)
def test_dtypes(x64, solver, given_dtype, expected):
    means = jnp.ones((12, 4), given_dtype)
    found = jax.eval_shape(partial(nearest_simplex_etf, **SOLVERS[solver]), means)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(found)}
    assert dtypes == {expected, "int32"}


def test_bfloat16_means_are_solved_in_float32():
    means = jnp.asarray(normal(12, 4), jnp.bfloat16)
    found = nearest_simplex_etf(means, solver="polar")
    expected = oracles.polar_by_svd(np.asarray(means, float) @ np.asarray(simplex_template(4), float).T)
    np.testing.assert_allclose(found.rotation, expected, atol=F32_EXACT)


MEANS, TEMPLATE = jnp.ones((12, 4)), jnp.ones((3, 4))
REFUSED = {
    "means (dim, classes) and template (rank, classes) need the same classes; got (12, 5) and (3, 4)": (
        lambda: nearest_frame(jnp.ones((12, 5)), TEMPLATE)
    ),
    "a template of 3 rows needs means with dim >= 3; got dim=2": lambda: nearest_frame(jnp.ones((2, 4)), TEMPLATE),
    "prox_point must have shape (dim, rank) = (12, 3); got (12, 4)": (
        lambda: nearest_frame(MEANS, TEMPLATE, prox_point=MEANS)
    ),
    "init must have shape (dim, rank) = (12, 3); got (12, 4)": lambda: nearest_frame(MEANS, TEMPLATE, init=MEANS),
    'solver must be "trust_region" or "polar"; got \'newton\'': lambda: nearest_frame(MEANS, TEMPLATE, solver="newton"),
    'solver="polar" is the closed form for the Frobenius cost; give a cost to solver="trust_region"': (
        lambda: nearest_frame(MEANS, TEMPLATE, solver="polar", cost=huber)
    ),
    "weights must have shape (classes,) = (4,); got (3,)": (
        lambda: nearest_frame(MEANS, TEMPLATE, weights=jnp.ones(3))
    ),
    "a cost to be weighted must return shape (4,); got ()": (
        lambda: nearest_frame(
            MEANS, TEMPLATE, weights=jnp.ones(4), cost=lambda aligned, means: jnp.sum(aligned * means)
        )
    ),
    "means must have shape (dim, classes); got shape (4,)": lambda: nearest_simplex_etf(jnp.ones(4)),
    "class means are columns, and a simplex ETF of 6 classes needs dim >= 5; got dim=4: if each row is a class mean, "
    "transpose the means": lambda: nearest_simplex_etf(jnp.ones((4, 6))),
    "means (dim, classes) and template (rank, classes) need the same classes; got (4, 12) and (3, 4): transpose the "
    "means": lambda: nearest_frame(MEANS.T, TEMPLATE),
    "means must be real numbers of at most 64 bits; got dtype <U5": lambda: nearest_frame("means", TEMPLATE),
    "means must be real numbers of at most 64 bits; got dtype complex64": lambda: nearest_frame(1j * MEANS, TEMPLATE),
    "a template must be real numbers of at most 64 bits; got dtype bool": lambda: nearest_frame(MEANS, TEMPLATE > 0),
    "weights must be at least 0; got -1.0": lambda: nearest_frame(MEANS, TEMPLATE, weights=jnp.array([1.0, 1, -1, 1])),
    "prox_weight must be one number, at least 0; got -1.0": (
        lambda: nearest_frame(MEANS, TEMPLATE, prox_weight=jnp.float32(-1))
    ),
    "prox_weight must be one number, at least 0; got [1. 1.]": (
        lambda: nearest_frame(MEANS, TEMPLATE, prox_weight=jnp.ones(2))
    ),
    "options must be a TrustRegionOptions; got dict": lambda: nearest_frame(MEANS, TEMPLATE, options={}),
    "a cost must be a function of (aligned, means); got 'huber'": lambda: nearest_frame(MEANS, TEMPLATE, cost="huber"),
    "a template of 5 rows needs means with dim >= 5; got dim=4": lambda: nearest_simplex_etf(
        jnp.ones((4, 5)), reduced=False
    ),
    "a simplex ETF needs num_classes >= 2; got 1": lambda: nearest_simplex_etf(jnp.ones((4, 1))),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items(), ids=[sentence[:40] for sentence in REFUSED])
def test_bad_input_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence


@pytest.mark.parametrize("transformation", [jax.grad, jax.jit])
@pytest.mark.parametrize("how", ["closure", "partial", "within another function"])
def test_a_cost_that_holds_a_traced_value_is_refused(how, transformation):
    def solve(scale):
        def scaled(aligned, means, scale=1.0):
            return scale * huber(aligned, means)

        costs = {
            "closure": lambda aligned, means: scale * huber(aligned, means),
            "partial": partial(scaled, scale=scale),
            "within another function": lambda aligned, means: partial(scaled, scale=scale)(aligned, means),
        }
        return nearest_simplex_etf(MEANS, cost=costs[how]).solution.value

    with pytest.raises(ValueError, match="a cost must close over known values only; got one that closes over a traced"):
        transformation(solve)(2.0)


def test_a_cost_may_hold_known_values():
    scale = jnp.float32(2)
    found = nearest_simplex_etf(MEANS, cost=lambda aligned, means: scale * squared_frobenius(aligned, means))
    assert np.isfinite(found.solution.value)


def test_lists_and_rows_are_taken(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    means, prox_point = normal(12, 4).astype(np.float32), np.eye(12, 3, dtype=np.float32)
    expected = nearest_simplex_etf(means, prox_point=prox_point, weights=np.ones(4, np.float32), solver="polar")
    found = nearest_simplex_etf(
        means.T.tolist(), rows=True, prox_point=prox_point.tolist(), weights=[1, 1, 1, 1], solver="polar"
    )
    np.testing.assert_array_equal(found.frame, expected.frame)
