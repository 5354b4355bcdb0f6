"""The regularised objective, its parts, and the gradient of its loss in the logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32, matmul, safe_norm
from nc_jax.theory.problem import Point, UnconstrainedFeatures


class Penalties(NamedTuple):
    """Half squared norms that the decays multiply.

    Attributes:
        frame: half the squared norm of the frame.
        features: half the squared norm of the features, summed over all N examples.
        bias: half the squared norm of the bias.
    """

    frame: Float[Array, ""]
    features: Float[Array, ""]
    bias: Float[Array, ""]


def logits(problem: UnconstrainedFeatures, point: Point) -> Float[Array, "rows classes"]:
    """Return the logits of every row: `features @ frame + bias`, or the cosines times the temperature.

    Raises:
        ValueError: if the shapes are not those of the problem, or only one of problem and point has a bias.
    """
    frame, features = at_least_float32(point.frame), at_least_float32(point.features)
    if frame.shape != (problem.dim, problem.num_classes):
        raise ValueError(f"frame must have shape {(problem.dim, problem.num_classes)}; got {frame.shape}")
    if (point.bias is None) != (problem.bias_decay is None):
        raise ValueError(
            f"a point has a bias if, and only if, its problem has one; got bias={point.bias} and "
            f"bias_decay={problem.bias_decay}"
        )
    if point.bias is not None and jnp.shape(point.bias) != (problem.num_classes,):
        raise ValueError(f"bias must have shape {(problem.num_classes,)}; got {jnp.shape(point.bias)}")
    problem.row_counts(features)
    if problem.temperature is not None:
        unit_frame, unit_features = (
            array / jnp.where(norms > 0, norms, 1)
            for array, norms in ((frame, safe_norm(frame, axis=0)), (features, safe_norm(features, axis=1)))
        )
        return problem.temperature * matmul(unit_features, unit_frame)
    products = matmul(features, frame)
    return products if point.bias is None else products + point.bias


def data_loss(problem: UnconstrainedFeatures, point: Point) -> Float[Array, ""]:
    """Return the mean of the loss over all N examples: the cross-entropy in nats, or half the squared distance."""
    scores, labels = logits(problem, point), problem.labels(point.features)
    if problem.loss == "cross_entropy":
        losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1)[:, 0]
    else:
        losses = jnp.sum((scores - jax.nn.one_hot(labels, problem.num_classes, dtype=scores.dtype)) ** 2, axis=1) / 2
    return jnp.sum(problem.row_counts(point.features).astype(losses.dtype) * losses) / problem.num_examples


def penalties(problem: UnconstrainedFeatures, point: Point) -> Penalties:
    """Return the half squared norms that the decays multiply. That of the features is a sum over all N examples."""
    counts = problem.row_counts(point.features).astype(point.features.dtype)
    return Penalties(
        jnp.sum(point.frame**2) / 2,
        jnp.sum(counts[:, None] * point.features**2) / 2,
        jnp.zeros((), point.frame.dtype) if point.bias is None else jnp.sum(point.bias**2) / 2,
    )


def objective(problem: UnconstrainedFeatures, point: Point) -> Float[Array, ""]:
    r"""Return the mean loss plus the decays: :math:`f` of `UnconstrainedFeatures`.

    Args:
        problem: the problem whose objective is evaluated.
        point: any point, with one row of features per example or one per class.

    Returns:
        A scalar in the unit of the loss (nats for the cross-entropy).

    Raises:
        ValueError: if the shapes are not those of the problem.

    Example:
        >>> problem = UnconstrainedFeatures.balanced(3, 2, dim=4, weight_decay=0.01, feature_decay=0.01)
        >>> round(float(objective(problem, problem.origin())), 6)  # log 3
        1.098612
    """
    loss = data_loss(problem, point)
    if problem.temperature is not None:
        return loss
    terms = penalties(problem, point)
    decays = problem.weight_decay, problem.feature_decay, problem.bias_decay or 0.0
    return loss + sum(decay * term for decay, term in zip(decays, terms, strict=True))


def logit_gradient(problem: UnconstrainedFeatures, point: Point) -> Float[Array, "rows classes"]:
    r"""Gradient of the mean loss in the logits, whose singular values decide whether a critical point is a minimum.

    .. math:: G_i = \frac{\sqrt{r_i}}{N} (p_i - e_{y_i})

    :math:`p_i` is the softmax of the logits of row i (the logits themselves for "mse"), and :math:`e_{y_i}` is the
    one-hot label. :math:`r_i` is the number of examples that row i represents. With this factor, G has the same
    singular values for one row per class as for one row per example.

    Args:
        problem: the problem whose loss is differentiated.
        point: any point, with one row of features per example or one per class.

    Raises:
        ValueError: if the shapes are not those of the problem.
    """
    scores = logits(problem, point)
    labels = jax.nn.one_hot(problem.labels(point.features), problem.num_classes, dtype=scores.dtype)
    predicted = jax.nn.softmax(scores) if problem.loss == "cross_entropy" else scores
    roots = jnp.sqrt(problem.row_counts(point.features).astype(scores.dtype))
    return roots[:, None] * (predicted - labels) / problem.num_examples
