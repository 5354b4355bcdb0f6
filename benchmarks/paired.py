"""Two programs whose times differ by less than the noise of the machine, compared call by call.

The programs are called in rounds, once each, in alternating order: A B, B A, A B, ... Neighbouring calls see nearly the
same machine, and a drift, or an advantage of the second place, has opposite signs in successive rounds. A difference is
the median over the rounds, with an interval that holds for every distribution of the noise.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # the median of fewer values has no interval of this confidence: 2 (1/2)^6 = 0.03


def in_rounds(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, budget: float
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Time functions in rounds of alternating order. The caller has compiled and checked them.

    Args:
        functions: functions without arguments, by name; every call is waited for.
        rounds: largest number of rounds; there are at least `LEAST_ROUNDS`.
        budget: seconds after which no round begins, if there were as many as an interval needs.

    Returns:
        Seconds of every call, shape (rounds,), by name.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for number in range(max(rounds, LEAST_ROUNDS)):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > budget:
            break
        for name in samples if number % 2 == 0 else reversed(samples):
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            samples[name].append(time.perf_counter() - start)
    return {name: np.array(taken) for name, taken in samples.items()}


@dataclasses.dataclass(frozen=True)
class Median:
    """A median with a confidence interval.

    Attributes:
        value: the median.
        lower: lower end of the interval.
        upper: upper end of the interval.
        count: number of values.
    """

    value: float
    lower: float
    upper: float
    count: int

    def row(self, name: str) -> dict[str, float]:
        """Return the numbers under the names that they have in a JSON file."""
        return {
            name: self.value,
            f"{name}_lower": self.lower,
            f"{name}_upper": self.upper,
            f"{name}_rounds": self.count,
        }


def median(values: np.ndarray) -> Median:
    """Return the median and its interval of at least 95 % confidence, by order statistics.

    The number of values below the true median is binomial with probability 1/2, whatever the distribution. So the
    interval from the k-th smallest to the k-th largest value misses it with probability 2 P(Bin(n, 1/2) < k).

    Raises:
        ValueError: if there are fewer values than `LEAST_ROUNDS`.
    """
    ordered, count = np.sort(values), len(values)
    if count < LEAST_ROUNDS:
        raise ValueError(f"an interval of the median needs at least {LEAST_ROUNDS} values; got {count}")
    # The largest k for which that probability is at most 1 - CONFIDENCE; ppf gives the first count beyond it.
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))
    return Median(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[count - k]), count)


def share(base: np.ndarray, other: np.ndarray) -> Median:
    """Return what share of a call of `other` is more than a call of `base` in the same round: 1 - base / other."""
    return median(1 - base / other)
