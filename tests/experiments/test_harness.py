"""Numbers in tables."""

import math

import pytest
from scipy import stats

from experiments.harness import (
    RunOptions,
    markdown_table,
    mean_and_interval,
    mean_and_sd,
    paired_difference,
    part,
    subrun,
)


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
    assert paired_difference([1.0, math.nan], [0.5, 1.0], 1) == "+0.5"
    assert paired_difference([math.nan], [1.0], 1) == "-"


def test_four_differences_of_one_sign_have_the_least_signed_rank_p_value():
    text = paired_difference([1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.0, 2.0], 3, wilcoxon=True)
    assert text.startswith("+1.125 (p = ")
    assert text.endswith(f", {2 * 0.5**4:.2g})")


def test_the_interval_is_students():
    half = 4.302653 / 3**0.5  # t of 2 degrees of freedom at 97.5 %, ddof = 1
    assert mean_and_interval([1.0, 2.0, 3.0], 4) == f"2.0000 ± {half:.4f}"
    assert mean_and_interval([1.0, math.nan], 1) == "1.0 (1 of 2)"


def test_a_part_is_computed_once(tmp_path):
    path = tmp_path / "part.json"
    assert part(path, lambda: {"a": (1, 2)}) == {"a": [1, 2]}
    assert part(path, lambda: pytest.fail("computed again")) == {"a": [1, 2]}


def test_a_run_in_a_run_is_started_resumed_and_left_alone(tmp_path):
    below, calls = tmp_path / "below", []

    def run(config):
        calls.append(config)
        below.mkdir(exist_ok=True)
        if len(calls) == 2:
            (below / "summary.json").write_text('{"done": true}')
        else:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        subrun(run, RunOptions(), below)
    assert subrun(run, RunOptions(), below) == subrun(run, RunOptions(), below) == {"done": True}
    assert [(config.workdir, config.resume) for config in calls] == [(below, None), (None, below)]


def test_markdown():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
