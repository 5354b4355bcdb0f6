r"""The frame nearest to given class means: the inner problem of Guiding Neural Collapse.

A template T holds class vectors in its own r coordinates; a rotation U takes them into the d-dimensional feature space.
Given class means H (d, K), a template T (r, K), a proximal point P (d, r; usually the previous rotation) and a
proximal weight delta, find

.. math:: U^* = \arg\min_{U^\top U = I} \|H - U T\|_F^2 + \tfrac{\delta}{2} \|U - P\|_F^2, \qquad \text{frame} = U^* T.

For orthonormal U, the norms of U and of U T are constant. The problem therefore maximises <U, B> with
B = 2 H T^T + delta P. This is an orthogonal Procrustes problem, and its solution is the polar factor of B. The trust
region reaches the same point by iteration; it can also minimise every other discrepancy between H and U T.

Reference: Markou, Ajanthan and Gould, Guiding Neural Collapse: Optimising Towards the Nearest Simplex Equiangular Tight
Frame (NeurIPS 2024), section 3.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax import implicit
from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.discrepancies import squared_frobenius
from nc_jax.frames.simplex import SimplexTemplate, check_room_for_simplex, simplex_template
from nc_jax.frames.template import Template, as_template
from nc_jax.manifolds import Stiefel
from nc_jax.manifolds.stiefel import orthogonal_factor
from nc_jax.solvers import Solution, Status, TrustRegionOptions, trust_region

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


def nearest_frame(
    means: Float[Array, "dim classes"],
    template: Float[Array, "rank classes"] | Template,
    *,
    prox_point: Float[Array, "dim rank"] | None = None,
    prox_weight: float | Float[Array, ""] = 1e-3,  # delta in Markou et al. (2024), released setting
    solver: Literal["trust_region", "polar"] = "trust_region",
    init: Float[Array, "dim rank"] | None = None,
    cost: Discrepancy | None = None,
    weights: Float[Array, " classes"] | None = None,
    options: TrustRegionOptions = TrustRegionOptions(),
) -> NearestFrame:
    r"""Rotate a template to where it is nearest to the class means.

    Minimises ||H - U T||_F^2 + delta/2 ||U - P||_F^2 over rotations U, which are matrices with orthonormal columns.
    H are the class means, T is the template, P the proximal point and delta the proximal weight. H and T are neither
    centred nor scaled. Without a `prox_point` the second term is absent; with `weights` the first term is a weighted
    sum over the columns. The result is differentiable in the means, the template, the proximal point, the proximal
    weight and the weights: in forward and reverse mode and to any order, by the implicit function theorem.

    Args:
        means: class means H as columns, shape (d, K). bfloat16 and float16 are solved in float32.
        template: T, shape (r, K) with r <= d: a matrix or a `nc_jax.frames.Template`, such as `SimplexTemplate`, whose
            products are cheap. If H T^T has rank below r and there is no proximal point, the rotation is not unique:
            one of the solutions is returned, with status NOT_UNIQUE.
        prox_point: proximal point P, shape (d, r). A training loop passes the rotation that its previous step found.
            None: no proximal term.
        prox_weight: delta >= 0, how strongly the rotation is pulled towards the proximal point.
        solver: "trust_region", an iteration that serves every cost, or "polar", the closed form, which serves only the
            squared Frobenius norm and is quicker.
        init: rotation from which the solver starts, shape (d, r), with orthonormal columns. None: the proximal point;
            without one, the trust region starts from the orthogonal factor (QR) of B = 2 H T^T + delta P. A start near
            the solution saves time (for the closed form on accelerators only). For r = d the manifold has two
            components; if the start is not in the solution's component, the last column of the start is negated.
        cost: discrepancy (U T, H) -> (K,) or a scalar, which replaces the squared distances of the classes, for
            instance `nc_jax.discrepancies.huber`. None: the squared Frobenius norm. The function must not close over
            values that are to be differentiated or batched.
        weights: w, shape (K,), non-negative: class k counts w_k times. w_k = 0 leaves class k out, whatever its mean is
            (even NaN). None counts each class once.
        options: settings of the trust region; the closed form ignores them.

    Returns:
        The frame, the rotation and the solution. `solution.value` is the objective above, `solution.grad_norm` the
        length of its Riemannian gradient, and `nc_jax.solvers.describe(solution.status)` says how the solve ended.

    Raises:
        ValueError: if the shapes do not fit, r > d, prox_weight < 0, the solver is unknown, `solver="polar"` comes with
            a cost, or weights come with a cost that does not return shape (K,).

    Example:
        >>> from nc_jax.frames import simplex_etf, simplex_template
        >>> means = 2 * simplex_etf(4, 8, key=jax.random.key(0))
        >>> found = nearest_frame(means, simplex_template(4), solver="polar")
        >>> bool(jnp.allclose(found.frame / jnp.linalg.norm(found.frame, axis=0), means / 2, atol=1e-5))
        True

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    means, template = jnp.asarray(means), as_template(template)
    _check_shapes(means, template, prox_point, init, weights)
    if solver not in ("trust_region", "polar"):
        raise ValueError(f'solver must be "trust_region" or "polar"; got {solver!r}')
    if isinstance(prox_weight, int | float) and not prox_weight >= 0:
        raise ValueError(f"prox_weight must be at least 0; got {prox_weight}")
    if cost is not None and solver == "polar":
        raise ValueError(
            'solver="polar" is the closed form for the Frobenius cost; give a cost to solver="trust_region"'
        )
    return _nearest_frame(
        means, template, prox_point, prox_weight, init, weights, solver=solver, cost=cost, options=options
    )


