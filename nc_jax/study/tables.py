"""Tables: on the terminal, in Markdown, and of a comparison with its paired tests."""

import dataclasses
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from nc_jax.study.planning import WIDTH
from nc_jax.study.statistics import LEAST_SEEDS, mean_and_interval, mean_and_sd, paired_difference, paired_ratio

BESIDE = 3  # rows up to which metrics stand below each other, and methods beside each other


class Table(NamedTuple):
    """A title, column names, rows of strings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric as tables, plots and verdicts show it.

    Attributes:
        key: name of the metric among a run's numbers.
        title: name of the metric in tables; "{target}" in it stands for the target accuracy.
        digits: number of digits behind the point.
        panel: title in the plot of curves; None leaves it out of that plot.
        scale: scale of the metric's axis in plots.
        test: how rows are compared, seed by seed: "t" by a paired t test, "wilcoxon" by that and the signed-rank test,
            "ratio" by a t test of the ratio's logarithm, "none" not at all.
        words: what a row with a smaller value and a row with a larger value is called in the verdict, ("sooner",
            "later") for instance; None leaves the metric out of the verdict.
    """

    key: str
    title: str
    digits: int
    panel: str | None = None
    scale: Literal["linear", "log"] = "linear"
    test: Literal["t", "wilcoxon", "ratio", "none"] = "t"
    words: tuple[str, str] | None = None


def named(columns: Sequence[Column], target: float) -> list[Column]:
    """Return metrics with the target accuracy, a share, written into their titles."""
    return [dataclasses.replace(one, title=one.title.format(target=f"{100 * target:g} %")) for one in columns]


def comparison_tables(
    results: Mapping[str, Mapping[str, Sequence[float]]],
    columns: Sequence[Column],
    baseline: str | None,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    what: str = "",
    interval: bool = False,
) -> list[Table]:
    """Lay out what the seeds of each row reached, and how the rows differ from one of them.

    Args:
        results: a number per seed, by row and metric.
        columns: the metrics to show; those that no row has are left out.
        baseline: the row that the others are compared with, seed by seed; None compares only `pairs`.
        pairs: rows, each with one that it is compared with, in place of a baseline.
        what: what was trained, for the title.
        interval: show 95 % intervals of the mean instead of standard deviations.

    Returns:
        A table of values; a table of differences where rows are compared, and one of ratios where metrics are compared
        by those. Tables that are wider than a terminal are cut into several.
    """
    show = mean_and_interval if interval else mean_and_sd
    columns = [column for column in columns if any(column.key in values for values in results.values())]
    if baseline is not None and baseline in results:
        pairs = [(baseline, other) for other in results if other != baseline]
    firsts = {first for first, _ in pairs}
    common = next(iter(firsts)) if len(firsts) == 1 else None
    named_pairs = {second if common else f"{first} less {second}": (first, second) for first, second in pairs}
    seeds = max((len(numbers) for values in results.values() for numbers in values.values()), default=0)
    over = f"over {seeds} {'seed' if seeds == 1 else 'seeds'}"
    spread = "half width of its 95 % interval" if interval else "standard deviation"

    def value(label: str, column: Column) -> str:
        values = results[label].get(column.key)
        return "-" if values is None else show(values, column.digits)

    def difference(label: str, column: Column) -> str:
        ours, theirs = (results[row].get(column.key) for row in named_pairs[label])
        if ours is None or theirs is None:
            return "-"
        if column.test == "ratio":
            return paired_ratio(theirs, ours)
        return paired_difference(ours, theirs, column.digits, wilcoxon=column.test == "wilcoxon")

    title = f"{what}: mean ± {spread} {over}" if seeds > 1 else f"{what}, {seeds} seed"
    tables = _laid_out(title, list(results), columns, value)
    tested = [column for column in columns if column.test in ("t", "wilcoxon")]
    who = common or "The first"
    if pairs and tested:
        ranks = ", then of Wilcoxon's signed-rank test" if any(c.test == "wilcoxon" for c in tested) else ""
        title = f"{who} less the other, seed by seed: mean difference {over}"
        if seeds >= LEAST_SEEDS:
            title += f" (p of a two-sided paired t test{ranks}; not corrected for the number of tests)"
        elif seeds > 1:
            title += f" (not tested, which takes {LEAST_SEEDS} seeds)"
        tables += _laid_out(title, list(named_pairs), tested, difference)
    ratios = [column for column in columns if column.test == "ratio"]
    if pairs and ratios:
        how = "p of a paired t test of its logarithm" if seeds >= LEAST_SEEDS else f"tested from {LEAST_SEEDS} seeds on"
        title = f"The other over {common or 'the first'}, seed by seed: mean ratio {over} ({how})"
        tables += _laid_out(title, list(named_pairs), ratios, difference)
    return tables


def _laid_out(title: str, labels: Sequence[str], columns: Sequence[Column], cell) -> list[Table]:
    """Return a table of metrics below each other for up to `BESIDE` rows, else of rows below each other."""
    if len(labels) <= BESIDE:
        lines = [[column.title, *(cell(label, column) for label in labels)] for column in columns]
        return fitted(Table(title, ["", *labels], lines))
    lines = [[label, *(cell(label, column) for column in columns)] for label in labels]
    return fitted(Table(title, ["", *(column.title for column in columns)], lines))


def fitted(table: Table, width: int = WIDTH) -> list[Table]:
    """Cut a table into several that are no wider than a terminal; each repeats the first column.

    Example:
        >>> [part.columns for part in fitted(Table("", ["", "a" * 9, "b" * 9], []), width=20)]
        [['', 'aaaaaaaaa'], ['', 'bbbbbbbbb']]
    """
    sizes = [max(map(len, column)) + 3 for column in zip(table.columns, *table.rows, strict=True)]
    parts: list[list[int]] = [[]]
    for place in range(1, len(sizes)):
        if parts[-1] and 1 + sizes[0] + sum(sizes[other] for other in parts[-1]) + sizes[place] > width:
            parts.append([])
        parts[-1].append(place)
    return [
        Table(
            table.title if number == 0 else f"{table.title} (continued)",
            [table.columns[place] for place in [0, *part]],
            [[row[place] for place in [0, *part]] for row in table.rows],
        )
        for number, part in enumerate(parts)
    ]


def show_table(table: Table, *, text_columns: Iterable[int] = ()) -> None:
    """Print a table on the terminal.

    Args:
        table: what to print.
        text_columns: places of columns with sentences, which stand on the left of their cells.
    """
    shown = RichTable()
    left = {0, *text_columns}
    for index, column in enumerate(table.columns):
        # A name that is too long goes on in the next line; rich would cut it off.
        shown.add_column(column, justify="left" if index in left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    if table.title:
        print("\n" + textwrap.fill(table.title, WIDTH))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(shown)


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
