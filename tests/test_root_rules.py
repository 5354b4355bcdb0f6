"""jaxopt's derivative rule of a root and the one that could replace it: the same numbers, to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import implicit, root_rules

RULES = {"jaxopt": root_rules.jaxopt_root_jvp, "JAX alone": root_rules.implicit_root_jvp}
SHAPE = (4, 2)
F64 = 1e-12


def all_derivatives(function, at, tangent, cotangent):
    """Value, slope in forward mode, gradient in reverse mode, and the slope of the gradient."""

    def value_and_gradient(x):
        value, pull = jax.vjp(function, x)
        return value, pull(cotangent)[0]

    (value, gradient), (slope, second) = jax.jvp(value_and_gradient, (at,), (tangent,))
    return {"value": value, "slope": slope, "gradient": gradient, "second": second}


def polar_factor(matrix):
    """The polar factor with a rule that no test has traced before."""
    return implicit.polar_root.__wrapped__()((None, 0.0), matrix)[0]


def minimiser_of_a_cost(matrix):
    """Minimiser of a cost that is no Procrustes problem, by the general condition and conjugate gradients."""

    def gradient(point, matrix, weights):
        return point * weights - matrix

    def solve(init, matrix, weights):
        del init, weights
        return polar_factor(matrix), jnp.asarray(True)

    root = implicit.implicit_root(
        solve, implicit.stiefel_stationarity(gradient), implicit.conjugate_gradient_solver(gradient)
    )
    return root(None, matrix, 0.3)[0]  # a multiple of the point changes the cost by a constant: the same minimiser


@pytest.mark.parametrize("function", [polar_factor, pytest.param(minimiser_of_a_cost, marks=pytest.mark.slow)])
def test_both_rules_give_the_same_derivatives(x64, monkeypatch, function):
    at, tangent, cotangent = np.random.default_rng(0).normal(size=(3, *SHAPE))
    found = {}
    for name, rule in RULES.items():
        monkeypatch.setattr(implicit, "root_jvp", rule)
        found[name] = jax.jit(lambda *given: all_derivatives(function, *given))(at, tangent, cotangent)
    ours, theirs = found.values()
    for name, value in ours.items():
        assert np.linalg.norm(value) > 0.01, name  # two zeros would be equal, too
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=F64 * np.linalg.norm(value), err_msg=name)
    np.testing.assert_allclose(np.vdot(ours["slope"], cotangent), np.vdot(ours["gradient"], tangent), rtol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_arguments_may_be_trees(x64, name):
    """The root of x = a b + c, of which the derivative is a' b + a b' + c'."""

    def stationarity(x, factors, offset):
        return x - factors["a"] * factors["b"] - offset

    def solve(matvec, rhs):
        return rhs / matvec(jnp.ones_like(rhs))

    factors, offset = {"a": jnp.array([2.0, 3.0]), "b": jnp.array([5.0, 7.0])}, jnp.array([1.0, 1.0])
    tangents = ({"a": jnp.array([1.0, 0.0]), "b": jnp.array([10.0, 1.0])}, jnp.array([100.0, 0.0]))
    point = factors["a"] * factors["b"] + offset
    found = RULES[name](stationarity, point, (factors, offset), tangents, solve=solve)
    np.testing.assert_allclose(found, [5 + 20 + 100, 3], rtol=F64)


def test_nc_jax_uses_one_of_them():
    assert implicit.root_jvp is root_rules.root_jvp
    assert root_rules.root_jvp in RULES.values()
