"""Riemannian trust region: a form of Newton's method that also converges from far away."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import safe_norm
from nc_jax.solvers.solution import Solution, Status, status_array
from nc_jax.solvers.truncated_cg import truncated_cg


@dataclass(frozen=True)
class TrustRegionOptions:
    """Settings of the trust region.

    Attributes:
        max_iterations: largest number of outer iterations; None for no other limit than that on Hessian products.
        max_inner_iterations: largest number of Hessian products of the whole solve. It bounds the time of a solve
            whose Hessian is badly conditioned.
        relative_tolerance: stop when the Riemannian gradient norm is at most this times the largest Euclidean gradient
            norm met so far; None for 10 eps of the dtype. The test does not depend on the scale of the problem.
        initial_radius: first radius of the trust region, in units of the manifold's diameter.
        max_radius: largest radius of the trust region, in units of the manifold's diameter.
        accept_ratio: accept a step if the actual decrease exceeds this times the predicted decrease.
        forcing: kappa in the stopping rule of the inner iteration: the residual norm must be at most kappa times the
            gradient norm.
        superlinear: theta in the stopping rule of the inner iteration: the residual norm must be at most
            (relative gradient norm)^theta times the gradient norm. With theta = 1, convergence is quadratic in the end.

    Raises:
        ValueError: if a limit, a radius or a tolerance is out of its range.
    """

    max_iterations: int | None = None  # warm starts take 2 to 5, random ones 5 to 20, and about 60 at condition 1e5
    # Measured for Procrustes problems from random starts: at condition 1e4 at most 700 at (d, K) = (64, 10) and 1,900
    # at (128, 40). At 1e5, beyond which float32 gives no useful gradient, it would be 1,500 and 5,200.
    max_inner_iterations: int = 3000
    relative_tolerance: float | None = None  # 10 eps: rounding of U^T G alone leaves a gradient of 1 to 3 eps
    initial_radius: float = 0.125  # Absil, Baker and Gallivan (2007), section 5: an eighth of the largest
    max_radius: float = 1.0  # Absil, Baker and Gallivan (2007), section 5: the order of the manifold's diameter
    accept_ratio: float = 0.1  # Absil, Baker and Gallivan (2007), section 5
    forcing: float = 0.1  # Absil, Baker and Gallivan (2007), section 5
    superlinear: float = 1.0  # Absil, Baker and Gallivan (2007), section 5

    def __post_init__(self):
        for name in ("max_iterations", "max_inner_iterations", "relative_tolerance", "initial_radius", "max_radius"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        for name in ("max_iterations", "max_inner_iterations"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number; got {value!r}")
        if not self.initial_radius <= self.max_radius:
            raise ValueError(
                f"initial_radius must be at most max_radius = {self.max_radius}; got {self.initial_radius}"
            )
        if not 0 <= self.accept_ratio < 0.25:
            raise ValueError(f"accept_ratio must lie in [0, 0.25); got {self.accept_ratio}")
        if not 0 < self.forcing < 1:
            raise ValueError(f"forcing must lie in (0, 1); got {self.forcing}")
        if not self.superlinear >= 0:
            raise ValueError(f"superlinear must be at least 0; got {self.superlinear}")


class _State(NamedTuple):
    point: Array
    value: Array
    euclidean_gradient: Array
    gradient: Array
    grad_norm: Array
    scale: Array  # the largest Euclidean gradient norm met so far
    radius: Array
    iteration: Array
    inner_iterations: Array
    status: Array  # _RUNNING until a reason to stop is found


_RUNNING = -1
_ATTAINABLE = 10.0  # relative gradient norm, in eps, that is reached for every condition number
_ROUNDING = 8.0  # decreases below this many eps, times the scale of the cost, are rounding errors


def trust_region(
    manifold: Any,
    cost: Callable[..., Float[Array, ""]],
    init: Float[Array, "..."],
    *args: Any,
    gradient: Callable[..., Array] | None = None,
    hessian_vector: Callable[..., Array] | None = None,
    options: TrustRegionOptions = TrustRegionOptions(),
) -> Solution:
    r"""Minimise a smooth cost over a manifold.

    Each iteration minimises a second-order model in the tangent space over a ball, by truncated conjugate gradients. It
    then retracts the step and compares the actual decrease of the cost with the predicted decrease. Near the solution,
    the decrease is smaller than the rounding error of the cost; the decrease is then computed from the gradients. So
    the error of the point is about the precision of the dtype, instead of its square root.

    The result is not differentiable; `nc_jax.implicit` gives the derivatives of the minimiser.

    Args:
        manifold: object with `shape`, `inner`, `project`, `retract`, `gradient`, `hessian`, `dimension` and `diameter`,
            such as `nc_jax.manifolds.Stiefel`.
        cost: function (point, *args) -> scalar.
        init: starting point on the manifold, float32 or float64.
        *args: arrays (or trees of arrays) on which the cost depends.
        gradient: function (point, *args) -> Euclidean gradient; None differentiates the cost.
        hessian_vector: function (point, tangent, *args) -> Euclidean Hessian times tangent; None differentiates the
            gradient.
        options: settings of the trust region.

    Returns:
        The solution. Its status says how the solve ended; a numerical failure raises no error.

    Raises:
        ValueError: if `init` does not have the shape of the manifold.
        TypeError: if `init` is not float32 or float64.

    Example:
        >>> from nc_jax.manifolds import Stiefel
        >>> matrix = jnp.diag(jnp.arange(1.0, 5.0))
        >>> manifold = Stiefel(4, 1)
        >>> rayleigh = lambda point: jnp.vdot(point, matrix @ point)
        >>> found = trust_region(manifold, rayleigh, manifold.random_point(jax.random.key(0)))
        >>> round(float(found.value), 4), int(found.status)
        (1.0, 0)

    Reference: Absil, Baker and Gallivan, Trust-region methods on Riemannian manifolds (2007), algorithm 1.
    """
    init = jnp.asarray(init)
    if init.shape != manifold.shape:
        raise ValueError(f"init must have the manifold's shape {manifold.shape}; got {init.shape}")
    if not jnp.issubdtype(init.dtype, jnp.floating) or jnp.finfo(init.dtype).bits < 32:
        raise TypeError(f"init must be float32 or float64; got {init.dtype}")

    euclidean_gradient = jax.grad(cost) if gradient is None else gradient

    def euclidean_product(point: Array, tangent: Array) -> Array:
        if hessian_vector is not None:
            return hessian_vector(point, tangent, *args)
        return jax.jvp(lambda at: euclidean_gradient(at, *args), (point,), (tangent,))[1]

    eps = float(jnp.finfo(init.dtype).eps)
    tolerance = _ATTAINABLE * eps if options.relative_tolerance is None else options.relative_tolerance
    # In exact arithmetic, as many products as dimensions are enough; rounding loses conjugacy.
    max_inner = min(4 * manifold.dimension + 1, options.max_inner_iterations)
    max_radius = options.max_radius * manifold.diameter

    def evaluate(point: Array) -> tuple[Array, Array, Array, Array]:
        ambient = euclidean_gradient(point, *args)
        # Project twice: the first projection leaves a normal part of size eps |G|, which no tangent step can remove.
        tangent = manifold.project(point, manifold.gradient(point, ambient))
        return cost(point, *args), ambient, tangent, _length(manifold, point, tangent)

    def iterate(state: _State) -> _State:
        hessian = manifold.hessian(state.point, state.euclidean_gradient)
        # Solve the inner problem at unit scale, where squares neither overflow nor underflow.
        unit = jnp.where(state.scale > 0, state.scale, 1)
        relative = state.grad_norm / unit
        # The inner tolerance stays above a quarter of the outer tolerance, and above a quarter of what rounding allows.
        inner_tolerance = jnp.maximum(
            state.grad_norm * jnp.minimum(options.forcing, relative**options.superlinear),
            max(tolerance, _ATTAINABLE * eps) * state.scale / 4,
        )
        step = truncated_cg(
            lambda u, v: manifold.inner(state.point, u, v),
            lambda tangent: hessian(tangent, euclidean_product(state.point, tangent)) / unit,
            state.gradient / unit,
            state.radius,
            inner_tolerance / unit,
            jnp.minimum(max_inner, options.max_inner_iterations - state.inner_iterations),
        )
        candidate = manifold.retract(state.point, step.step)
        value, ambient, tangent, grad_norm = evaluate(candidate)

        predicted = -unit * manifold.inner(state.point, step.step, state.gradient / unit + step.hessian_step / 2)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        # A cost can be small because large terms cancel; the size of the gradient shows how large they are. If the
        # decrease is below their rounding error, the trapezoid rule on both gradients still gives it to many digits.
        noise = _ROUNDING * eps * (jnp.abs(state.value) + state.scale * manifold.diameter)
        in_noise = predicted <= noise
        trapezoid = -manifold.inner(state.point, step.step, state.gradient + tangent) / 2
        actual = jnp.where(in_noise, trapezoid, state.value - value)
        better = (actual > options.accept_ratio * predicted) & finite
        # Rounding has been reached if a full Newton step (which the inner limit has not cut off) does not halve the
        # gradient norm, although the step is so short that third derivatives of the cost do not matter.
        residual = state.gradient + unit * step.hessian_step
        full = _length(manifold, state.point, residual) <= jnp.maximum(
            options.forcing * state.grad_norm, inner_tolerance
        )
        short = state.scale * manifold.inner(state.point, step.step, step.step) < state.grad_norm / 4
        exhausted = in_noise & full & short & ~step.on_boundary & ~(grad_norm < state.grad_norm / 2)

        poor = ~finite | (actual < predicted / 4)
        good = (actual > 0.75 * predicted) & step.on_boundary
        radius = jnp.where(good, jnp.minimum(2 * state.radius, max_radius), state.radius)
        radius = jnp.where(poor, state.radius / 4, radius)

        def accepted(new: Array, old: Array) -> Array:
            return jnp.where(better, new, old)

        scale = accepted(jnp.maximum(state.scale, safe_norm(ambient).reshape(())), state.scale)
        grad_norm = accepted(grad_norm, state.grad_norm)
        iteration, inner_iterations = state.iteration + 1, state.inner_iterations + step.iterations
        limited = inner_iterations >= options.max_inner_iterations
        if options.max_iterations is not None:
            limited |= iteration >= options.max_iterations
        status = jnp.where(limited, Status.ITERATION_LIMIT, _RUNNING)
        status = jnp.where(radius < eps * manifold.diameter, Status.RADIUS_COLLAPSED, status)
        status = jnp.where(exhausted, Status.CONVERGED_TO_PRECISION, status)
        status = jnp.where(grad_norm <= tolerance * scale, Status.CONVERGED, status)
        return _State(
            point=accepted(candidate, state.point),
            value=accepted(value, state.value),
            euclidean_gradient=accepted(ambient, state.euclidean_gradient),
            gradient=accepted(tangent, state.gradient),
            grad_norm=grad_norm,
            scale=scale,
            radius=radius,
            iteration=iteration,
            inner_iterations=inner_iterations,
            status=status.astype(jnp.int32),
        )

    def leave_saddle(point: Array, ambient: Array, scale: Array) -> Array:
        """Move along a direction of negative curvature if the critical point has one; otherwise return the point.

        Conjugate gradients from a random right-hand side meet every eigenvalue of the Hessian, also a negative one.
        """
        apply = manifold.hessian(point, ambient)

        def hessian(tangent: Array) -> Array:
            return apply(tangent, euclidean_product(point, tangent)) / scale

        # The force is so small that no step along positive curvature leaves the trust region.
        force = eps * manifold.random_tangent(jax.random.key(0), point)
        radius = jnp.asarray(options.initial_radius * manifold.diameter, point.dtype)
        probe = truncated_cg(
            lambda u, v: manifold.inner(point, u, v),
            hessian,
            force,
            radius,
            jnp.asarray(eps**1.5, point.dtype),
            max_inner,
        )
        # Rounding at the end of the iteration can look like negative curvature, so test with the Hessian itself.
        curvature = manifold.inner(point, probe.step, hessian(probe.step))
        downhill = curvature < -(eps**0.5) * manifold.inner(point, probe.step, probe.step)
        return jnp.where(downhill, manifold.retract(point, probe.step), point)

    value, ambient, tangent, grad_norm = evaluate(init)
    scale = safe_norm(ambient).reshape(())

    def elsewhere() -> tuple[Array, ...]:
        point = leave_saddle(init, ambient, scale)
        return point, *evaluate(point)

    stationary = (grad_norm <= eps**0.5 * scale) & (scale > 0)
    here = (init, value, ambient, tangent, grad_norm)
    init, value, ambient, tangent, grad_norm = jax.lax.cond(stationary, elsewhere, lambda: here)
    scale = safe_norm(ambient).reshape(())
    status = jnp.where(grad_norm <= tolerance * scale, Status.CONVERGED, _RUNNING)
    status = jnp.where(jnp.isfinite(value) & jnp.isfinite(grad_norm), status, Status.NON_FINITE)
    zero = status_array(Status.CONVERGED) * 0
    start = _State(
        point=init,
        value=value,
        euclidean_gradient=ambient,
        gradient=tangent,
        grad_norm=grad_norm,
        scale=scale,
        radius=jnp.asarray(options.initial_radius * manifold.diameter, init.dtype),
        iteration=zero,
        inner_iterations=zero,
        status=status.astype(jnp.int32),
    )
    end = jax.lax.while_loop(lambda state: state.status == _RUNNING, iterate, start)
    return Solution(end.point, end.value, end.grad_norm, end.iteration, end.inner_iterations, end.status)


def _length(manifold: Any, point: Array, tangent: Array) -> Array:
    """Length of a tangent vector, computed so that its square neither overflows nor underflows."""
    largest = jnp.max(jnp.abs(tangent))
    scaled = tangent / jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(manifold.inner(point, scaled, scaled))
