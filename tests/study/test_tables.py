"""Numbers over seeds, and the tables that show them."""

import math

import numpy as np
import pytest
from scipy import stats

from nc_jax.study import Column, comparison_tables
from nc_jax.study.statistics import mean_and_interval, mean_and_sd, paired_difference, paired_p, paired_ratio
from nc_jax.study.tables import show_table
from nc_jax.study.verdict import verdicts


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
    assert paired_p(ours, theirs) == pytest.approx(expected)
    assert paired_difference([1.0, math.nan], [0.5, 1.0], 1) == "+0.5"
    assert paired_difference([math.nan], [1.0], 1) == "-"


def test_rounding_and_two_seeds_are_no_test():
    base = np.float32([0.7, 0.8, 0.9])
    equal = base + np.float32(0.0138889) * np.array([1, 1 + 1e-6, 1 - 1e-6])
    assert paired_difference(equal.tolist(), base.tolist(), 4) == "+0.0139"
    # Two exact frames differ from a simplex by their rounding.
    assert paired_difference([3e-7, 4e-7, 5e-7], [1e-7, 1e-7, 2e-7], 3) == "+0.000"
    assert paired_difference([1.0, 2.0], [0.5, 1.0], 1) == "+0.8"
    assert paired_p([1.0, 2.0], [0.5, 1.0]) is None


# What a reader saw: seeds, what both rows measured, digits, and what the table of differences must say.
PRINTED = {
    "equal up to rounding, two seeds": ([0.7138889, 0.8138889], [0.7, 0.8 - 1e-8], 4, "+0.0139"),
    "equal up to rounding, many seeds": ([0.7138889, 0.8138889, 0.9138889], [0.7, 0.8 - 1e-8, 0.9], 4, "+0.0139"),
    "two exact frames": ([6e-7, 5e-7, 7e-7, 6e-7], [1e-7, 1e-7, 2e-7, 0.0], 3, "+0.000"),
    "large numbers": ([1e6 + 0.5, 1e6 + 0.4, 1e6 + 0.6], [1e6, 1e6, 1e6], 1, "+0.5"),
    "the same": ([0.9, 0.8, 0.9], [0.9, 0.8, 0.9], 3, "+0.000"),
}


@pytest.mark.parametrize("what", PRINTED)
@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_rounding_is_no_difference_in_what_is_printed(what, test, capsys):
    ours, theirs, digits, shown = PRINTED[what]
    column = Column("a", "A", digits, test=test, words=("less", "more"))
    _, differences = comparison_tables({"x": {"a": ours}, "y": {"a": theirs}}, [column], "x")
    assert differences.rows == [["A", shown]]
    show_table(differences)
    assert "p = " not in capsys.readouterr().out
    assert ("(p of " in differences.title) == (len(ours) > 2)
    (said,) = verdicts({"x": {"a": ours}, "y": {"a": theirs}}, [column], "x", ["y"])
    assert "not tested" in said


def test_rounding_does_not_break_ties_of_ranks():
    theirs = np.zeros(6)
    equal = [0.25, 0.25, 0.25, 0.25, -0.5, 0.5]
    expected = stats.wilcoxon(equal).pvalue
    rounded = (np.array(equal) + 1e-8 * np.array([1, -2, 3, -1, 2, 1])).tolist()
    assert paired_difference(rounded, theirs.tolist(), 1, wilcoxon=True).endswith(f", {expected:.2g})")


def test_four_differences_of_one_sign_have_the_least_signed_rank_p_value():
    text = paired_difference([1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.0, 2.0], 3, wilcoxon=True)
    assert text.startswith("+1.125 (p = ")
    assert text.endswith(f", {2 * 0.5**4:.2g})")


def test_the_interval_is_students():
    half = 4.302653 / 3**0.5  # t of 2 degrees of freedom at 97.5 %, ddof = 1
    assert mean_and_interval([1.0, 2.0, 3.0], 4) == f"2.0000 ± {half:.4f}"
    assert mean_and_interval([1.0, math.nan], 1) == "1.0 (1 of 2)"


