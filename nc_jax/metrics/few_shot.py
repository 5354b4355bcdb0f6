"""Transfer by nearest class centre: how well features tell new classes apart from a few examples of each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.arrays import matmul, transpose
from nc_jax.checks import Labels, Reals, check_at_least, check_key, checked_features, checked_labels, is_traced
from nc_jax.metrics.nearest_mean import nearest_mean_scores


class FewShotErrors(NamedTuple):
    """Errors of the nearest-class-centre classifier in random few-shot tasks, from `few_shot_errors`.

    Attributes:
        errors: mean over the classes of the share of wrong answers, in each task, shape (draws,).
        mean: their mean.
        standard_error: their standard deviation (divisor: draws - 1) over the square root of the number of draws. It
            says how well `mean` is known for these examples; NaN for a single draw.
    """

    errors: Float[Array, " draws"]
    mean: Float[Array, ""]
    standard_error: Float[Array, ""]


def few_shot_errors(
    features: Reals,
    labels: Labels,
    num_classes: int,
    shots: int,
    *,
    key: PRNGKeyArray,
    ways: int | None = None,  # None: all classes; Galanti, György and Hutter (2022) draw five
    draws: int = 100,  # the standard error is then a tenth of the spread over tasks
) -> FewShotErrors:
    r"""Error of the nearest-class-centre classifier whose centres are means of a few examples, over random tasks.

    A task draws `ways` classes and, of each, n examples, the shots. The others are classified:

    .. math:: \operatorname*{argmin}_k \Big\| h - \tfrac1n \sum_{i \in S_k} h_i \Big\| \ne y

    The network has not seen these classes. If its features collapse for them, too, one shot is enough.

    Args:
        features: h, of examples of new classes, shape (N, d).
        labels: y, classes 0..K-1 as integers, shape (N,); -1 marks padding.
        num_classes: K.
        shots: n >= 1, number of examples of each class from which its centre is computed.
        key: random key, on which the tasks depend.
        ways: number of classes of a task, 2..K; None: all classes. Only classes with more than n examples are drawn.
        draws: number of tasks, >= 1.

    Returns:
        The error of each task, with their mean and its standard error. Every class counts once, and all examples that
        are no shots are classified. At a tie the smaller class number wins. NaN for an example that is not finite, and
        if too few classes have enough examples (under `jax.jit`, where they cannot be refused). Memory grows with
        N (d + K), not with the number of draws.

    Raises:
        ValueError: if the features do not have shape (N, d), the labels are not integers of shape (N,) in -1..K-1, a
            number is out of its range, or too few classes have more than n examples.

    Example:
        >>> features, labels = jnp.array([[0.0], [0.1], [1.0], [1.1], [5.0], [5.2]]), jnp.array([0, 0, 1, 1, 2, 2])
        >>> float(few_shot_errors(features, labels, 3, 1, key=jax.random.key(0)).mean)
        0.0

    Reference: Galanti, György and Hutter, On the role of neural collapse in transfer learning (2022).
    """
    features = checked_features(features)
    labels = checked_labels(labels, num_classes, rows=len(features))
    ways = num_classes if ways is None else ways
    for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("draws", draws, 1)):
        check_at_least(name, value, least)
    check_key(key)
    members = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)  # nothing for padding
    enough = jnp.bincount(jnp.where(labels >= 0, labels, num_classes), length=num_classes) > shots
    if ways > num_classes or (not is_traced(enough) and int(enough.sum()) < ways):
        there = "fewer" if is_traced(enough) else int(enough.sum())
        raise ValueError(f"a task needs {ways} classes with more than {shots} examples each; got {there} such classes")

    def task(key: PRNGKeyArray) -> Float[Array, ""]:
        first, second = jax.random.split(key)
        order = jnp.where(enough, jax.random.uniform(first, (num_classes,)), 2)
        drawn = enough & (_ranks(order) < ways)
        shot = (_ranks_within(labels, jax.random.uniform(second, labels.shape), num_classes) < shots) & (labels >= 0)
        centres = matmul(transpose(jnp.where(shot[:, None], features, 0)), members) / shots
        answers = nearest_mean_scores(features, centres, drawn)
        asked = (drawn[jnp.maximum(labels, 0)] & (labels >= 0) & ~shot).astype(features.dtype)
        # argmax treats the first NaN as the largest score.
        known = jnp.isfinite(jnp.max(answers, axis=1))
        wrong = jnp.where(known, (jnp.argmax(answers, axis=1) != labels).astype(features.dtype), jnp.nan)
        counts = matmul(asked, members)
        shares = matmul(jnp.where(asked > 0, wrong, 0), members) / jnp.where(drawn, counts, 1)
        return jnp.where(jnp.sum(drawn) == ways, jnp.mean(shares, where=drawn), jnp.nan)

    errors = jax.lax.map(task, jax.random.split(key, draws))
    deviation = jnp.sqrt(jnp.sum((errors - jnp.mean(errors)) ** 2) / jnp.where(draws > 1, draws - 1, jnp.nan))
    return FewShotErrors(errors, jnp.mean(errors), deviation / draws**0.5)


def _ranks(values: Float[Array, " number"]) -> Int[Array, " number"]:
    """Return the place of each value in ascending order."""
    return jnp.argsort(jnp.argsort(values))


def _ranks_within(
    labels: Int[Array, " batch"], values: Float[Array, " batch"], num_classes: int
) -> Int[Array, " batch"]:
    """Return the place of each value among those of its class, in ascending order."""
    order = jnp.lexsort((values, labels))
    ordered = labels[order]
    begins = jnp.searchsorted(ordered, jnp.arange(-1, num_classes))  # -1: padding comes first
    places = jnp.arange(len(labels)) - begins[ordered + 1]
    return jnp.zeros_like(places).at[order].set(places)
