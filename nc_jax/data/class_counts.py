"""Sizes of classes from a few numbers: profiles of imbalance, from the largest class to the smallest."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from nc_jax.checks import check_at_least

Profile = Literal["exponential", "step", "pareto", "majority"]

# With it, 1000 classes of 1280 to 5 images have 115,841 together. ImageNet-LT, which was drawn from a Pareto law, has
# 115,846 (Liu et al., 2019).
PARETO_SHAPE = 0.3367


def exponential_counts(num_classes: int, largest: int, factor: float) -> Int[np.ndarray, " classes"]:
    r"""Class sizes that fall from class to class by a constant ratio.

    .. math:: n_k = \lfloor n_{\max} \, r^{k / (K - 1)} \rfloor

    Args:
        num_classes: K >= 1.
        largest: size of class 0, n_max >= 0.
        factor: r in (0, 1], the size of the last class over that of the first. Some papers call r = 0.01 an imbalance
            ratio of 100.

    Returns:
        Counts of shape (K,), descending.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> exponential_counts(5, 100, 0.01)
        array([100,  31,  10,   3,   1])

    Reference: Cui et al. (2019); rounded down as in the released code of Cao et al. (2019).
    """
    _check_sizes(num_classes, largest, factor)
    powers = np.arange(num_classes) / max(num_classes - 1, 1)
    # Add 1e-9 before rounding down, because 0.57 * 100, for instance, is 56.99999999999999 in floating point.
    return np.floor(largest * factor**powers + 1e-9).astype(np.int64)


def step_counts(
    num_classes: int,
    largest: int,
    factor: float,
    fraction: float = 0.5,  # released code of Cao et al. (2019): half of the classes
) -> Int[np.ndarray, " classes"]:
    r"""Class sizes of two kinds: the first classes are large, and the last classes have r times their size.

    .. math::
        n_k = n_{\max} \text{ for } k < K - \lfloor \mu K \rfloor, \qquad \lfloor r \, n_{\max} \rfloor \text{ else}

    Args:
        num_classes: K >= 1.
        largest: size of the first classes, n_max >= 0.
        factor: r in (0, 1].
        fraction: mu in [0, 1], the share of classes that are small.

    Returns:
        Counts of shape (K,), descending.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> step_counts(5, 100, 0.01)
        array([100, 100, 100,   1,   1])

    Reference: Buda, Maki and Mazurowski (2018).
    """
    _check_sizes(num_classes, largest, factor)
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1]; got {fraction}")
    counts = np.full(num_classes, largest, dtype=np.int64)
    small = int(fraction * num_classes + 1e-9)  # 1e-9 against floating-point errors below a whole number
    counts[num_classes - small :] = int(largest * factor + 1e-9)
    return counts


def pareto_counts(
    num_classes: int, largest: int, factor: float, shape: float = PARETO_SHAPE
) -> Int[np.ndarray, " classes"]:
    r"""Class sizes that are evenly spaced quantiles of a Pareto law between the smallest and the largest size.

    .. math::
        n_k = \Big\lfloor r \, n_{\max} \, \big(1 - u_k (1 - r^a)\big)^{-1/a} \Big\rfloor, \qquad
        u_k = 1 - \frac{k}{K - 1}

    The law has density proportional to :math:`n^{-a-1}` on :math:`[r \, n_{\max}, n_{\max}]`. The larger a, the fewer
    classes are large; for a towards 0 the sizes are those of `exponential_counts`.

    Args:
        num_classes: K >= 1.
        largest: size of class 0, n_max >= 0.
        factor: r in (0, 1], the size of the last class over that of the first.
        shape: a > 0.

    Returns:
        Counts of shape (K,), descending.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> pareto_counts(5, 100, 0.01, shape=1.0)
        array([100,   3,   1,   1,   1])

    Reference: Liu et al. (2019) drew the sizes of ImageNet-LT at random from such a law.
    """
    _check_sizes(num_classes, largest, factor)
    if not 0 < shape < np.inf:
        raise ValueError(f"shape of a Pareto law must be a number above 0; got {shape}")
    tail = np.arange(num_classes) / max(num_classes - 1, 1)  # 1 - u
    power = shape * np.log(factor)
    # log(1 - u (1 - r^a)), without loss of digits where a is near 0 (the first form) or r^a is (the second one).
    log_mix = np.log1p((1 - tail) * np.expm1(power)) if power > -1 else np.log(tail + (1 - tail) * np.exp(power))
    smallest = int(largest * factor + 1e-9)
    counts = np.clip(np.floor(largest * factor * np.exp(-log_mix / shape) + 1e-9), smallest, largest).astype(np.int64)
    counts[-1] = smallest  # both ends exactly, whatever the rounding errors
    counts[0] = largest
    return counts


def majority_counts(num_classes: int, largest: int, factor: float) -> Int[np.ndarray, " classes"]:
    r"""Class sizes with one large class: class 0 has `largest` examples, and every other class r times as many.

    .. math:: n_0 = n_{\max}, \qquad n_k = \lfloor r \, n_{\max} \rfloor \text{ for } k > 0

    Args:
        num_classes: K >= 1.
        largest: size of class 0, n_max >= 0.
        factor: r in (0, 1].

    Returns:
        Counts of shape (K,), descending.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> majority_counts(5, 100, 0.01)
        array([100,   1,   1,   1,   1])
    """
    return step_counts(num_classes, largest, factor, fraction=1 - 1 / max(num_classes, 1))


_PROFILES: dict[str, Callable[[int, int, float], Int[np.ndarray, " classes"]]] = {
    "exponential": exponential_counts,
    "step": step_counts,
    "pareto": pareto_counts,
    "majority": majority_counts,
}


def profile_counts(profile: str, num_classes: int, largest: int, factor: float) -> Int[np.ndarray, " classes"]:
    """Class sizes of a profile by its name, of which every class has an example.

    Args:
        profile: "exponential", "step" (half of the classes are small), "pareto" or "majority": see the functions
            `exponential_counts`, `step_counts`, `pareto_counts` and `majority_counts`.
        num_classes: K >= 1.
        largest: size of class 0, n_max >= 1.
        factor: r in (0, 1], the size of the smallest class over that of the largest.

    Returns:
        Counts of shape (K,), descending, all at least 1.

    Raises:
        ValueError: if there is no such profile, an argument is out of its range, or a class would have no example.

    Example:
        >>> [profile_counts(name, 4, 100, 0.05).tolist() for name in ("exponential", "step", "majority")]
        [[100, 36, 13, 5], [100, 100, 5, 5], [100, 5, 5, 5]]
    """
    if profile not in _PROFILES:
        raise ValueError(f"profile must be one of {', '.join(map(repr, get_args(Profile)))}; got {profile!r}")
    counts = _PROFILES[profile](num_classes, largest, factor)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        remedy = f"a factor of at least {1 / largest:.4g} does that" if largest else "largest must be at least 1"
        raise ValueError(
            f"every class must keep an example ({remedy}); class {empty[0]} of {num_classes} would have none with "
            f"profile={profile!r}, largest={largest} and factor={factor:g}"
        )
    return counts


def _check_sizes(num_classes: int, largest: int, factor: float) -> None:
    check_at_least("num_classes", num_classes)
    if largest < 0:
        raise ValueError(f"largest must be at least 0; got {largest}")
    if not 0 < factor <= 1:
        raise ValueError(f"factor must lie in (0, 1], such as 0.01 for an imbalance ratio of 100; got {factor}")
