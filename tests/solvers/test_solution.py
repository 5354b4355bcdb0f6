"""A sentence for every status, and their order."""

import jax.numpy as jnp
import pytest

from nc_jax.solvers import Solution, Status, describe


@pytest.mark.parametrize("status", Status)
def test_every_status_has_its_own_sentence(status):
    sentence = describe(status)
    assert sentence.startswith(("converged", "not converged", "failed"))
    assert sentence.startswith("converged") == (status < Status.ITERATION_LIMIT)
    assert [describe(other) for other in Status].count(sentence) == 1
    assert describe(int(status)) == describe(jnp.asarray(status, jnp.int32)) == sentence


def test_the_worst_of_several_is_their_maximum():
    ranks = [Status.CONVERGED, Status.CONVERGED_TO_PRECISION, Status.ITERATION_LIMIT, Status.RADIUS_COLLAPSED]
    assert sorted([*ranks, Status.NON_FINITE]) == [*ranks, Status.NON_FINITE]
    assert max(Status) == Status.NON_FINITE


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match=r"^a status is one of \[0, 1, .*\]; got 99$"):
        describe(99)


def test_a_solution_is_a_pytree_of_arrays():
    assert Solution._fields == ("point", "value", "grad_norm", "iterations", "inner_iterations", "status")
