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

from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float

from nc_jax import inner_problem
from nc_jax.arrays import at_least_float32, transpose
from nc_jax.checks import is_traced, real_array
from nc_jax.closures import check_holds_nothing_traced
from nc_jax.frames.simplex import SimplexTemplate, check_room_for_simplex, simplex_template
from nc_jax.frames.template import DenseTemplate, Template, as_template
from nc_jax.inner_problem import Discrepancy, NearestFrame
from nc_jax.solvers import TrustRegionOptions

PROX_WEIGHT = 1e-3  # delta in Markou et al. (2024), released setting


def nearest_frame(
    means: Float[Array, "dim classes"],
    template: Float[Array, "rank classes"] | Template,
    *,
    prox_point: Float[Array, "dim rank"] | None = None,
    prox_weight: float | Float[Array, ""] = PROX_WEIGHT,
    solver: Literal["trust_region", "polar"] = "trust_region",
    init: Float[Array, "dim rank"] | None = None,
    cost: Discrepancy | None = None,
    weights: Float[Array, " classes"] | None = None,
    options: TrustRegionOptions = TrustRegionOptions(),
) -> NearestFrame:
    r"""Rotate a template to where it is nearest to the class means.

    Minimises ||H - U T||_F^2 + delta/2 ||U - P||_F^2 over rotations U, which are matrices with orthonormal columns. H
    are the class means, T is the template, P the proximal point and delta the proximal weight. H and T are neither
    centred nor scaled. A common offset of the means costs no digits if the columns of the template sum to zero and
    there are neither cost nor weights: it is then subtracted where it has no effect. Without a `prox_point` the second
    term is absent; with `weights` the first term is a weighted sum over the columns. The result is differentiable in
    the means, the template, the proximal point, the proximal weight and the weights: in forward and reverse mode and to
    any order, by the implicit function theorem.

    Args:
        means: class means H as columns, shape (d, K); transpose a matrix that has a class in each row. bfloat16 and
            float16 are solved in float32.
        template: T, shape (r, K) with r <= d: a matrix or a `nc_jax.frames.Template`, such as `SimplexTemplate`, whose
            products are cheap. If H T^T has rank below r up to the rounding of H and T, and there is no proximal point,
            the rotation is not unique: one of the solutions is returned, with status NOT_UNIQUE. An offset of the means
            whose rounding is larger than their spread has the same effect if the columns of T do not sum to zero.
        prox_point: proximal point P, shape (d, r). A training loop passes the rotation that its previous step found.
            None: no proximal term.
        prox_weight: delta >= 0, how strongly the rotation is pulled towards the proximal point.
        solver: "trust_region", an iteration that serves every cost, or "polar", the closed form, which serves only the
            squared Frobenius norm and is quicker. For that norm, the closed form also finishes what the trust region
            cannot within `options.max_inner_iterations`, for instance at condition numbers above 1e5.
        init: rotation from which the solver starts, shape (d, r), with orthonormal columns. None: the proximal point;
            without one, the trust region starts from the orthogonal factor (QR) of B = 2 H T^T + delta P. A start near
            the solution saves time (for the closed form on accelerators only). For r = d the manifold has two
            components; if the start is not in the solution's component, the last column of the start is negated.
        cost: discrepancy (U T, H) -> (K,) or a scalar, which replaces the squared distances of the classes, for
            instance `nc_jax.discrepancies.huber`. None: the squared Frobenius norm. The function must not close over
            traced values, such as those that are to be differentiated or batched. JAX compiles once for each function
            object, so define the function once: a lambda in a loop compiles (for seconds) at every call.
        weights: w, shape (K,), non-negative: class k counts w_k times. w_k = 0 leaves class k out, whatever its mean is
            (even NaN). None counts each class once.
        options: settings of the trust region; the closed form ignores them.

    Returns:
        The frame, the rotation and the solution. `solution.value` is the objective above, `solution.grad_norm` the
        length of its Riemannian gradient, and `nc_jax.solvers.describe(solution.status)` says how the solve ended. For
        templates of more than 32 rows and without a cost, the length is estimated in 16 random directions.

    Raises:
        ValueError: if the shapes do not fit, r > d, prox_weight or a weight is negative, an array does not consist of
            real numbers, the solver is unknown, `solver="polar"` comes with a cost, a cost closes over a traced value,
            or weights come with a cost that does not return shape (K,).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nc_jax.frames import simplex_etf, simplex_template
        >>> means = 2 * simplex_etf(4, 8, key=jax.random.key(0))
        >>> found = nearest_frame(means, simplex_template(4), solver="polar")
        >>> bool(jnp.allclose(found.frame / jnp.linalg.norm(found.frame, axis=0), means / 2, atol=1e-5))
        True

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    return _solve(
        means,
        template,
        at_unit_norm=False,
        prox_point=prox_point,
        prox_weight=prox_weight,
        solver=solver,
        init=init,
        cost=cost,
        weights=weights,
        options=options,
    )


def nearest_simplex_etf(
    means: Float[Array, "dim classes"],
    *,
    prox_point: Float[Array, "dim rank"] | None = None,
    prox_weight: float | Float[Array, ""] = PROX_WEIGHT,
    solver: Literal["trust_region", "polar"] = "trust_region",
    init: Float[Array, "dim rank"] | None = None,
    reduced: bool = True,
    rows: bool = False,
    cost: Discrepancy | None = None,
    weights: Float[Array, " classes"] | None = None,
    options: TrustRegionOptions = TrustRegionOptions(),
) -> NearestFrame:
    r"""Find the simplex equiangular tight frame (ETF) that is nearest to the class means.

    Means and template are scaled to unit Frobenius norm before `nearest_frame` compares them. So the result does not
    depend on the scale of the features, and `prox_weight` has the same effect for every number of classes.

    Subtract the mean of the class means before you call this. An offset does not change the direction of the result
    (without cost and weights), but it counts in the norm, so it makes `prox_weight` act more strongly.

    The gradient is proportional to 1 / ||H||. Where that leaves the range of the dtype, it overflows to infinity or
    underflows to zero: in float32 for norms below about 1e-38 and above about 1e34. Means that consist of subnormal
    numbers count as zero.

    Args:
        means: class means H as columns, shape (d, K) with d >= K - 1 (d >= K for the full template). Nothing can tell
            whether a matrix of K rows, as PyTorch programs have it, fits by accident: transpose it, or say `rows=True`.
        prox_point: proximal point P, shape (d, K - 1), or (d, K) for the full template. A training loop passes the
            rotation that its previous step found. None: no proximal term.
        prox_weight: delta >= 0, how strongly the rotation is pulled towards the proximal point.
        solver: "trust_region", an iteration that serves every cost, or "polar", the closed form, which serves only the
            squared Frobenius norm and is quicker.
        init: rotation from which the solver starts, shape (d, K - 1), or (d, K) for the full template; see
            `nearest_frame`. None: the proximal point, or without one a start made from the means.
        reduced: True uses the template with K - 1 rows, whose rotation is unique if the centred means have rank K - 1.
            False uses the paper's (K, K) template I - 11^T / K.
        rows: the means have a class in each row, shape (K, d). The result has columns all the same.
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
        >>> import jax, jax.numpy as jnp
        >>> means = jax.random.normal(jax.random.key(0), (16, 5))
        >>> found = nearest_simplex_etf(means)
        >>> gram = found.frame.T @ found.frame
        >>> bool(jnp.allclose(gram, jnp.eye(5) * 1.25 - 0.25, atol=1e-5)), int(found.solution.status)
        (True, 0)

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    means = at_least_float32(real_array(means, "means"))
    if means.ndim != 2:
        raise ValueError(f"means must have shape (dim, classes); got shape {means.shape}")
    if rows:
        means = transpose(means)
    dim, num_classes = means.shape
    if 2 <= dim < num_classes - 1:
        raise ValueError(
            f"class means are columns, and a simplex ETF of {num_classes} classes needs dim >= {num_classes - 1}; "
            f"got dim={dim}: if each row is a class mean, transpose the means"
        )
    check_room_for_simplex(num_classes, dim)
    template: Any = SimplexTemplate.of_unit_columns(num_classes)
    if not reduced:
        full = template.scale * simplex_template(num_classes, reduced=False, dtype=means.dtype)
        template = DenseTemplate(full, centred=True)
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
    **options: Any,
) -> NearestFrame:
    r"""Rotate a template to where it is nearest to the class means, both scaled to unit Frobenius norm.

    The result does not depend on the scale of the means, and `prox_weight` has the same effect for every template.

    Args:
        means: class means H as columns, shape (d, K); transpose a matrix that has a class in each row. If all are zero,
            they do not influence the rotation and get no gradient.
        template: T, shape (r, K) with r <= d: a matrix or a `nc_jax.frames.Template`.
        options: the other arguments of `nearest_frame`, by name. With weights w, the norm counts class k w_k times.

    Returns:
        The frame, whose class vectors have the same lengths as in the template, the rotation, and the solution of the
        problem at unit norms.

    Raises:
        ValueError: if the means are not a matrix, the weights do not have shape (K,), or `nearest_frame` raises one.

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    unit, size = as_template(template).unit()
    found = _solve(means, unit, at_unit_norm=True, **options)
    return found._replace(frame=found.frame * size)


def _solve(
    means: Any,
    template: Any,
    *,
    at_unit_norm: bool,
    prox_point: Any = None,
    prox_weight: Any = PROX_WEIGHT,
    solver: str = "trust_region",
    init: Any = None,
    cost: Discrepancy | None = None,
    weights: Any = None,
    options: TrustRegionOptions = TrustRegionOptions(),
) -> NearestFrame:
    """Check the arguments of `nearest_frame` and solve; at_unit_norm says whether to scale the means first."""
    means, template = real_array(means, "means"), as_template(template)
    prox_point, prox_weight, init, weights = (
        None if value is None else real_array(value, name)
        for name, value in (
            ("prox_point", prox_point),
            ("prox_weight", prox_weight),
            ("init", init),
            ("weights", weights),
        )
    )
    _check_shapes(means, template, prox_point, init, weights)
    if solver not in ("trust_region", "polar"):
        raise ValueError(f'solver must be "trust_region" or "polar"; got {solver!r}')
    # Known values are compared in NumPy: inside jit, the comparison of a known JAX array would be traced.
    if prox_weight.shape != () or not (is_traced(prox_weight) or np.asarray(prox_weight) >= 0):
        raise ValueError(f"prox_weight must be one number, at least 0; got {prox_weight}")
    if weights is not None and not is_traced(weights) and not np.all(np.asarray(weights) >= 0):
        raise ValueError(f"weights must be at least 0; got {np.min(np.asarray(weights))}")
    if not isinstance(options, TrustRegionOptions):
        raise ValueError(f"options must be a TrustRegionOptions; got {type(options).__name__}")
    _check_cost(cost, solver)
    how = {"at_unit_norm": at_unit_norm, "solver": solver, "cost": cost, "options": options}
    return inner_problem.solve(means, template, prox_point, prox_weight, init, weights, **how)


def _check_cost(cost: Any, solver: str) -> None:
    if cost is None:
        return
    if solver == "polar":
        raise ValueError(
            'solver="polar" is the closed form for the Frobenius cost; give a cost to solver="trust_region"'
        )
    if not callable(cost):
        raise ValueError(f"a cost must be a function of (aligned, means); got {cost!r}")
    check_holds_nothing_traced("a cost", cost)


def _check_shapes(
    means: Array, template: Template, prox_point: Array | None, init: Array | None, weights: Array | None
) -> None:
    if means.ndim != 2 or means.shape[1] != template.shape[1]:
        remedy = ": transpose the means" if means.ndim == 2 and means.shape[0] == template.shape[1] else ""
        raise ValueError(
            "means (dim, classes) and template (rank, classes) need the same classes; "
            f"got {means.shape} and {template.shape}{remedy}"
        )
    dim, rank = means.shape[0], template.shape[0]
    if rank > dim:
        raise ValueError(f"a template of {rank} rows needs means with dim >= {rank}; got dim={dim}")
    for name, array in (("prox_point", prox_point), ("init", init)):
        if array is not None and array.shape != (dim, rank):
            raise ValueError(f"{name} must have shape (dim, rank) = {(dim, rank)}; got {array.shape}")
    if weights is not None and weights.shape != means.shape[1:]:
        raise ValueError(f"weights must have shape (classes,) = {means.shape[1:]}; got {weights.shape}")
