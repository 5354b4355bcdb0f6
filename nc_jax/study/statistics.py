"""Numbers over seeds: means with their spread, paired tests."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEAST_SEEDS = 3  # with two, a t test has one degree of freedom and means nothing
RESOLUTION = 1e-6  # a few roundings of float32, in which metrics are computed, of numbers of order one or larger


def mean_and_sd(values: Sequence[float], digits: int) -> str:
    """Return "mean ± standard deviation" over seeds, or "-" if no value is a number."""
    return _mean_and(values, digits, lambda finite: float(finite.std(ddof=1)))


def mean_and_interval(values: Sequence[float], digits: int, level: float = 0.95) -> str:
    """Return "mean ± half width" of the mean's confidence interval over seeds, by Student's t with ddof = 1."""
    quantile = (1 + level) / 2
    return _mean_and(values, digits, lambda finite: stats.t.ppf(quantile, len(finite) - 1) * stats.sem(finite))


def _mean_and(values: Sequence[float], digits: int, spread_of: Callable[[np.ndarray], float]) -> str:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return "-"
    spread = f" ± {spread_of(finite):.{digits}f}" if len(finite) > 1 else ""
    missing = f" ({len(finite)} of {len(values)})" if len(finite) < len(values) else ""
    return f"{finite.mean():.{digits}f}{spread}{missing}"


def paired_difference(ours: Sequence[float], theirs: Sequence[float], digits: int, *, wilcoxon: bool = False) -> str:
    """Return the mean difference over seeds with the p value of a two-sided paired t test.

    Seeds in which one of the two is not a number are left out. Fewer than three seeds give no test, nor do differences
    that spread by no more than the rounding of what was measured.

    Args:
        ours: a number per seed.
        theirs: a number per seed, in the same order.
        digits: number of digits behind the point.
        wilcoxon: add the p value of the signed-rank test. It is exact; with n seeds it cannot fall below 2^(1 - n).
    """
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return "-"
    mean = f"{differences.mean():+.{digits}f}"
    if not _testable(differences, max(np.abs(differences).max(), _size(ours), _size(theirs))):
        return mean
    tests: list[Any] = [stats.ttest_1samp(differences, 0)]
    if wilcoxon:
        tests.append(stats.wilcoxon(differences))
    return f"{mean} (p = {', '.join(f'{test.pvalue:.2g}' for test in tests)})"


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the p value of a two-sided paired t test over seeds; None where there is nothing to test."""
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    differences = differences[np.isfinite(differences)]
    if not len(differences) or not _testable(differences, max(_size(ours), _size(theirs))):
        return None
    test: Any = stats.ttest_1samp(differences, 0)
    return float(test.pvalue)


def _size(values: Sequence[float]) -> float:
    finite = np.abs(np.asarray(values, float))
    return float(finite[np.isfinite(finite)].max(initial=0))


def _testable(values: np.ndarray, size: float) -> bool:
    """Whether there are seeds enough, and a spread that rounding does not explain."""
    return len(values) >= LEAST_SEEDS and bool(np.ptp(values) > RESOLUTION * max(size, 1.0))


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Return the geometric mean of theirs / ours over seeds with the p value of a paired t test of its logarithm.

    Seeds in which one of the two is not a number are left out, and counted.
    """
    pairs = np.array([theirs, ours], float)
    pairs = pairs[:, np.all(np.isfinite(pairs) & (pairs > 0), axis=0)]
    if not pairs.size:
        return "-"
    logarithms = np.log(pairs[0] / pairs[1])
    missing = f" ({len(logarithms)} of {len(ours)})" if len(logarithms) < len(ours) else ""
    ratio = f"{np.exp(logarithms.mean()):.3g}"
    if not _testable(logarithms, 1.0):
        return f"{ratio}{missing}"
    test: Any = stats.ttest_1samp(logarithms, 0)
    return f"{ratio} (p = {test.pvalue:.2g}){missing}"
