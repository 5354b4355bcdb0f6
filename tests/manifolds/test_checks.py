"""The slope tests pass on right formulas and fail on each planted mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.manifolds import Stiefel, checks
from nc_jax.manifolds.stiefel import orthogonal_factor

KEYS = [jax.random.key(seed) for seed in range(3)]
MANIFOLD = Stiefel(5, 2, retraction="polar")


def cost(point):
    return jnp.sum(jnp.sin(point)) + point[0, 0] ** 2 * point[1, 1]


class NoCurvature(Stiefel):
    """The Euclidean Hessian, projected: the term with the gradient is forgotten."""

    def hessian(self, point, euclidean_gradient):
        del euclidean_gradient
        return lambda tangent, product: self.project(point, product)


class HalfProjection(Stiefel):
    """Projects on the wrong space: the symmetric part is halved."""

    def project(self, point, vector):
        return (vector + super().project(point, vector)) / 2


class WrongSpeed(Stiefel):
    """Moves along the tangent vector at nine tenths of the speed."""

    def retract(self, point, tangent):
        return super().retract(point, 0.9 * tangent)


class StraightOn(Stiefel):
    """Leaves the manifold."""

    def retract(self, point, tangent):
        return point + tangent


class FirstOrder(Stiefel):
    """Swaps the polar retraction for the QR one, which is of first order only."""

    def retract(self, point, tangent):
        return orthogonal_factor(point + tangent)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_right_formulas_pass(x64, key):
    gradient, product = jax.grad(cost), lambda point, tangent: jax.jvp(jax.grad(cost), (point,), (tangent,))[1]
    for found, order in [
        (checks.check_retraction(MANIFOLD, key), 2),
        (checks.check_retraction(MANIFOLD, key, order=2), 3),
        (checks.check_gradient(MANIFOLD, cost, key, gradient=gradient), 2),
        (checks.check_hessian(MANIFOLD, cost, key, gradient=gradient, hessian_vector=product), 3),
    ]:
        assert found.expected == order
        assert found.passed
        assert found.slope == pytest.approx(order, abs=0.2) or found.slope > order
        assert found.steps.shape == found.errors.shape


MISTAKES = {
    "gradient, one per mille too long": lambda key: checks.check_gradient(
        MANIFOLD, cost, key, gradient=lambda point: 1.001 * jax.grad(cost)(point)
    ),
    "gradient of another cost": lambda key: checks.check_gradient(MANIFOLD, cost, key, gradient=jnp.cos),
    "gradient with its sign flipped": lambda key: checks.check_gradient(
        MANIFOLD, cost, key, gradient=lambda point: -jax.grad(cost)(point)
    ),
    "Hessian product of another cost": lambda key: checks.check_hessian(
        MANIFOLD, cost, key, hessian_vector=lambda point, tangent: -jnp.sin(point) * tangent
    ),
    "Hessian without curvature": lambda key: checks.check_hessian(NoCurvature(5, 2, retraction="polar"), cost, key),
    "Hessian on a first-order retraction": lambda key: checks.check_hessian(FirstOrder(5, 2), cost, key),
    "retraction at the wrong speed": lambda key: checks.check_retraction(WrongSpeed(5, 2), key),
    "retraction at the wrong speed, second order": lambda key: checks.check_retraction(
        WrongSpeed(5, 2, retraction="polar"), key, order=2
    ),
    "retraction of first order": lambda key: checks.check_retraction(FirstOrder(5, 2), key, order=2),
    "retraction that leaves the manifold": lambda key: checks.check_retraction(StraightOn(5, 2), key),
    "projection": lambda key: checks.check_gradient(HalfProjection(5, 2), cost, key),
}


@pytest.mark.parametrize("key", KEYS[:2])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_fails(x64, mistake, key):
    assert not MISTAKES[mistake](key).passed


def test_an_exact_expansion_has_an_infinite_slope(x64):
    found = checks.check_gradient(MANIFOLD, lambda point: 0.0 * jnp.sum(point), KEYS[0])
    assert found.slope == float("inf")
    assert found.passed


def test_a_first_order_retraction_is_refused_by_the_second_order_check_only(x64):
    assert checks.check_retraction(FirstOrder(5, 2), KEYS[0]).passed
    assert np.isclose(checks.check_retraction(FirstOrder(5, 2), KEYS[0], order=2).slope, 2, atol=0.1)


def test_there_is_no_third_order():
    with pytest.raises(ValueError, match=r"^order must be 1 or 2; got 3$"):
        checks.check_retraction(MANIFOLD, KEYS[0], order=3)
