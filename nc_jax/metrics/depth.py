r"""Collapse by depth: within-class variability and the nearest-class-centre classifier, layer by layer.

Deep classifiers collapse in several layers before the last one, and the depth from which on they do is the *effective
depth*. Two passes over the training set are enough, without a d x d matrix for any layer:

>>> hidden = {"first": jnp.array([[0.0, 4.0], [2.0, 0.0], [1.0, 0.0]]), "last": jnp.array([[0.0], [0.0], [5.0]])}
>>> labels = jnp.array([0, 0, 1])
>>> stats = {name: ClassStatistics.from_batch(h, labels, 2, scatter=False) for name, h in hidden.items()}
>>> found = collapse_by_depth(stats, nearest_centre_by_layer(hidden, labels, stats))
>>> [round(error, 2) for error in found["nearest_centre_error"].tolist()], found["cdnv"].tolist()
([0.33, 0.0], [0.625, 0.0])
>>> float(effective_depth(found["nearest_centre_error"]))
2.0

Layers are mappings from a name to what belongs to it, in the order of depth. Features of a layer have shape (N, d), so
those of a convolution are averaged over places or reshaped before.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32
from nc_jax.checks import Labels, Reals, real_array
from nc_jax.metrics.agreement import Agreement
from nc_jax.metrics.collapse import within_class_collapse
from nc_jax.metrics.statistics import ClassStatistics
from nc_jax.metrics.zero_mean import nearest_centre_accuracy


def nearest_centre_by_layer(
    features: Mapping[str, Reals], labels: Labels, stats: Mapping[str, ClassStatistics]
) -> dict[str, Agreement]:
    """On how many examples the nearest class mean is that of the true class, in each layer. This is the second pass.

    Args:
        features: of each layer, shape (N, d) with a d of its own.
        labels: classes 0..K-1 as integers, shape (N,); -1 marks padding, which is not counted.
        stats: of each layer, statistics of the features of the whole training set, from the first pass.

    Returns:
        Counts for each layer. Those of several batches are added with `Agreement.merge`.

    Raises:
        ValueError: if the two mappings differ in their layers, or `nearest_centre_accuracy` refuses a layer.
    """
    _check_layers(stats, features, "features")
    return {
        name: nearest_centre_accuracy(features[name], labels, stats[name].means, stats[name].present) for name in stats
    }


def collapse_by_depth(
    stats: Mapping[str, ClassStatistics], nearest: Mapping[str, Agreement] | None = None
) -> dict[str, Float[Array, " layers"]]:
    """Measure within-class variability in every layer, and the error of the nearest-class-centre classifier.

    Args:
        stats: of each layer, in the order of depth, statistics of its features; the scatter is not needed.
        nearest: of each layer, counts from `nearest_centre_by_layer`; None: without the second pass.

    Returns:
        One number for each layer, in the order of `stats`. NaN where the functions give NaN.

        - "cdnv", "quotient": `within_class_collapse` in these variants, 0 at collapse.
        - "nearest_centre_error": share of the examples whose nearest class mean is not that of their class. Left out if
          there was no second pass.

    Raises:
        ValueError: if there is no layer, or the two mappings differ in their layers.

    Reference: Galanti, Galanti and Ben-Shaul (2022), who follow CDNV and the accuracy of the nearest-class-centre
    classifier through the layers.
    """
    if not stats:
        raise ValueError("collapse by depth needs at least one layer; got none")
    found = {
        variant: jnp.stack([within_class_collapse(layer, variant) for layer in stats.values()])
        for variant in ("cdnv", "quotient")
    }
    if nearest is not None:
        _check_layers(stats, nearest, "nearest")
        found["nearest_centre_error"] = jnp.stack([1 - nearest[name].compute() for name in stats])
    return found


def effective_depth(
    errors: Reals,
    tolerance: float | int = 0,  # separable; papers also allow the small errors of noisy labels
) -> Float[Array, ""]:
    r"""Effective depth: the first layer in which the nearest class mean classifies the training set.

    .. math:: \min \{ l \in \{1, \ldots, L\}: \text{error}_l \le \epsilon \}

    Args:
        errors: share of the training examples of which the nearest class mean, in each layer, is that of another
            class, shape (L,), as "nearest_centre_error" of `collapse_by_depth`.
        tolerance: epsilon, in [0, 1).

    Returns:
        The number of the layer, counted from 1, as a float. NaN if no layer has such a small error, where the depth has
        no value (some define it as L, the number of layers). A layer whose error is NaN does not count. Layers after
        the first one may have larger errors again: the definition does not exclude it.

    Raises:
        ValueError: if the errors do not have shape (L,) with L >= 1, or the tolerance is not in [0, 1).

    Example:
        >>> errors = jnp.array([0.4, 0.02, 0.0, 0.0])
        >>> float(effective_depth(errors)), float(effective_depth(errors, 0.05))
        (3.0, 2.0)

    Reference: Galanti, Galanti and Ben-Shaul, On the implicit bias towards minimal depth of deep neural networks
    (2022).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must lie in [0, 1); got {tolerance}")
    errors = at_least_float32(real_array(errors, "errors"))
    if errors.ndim != 1 or not len(errors):
        raise ValueError(f"errors must have shape (layers,) with layers >= 1; got {errors.shape}")
    small = errors <= tolerance
    return jnp.where(jnp.any(small), jnp.argmax(small).astype(errors.dtype) + 1, jnp.nan)


def _check_layers(stats: Mapping[str, ClassStatistics], others: Mapping[str, object], name: str) -> None:
    if set(stats) != set(others):
        only = sorted(set(stats).symmetric_difference(others))
        raise ValueError(f"stats and {name} must have the same layers; got {', '.join(map(repr, only))} in one of them")
