r"""The global minimum in closed form.

In its convex form, the objective is a convex function of the logits :math:`Z = H W` and of the bias b, plus
:math:`\sqrt{\lambda_W\lambda_H}` times the nuclear norm of Z. Let :math:`\Sigma` hold the singular values of Z. Let Q
be a matrix with one orthonormal row for each of them and with columns :math:`q_k`, R any rotation, and
:math:`c = (\lambda_H / \lambda_W)^{1/4}`. The shortest factors are :math:`W = c R \sqrt\Sigma Q` and
:math:`h_k = c^{-1} R \sqrt\Sigma q_k / \sqrt{n_k}`. So this module needs closed forms only for Q and :math:`\Sigma`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import matmul, transpose
from nc_jax.frames import simplex_etf, simplex_template
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.manifolds import Stiefel
from nc_jax.theory.problem import Point, UnconstrainedFeatures


class _Minimum(NamedTuple):
    """Singular values of the logits at the minimum, and the bias.

    Attributes:
        simplex: singular value of the K - 1 directions of the simplex.
        common: singular value of the direction of ones, in which all class vectors agree.
        own: one singular value per class, each on a coordinate of its own, for the mse without bias. If this is set,
            `simplex` and `common` are unused.
        bias: entry of the bias, the same for all classes.
    """

    simplex: float = 0.0
    common: float = 0.0
    own: tuple[float, ...] = ()
    bias: float = 0.0


def optimal_value(problem: UnconstrainedFeatures) -> float:
    r"""Least value of the objective.

    With n examples per class, :math:`\lambda = \sqrt{\lambda_W \lambda_H}` and :math:`e = \sqrt n \lambda`:

    .. math::
        \text{cross-entropy:} \quad & -p \log p - (K-1)\, e \log e, \quad p = 1 - (K-1) e
        \quad (\log K \text{ if } K e \ge 1) \\
        \text{with a temperature:} \quad & \log(1 + (K-1) e^{-\tau K / (K-1)}) \\
        \text{mse, no bias:} \quad & \textstyle\sum_k (\sqrt{n_k} - \sigma_k)^2 / (2N) + \lambda \sigma_k, \quad
        \sigma_k = \max(0, \sqrt{n_k} - N \lambda)

    (In the power with :math:`\tau`, e is Euler's number.) The first value is the entropy of the softmax at the minimum,
    and e the probability of each wrong class. The mse with a bias has K - 1 terms like those without bias, and one more
    term for the direction of ones, to which bias and class vectors both contribute.

    Args:
        problem: a problem with equal counts; only the mse without bias may have unequal counts.

    Returns:
        A number in the unit of the loss.

    Raises:
        ValueError: if d < K - 1 (d < K if the minimum has rank K), or if the counts differ and the problem is not the
            mse without bias.

    Example:
        >>> problem = UnconstrainedFeatures.balanced(3, 2, dim=4, weight_decay=0.01, feature_decay=0.01)
        >>> round(optimal_value(problem), 9)
        0.148331747

    Reference: Zhu et al. (2021), theorem on global minimisers, for the cross-entropy; Yaras et al. (2022) for the
    temperature. The entropy form, and the mse with a bias or with unequal counts, are derived here.
    """
    minimum = _minimum(problem)
    num_classes, number = problem.num_classes, problem.num_examples
    if problem.temperature is not None:
        return math.log1p((num_classes - 1) * math.exp(-problem.temperature * num_classes / (num_classes - 1)))
    if problem.loss == "cross_entropy":
        wrong = _wrong_probability(problem)
        if num_classes * wrong >= 1:
            return math.log(num_classes)
        right = 1 - (num_classes - 1) * wrong
        # `wrong` may underflow to zero; its entropy is then 0.
        return -right * math.log(right) - (num_classes - 1) * (wrong * math.log(wrong) if wrong else 0)
    if problem.bias_decay is None:
        lengths, singular = np.sqrt(problem.counts), np.array(minimum.own)
        return float(np.sum((lengths - singular) ** 2 / (2 * number) + problem.threshold * singular))
    length = math.sqrt(problem.counts[0])
    shift = minimum.bias * math.sqrt(num_classes * number)
    along = (length - minimum.simplex) ** 2 / (2 * number) + problem.threshold * minimum.simplex
    common = (length - minimum.common - shift) ** 2 / (2 * number) + problem.threshold * minimum.common
    return (num_classes - 1) * along + common + problem.bias_decay * num_classes * minimum.bias**2 / 2


def optimal_point(
    problem: UnconstrainedFeatures, *, key: PRNGKeyArray | None = None, dtype: DTypeLike | None = None
) -> Point:
    r"""Return a global minimiser.

    Every other minimiser is a rotation of it. For the cross-entropy with a bias that has no decay, a constant may be
    added to the bias as well.

    For the cross-entropy, the class vectors are a simplex ETF with
    :math:`\|w_k\|^2 = \frac{K-1}K \sqrt{n \lambda_H / \lambda_W}\, m`, where m is the margin of `optimal_margin`. The
    features are :math:`h_{k,i} = \sqrt{\lambda_W / (n \lambda_H)}\, w_k`, and the bias is 0. If the margin is 0, the
    minimiser is the origin. For the mse without bias, the class vectors are an orthogonal frame.

    Args:
        problem: a problem with equal counts; only the mse without bias may have unequal counts.
        key: random key from which a Haar-random orientation is drawn. None: the canonical orientation, whose last d - K
            rows are zero.
        dtype: a floating dtype; None for JAX's default.

    Returns:
        The point, with one row of features per example.

    Raises:
        ValueError: if `optimal_value` raises one.

    Reference: the same as for `optimal_value`.
    """
    minimum = _minimum(problem)
    wide = jnp.zeros((), dtype).dtype
    num_classes, dim = problem.num_classes, problem.dim
    if problem.temperature is not None:
        frame = simplex_etf(num_classes, dim, key=key, dtype=wide)
        return problem.point_from(frame, transpose(frame), jnp.zeros(num_classes, wide))
    template = _scaled_template(minimum, num_classes, min(num_classes, dim), wide)
    rank = template.shape[0]
    rotation = jnp.eye(dim, rank, dtype=wide) if key is None else Stiefel(dim, rank).random_point(key, wide)
    placed = matmul(rotation, template)
    class_features = transpose(placed) / jnp.sqrt(jnp.asarray(problem.counts, wide))[:, None]
    bias = jnp.full(num_classes, minimum.bias, wide)
    return problem.point_from(problem.aspect * placed, class_features / problem.aspect, bias)


def optimal_margin(problem: UnconstrainedFeatures) -> float:
    r"""Margin m between the logit of the true class and every other logit, at the global minimum.

    With n examples per class and :math:`e = \sqrt{n \lambda_W \lambda_H}`, it is :math:`m = \log(1/e - K + 1)`. For
    :math:`K e \ge 1` it is 0: the decays outweigh the loss, and the minimum is the origin. With a temperature
    :math:`\tau` it is :math:`\tau K / (K - 1)`.

    Args:
        problem: a problem with cross-entropy and equal counts.

    Returns:
        A number >= 0 in the unit of the logits (nats).

    Raises:
        ValueError: if the loss is the mse, or `optimal_value` raises one.

    Reference: the same as for `optimal_value`.
    """
    if problem.loss != "cross_entropy":
        raise ValueError(f"the margin is that of the cross-entropy; got loss={problem.loss!r}")
    if problem.temperature is not None:
        check_room_for_simplex(problem.num_classes, problem.dim)
        return problem.temperature * problem.num_classes / (problem.num_classes - 1)
    return _minimum(problem).simplex / math.sqrt(problem.counts[0])


def _scaled_template(minimum: _Minimum, num_classes: int, room: int, dtype: DTypeLike) -> Float[Array, "rank classes"]:
    """Rows of Q, each times the square root of its singular value."""
    if minimum.own:
        used = [place for place, value in enumerate(minimum.own) if value > 0] or [0]
        return jnp.diag(jnp.sqrt(jnp.asarray(minimum.own, dtype)))[np.array(used)]
    simplex = math.sqrt(minimum.simplex) * simplex_template(num_classes, dtype=dtype)
    ones = jnp.full((1, num_classes), math.sqrt(minimum.common / num_classes), dtype)
    return jnp.concatenate([simplex, ones])[:room]


def _wrong_probability(problem: UnconstrainedFeatures) -> float:
    """Probability e of each wrong class at the minimum, unless K e >= 1."""
    return math.sqrt(problem.counts[0]) * problem.threshold


def _minimum(problem: UnconstrainedFeatures) -> _Minimum:
    num_classes, number, threshold = problem.num_classes, problem.num_examples, problem.threshold
    check_room_for_simplex(num_classes, problem.dim)
    squared = problem.loss == "mse"
    if not problem.is_balanced and not (squared and problem.bias_decay is None):
        raise ValueError(
            "the minimum is known in closed form for equal counts, and for the mse without bias; "
            f"got counts={problem.counts}: minimise the objective and ask `certificate`"
        )
    if problem.temperature is not None:
        return _Minimum()
    if squared and problem.bias_decay is None:
        own = tuple(max(0.0, math.sqrt(count) - number * threshold) for count in problem.counts)
        if problem.dim < num_classes and sum(value > 0 for value in own) > problem.dim:
            raise ValueError(
                f"without a bias the mse has an orthogonal frame of {num_classes} classes as its minimum and needs "
                f"dim >= {num_classes}; got dim={problem.dim}"
            )
        return _Minimum(own=own)
    length = math.sqrt(problem.counts[0])
    if not squared:
        wrong = _wrong_probability(problem)
        if num_classes * wrong >= 1:
            return _Minimum()
        # log(1/e - K + 1), in a form in which 1/e does not overflow.
        margin = math.log1p(-(num_classes - 1) * wrong) - math.log(wrong) if wrong else math.inf
        return _Minimum(simplex=length * margin)
    assert problem.bias_decay is not None
    simplex = max(0.0, length - number * threshold)
    # In the direction of ones, the singular value s of the logits and the bias b = t / sqrt(K N) together approximate
    # sqrt(n): min (sqrt(n) - s - t)^2 / (2 N) + lambda s + lambda_b t^2 / (2 N). If lambda_b t <= N lambda for s = 0,
    # then s = 0 is the minimum and the bias alone contributes.
    alone = length / (1 + problem.bias_decay)
    if problem.bias_decay * alone <= number * threshold:
        common, shift = 0.0, alone
    else:
        shift = number * threshold / problem.bias_decay
        common = length - number * threshold - shift
    if common > 0 and problem.dim < num_classes:
        raise ValueError(
            f"at this bias_decay the class vectors of the mse do not sum to zero, and {num_classes} of them need "
            f"dim >= {num_classes}; got dim={problem.dim}"
        )
    return _Minimum(simplex=simplex, common=common, bias=shift / math.sqrt(num_classes * number))
