"""What the nearest frame allocates, forward and backward: nothing of the size of a dense Jacobian."""

from collections.abc import Iterator

import cases
import jax
import jax.numpy as jnp
import pytest
from cases import HUBER, SOLVERS
from jax.extend.core import ClosedJaxpr, Jaxpr

from nc_jax import nearest_frame


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


@pytest.mark.slow
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
