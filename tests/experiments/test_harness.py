"""Numbers in tables."""

import math

import pytest
from scipy import stats

from experiments.harness import markdown_table, mean_and_sd, paired_difference


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], "2.00 ± 1.00"),
        ([1.5], "1.50"),
        ([1.0, math.nan, 3.0], "2.00 ± 1.41 (2 of 3)"),
        ([math.nan], "-"),
    ],
)
def test_mean_and_sd(values, expected):
    assert mean_and_sd(values, 2) == expected


def test_the_paired_test_is_a_paired_t_test():
    ours, theirs = [1.0, 2.5, 3.0, 4.2], [0.5, 2.1, 2.2, 4.1]
    expected = stats.ttest_rel(ours, theirs).pvalue
    assert paired_difference(ours, theirs, 3) == f"+0.450 (p = {expected:.2g})"
    assert paired_difference([1.0, 2.0], [0.5, 1.5], 1) == "+0.5"  # no spread, no test
    assert paired_difference([1.0, math.nan], [0.5, 1.0], 1) == "-"


def test_markdown():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
