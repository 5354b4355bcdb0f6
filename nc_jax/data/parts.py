"""Which examples of a set are tested on: a share of every class, however unequal the classes are."""

import numpy as np
from jaxtyping import Bool, Int

from nc_jax.data.draws import draws_for


def share_of_each_class(
    labels: Int[np.ndarray, " examples"],
    share: float,
    *,
    seed: int = 0,
    groups: Int[np.ndarray, " examples"] | None = None,
) -> Bool[np.ndarray, " examples"]:
    """Choose a random share of every class: one example at least, and not all of them.

    A class with a single example has none in the choice.

    Args:
        labels: classes, shape (N,), non-negative.
        share: share of each class, between 0 and 1; the number is rounded.
        seed: random seed of the choice, 0..2^64-1.
        groups: numbers of groups, shape (N,), non-negative: choose the share of every class of each group. None: there
            are no groups.

    Returns:
        A mask of shape (N,), which depends only on the arguments.

    Example:
        >>> labels = np.repeat([0, 1, 2], [8, 2, 1])
        >>> np.bincount(labels[share_of_each_class(labels, 0.25)], minlength=3)
        array([2, 1, 0])
    """
    labels = np.asarray(labels)
    if groups is not None and len(labels):
        labels = np.asarray(groups) * (labels.max() + 1) + labels
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        # Of each class by itself.
        numbers = draws_for(seed, label).random_raw(len(members))
        chosen[members[np.argsort(numbers, kind="stable")[:count]]] = True
    return chosen