def nearest_simplex_etf(
    means: Float[Array, "dim classes"],
    *,
    prox_point: Float[Array, "dim rank"] | None = None,
    prox_weight: float | Float[Array, ""] = 1e-3,  # delta in Markou et al. (2024), released setting
    solver: Literal["trust_region", "polar"] = "trust_region",
    init: Float[Array, "dim rank"] | None = None,
    reduced: bool = True,
    cost: Discrepancy | None = None,
    weights: Float[Array, " classes"] | None = None,
    options: TrustRegionOptions = TrustRegionOptions(),
) -> NearestFrame:
    r"""Find the simplex equiangular tight frame (ETF) that is nearest to the class means.

    Means and template are scaled to unit Frobenius norm before `nearest_frame` compares them. So the result does not
    depend on the scale of the features, and `prox_weight` has the same effect for every number of classes.

    Subtract the mean of the class means before you call this. An offset does not change the direction of the result,
    but it makes `prox_weight` act more strongly.

    Args:
        means: class means H as columns, shape (d, K) with d >= K - 1 (d >= K for the full template). Transpose a
            PyTorch array of shape (K, d).
        prox_point: proximal point P, shape (d, K - 1), or (d, K) for the full template. A training loop passes the
            rotation that its previous step found. None: no proximal term.
        prox_weight: delta >= 0, how strongly the rotation is pulled towards the proximal point.
        solver: "trust_region", an iteration that serves every cost, or "polar", the closed form, which serves only the
            squared Frobenius norm and is quicker.
        init: rotation from which the solver starts, shape (d, K - 1), or (d, K) for the full template; see
            `nearest_frame`. None: the proximal point, or without one a start made from the means.
        reduced: True uses the template with K - 1 rows, whose rotation is unique if the centred means have rank K - 1.
            False uses the paper's (K, K) template I - 11^T / K.
        cost: discrepancy between the frame and the means, both at unit norm; see `nearest_frame`. None: the squared
            Frobenius norm.
        weights: w, shape (K,), non-negative: class k counts w_k times; see `nearest_frame`. The weighted means are then
            scaled to unit norm. None counts each class once.
        options: settings of the trust region; the closed form ignores them.

    Returns:
        The frame with unit columns, the rotation, and the solution of the problem at unit norms.

    Raises:
        ValueError: if d < K - 1 (d < K for the full template), K < 2, or `nearest_frame` raises one.

    Example:
        >>> means = jax.random.normal(jax.random.key(0), (16, 5))
        >>> found = nearest_simplex_etf(means)
        >>> gram = found.frame.T @ found.frame
        >>> bool(jnp.allclose(gram, jnp.eye(5) * 1.25 - 0.25, atol=1e-5)), int(found.solution.status)
        (True, 0)

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    means = at_least_float32(means)
    if means.ndim != 2:
        raise ValueError(f"means must have shape (dim, classes); got shape {means.shape}")
    dim, num_classes = means.shape
    check_room_for_simplex(num_classes, dim)
    template: Any = SimplexTemplate.of_unit_columns(num_classes)
    if not reduced:
        template = template.scale * simplex_template(num_classes, reduced=False, dtype=means.dtype)
    return nearest_at_unit_norm(
        means,
        template,
        prox_point=prox_point,
        prox_weight=prox_weight,
        solver=solver,
        init=init,
        cost=cost,
        weights=weights,
        options=options,
    )


def nearest_at_unit_norm(
    means: Float[Array, "dim classes"],
    template: Float[Array, "rank classes"] | Template,
    *,
    weights: Float[Array, " classes"] | None = None,
    **options: Any,
) -> NearestFrame:
    r"""Rotate a template to where it is nearest to the class means, both scaled to unit Frobenius norm.

    The result does not depend on the scale of the means, and `prox_weight` has the same effect for every template.

    Args:
        means: class means H as columns, shape (d, K). If all are zero, they do not influence the rotation.
        template: T, shape (r, K) with r <= d: a matrix or a `nc_jax.frames.Template`.
        weights: w, shape (K,), non-negative: class k counts w_k times; see `nearest_frame`. The weighted means are then
            scaled to unit norm. None counts each class once.
        options: the other arguments of `nearest_frame`, by name.

    Returns:
        The frame, whose class vectors have the same lengths as in the template, the rotation, and the solution of the
        problem at unit norms.

    Raises:
        ValueError: if the means are not a matrix, the weights do not have shape (K,), or `nearest_frame` raises one.

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    means = at_least_float32(means)
    if means.ndim != 2:
        raise ValueError(f"means must have shape (dim, classes); got shape {means.shape}")
    if weights is not None and weights.shape != means.shape[1:]:
        raise ValueError(f"weights must have shape (classes,) = ({means.shape[1]},); got {weights.shape}")
    if weights is not None:
        means = _counted(means, weights)
    norm = safe_norm(means if weights is None else means * jnp.sqrt(jnp.maximum(weights, 0)))
    unit, size = as_template(template).unit()
    found = nearest_frame(means / jnp.where(norm > 0, norm, 1), unit, weights=weights, **options)
    return found._replace(frame=found.frame * size)


