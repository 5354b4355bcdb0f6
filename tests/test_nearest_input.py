"""What the nearest frame takes: dtypes, lists, rows, costs that close over values; and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest
from cases import SOLVERS

from nc_jax import nearest_frame, nearest_simplex_etf
from nc_jax.discrepancies import huber, squared_frobenius
from nc_jax.frames import simplex_template

F32_EXACT = 1e-5  # rounding in a well-conditioned problem


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


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


@pytest.mark.slow
def test_a_cost_may_hold_known_values():
    scale = jnp.float32(2)
    found = jax.eval_shape(
        lambda means: nearest_simplex_etf(means, cost=lambda aligned, means: scale * squared_frobenius(aligned, means)),
        MEANS,
    )
    assert found.frame.shape == (12, 4)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"weights": jnp.array([1.0, 1, -1, 1])}, "weights must be at least 0; got -1.0"),
        ({"prox_weight": jnp.float32(-1)}, "prox_weight must be one number, at least 0; got -1.0"),
    ],
)
def test_known_weights_are_checked_inside_jit_too(how, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        jax.eval_shape(partial(nearest_simplex_etf, **how), MEANS)
    known = jax.tree.map(jnp.abs, how)  # a JAX array, which the traced function closes over
    found = jax.eval_shape(lambda means: nearest_simplex_etf(means, **known), MEANS)
    assert found.frame.shape == (12, 4)


@pytest.mark.slow
def test_the_smallest_weights_are_taken():
    weights = jnp.array([1.0, 0.0, 1.0, 1.0])
    found = nearest_frame(jnp.eye(6, 4), simplex_template(4), prox_weight=0.0, weights=weights, solver="polar")
    assert np.isfinite(found.frame).all()


def test_lists_and_rows_are_taken(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    means, prox_point = normal(12, 4).astype(np.float32), np.eye(12, 3, dtype=np.float32)
    expected = nearest_simplex_etf(means, prox_point=prox_point, weights=np.ones(4, np.float32), solver="polar")
    found = nearest_simplex_etf(
        means.T.tolist(), rows=True, prox_point=prox_point.tolist(), weights=[1, 1, 1, 1], solver="polar"
    )
    np.testing.assert_array_equal(found.frame, expected.frame)
