"""The solve of the inner problem of `nc_jax.nearest`, whose arguments have been checked."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float

from nc_jax import implicit
from nc_jax.arrays import at_least_float32, matmul, normalized, safe_norm, transpose, unit_scale, wider
from nc_jax.discrepancies import squared_frobenius
from nc_jax.frames.template import Template
from nc_jax.manifolds import Stiefel
from nc_jax.manifolds.stiefel import orthogonal_factor
from nc_jax.solvers import (
    PolarDecomposition,
    Solution,
    Status,
    TrustRegionOptions,
    polar_decomposition,
    trust_region,
)

# (U T, H) -> one number per class, or a scalar if the discrepancy is not a sum over classes.
Discrepancy = Callable[[Float[Array, "dim classes"], Float[Array, "dim classes"]], Float[Array, "..."]]


class NearestFrame(NamedTuple):
    """A nearest frame, the rotation that takes the template to it, and how the solve ended.

    Attributes:
        frame: class vectors as columns, rotation @ template, shape (d, K). `nearest_simplex_etf` gives unit columns.
            Differentiable.
        rotation: U, shape (d, r), orthonormal columns. Differentiable.
        solution: value, gradient norm, iterations and status of the inner problem. Not differentiable.
    """

    frame: Float[Array, "dim classes"]
    rotation: Float[Array, "dim rank"]
    solution: Solution


export.register_namedtuple_serialization(NearestFrame, serialized_name="nc_jax.NearestFrame")  # for jax.export


@partial(jax.jit, static_argnames=("at_unit_norm", "solver", "cost", "options"))
def solve(
    means, template, prox_point, prox_weight, init, weights, *, at_unit_norm, solver, cost, options
) -> NearestFrame:
    """Solve the inner problem. The arguments are those of `nc_jax.nearest_frame`; see its docstring.

    With `at_unit_norm`, the means are first scaled to unit Frobenius norm, to which class k counts w_k times.
    """
    means = at_least_float32(means)
    dtype = means.dtype
    if template.dtype is not None:
        dtype = wider(dtype, template.dtype)
        template = template.astype(dtype)
    means = means.astype(dtype)
    if weights is not None:
        weights = weights.astype(dtype)
        # The mean of a class without examples may hold anything, even NaN.
        means = jnp.where(weights[None] > 0, means, 0)
    # H is `scaled` times `factor`.
    scale = unit_scale(means)
    scaled = means / scale
    factor = _inverse_norm(scaled, weights) if at_unit_norm else scale
    means = factor * scaled
    # Without a proximal point, the zero weight removes its term, and the zeros that stand for the point have no effect.
    weight = jnp.asarray(0 if prox_point is None else prox_weight, dtype)
    prox = jnp.zeros((means.shape[0], template.shape[0]), dtype) if prox_point is None else prox_point.astype(dtype)
    matrix, rounding = _procrustes_matrix(scaled, factor, template, prox, weight, weights)
    problem = (means, template, prox, weight, weights)

    if solver == "polar":
        rotation, decomposition, _ = implicit.polar_root()((prox_point if init is None else init, rounding), matrix)
        zero = jnp.zeros((), jnp.int32)
        iterations, inner_iterations, status = zero + decomposition.iterations, zero, zero + Status.CONVERGED
        unique = decomposition.unique
    else:
        start = _start(matrix, prox if init is None and prox_point is not None else init)
        if cost is None:
            rotation, decomposition, steps = _procrustes_root(options)((start, rounding), matrix)
            unique = decomposition.unique
        else:
            rotation, (unique, steps) = _general_root(cost, options)(start, *problem)
        iterations, inner_iterations, status = steps

    frame = template.rotate(rotation)
    point, aligned, matrix, *fixed = jax.lax.stop_gradient((rotation, frame, matrix, *problem))
    value = _objective_at(cost or squared_frobenius, point, aligned, *fixed)
    if cost is None:
        grad_norm = _procrustes_gradient_norm(point, matrix)
    else:
        ambient = jax.grad(partial(_objective, cost))(point, *fixed)
        grad_norm = safe_norm(Stiefel(*matrix.shape).gradient(point, ambient)).reshape(())
    status = jnp.where(unique | (status > Status.NOT_UNIQUE), status, Status.NOT_UNIQUE)
    finite = jnp.isfinite(value) & jnp.isfinite(jnp.sum(point))
    solution = Solution(
        point=point,
        value=value,
        grad_norm=grad_norm,
        iterations=iterations,
        inner_iterations=inner_iterations,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )
    return NearestFrame(frame, rotation, solution)


# The gradient of a Procrustes problem costs two products as large as the problem's own, and only its size is wanted. At
# more columns than _EXACT_COLUMNS, the size is that of its products with _PROBES random signs: off by 1 % for rounding
# errors, which spread over all directions, and by 20 % in the mean if all of the gradient is in one.
_EXACT_COLUMNS, _PROBES = 32, 16


def _procrustes_gradient_norm(point: Array, matrix: Array) -> Array:
    """Length of the Riemannian gradient of -<U, B>, which is that of the Frobenius objective."""
    rank = point.shape[1]
    if rank <= _EXACT_COLUMNS:
        return safe_norm(Stiefel(*point.shape).gradient(point, -matrix)).reshape(())
    signs = jax.random.rademacher(jax.random.key(0), (rank, _PROBES), point.dtype)
    pulled, turned = matmul(matrix, signs), matmul(point, signs)
    along = (matmul(transpose(point), pulled) + matmul(transpose(matrix), turned)) / 2
    return safe_norm(pulled - matmul(point, along)).reshape(()) / _PROBES**0.5


def _inverse_norm(means: Array, weights: Array | None) -> Array:
    """One over the norm of the means, of which class k counts w_k times. It is 0 for zeros, which get no gradient."""
    squares = jnp.sum(means**2 if weights is None else weights[None] * means**2)
    return jnp.where(squares == 0, 0, 1 / jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def _procrustes_matrix(
    means: Array, factor: Array, template: Template, prox: Array, weight: Array, weights: Array | None
) -> tuple[Array, Array]:
    """Return B for the class means `factor * means`, and how far rounding may have moved its singular values."""
    if weights is not None:
        means = means * weights[None]
    elif template.centred:
        # A template whose columns sum to zero does not see a common offset, so its rounding need not enter. The second
        # subtraction removes the rounding of the first mean.
        for _ in range(2):
            means = means - jnp.mean(means, axis=1, keepdims=True)
    correlation = factor * template.correlate(means)
    matrix = 2 * correlation + weight * prox
    # The entries of H T^T are sums of K products. The root mean square of the singular values of H and of T, each with
    # r of them, gives the size of the products as a singular value of B.
    norms = safe_norm(means).reshape(()) * safe_norm(template.column_norms()).reshape(())
    size = 2 * factor.reshape(()) * norms / template.shape[0] + weight
    eps = float(jnp.finfo(matrix.dtype).eps)
    return matrix, jax.lax.stop_gradient(max(means.shape) * eps * size)


def _objective(cost: Discrepancy, rotation, means, template, *rest) -> Array:
    return _objective_at(cost, rotation, template.rotate(rotation), means, template, *rest)


def _objective_at(cost: Discrepancy, rotation, aligned, means, template, prox, weight, weights) -> Array:
    del template
    discrepancy = cost(aligned, means)
    if weights is not None:
        if discrepancy.shape != weights.shape:
            raise ValueError(f"a cost to be weighted must return shape {weights.shape}; got {discrepancy.shape}")
        discrepancy = jnp.where(weights > 0, weights * discrepancy, 0)
    return jnp.sum(discrepancy) + weight / 2 * jnp.sum((rotation - prox) ** 2)


# `_procrustes_root` solves in the span of the start and B if d >= _COMPRESS * r. On two EPYC cores this took 0.23
# instead of 0.42 ms at (d, r) = (512, 9) and 151 instead of 242 ms at (2048, 299). At (512, 99) it took 15.8 instead of
# 14.7 ms, because LAPACK's QR costs more than the smaller problem saves.
_COMPRESS = 6


def _procrustes_root(options: TrustRegionOptions) -> Callable:
    """Trust region on -<U, B> with the closed-form gradient -B and Hessian 0, differentiated in closed form.

    If it does not converge, for instance because B is too badly conditioned for the limit on Hessian products, the
    solution is the polar factor. Only a given limit on the iterations is final.
    """

    def solve(known: tuple[Array, Array], matrix: Array) -> tuple[Array, PolarDecomposition, tuple]:
        init, rounding = known
        # The solver gets a matrix of unit norm, so its arithmetic neither overflows nor underflows at any scale of B.
        scaled, _ = normalized(matrix)
        basis = None
        if matrix.shape[0] >= _COMPRESS * matrix.shape[1]:
            # Every step combines columns of B and of the iterate. So all iterates lie in the span of B and the start;
            # in a basis of that span, the problem has 2 r rows.
            basis, _ = jnp.linalg.qr(jnp.concatenate([init, scaled], axis=1))
            init, scaled = matmul(transpose(basis), init), matmul(transpose(basis), scaled)
        found = trust_region(
            Stiefel(*scaled.shape),
            lambda point, scaled: -jnp.vdot(point, scaled, precision="highest"),
            init,
            scaled,
            gradient=lambda point, scaled: -scaled,
            hessian_vector=lambda point, tangent, scaled: jnp.zeros_like(tangent),
            options=options,
        )
        status, point = found.status, found.point
        unfinished = (status > Status.CONVERGED_TO_PRECISION) & (status != Status.NON_FINITE)
        if options.max_iterations is not None:
            unfinished &= found.iterations < options.max_iterations
        point = jax.lax.cond(unfinished, lambda: polar_decomposition(scaled).factor, lambda: point)
        status = jnp.where(unfinished, Status.CONVERGED, status)
        point = point if basis is None else matmul(basis, point)
        decomposition = implicit.decompose_at(point, matrix, rounding)
        return point, decomposition, (found.iterations, found.inner_iterations, status)

    return implicit.procrustes_root(solve)


def _general_root(cost: Discrepancy, options: TrustRegionOptions) -> Callable:
    """Trust region on any discrepancy: autodiff for its derivatives, conjugate gradients for those of the solution."""
    objective = partial(_objective, cost)
    gradient = jax.grad(objective)
    stationarity = implicit.stiefel_stationarity(gradient)

    def solve(init: Array, *problem: Any) -> tuple[Array, tuple]:
        found = trust_region(Stiefel(*init.shape), objective, init, *problem, options=options)
        strict = implicit.is_strict_minimum(gradient, found.point, *problem)
        return found.point, (strict, (found.iterations, found.inner_iterations, found.status))

    prepare = implicit.conjugate_gradient_solver(gradient)

    def linear_solver(point: Array, aux: Any, *problem: Any) -> implicit.Solve:
        strict, _ = aux
        return prepare(point, strict, *problem)

    return implicit.implicit_root(solve, stationarity, linear_solver)


_ORTHONORMAL = 30  # distance from the manifold, in eps times sqrt(r), that a solution has at most


def _start(matrix: Array, init: Array | None) -> Array:
    """Return a start on the manifold; for r = d, in the component that holds the polar factor of B."""
    matrix = jax.lax.stop_gradient(matrix)
    if init is None:
        return orthogonal_factor(matrix)  # R has a positive diagonal, so for r = d it is in the component of B
    given = jax.lax.stop_gradient(init).astype(matrix.dtype)
    # If B draws to the proximal point, the start is the solution. So it must not be a rotation of a narrower dtype, or
    # no rotation at all.
    rounding = _ORTHONORMAL * float(jnp.finfo(given.dtype).eps) * given.shape[1] ** 0.5
    off = Stiefel(*given.shape).distance_from(given) > rounding
    start: Array = jax.lax.cond(off, orthogonal_factor, lambda given: given, given)
    if matrix.shape[0] != matrix.shape[1]:
        return start
    same = jnp.linalg.slogdet(matrix).sign * jnp.linalg.slogdet(start).sign >= 0
    return start.at[:, -1].multiply(jnp.where(same, 1, -1).astype(matrix.dtype))
