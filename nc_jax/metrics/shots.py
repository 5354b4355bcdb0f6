"""Groups of classes by the number of their training examples, and the accuracy of each group.

The accuracy over all examples may hide rare classes. So it is also reported for classes of many, of a medium number and
of few training examples, and every class of a group counts once. The functions return NumPy arrays and numbers, because
the sizes of the groups depend on the counts.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from nc_jax.checks import Labels, Reals, as_array, is_real


def shot_groups(
    counts: Reals,
    many: int = 100,  # Liu et al. (2019), section 4.1
    few: int = 20,  # Liu et al. (2019), section 4.1
) -> dict[str, Int[np.ndarray, " members"]]:
    """Group classes by how many training examples they have.

    Args:
        counts: number of training examples of each class, integers of shape (K,).
        many: classes with more examples than this number are many-shot classes.
        few: classes with fewer examples than this number are few-shot classes, few <= many.

    Returns:
        Class numbers, ascending, by the names "many", "medium" and "few". Every class is in one group; a group may be
        empty. With the defaults: "many" more than 100 examples, "medium" 20 to 100, "few" fewer than 20.

    Raises:
        ValueError: if the counts are not integers >= 0 of shape (K,), or few > many.

    Example:
        >>> {name: group.tolist() for name, group in shot_groups([500, 100, 20, 19]).items()}
        {'many': [0], 'medium': [1, 2], 'few': [3]}

    Reference: Liu et al., Large-scale long-tailed recognition in an open world (2019).
    """
    counts = _checked_counts(counts)
    if few > many:
        raise ValueError(f"few must be at most many, which bound the medium group; got few={few}, many={many}")
    is_many, is_few = counts > many, counts < few
    return {
        "many": np.flatnonzero(is_many),
        "medium": np.flatnonzero(~is_many & ~is_few),
        "few": np.flatnonzero(is_few),
    }


def thirds(counts: Reals) -> dict[str, Int[np.ndarray, " members"]]:
    """Group classes by the rank of their number of training examples: for a tail to which no fixed bounds fit.

    Args:
        counts: number of training examples of each class, integers of shape (K,), K >= 3.

    Returns:
        Class numbers, ascending, by the names "many", "medium" and "few". The K // 3 classes with the most examples are
        "many", the K // 3 with the fewest are "few", and the others are "medium": 3, 4 and 3 of 10 classes, 33, 34 and
        33 of 100. Of classes with equal counts, the smaller class number counts as the larger class.

    Raises:
        ValueError: if the counts are not integers >= 0 of shape (K,), or K < 3.

    Example:
        >>> {name: group.tolist() for name, group in thirds([5, 9, 7, 1]).items()}
        {'many': [1], 'medium': [0, 2], 'few': [3]}
    """
    counts = _checked_counts(counts)
    if len(counts) < 3:
        raise ValueError(f"thirds need at least 3 classes; got {len(counts)}")
    order, part = np.argsort(-counts, kind="stable"), len(counts) // 3
    pieces = order[:part], order[part : len(order) - part], order[len(order) - part :]
    return dict(zip(("many", "medium", "few"), map(np.sort, pieces), strict=True))


def group_recall(class_accuracy: Reals, groups: Mapping[str, Labels]) -> dict[str, float]:
    """Mean recall of the classes of each group. Every class counts once, however many test examples it has.

    Args:
        class_accuracy: recall of each class, the share of its test examples that are classified as this class, shape
            (K,); NaN for classes without test examples, which are left out.
        groups: class numbers by name, from `shot_groups` or `thirds`.

    Returns:
        A number by name, in the unit of the recalls; NaN for a group without any class that has test examples.

    Raises:
        ValueError: if the recalls are not real numbers of shape (K,), or a group holds a class number outside 0..K-1.

    Example:
        >>> group_recall([1.0, 0.5, float("nan")], {"many": np.array([0, 1]), "few": np.array([2])})
        {'many': 0.75, 'few': nan}

    Reference: Liu et al. (2019), the accuracies of many-, medium- and few-shot classes.
    """
    recalls = _checked_recalls(class_accuracy)
    for name, members in groups.items():
        members = np.asarray(as_array(members, "groups"))
        if members.size and not (members.min() >= 0 and members.max() < len(recalls)):
            raise ValueError(
                f"groups must hold class numbers in 0..{len(recalls) - 1}, one for each recall; "
                f"got {members.min()} to {members.max()} in {name!r}"
            )
    return {name: _mean(recalls[np.asarray(as_array(members, "groups"), int)]) for name, members in groups.items()}


def balanced_accuracy(class_accuracy: Reals) -> float:
    """Mean recall of all classes. Every class counts once, however many test examples it has.

    Args:
        class_accuracy: recall of each class, shape (K,); NaN for classes without test examples, which are left out.

    Returns:
        A number in the unit of the recalls; NaN if no class has test examples.

    Raises:
        ValueError: if the recalls are not real numbers of shape (K,).

    Example:
        >>> balanced_accuracy([1.0, 0.5, float("nan")])
        0.75
    """
    return _mean(_checked_recalls(class_accuracy))


def _mean(recalls: Float[np.ndarray, " members"]) -> float:
    known = recalls[~np.isnan(recalls)]
    return float(np.mean(known)) if known.size else float("nan")


def _checked_counts(counts: Reals) -> Int[np.ndarray, " classes"]:
    counts = np.asarray(as_array(counts, "counts"))
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise ValueError(f"counts must be integers from 0 up, one per class; got {counts}")
    return counts.astype(np.int64)  # unsigned counts have no negatives to sort by


def _checked_recalls(recalls: Reals) -> Float[np.ndarray, " classes"]:
    recalls = np.asarray(as_array(recalls, "recalls"))
    if recalls.ndim != 1 or not is_real(recalls.dtype):
        raise ValueError(f"recalls must be real numbers, one per class; got {recalls.dtype} of shape {recalls.shape}")
    return recalls.astype(np.float64)
