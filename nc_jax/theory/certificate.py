r"""Tests whether a critical point is a global minimum, and directions in which the objective decreases if it is not.

The objective is the factored form of a convex function of the logits: their mean loss, plus
:math:`\sqrt{\lambda_W\lambda_H}` times their nuclear norm, plus the penalty on the bias. Here :math:`\lambda_W` and
:math:`\lambda_H` are the decays of frame and features (`UnconstrainedFeatures`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import matmul, transpose
from nc_jax.theory.objective import data_loss, logit_gradient, logits, objective
from nc_jax.theory.problem import Point, UnconstrainedFeatures


class Certificate(NamedTuple):
    """Result of the test whether a point is a global minimum.

    Attributes:
        spectral_norm: largest singular value of the gradient of the mean loss in the logits.
        threshold: square root of weight_decay times feature_decay. At a global minimum, spectral_norm is at most this.
        grad_norm: relative norm of the gradient of the objective, zero at a critical point. It is measured in
            coordinates in which both decays equal the threshold, and divided by the threshold and by the larger of 1
            and the size of the point.
        is_critical: whether grad_norm <= tolerance.
        is_global: whether the point is critical and spectral_norm <= threshold (1 + tolerance).
    """

    spectral_norm: Float[Array, ""]
    threshold: Float[Array, ""]
    grad_norm: Float[Array, ""]
    is_critical: Bool[Array, ""]
    is_global: Bool[Array, ""]


class Escape(NamedTuple):
    """A direction along which the objective decreases from a saddle.

    Attributes:
        direction: the direction, with the shape of a point. To decrease the objective, add a multiple of the direction.
        curvature: predicted second derivative of the objective along the direction; negative unless the point is a
            minimum.
        norm: length of the direction. curvature / norm^2 is an upper bound of the smallest eigenvalue of the Hessian.
        residual: how far the unit vector a of `escape_direction` is from being orthogonal to all class vectors and
            features, relative to their size. The prediction holds only if the residual is zero up to rounding. It is
            not zero if class vectors and features use all d dimensions.
    """

    direction: Point
    curvature: Float[Array, ""]
    norm: Float[Array, ""]
    residual: Float[Array, ""]


def certificate(problem: UnconstrainedFeatures, point: Point, *, tolerance: float | None = None) -> Certificate:
    r"""Decide whether a critical point is a global minimum.

    Let G be the gradient of the mean loss in the logits. A critical point is a global minimum if
    :math:`\|G\|_2 \le \sqrt{\lambda_W \lambda_H}`. For d >= K this condition is also necessary. At a minimum other than
    the origin, both sides are equal.

    Args:
        problem: a problem without a temperature.
        point: any point, with one row of features per example or one per class.
        tolerance: relative tolerance of both conditions. None: the cube root of the eps of the dtype (6e-6 in float64),
            because a minimiser that stops when the value no longer changes gives only half of the digits of the point.

    Returns:
        The numbers and the decision. A point that is not critical is not certified; for such a point, use
        `lower_bound`.

    Raises:
        ValueError: if the problem has a temperature, the shapes are not those of the problem, or the tolerance is not
            in (0, 1).

    Reference: Zhu et al. (2021), proof of the theorem on the landscape.
    """
    _check_convex(problem)
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1); got {tolerance}")
    spectral_norm = jnp.linalg.norm(logit_gradient(problem, point), ord=2)
    eps = jnp.finfo(spectral_norm.dtype).eps
    bound = float(eps) ** (1 / 3) if tolerance is None else tolerance
    threshold = jnp.asarray(problem.threshold, spectral_norm.dtype)
    gradient = jax.grad(lambda at: objective(problem, at))(point)
    roots = _roots(problem, point)
    # With c the aspect and r the row counts, use the coordinates W / c and c sqrt(r) H. In these, both decays are
    # `threshold`, and entries of order one give logits of order one.
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
    r"""Lower bound on the objective f over all points of the problem, in any dimension.

    The objective at the given point is therefore at most f minus this bound above the minimum. The bound is weak
    duality at the given point. Let G be the gradient of the mean loss in the logits, p_i the softmax of the logits of
    example i, e_k a one-hot vector, and :math:`s = \min(1, \sqrt{\lambda_W\lambda_H} / \|G\|_2)`. With
    :math:`p_i(s) = e_{y_i} + s (p_i - e_{y_i})`, the bound for the cross-entropy is

    .. math:: f \ge \frac1N \sum_i \text{entropy}(p_i(s)) - \frac{s^2}{2 \lambda_b}
        \Big\| \frac1N \sum_i p_i - e_{y_i} \Big\|^2 .

    The point need not be critical. At a global minimum, the bound equals the objective.

    Args:
        problem: a problem without a temperature, and without a bias or with a positive decay on the bias.
        point: any point, with one row of features per example or one per class.

    Returns:
        A scalar in the unit of the loss.

    Raises:
        ValueError: if the problem has a temperature or a bias without decay, or the shapes are not those of the
            problem.

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
        # 1 - p is avoided, because its rounding would show in the duality gap, a difference of such sums.
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

    Let G be the gradient of the mean loss in the logits, with leading singular vectors u (on classes) and v (on
    examples). Let a be a unit vector that is orthogonal to all class vectors and features. Then

    .. math::
        \Delta W = c\, a u^\top, \quad \Delta H = -c^{-1} a v^\top, \quad \Delta b = 0, \quad
        c = (\lambda_H / \lambda_W)^{1/4}, \qquad
        \nabla^2 f[\Delta, \Delta] = -2 \big(\|G\|_2 - \sqrt{\lambda_W \lambda_H}\big) .

    For the cross-entropy, class vectors sum to zero at every critical point, so a exists if d >= K. For d = K - 1 it
    exists if the point does not use all dimensions, for instance at the origin.

    Args:
        problem: a problem without a temperature.
        point: a critical point, with one row of features per example or one per class.

    Returns:
        The direction, its predicted curvature, and a residual that says whether the prediction is exact.

    Raises:
        ValueError: if the problem has a temperature, or the shapes are not those of the problem.

    Reference: Zhu et al. (2021), proof of the theorem on the landscape, for d > K; Shen and Gu (2024) for d = K.
    """
    _check_convex(problem)
    slope, roots = logit_gradient(problem, point), _roots(problem, point)
    left, singular, right = jnp.linalg.svd(slope, full_matrices=False)
    vectors = jnp.concatenate([transpose(point.frame) / problem.aspect, point.features * problem.aspect * roots])
    # A vector orthogonal to all vectors, from the small triangular factor. A Gram matrix would square the condition
    # number.
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
    """Return the objective minus `lower_bound`: the objective is at most this much above its minimum.

    Args:
        problem: a problem without a temperature, and without a bias or with a positive decay on the bias.
        point: any point, with one row of features per example or one per class.

    Raises:
        ValueError: if the problem has a temperature or a bias without decay, or the shapes are not those of the
            problem.
    """
    return objective(problem, point) - lower_bound(problem, point)


def nuclear_objective(problem: UnconstrainedFeatures, point: Point) -> Float[Array, ""]:
    """Value of the convex form at the logits of the point: the least objective of all points with these logits.

    It is at most the objective. Both are equal for balanced factors, and therefore at every critical point.

    Args:
        problem: a problem without a temperature.
        point: any point, with one row of features per example or one per class.

    Raises:
        ValueError: if the problem has a temperature, or the shapes are not those of the problem.
    """
    _check_convex(problem)
    products = matmul(point.features * _roots(problem, point), point.frame)
    value = data_loss(problem, point) + problem.threshold * jnp.sum(jnp.linalg.svd(products, compute_uv=False))
    return value if point.bias is None else value + (problem.bias_decay or 0) * jnp.sum(point.bias**2) / 2


def _roots(problem: UnconstrainedFeatures, point: Point) -> Float[Array, "rows 1"]:
    """Square roots of the number of examples that each row of the features represents."""
    return jnp.sqrt(jnp.asarray(problem.row_counts(point.features), point.features.dtype))[:, None]


def _joint_norm(arrays: list[Array]) -> Float[Array, ""]:
    return jnp.sqrt(sum((jnp.sum(array**2) for array in arrays), start=jnp.zeros((), arrays[0].dtype)))


def _check_convex(problem: UnconstrainedFeatures) -> None:
    if problem.temperature is not None:
        raise ValueError(
            f"unit vectors have no convex form, and so no certificate; got temperature={problem.temperature}"
        )
