"""Slope tests: is this gradient, Hessian or retraction right?

A Taylor expansion that is right to order k leaves an error that falls like t^(k+1). Each check measures that exponent
over a range of step lengths t. Run them in float64: in float32 too few step lengths lie above the rounding error.

Reference: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), sections 4.8 and 6.8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray


class SlopeCheck(NamedTuple):
    """What a slope test found.

    `slope` is the measured exponent and `expected` the one that theory asks for; `steps` and `errors` are the curve,
    for a log-log plot. A curve that lies at rounding error throughout (the expansion is exact) has an infinite slope.
    """

    slope: float
    expected: float
    steps: np.ndarray
    errors: np.ndarray

    @property
    def passed(self) -> bool:
        """Whether the measured exponent is at least the expected one, less a tenth."""
        return self.slope >= self.expected - 0.1  # the fitted slopes of right formulas scatter by a few hundredths


def check_retraction(manifold: Any, key: PRNGKeyArray, *, order: int = 1, dtype: Any = None) -> SlopeCheck:
    """Test that `manifold.retract` agrees with the straight line to first order, or with a geodesic to second.

    A retraction that leaves the manifold has slope 0, whatever the gap.

    Args:
        manifold: a manifold.
        key: draws the point and the direction.
        order: 1 checks |R(tv) - (x + tv)| = O(t^2); 2 checks the tangent part of that gap, O(t^3).
        dtype: of the computation; None is the widest that is enabled.

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
    # The straight line itself has no gap at all, but it leaves the manifold.
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
    """Test that f(R(tv)) = f(x) + t <grad f, v> + O(t^2).

    Args:
        manifold: a manifold.
        cost: maps a point to a scalar.
        key: draws the point and the direction.
        gradient: the Euclidean gradient under test; None is autodiff's, which tests the manifold.
        dtype: of the computation; None is the widest that is enabled.
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
    """Test that f(R(tv)) = f(x) + t <grad f, v> + t^2/2 <Hess f[v], v> + O(t^3).

    Args:
        manifold: a manifold whose retraction is of second order (for Stiefel: retraction="polar").
        cost: maps a point to a scalar.
        key: draws the point and the direction.
        gradient: the Euclidean gradient under test; None is autodiff's.
        hessian_vector: the Euclidean Hessian product (point, tangent) under test; None is autodiff's.
        dtype: of the computation; None is the widest that is enabled.
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
    """Exponent of the gap: the median slope of its log-log curve where it is above rounding and t is small."""
    steps = np.logspace(-6, -1, 41)  # above 0.1 the next order shows, below 1e-6 only rounding is left
    errors = np.asarray(jax.jit(jax.vmap(gap))(jnp.asarray(steps, dtype)), float)
    usable = errors > _rounding(scale, dtype)
    pairs = usable[1:] & usable[:-1]
    if not pairs.any():
        return SlopeCheck(float("inf"), expected, steps, errors)
    slopes = np.diff(np.log(np.where(usable, errors, 1.0))) / np.diff(np.log(steps))
    return SlopeCheck(float(np.median(slopes[pairs])), expected, steps, errors)


def _rounding(scale: Any, dtype: Any) -> float:
    """Errors below this are rounding."""
    return 1e3 * float(jnp.finfo(dtype).eps) * max(1.0, float(scale))
