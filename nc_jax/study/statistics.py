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


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Return half the width of the mean's 95 % confidence interval, by Student's t with ddof = 1; 0 for one value."""
    number = len(values)
    return float(stats.t.ppf(0.975, number - 1) * stats.sem(values)) if number > 1 else 0.0


def mean_and_interval(values: Sequence[float], digits: int) -> str:
    """Return "mean ± half width" of the mean's 95 % confidence interval over seeds."""
    return _mean_and(values, digits, half_width)


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
    that spread by no more than the rounding of what was measured: differences that are rounding, and equal ones.

    Args:
        ours: a number per seed.
        theirs: a number per seed, in the same order.
        digits: number of digits behind the point.
        wilcoxon: add the p value of the signed-rank test. It is exact unless differences are zero or equal; with n
            seeds it cannot fall below 2^(1 - n).
    """
    differences = _differences(ours, theirs)
    if not len(differences):
        return "-"
    mean, p = f"{differences.mean():+.{digits}f}", paired_p(ours, theirs)
    if p is None:
        return mean
    found = [p]
    if wilcoxon:
        # Rounding must neither decide a sign nor break a tie.
        step = _resolution(ours, theirs)
        ranks: Any = stats.wilcoxon(np.round(differences / step))
        found.append(ranks.pvalue)
    return f"{mean} (p = {', '.join(f'{value:.2g}' for value in found)})"


def paired_p(ours: Sequence[float], theirs: Sequence[float], *, ratio: bool = False) -> float | None:
    """Return the p value of a two-sided paired t test over seeds; None where there is nothing to test.

    Args:
        ours: a number per seed.
        theirs: a number per seed, in the same order.
        ratio: test the logarithm of the ratio instead of the difference. Seeds in which a number is not positive are
            left out.
    """
    differences = _differences(ours, theirs)
    values = _log_ratios(theirs, ours) if ratio else differences
    if len(values) < LEAST_SEEDS or np.ptp(differences) <= _resolution(ours, theirs) or np.ptp(values) <= RESOLUTION:
        return None
    test: Any = stats.ttest_1samp(values, 0)
    return float(test.pvalue)


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> np.ndarray:
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    return differences[np.isfinite(differences)]


def _log_ratios(theirs: Sequence[float], ours: Sequence[float]) -> np.ndarray:
    pairs = np.array([theirs, ours], float)
    pairs = pairs[:, np.all(np.isfinite(pairs) & (pairs > 0), axis=0)]
    return np.log(pairs[0] / pairs[1])


def _resolution(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the least difference that is more than the rounding of what was measured."""
    finite = np.abs(np.asarray([*ours, *theirs], float))
    return RESOLUTION * max(float(finite[np.isfinite(finite)].max(initial=0)), 1.0)


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Return the geometric mean of theirs / ours over seeds with the p value of a paired t test of its logarithm.

    Seeds in which one of the two is not a number are left out, and counted.
    """
    logarithms = _log_ratios(theirs, ours)
    if not logarithms.size:
        return "-"
    missing = f" ({len(logarithms)} of {len(ours)})" if len(logarithms) < len(ours) else ""
    ratio, p = f"{np.exp(logarithms.mean()):.3g}", paired_p(ours, theirs, ratio=True)
    return f"{ratio}{missing}" if p is None else f"{ratio} (p = {p:.2g}){missing}"
