"""Tables: on the terminal, in Markdown, and of a comparison with its paired tests."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from nc_jax.study.statistics import mean_and_interval, mean_and_sd, paired_difference, paired_ratio

WIDE = 4  # rows up to which metrics stand below each other, and methods beside each other


class Table(NamedTuple):
    """A title, column names, rows of strings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric as tables and plots show it.

    Attributes:
        key: its name among a run's numbers.
        title: in tables.
        digits: behind the point.
        panel: title in the plot of curves; None leaves it out there.
        scale: of that plot.
        test: how seeds are compared: a paired "t" test, with "wilcoxon" the signed-rank test as well, a "ratio" with a
            t test of its logarithm, or "none".
    """

    key: str
    title: str
    digits: int
    panel: str | None = None
    scale: Literal["linear", "log"] = "linear"
    test: Literal["t", "wilcoxon", "ratio", "none"] = "t"


def comparison_tables(
    results: Mapping[str, Mapping[str, Sequence[float]]],
    columns: Sequence[Column],
    baseline: str | None,
    *,
    interval: bool = False,
) -> list[Table]:
    """Lay out what the seeds of each row reached, and how the rows differ from one of them.

    Args:
        results: by row and metric, a number per seed.
        columns: which metrics to show, those that no row has left out.
        baseline: the row that the others are compared with, seed by seed; None compares nothing.
        interval: show 95 % intervals of the mean instead of standard deviations.

    Returns:
        One table of metrics below each other for up to `WIDE` rows; else a table with a line per row, and one of the
        differences.
    """
    show = mean_and_interval if interval else mean_and_sd
    columns = [column for column in columns if any(column.key in values for values in results.values())]
    others = [label for label in results if label != baseline] if baseline in results else []

    def cell(label: str, column: Column) -> str:
        values = results[label].get(column.key)
        return "-" if values is None else show(values, column.digits)

    def difference(label: str, column: Column) -> str:
        assert baseline is not None, "there are others"
        ours, theirs = results[baseline].get(column.key), results[label].get(column.key)
        if column.test == "none" or ours is None or theirs is None:
            return ""
        if column.test == "ratio":
            return paired_ratio(theirs, ours)
        return paired_difference(ours, theirs, column.digits, wilcoxon=column.test == "wilcoxon")

    if len(results) <= WIDE:
        # Ratios are those of the others' numbers to the baseline's: how many times as many steps they take.
        tests = {column.test for column in columns} - {"none"}
        heading = (
            (lambda label: f"{label} / {baseline}") if tests == {"ratio"} else (lambda label: f"{baseline} - {label}")
        )
        names = ["", *results, *map(heading, others)]
        lines = [
            [column.title, *(cell(label, column) for label in results), *(difference(one, column) for one in others)]
            for column in columns
        ]
        return [Table("", names, lines)]
    names = ["", *(column.title for column in columns)]
    tables = [Table("", names, [[label, *(cell(label, column) for column in columns)] for label in results])]
    if others:
        tested = [column for column in columns if column.test != "none"]
        ranks = ", of Wilcoxon's" if any(column.test == "wilcoxon" for column in tested) else ""
        title = f"{baseline} less the other: difference (p of the paired t test{ranks})"
        lines = [[label, *(difference(label, column) for column in tested)] for label in others]
        tables.append(Table(title, ["", *(column.title for column in tested)], lines))
    return tables


def show_table(table: Table) -> None:
    """Print a table on the terminal."""
    shown = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def markdown_table(table: Table) -> str:
    r"""Return a table in Markdown, without its title.

    Example:
        >>> print(markdown_table(Table("", ["a", "b"], [["1", "|2|"]])), end="")
        | a | b |
        | --- | --- |
        | 1 | \|2\| |
    """
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    lines = [table.columns, ["---"] * len(table.columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
