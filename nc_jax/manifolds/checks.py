"""Slope tests for gradients, Hessians and retractions.

A Taylor expansion that is correct to order k has an error of order t^(k+1) in the step length t. Each check measures
this exponent over a range of step lengths. Run the checks in float64: in float32, too few errors exceed rounding.

Reference: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), sections 4.8 and 6.8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray


class SlopeCheck(NamedTuple):
    """Result of a slope test.

    Attributes:
        slope: measured exponent of the error. It is infinite if the expansion is exact, so that all errors are
            rounding.
        expected: exponent that a correct formula has.
        steps: step lengths t, for a log-log plot.
        errors: error at each step length.
    """

    slope: float
    expected: float
    steps: np.ndarray
    errors: np.ndarray

    @property
    def passed(self) -> bool:
        """Whether the measured exponent is at least the expected exponent minus 0.1."""
        return self.slope >= self.expected - 0.1  # measured slopes of correct formulas scatter by a few hundredths


def check_retraction(manifold: Any, key: PRNGKeyArray, *, order: int = 1, dtype: Any = None) -> SlopeCheck:
    """Test that `manifold.retract` agrees with a straight line to first order, or with a geodesic to second order.

    If the retraction leaves the manifold, the slope is set to 0.

    Args:
        manifold: a manifold, such as `nc_jax.manifolds.Stiefel`.
        key: random key from which the point x and the tangent direction v are drawn.
        order: 1 tests that the gap |R(tv) - (x + tv)| is O(t^2). 2 tests that the tangent part of this gap is O(t^3).
        dtype: dtype of the computation; None for the widest that is enabled.

    Raises:
        ValueError: if the order is neither 1 nor 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2; got {order}")
    point, tangent = _point_and_tangent(manifold, key, dtype)

    def gap(t: Array) -> Array:
        difference = manifold.retract(point, t * tangent) - (point + t * tangent)
        return jnp.linalg.norm(manifold.project(point, difference) if order == 2 else difference)

    checked = _measure(gap, expected=order + 1, scale=manifold.diameter, dtype=point.dtype)
    # A retraction that returns the straight line has no gap, but it leaves the manifold.
    distance = manifold.distance_from(manifold.retract(point, checked.steps[-1] * tangent))
    return checked if distance <= _rounding(manifold.diameter, point.dtype) else checked._replace(slope=0.0)


def check_gradient(
    manifold: Any,
    cost: Callable[[Array], Array],
    key: PRNGKeyArray,
    *,
    gradient: Callable[[Array], Array] | None = None,
    dtype: Any = None,
) -> SlopeCheck:
    """Test that f(R(tv)) = f(x) + t <grad f, v> + O(t^2), where R is the retraction.

    Args:
        manifold: a manifold, such as `nc_jax.manifolds.Stiefel`.
        cost: function f from a point to a scalar.
        key: random key from which the point x and the tangent direction v are drawn.
        gradient: Euclidean gradient that is tested. None: the gradient of autodiff, so that the manifold is tested.
        dtype: dtype of the computation; None for the widest that is enabled.
    """
    point, tangent = _point_and_tangent(manifold, key, dtype)
    slope = manifold.inner(point, manifold.gradient(point, (gradient or jax.grad(cost))(point)), tangent)

    def gap(t: Array) -> Array:
        return jnp.abs(cost(manifold.retract(point, t * tangent)) - cost(point) - t * slope)

    return _measure(gap, expected=2, scale=jnp.abs(cost(point)), dtype=point.dtype)


def check_hessian(
    manifold: Any,
    cost: Callable[[Array], Array],
    key: PRNGKeyArray,
    *,
    gradient: Callable[[Array], Array] | None = None,
    hessian_vector: Callable[[Array, Array], Array] | None = None,
    dtype: Any = None,
) -> SlopeCheck:
    """Test that f(R(tv)) = f(x) + t <grad f, v> + t^2/2 <Hess f[v], v> + O(t^3), where R is the retraction.

    Args:
        manifold: a manifold whose retraction is of second order (for Stiefel: retraction="polar").
        cost: function f from a point to a scalar.
        key: random key from which the point x and the tangent direction v are drawn.
        gradient: Euclidean gradient that is tested; None for the gradient of autodiff.
        hessian_vector: function (point, tangent) -> Euclidean Hessian times tangent, which is tested; None for the
            product of autodiff.
        dtype: dtype of the computation; None for the widest that is enabled.
    """
    point, tangent = _point_and_tangent(manifold, key, dtype)
    gradient = gradient or jax.grad(cost)
    euclidean_gradient = gradient(point)
    if hessian_vector is None:
        euclidean_product = jax.jvp(gradient, (point,), (tangent,))[1]
    else:
        euclidean_product = hessian_vector(point, tangent)
    slope = manifold.inner(point, manifold.gradient(point, euclidean_gradient), tangent)
    product = manifold.hessian(point, euclidean_gradient)(tangent, euclidean_product)
    curvature = manifold.inner(point, product, tangent)

    def gap(t: Array) -> Array:
        expansion = cost(point) + t * slope + t**2 / 2 * curvature
        return jnp.abs(cost(manifold.retract(point, t * tangent)) - expansion)

    return _measure(gap, expected=3, scale=jnp.abs(cost(point)), dtype=point.dtype)


def _point_and_tangent(manifold: Any, key: PRNGKeyArray, dtype: Any) -> tuple[Array, Array]:
    point_key, tangent_key = jax.random.split(key)
    point = manifold.random_point(point_key, dtype or jnp.result_type(float))
    return point, manifold.random_tangent(tangent_key, point)


def _measure(gap: Callable[[Array], Array], *, expected: int, scale: Any, dtype: Any) -> SlopeCheck:
    """Measure the exponent of the gap: the median slope of its log-log curve over the gaps above rounding."""
    steps = np.logspace(-6, -1, 41)  # above 0.1 the next order contributes; below 1e-6 all gaps are rounding
    errors = np.asarray(jax.jit(jax.vmap(gap))(jnp.asarray(steps, dtype)), float)
    usable = errors > _rounding(scale, dtype)
    pairs = usable[1:] & usable[:-1]
    if not pairs.any():
        return SlopeCheck(float("inf"), expected, steps, errors)
    slopes = np.diff(np.log(np.where(usable, errors, 1.0))) / np.diff(np.log(steps))
    return SlopeCheck(float(np.median(slopes[pairs])), expected, steps, errors)


def _rounding(scale: Any, dtype: Any) -> float:
    """Return the size below which an error counts as rounding."""
    return 1e3 * float(jnp.finfo(dtype).eps) * max(1.0, float(scale))