@partial(jax.jit, static_argnames=("solver", "cost", "options"))
def _nearest_frame(means, template, prox_point, prox_weight, init, weights, *, solver, cost, options) -> NearestFrame:
    means = at_least_float32(means)
    dtype = means.dtype
    if template.dtype is not None:
        dtype = jnp.promote_types(dtype, template.dtype)
        template = template.astype(dtype)
    means = means.astype(dtype)
    if weights is not None:
        weights = weights.astype(dtype)
        means = _counted(means, weights)
    # Without a proximal point, the zero weight removes its term, and the zeros that stand for the point have no effect.
    weight = jnp.asarray(0 if prox_point is None else prox_weight, dtype)
    prox = jnp.zeros((means.shape[0], template.shape[0]), dtype) if prox_point is None else prox_point.astype(dtype)
    weighted = means if weights is None else means * weights
    matrix = 2 * template.correlate(weighted) + weight * prox
    problem = (means, template, prox, weight, weights)

    if solver == "polar":
        rotation, decomposition = implicit.polar_root()(prox_point if init is None else init, matrix)
        zero = jnp.zeros((), jnp.int32)
        iterations, inner_iterations, status = zero + decomposition.iterations, zero, zero + Status.CONVERGED
        unique = decomposition.unique
    else:
        start = _start(matrix, prox if init is None and prox_point is not None else init)
        if cost is None:
            rotation, (decomposition, steps) = _procrustes_root(options)(start, matrix)
            unique = decomposition.unique
        else:
            rotation, (unique, steps) = _general_root(cost, options)(start, *problem)
        iterations, inner_iterations, status = steps

    frame = template.rotate(rotation)
    point, aligned, matrix, *fixed = jax.lax.stop_gradient((rotation, frame, matrix, *problem))
    value = _objective_at(cost or squared_frobenius, point, aligned, *fixed)
    # -B is the gradient of the Frobenius objective, up to a part normal to the manifold, which `gradient` projects out.
    euclidean_gradient = -matrix if cost is None else jax.grad(partial(_objective, cost))(point, *fixed)
    status = jnp.where(unique | (status > Status.NOT_UNIQUE), status, Status.NOT_UNIQUE)
    finite = jnp.isfinite(value) & jnp.isfinite(jnp.sum(point))
    solution = Solution(
        point=point,
        value=value,
        grad_norm=safe_norm(Stiefel(*matrix.shape).gradient(point, euclidean_gradient)).reshape(()),
        iterations=iterations,
        inner_iterations=inner_iterations,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )
    return NearestFrame(frame, rotation, solution)


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


