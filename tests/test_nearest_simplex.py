"""The nearest simplex ETF: every scale and order of the class means, degenerate and non-finite ones."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import SOLVERS

from nc_jax import nearest_simplex_etf
from nc_jax.frames import simplex_etf
from nc_jax.solvers import Status, describe

F64_EXACT = 1e-12  # rounding in a well-conditioned problem


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@partial(jax.jit, static_argnames=("solver", "cost", "reduced"))
def simplex(means, prox_point, cotangent, **how):
    """Nearest simplex ETF with the gradient of <cotangent, frame> in the means."""

    def frame(means):
        found = nearest_simplex_etf(means, prox_point=prox_point, **how)
        return found.frame, found

    _, pull, found = jax.vjp(frame, means, has_aux=True)
    return found, pull(cotangent)[0]


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_frame_follows_the_means_and_their_order(x64):
    means, rotation, order = normal(12, 4), cases.random_rotation(np.random.default_rng(1), 12, 12), [2, 0, 3, 1]
    frame = simplex(means, None, means, solver="polar")[0].frame
    turned = simplex(rotation @ means, None, means, solver="polar")[0].frame
    permuted = simplex(means[:, order], None, means, solver="polar")[0].frame
    np.testing.assert_allclose(turned, rotation @ frame, atol=F64_EXACT)
    np.testing.assert_allclose(permuted, np.asarray(frame)[:, order], atol=F64_EXACT)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("solver", "prox"),
    [
        ("polar", True),
        ("polar", False),
        ("trust region", True),
        ("trust region", False),
        ("general cost", True),
        pytest.param("general cost", False, marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_non_finite_means_are_reported(x64, solver, value):
    means = normal(12, 4)
    means[3, 2] = value
    found, _ = simplex(means, cases.random_rotation(np.random.default_rng(1), 12, 3), means, **SOLVERS[solver])
    assert found.solution.status == Status.NON_FINITE
    assert describe(Status.NON_FINITE) == "failed: a NaN or an infinity in the cost, its gradient or the input"
