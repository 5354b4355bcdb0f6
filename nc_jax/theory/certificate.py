r"""Is this critical point a global minimum, and if not, which way down?

The objective is the factored form of a convex one: the mean loss of the logits, plus :math:`\sqrt{\lambda_W\lambda_H}`
times their nuclear norm, plus the penalty on the bias.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import matmul, transpose
from nc_jax.theory.objective import data_loss, logit_gradient, logits, objective
from nc_jax.theory.problem import Point, UnconstrainedFeatures


class Certificate(NamedTuple):
    """What decides whether a point is a global minimum.

    Attributes:
        spectral_norm: largest singular value of the gradient in the logits.
        threshold: the root of the product of the two decays, which it must not exceed.
        grad_norm: of the objective, in coordinates that make the two decays equal, over the larger of 1 and the size
            of the point, and over the threshold. Zero at a critical point.
        is_critical: grad_norm <= tolerance.
        is_global: is_critical, and spectral_norm <= threshold (1 + tolerance).
    """

    spectral_norm: Float[Array, ""]
    threshold: Float[Array, ""]
    grad_norm: Float[Array, ""]
    is_critical: Bool[Array, ""]
    is_global: Bool[Array, ""]


class Escape(NamedTuple):
    """A way down from a saddle.

    Attributes:
        direction: a point to add a multiple of.
        curvature: second derivative of the objective along it, as predicted: negative unless the point is a minimum.
        norm: of the direction; curvature / norm^2 bounds the Hessian's least eigenvalue from above.
        residual: how far the direction's axis is from being orthogonal to all class vectors and features, relative to
            them. The prediction holds where this is zero up to rounding; it is not where all d dimensions are in use.
    """

    direction: Point
    curvature: Float[Array, ""]
    norm: Float[Array, ""]
    residual: Float[Array, ""]


def certificate(problem: UnconstrainedFeatures, point: Point, *, tolerance: float | None = None) -> Certificate:
    r"""Decide whether a critical point is a global minimum.

    It is if, and for d >= K only if, :math:`\|G\|_2 \le \sqrt{\lambda_W \lambda_H}`, G being the gradient of the mean
    loss in the logits. At a minimum other than the origin the two are equal.

    Args:
        problem: without a temperature.
        point: any; one row of features per example, or one per class.
        tolerance: relative, on both conditions; None is the cube root of the dtype's eps (6e-6 in float64), since a
            minimiser that stops where the value does leaves half of the digits of the point.

    Returns:
        The numbers and the decision. A point that is not critical is not certified; see `lower_bound`.

    Raises:
        ValueError: if the problem has a temperature, or the shapes are not its own.

    Reference: Zhu et al. (2021), proof of the theorem on the landscape.
    """
    _check_convex(problem)
    spectral_norm = jnp.linalg.norm(logit_gradient(problem, point), ord=2)
    eps = jnp.finfo(spectral_norm.dtype).eps
    bound = float(eps) ** (1 / 3) if tolerance is None else tolerance
    threshold = jnp.asarray(problem.threshold, spectral_norm.dtype)
    gradient = jax.grad(lambda at: objective(problem, at))(point)
    roots = _roots(problem, point)
    # In the coordinates W / c and c sqrt(r) H both decays are `threshold`, and entries of order one give logits of
    # order one.
    slopes = [gradient.frame * problem.aspect, gradient.features / problem.aspect / roots]
    sizes = [point.frame / problem.aspect, point.features * problem.aspect * roots]
    if gradient.bias is not None:
        slopes.append(gradient.bias)
    grad_norm = _joint_norm(slopes) / threshold / jnp.maximum(_joint_norm(sizes), 1)
    is_critical = grad_norm <= bound
    return Certificate(
        spectral_norm, threshold, grad_norm, is_critical, is_critical & (spectral_norm <= threshold * (1 + bound))
    )


def lower_bound(problem: UnconstrainedFeatures, point: Point) -> Float[Array, ""]:
    r"""A value that no point of the problem goes below, in any dimension: what is left to gain is at most f minus this.

    Weak duality at the given point: with :math:`s = \min(1, \sqrt{\lambda_W\lambda_H} / \|G\|_2)` and
    :math:`p_i(s) = e_{y_i} + s (p_i - e_{y_i})`, for the cross-entropy

    .. math:: f \ge \frac1N \sum_i \text{entropy}(p_i(s)) - \frac{s^2}{2 \lambda_b}
        \Big\| \frac1N \sum_i p_i - e_{y_i} \Big\|^2 .

    The point need not be critical. At a global minimum the bound is the value.

    Args:
        problem: without a temperature, and without bias or with a decay on it.
        point: any.

    Raises:
        ValueError: if the problem has a temperature or a bias without decay, or the shapes are not its own.

    Reference: derived here (Fenchel duality).
    """
    _check_convex(problem)
    if problem.bias_decay == 0:
        raise ValueError("the lower bound needs a bias_decay > 0, or no bias; got bias_decay=0")
    slope = logit_gradient(problem, point)
    norm = jnp.linalg.norm(slope, ord=2)
    factor = jnp.where(norm > problem.threshold, problem.threshold / norm, 1)
    counts = problem.row_counts(point.features).astype(slope.dtype)
    labels = jax.nn.one_hot(problem.labels(point.features), problem.num_classes, dtype=slope.dtype)
    scores = logits(problem, point)
    if problem.loss == "cross_entropy":
        # Not through 1 - p: the gap to the value is a difference of such sums.
        scaled = labels * (1 - factor) + factor * jax.nn.softmax(scores)
        parts = jnp.sum(jax.scipy.special.entr(scaled), axis=1)
    else:
        residuals = scores - labels
        parts = -factor * jnp.sum(residuals * labels, axis=1) - factor**2 * jnp.sum(residuals**2, axis=1) / 2
    bound = jnp.sum(counts * parts) / problem.num_examples
    if problem.bias_decay is None:
        return bound
    pull = jnp.sum(jnp.sqrt(counts)[:, None] * slope, axis=0)
    return bound - factor**2 * jnp.sum(pull**2) / (2 * problem.bias_decay)


def escape_direction(problem: UnconstrainedFeatures, point: Point) -> Escape:
    r"""Direction of negative curvature at a critical point that is not a global minimum.

    With (u, v) the leading singular vectors of the gradient in the logits, on classes and examples, and a unit vector a
    orthogonal to all class vectors and features,

    .. math::
        \Delta W = c\, a u^\top, \quad \Delta H = -c^{-1} a v^\top, \quad \Delta b = 0, \quad
        c = (\lambda_H / \lambda_W)^{1/4}, \qquad
        \nabla^2 f[\Delta, \Delta] = -2 \big(\|G\|_2 - \sqrt{\lambda_W \lambda_H}\big) .

    For the cross-entropy a exists from d = K on, since class vectors sum to zero at every critical point; for d = K - 1
    where the point does not use all dimensions, as at the origin.

    Args:
        problem: without a temperature.
        point: critical; one row of features per example, or one per class.

    Returns:
        The direction with its predicted curvature, and how exact the prediction is.

    Raises:
        ValueError: if the problem has a temperature, or the shapes are not its own.

    Reference: Zhu et al. (2021), proof of the theorem on the landscape, for d > K; d = K as in Shen and Gu (2024).
    """
    _check_convex(problem)
    slope, roots = logit_gradient(problem, point), _roots(problem, point)
    left, singular, right = jnp.linalg.svd(slope, full_matrices=False)
    vectors = jnp.concatenate([transpose(point.frame) / problem.aspect, point.features * problem.aspect * roots])
    # A null vector of all vectors, from the small triangular factor: a Gram matrix would square their condition.
    *_, axes = jnp.linalg.svd(jnp.linalg.qr(vectors, mode="r"), full_matrices=True)
    axis = axes[-1]
    size = jnp.linalg.norm(vectors)
    residual = jnp.linalg.norm(matmul(vectors, axis)) / jnp.where(size > 0, size, 1)
    frame = problem.aspect * axis[:, None] * right[0]
    features = -(left[:, :1] / roots) * axis / problem.aspect
    bias = None if point.bias is None else jnp.zeros_like(point.bias)
    direction = Point(frame, features, bias)
    return Escape(direction, -2 * (singular[0] - problem.threshold), _joint_norm([frame, features]), residual)


def duality_gap(problem: UnconstrainedFeatures, point: Point) -> Float[Array, ""]:
    """Return the value minus `lower_bound`: at most so much is left to gain. Arguments and errors as there."""
    return objective(problem, point) - lower_bound(problem, point)


def nuclear_objective(problem: UnconstrainedFeatures, point: Point) -> Float[Array, ""]:
    """Value of the convex form at the point's logits: the objective with the factors as short as they can be.

    At most the objective, with equality for balanced factors, as at every critical point.

    Raises:
        ValueError: if the problem has a temperature, or the shapes are not its own.
    """
    _check_convex(problem)
    products = matmul(point.features * _roots(problem, point), point.frame)
    value = data_loss(problem, point) + problem.threshold * jnp.sum(jnp.linalg.svd(products, compute_uv=False))
    return value if point.bias is None else value + (problem.bias_decay or 0) * jnp.sum(point.bias**2) / 2


def _roots(problem: UnconstrainedFeatures, point: Point) -> Float[Array, "rows 1"]:
    """Roots of the number of examples that each row stands for."""
    return jnp.sqrt(jnp.asarray(problem.row_counts(point.features), point.features.dtype))[:, None]


def _joint_norm(arrays: list[Array]) -> Float[Array, ""]:
    return jnp.sqrt(sum((jnp.sum(array**2) for array in arrays), start=jnp.zeros((), arrays[0].dtype)))


def _check_convex(problem: UnconstrainedFeatures) -> None:
    if problem.temperature is not None:
        raise ValueError(
            f"unit vectors have no convex form, and so no certificate; got temperature={problem.temperature}"
        )
