"""Data sets made harder on purpose: few examples, a long tail, wrong labels.

Every function of a data set maps `LabelledArrays` to `LabelledArrays`. The result depends only on the arguments, and
the examples stay in their order.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Integer

from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.class_counts import exponential_counts, step_counts
from nc_jax.data.draws import draws_for, uniform

# The high half of the random key tells the purpose of the numbers, so a subset and its label noise may share a seed.
_CHOICE, _NOISE = range(2)


def subsample(arrays: LabelledArrays, counts: Integer[np.ndarray, " classes"], *, seed: int) -> LabelledArrays:
    """A random choice of a given number of examples of each class.

    Choices with the same seed are nested: the examples that a smaller count keeps are among those of a larger count.

    Args:
        arrays: N examples of K classes.
        counts: number of examples to keep of each class, shape (K,).
        seed: random seed of the choice, 0..2^64-1.

    Returns:
        The chosen examples, in the order of `arrays`, with the same K and class names.

    Raises:
        ValueError: if `counts` does not hold one number >= 0 per class, or if a class has fewer examples.

    Example:
        >>> arrays = LabelledArrays(np.zeros((6, 1)), np.array([0, 1, 2, 0, 1, 2]), num_classes=3)
        >>> subsample(arrays, np.array([2, 1, 0]), seed=0).class_counts()
        array([2, 1, 0])
    """
    counts, available = np.asarray(counts), arrays.class_counts()
    whole = np.issubdtype(counts.dtype, np.integer)
    if counts.shape != (arrays.num_classes,) or not whole or (counts < 0).any():
        raise ValueError(f"counts must hold {arrays.num_classes} integers from 0 up, one per class; got {counts}")
    lacking = np.flatnonzero(counts > available)
    if lacking.size:
        label = lacking[0]
        raise ValueError(f"class {label} must have at least {counts[label]} examples; got {available[label]}")
    # Sort raw random numbers instead of calling Generator.choice: NumPy guarantees them for all its versions.
    order = np.lexsort((draws_for(seed, _CHOICE).random_raw(len(arrays)), arrays.labels))
    starts = np.cumsum(available) - available
    ranks = np.arange(len(arrays)) - np.repeat(starts, available)  # place in the shuffled order of the class
    return arrays.subset(np.sort(order[ranks < np.repeat(counts, available)]))


def take_per_class(arrays: LabelledArrays, count: int, *, seed: int) -> LabelledArrays:
    """A random choice of the same number of examples of every class: a balanced set.

    Args:
        arrays: N examples of K classes.
        count: number of examples to keep of every class.
        seed: random seed of the choice, 0..2^64-1.

    Returns:
        K * count examples, in the order of `arrays`.

    Raises:
        ValueError: if a class has fewer than `count` examples.

    Example:
        >>> arrays = LabelledArrays(np.zeros((6, 1)), np.array([0, 1, 2, 0, 1, 2]), num_classes=3)
        >>> take_per_class(arrays, 1, seed=0).class_counts()
        array([1, 1, 1])
    """
    return subsample(arrays, np.full(arrays.num_classes, count), seed=seed)


def long_tailed(arrays: LabelledArrays, factor: float, *, seed: int, largest: int | None = None) -> LabelledArrays:
    """A random choice with class sizes that fall exponentially, from `largest` (class 0) to `factor` times `largest`.

    Args:
        arrays: N examples of K classes.
        factor: r in (0, 1], the size of the last class over that of the first; see `exponential_counts`.
        seed: random seed of the choice, 0..2^64-1.
        largest: size of class 0 after the choice. None takes the size of the smallest class in `arrays`, so that no
            class has too few examples.

    Returns:
        The chosen examples, in the order of `arrays`.

    Raises:
        ValueError: if an argument is out of its range or a class has too few examples.

    Example:
        >>> arrays = LabelledArrays(np.zeros((300, 1)), np.arange(300) % 3, num_classes=3)
        >>> long_tailed(arrays, 0.01, seed=0).class_counts()
        array([100,  10,   1])

    Reference: Cui et al. (2019).
    """
    largest = int(arrays.class_counts().min()) if largest is None else largest
    return subsample(arrays, exponential_counts(arrays.num_classes, largest, factor), seed=seed)


def step_imbalanced(
    arrays: LabelledArrays, factor: float, *, seed: int, fraction: float = 0.5, largest: int | None = None
) -> LabelledArrays:
    """A random choice with two class sizes: `largest` for the first classes, `factor` times `largest` for the last.

    Args:
        arrays: N examples of K classes.
        factor: r in (0, 1], the size of a small class over that of a large one.
        seed: random seed of the choice, 0..2^64-1.
        fraction: share of the classes that are small, in [0, 1]; see `step_counts`.
        largest: size of the large classes after the choice. None takes the size of the smallest class in `arrays`.

    Returns:
        The chosen examples, in the order of `arrays`.

    Raises:
        ValueError: if an argument is out of its range or a class has too few examples.

    Example:
        >>> arrays = LabelledArrays(np.zeros((400, 1)), np.arange(400) % 4, num_classes=4)
        >>> step_imbalanced(arrays, 0.1, seed=0).class_counts()
        array([100, 100,  10,  10])

    Reference: Buda, Maki and Mazurowski (2018).
    """
    largest = int(arrays.class_counts().min()) if largest is None else largest
    return subsample(arrays, step_counts(arrays.num_classes, largest, factor, fraction), seed=seed)


def asymmetric_noise(
    arrays: LabelledArrays, transition: Float[np.ndarray, "classes classes"], *, seed: int
) -> LabelledArrays:
    r"""Replace each label y at random by a label :math:`\tilde y`, with probabilities that depend only on y.

    .. math:: P(\tilde y = j \mid y = i) = T_{ij}

    Args:
        arrays: N examples of K classes.
        transition: T, shape (K, K); entries are >= 0 and each row sums to one.
        seed: random seed, 0..2^64-1.

    Returns:
        All N examples with the same inputs and the new labels.

    Raises:
        ValueError: if the matrix has another shape, an entry is negative, or a row does not sum to one.

    Example:
        >>> arrays = LabelledArrays(np.zeros((4, 1)), np.array([0, 1, 1, 0]), num_classes=2)
        >>> asymmetric_noise(arrays, np.array([[1.0, 0.0], [1.0, 0.0]]), seed=0).labels
        array([0, 0, 0, 0], dtype=int32)

    Reference: Patrini et al. (2017).
    """
    transition, classes = np.asarray(transition, np.float64), arrays.num_classes
    if transition.shape != (classes, classes):
        raise ValueError(f"transition must have shape ({classes}, {classes}); got {transition.shape}")
    sums = transition.sum(axis=1)
    wrong = np.flatnonzero((transition < 0).any(axis=1) | ~np.isclose(sums, 1, rtol=0, atol=1e-6))
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            f"the rows of transition must be from 0 up and sum to 1; got row {row} with sum {sums[row]:.6g} "
            f"and minimum {transition[row].min():.6g}"
        )
    # Draw one uniform number per example. The interval [0, 1) is divided among the classes in proportion to their
    # probabilities; the number falls into the share of the new class. The last non-empty share is extended beyond 1, so
    # that rounding errors in the sums have no effect.
    draws = uniform(draws_for(seed, _NOISE).random_raw(len(arrays)))
    labels = np.empty_like(arrays.labels)
    for label in range(classes):  # a K x N matrix of shares would be 10 GB for ImageNet
        members = arrays.labels == label
        ends = np.cumsum(transition[label])
        ends[np.flatnonzero(transition[label])[-1] :] = 2
        labels[members] = np.searchsorted(ends, draws[members], side="right")
    return dataclasses.replace(arrays, labels=labels)


def symmetric_noise(arrays: LabelledArrays, rate: float, *, seed: int) -> LabelledArrays:
    """Replace each label with probability `rate` by one of the other classes, all equally likely.

    Args:
        arrays: N examples of K >= 2 classes.
        rate: expected share of wrong labels, in [0, 1]. (Some papers let the new label equal the old one by chance. The
            share of wrong labels is then (K - 1) / K times their rate.)
        seed: random seed, 0..2^64-1.

    Returns:
        All N examples with the same inputs and the new labels.

    Raises:
        ValueError: if the rate is outside [0, 1] or there is only one class.

    Example:
        >>> arrays = LabelledArrays(np.zeros((4, 1)), np.array([0, 1, 1, 0]), num_classes=2)
        >>> symmetric_noise(arrays, 1.0, seed=0).labels
        array([1, 0, 0, 1], dtype=int32)

    Reference: Patrini et al. (2017).
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1]; got {rate}")
    if arrays.num_classes < 2:
        raise ValueError(f"symmetric noise needs at least two classes; got {arrays.num_classes}")
    same = np.eye(arrays.num_classes)
    return asymmetric_noise(arrays, (1 - rate) * same + rate / (arrays.num_classes - 1) * (1 - same), seed=seed)
