"""Small differences of times: the order of the calls, and an interval that covers as it says."""

import itertools

import numpy as np
import pytest
from scipy import stats

from benchmarks import paired

pytestmark = pytest.mark.benchmark


def test_rounds_alternate_and_end_with_the_budget():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ABC"}
    times = paired.in_rounds(functions, rounds=7, budget=60)
    assert "".join(calls) == "ABCCBA" * 3 + "ABC"
    assert {name: len(taken) for name, taken in times.items()} == {"A": 7, "B": 7, "C": 7}
    assert len(paired.in_rounds(functions, rounds=100, budget=0.0)["A"]) == paired.LEAST_ROUNDS


@pytest.mark.parametrize("count", [6, 7, 12, 20, 101])
def test_the_interval_is_the_shortest_that_order_statistics_give(count):
    """The k-th smallest and largest values, with k from the table of the binomial distribution."""
    found = paired.median(np.random.default_rng(0).permutation(np.arange(1.0, count + 1)))
    assert found.value == (count + 1) / 2
    k = int(found.lower)
    assert found.upper == count + 1 - k
    missed = [2 * sum(stats.binom.pmf(range(ends), count, 0.5)) for ends in (k, k + 1)]
    assert missed[0] <= 1 - paired.CONFIDENCE < missed[1]


def test_the_interval_covers_the_median_of_a_skewed_noise():
    generator = np.random.default_rng(0)
    intervals = [paired.median(generator.exponential(size=15)) for _ in range(2000)]
    covered = np.mean([one.lower <= np.log(2) <= one.upper for one in intervals])
    assert covered >= paired.CONFIDENCE - 0.015  # three standard errors of 2000 draws


def test_a_drift_cancels_in_a_share():
    """The machine gets slower by 2 % with every call; the second program takes 1 % more."""
    speed = itertools.accumulate(itertools.repeat(1.02, 32), lambda one, more: one * more, initial=1.0)
    base, other = np.empty(16), np.empty(16)
    for place in range(16):
        for kind in (0, 1) if place % 2 == 0 else (1, 0):
            (base, other)[kind][place] = (1.0, 1.01)[kind] * next(speed)
    found = paired.share(base, other)
    assert found.value == pytest.approx(1 - 1 / 1.01, abs=1e-3)
    with pytest.raises(ValueError, match="needs at least 6 values; got 5"):
        paired.share(base[:5], other[:5])
