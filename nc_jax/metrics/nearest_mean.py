"""The classifier that decides for the nearest class mean."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.checks import Mask, Reals, check_features_fit, checked_features, real_array
from nc_jax.metrics.collapse import nearness_to
from nc_jax.metrics.simplex import checked_vectors


def nearest_mean_scores(
    features: Reals, class_means: Reals, present: Mask | None = None
) -> Float[Array, "batch classes"]:
    r"""Scores of the nearest-class-mean classifier: the larger, the nearer is :math:`\mu_k` to the example h.

    They are :math:`-\|h - \mu_k\|^2 / 2` up to a positive scale and a constant for each example.

    Args:
        features: h, shape (N, d).
        class_means: class means :math:`\mu_k` as columns, not centred, shape (d, K).
        present: True for the classes to choose from, shape (K,); None: all classes.

    Returns:
        Shape (N, K). Minus infinity for classes that are not present. If no class is present, as before any class has
        been seen, all scores are 0: every class is as likely as any other.

    Raises:
        ValueError: if the shapes do not fit, or K < 2.

    Example:
        >>> scores = nearest_mean_scores(jnp.array([[1.0, 0.2]]), jnp.eye(2))
        >>> int(jnp.argmax(scores))
        0

    Reference: Mensink et al. (2013); with class means of a memory, Rebuffi et al., iCaRL (2017).
    """
    features, class_means = checked_features(features), real_array(class_means, "class_means")
    check_features_fit(features, class_means, "class_means")
    means, present = checked_vectors(class_means, present)
    scores = jnp.where(present[None], nearness_to(means, present, features)[0], -jnp.inf)
    return jnp.where(jnp.any(present), scores, 0)