def test_a_ratio_is_a_geometric_mean():
    theirs, ours = [2.0, 4.0, 9.0], [1.0, 2.0, 3.0]
    expected = stats.ttest_1samp(np.log([2.0, 2.0, 3.0]), 0).pvalue
    assert paired_ratio(theirs, ours) == f"2.29 (p = {expected:.2g})"
    assert paired_ratio([2.0, math.nan], [1.0, 1.0]) == "2 (1 of 2)"


COLUMNS = (Column("a", "A", 1), Column("time", "time", 0, test="none"), Column("absent", "nowhere", 1))


def rows(count):
    return {f"m{place}": {"a": [1.0 + place, 2.0 + place, 4.5], "time": [1.0, 1.0, 1.0]} for place in range(count)}


def test_few_rows_stand_beside_each_other_with_their_differences():
    values, differences = comparison_tables(rows(2), COLUMNS, "m1", what="digits")
    assert values.title == "digits: mean ± standard deviation over 3 seeds"
    assert values.columns == ["", "m0", "m1"]
    assert [line[0] for line in values.rows] == ["A", "time"]
    assert values.rows[0][1] == mean_and_sd([1.0, 2.0, 4.5], 1)
    assert differences.columns == ["", "m0"]
    assert differences.rows == [["A", paired_difference([2.0, 3.0, 4.5], [1.0, 2.0, 4.5], 1)]]
    assert differences.title.startswith(
        "m1 less the other, seed by seed: mean difference over 3 seeds (p of a two-sided"
    )


def test_many_rows_stand_below_each_other_with_their_differences():
    first, second = comparison_tables(rows(5), COLUMNS, "m0", interval=True)
    assert first.columns == ["", "A", "time"]
    assert [line[0] for line in first.rows] == [f"m{place}" for place in range(5)]
    assert second.columns == ["", "A"]
    assert [line[0] for line in second.rows] == [f"m{place}" for place in range(1, 5)]
    (alone,) = comparison_tables(rows(5), COLUMNS, None)
    assert len(alone.rows) == 5


def test_ratios_have_a_table_of_their_own():
    columns = (Column("a", "A", 1, test="ratio"), Column("time", "time", 0))
    _, differences, ratios = comparison_tables(rows(2), columns, "m0")
    assert [line[0] for line in differences.rows] == ["time"]
    assert ratios.rows == [["A", paired_ratio([2.0, 3.0, 4.5], [1.0, 2.0, 4.5])]]


def test_a_wide_table_is_cut_for_a_terminal(capsys):
    columns = [Column("a", f"a metric with a long name, number {place}", 4) for place in range(8)]
    tables = comparison_tables(rows(5), columns, None, what="digits")
    assert sum(len(table.columns) - 1 for table in tables) == 8
    assert [table.columns[0] for table in tables] == [""] * len(tables)
    for table in tables:
        show_table(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_a_verdict_says_what_differs_and_what_does_not():
    columns = (
        Column("epochs", "epochs to 95 %", 1, words=("sooner", "later")),
        Column("accuracy", "accuracy", 2, words=("less accurate", "more accurate")),
        Column("loss", "loss", 2),
    )
    found = {
        "nearest": {"epochs": [2.0, 3.0, 2.0, 3.0], "accuracy": [0.9, 0.8, 0.9, 0.8], "loss": [1.0] * 4},
        "learned": {"epochs": [4.0, 5.5, 4.0, 5.0], "accuracy": [0.8, 0.9, 0.91, 0.8], "loss": [2.0] * 4},
    }
    (said,) = verdicts(found, columns, "nearest", ["learned"])
    p = stats.ttest_rel([2, 3, 2, 3], [4, 5.5, 4, 5]).pvalue
    assert said.startswith(f"nearest against learned: sooner (epochs to 95 %: 2.5 against 4.6, p = {p:.2g}); ")
    assert "no significant difference in accuracy (0.85 against 0.85, p = " in said
    assert "loss" not in said
    (said,) = verdicts(found, columns, "learned", ["nearest"])
    assert said.startswith("learned against nearest: later (")
    two = {row: {name: numbers[:2] for name, numbers in values.items()} for row, values in found.items()}
    (said,) = verdicts(two, columns, "nearest", ["learned"])
    assert said == (
        "nearest against learned: not tested (fewer than 3 seeds, or no spread): "
        "epochs to 95 % (2.5 against 4.8), accuracy (0.85 against 0.85)."
    )