def _counted(means: Array, weights: Array) -> Array:
    """Set the means of zero weight to zero: the mean of a class without examples may hold anything, even NaN."""
    return jnp.where(weights > 0, means, 0)


# `_procrustes_root` solves in the span of the start and B if d >= _COMPRESS * r. On two EPYC cores this took 0.23
# instead of 0.42 ms at (d, r) = (512, 9) and 151 instead of 242 ms at (2048, 299). At (512, 99) it took 15.8 instead of
# 14.7 ms, because LAPACK's QR costs more than the smaller problem saves.
_COMPRESS = 6


def _procrustes_root(options: TrustRegionOptions) -> Callable:
    """Trust region on -<U, B> with the closed-form gradient -B and Hessian 0, differentiated in closed form."""

    def solve(init: Array, matrix: Array) -> tuple[Array, tuple]:
        # The solver gets a matrix of unit norm, so its arithmetic neither overflows nor underflows at any scale of B.
        norm = safe_norm(matrix)
        scaled = matrix / jnp.where(norm > 0, norm, 1)
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
        point = found.point if basis is None else matmul(basis, found.point)
        decomposition = implicit.decompose_at(found.point, norm * scaled)._replace(factor=point)
        return point, (decomposition, (found.iterations, found.inner_iterations, found.status))

    def linear_solver(point: Array, aux: Any, matrix: Array) -> implicit.Solve:
        decomposition, _ = aux
        return implicit.procrustes_solver(point, decomposition, matrix)

    return implicit.implicit_root(solve, implicit.procrustes_stationarity, linear_solver)


def _general_root(cost: Discrepancy, options: TrustRegionOptions) -> Callable:
    """Trust region on any discrepancy: autodiff for its derivatives, conjugate gradients for those of the solution."""
    objective = partial(_objective, cost)
    gradient = jax.grad(objective)
    stationarity = implicit.stiefel_stationarity(gradient)

    def solve(init: Array, *problem: Any) -> tuple[Array, tuple]:
        found = trust_region(Stiefel(*init.shape), objective, init, *problem, options=options)
        strict = implicit.is_strict_minimum(stationarity, found.point, *problem)
        return found.point, (strict, (found.iterations, found.inner_iterations, found.status))

    prepare = implicit.conjugate_gradient_solver(gradient)

    def linear_solver(point: Array, aux: Any, *problem: Any) -> implicit.Solve:
        strict, _ = aux
        return prepare(point, strict, *problem)

    return implicit.implicit_root(solve, stationarity, linear_solver)


def _start(matrix: Array, init: Array | None) -> Array:
    """Return where the trust region starts; for r = d, a point in the component that holds the polar factor of B."""
    matrix = jax.lax.stop_gradient(matrix)
    if init is None:
        return orthogonal_factor(matrix)  # R has a positive diagonal, so for r = d it is in the component of B
    init = jax.lax.stop_gradient(init).astype(matrix.dtype)
    if matrix.shape[0] != matrix.shape[1]:
        return init
    same = jnp.linalg.slogdet(matrix).sign * jnp.linalg.slogdet(init).sign >= 0
    return init.at[:, -1].multiply(jnp.where(same, 1, -1).astype(matrix.dtype))


def _check_shapes(
    means: Array, template: Template, prox_point: Array | None, init: Array | None, weights: Array | None
) -> None:
    if means.ndim != 2 or means.shape[1] != template.shape[1]:
        raise ValueError(
            "means (dim, classes) and template (rank, classes) need the same classes; "
            f"got {means.shape} and {template.shape}"
        )
    dim, rank = means.shape[0], template.shape[0]
    if rank > dim:
        raise ValueError(f"a template of {rank} rows needs means with dim >= {rank}; got dim={dim}")
    for name, array in (("prox_point", prox_point), ("init", init)):
        if array is not None and array.shape != (dim, rank):
            raise ValueError(f"{name} must have shape (dim, rank) = {(dim, rank)}; got {array.shape}")
    if weights is not None and weights.shape != means.shape[1:]:
        raise ValueError(f"weights must have shape (classes,) = {means.shape[1:]}; got {weights.shape}")
