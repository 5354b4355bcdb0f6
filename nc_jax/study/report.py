"""What a run ends in: sentences, tables and pictures, on the terminal and in summary.md."""

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nc_jax.files import write_atomically
from nc_jax.study.planning import WIDTH
from nc_jax.study.tables import Table, markdown_table, show_table

SUMMARY = "summary.md"


class Part(NamedTuple):
    """A part of what a run says.

    Attributes:
        kind: what it is.
        content: the text of a heading or a sentence, a table, or the path of a picture below the run's directory.
    """

    kind: Literal["heading", "sentence", "table", "picture"]
    content: Any


class Report:
    """Collects what a run says, in the order in which a reader meets it, and shows it as it comes.

    Args:
        directory: directory of the run.
        title: heading of the text.
    """

    def __init__(self, directory: Path, title: str):
        self.directory, self._text = directory, f"# {title}\n"

    def heading(self, text: str) -> None:
        """Begin a part."""
        _show(print, f"\n{text}")
        self._text += f"\n## {text}\n"

    def say(self, sentences: Iterable[str]) -> None:
        """Add sentences, each a paragraph."""
        for sentence in sentences:
            _show(print, textwrap.fill(sentence, WIDTH))
            self._text += f"\n{sentence}\n"

    def tables(self, tables: Iterable[Table]) -> None:
        """Add tables."""
        for table in tables:
            _show(show_table, table)
            self._text += f"\n{table.title}\n\n{markdown_table(table)}"

    def picture(self, path: Path | None) -> None:
        """Add a picture that lies in the run's directory; None adds nothing."""
        if path is not None:
            self._text += f"\n![{path.stem}]({path.relative_to(self.directory)})\n"

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write summary.md and summary.json, and say where they are.

        Args:
            summary: the numbers, as JSON can hold them.
        """
        write_atomically(self.directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_atomically(self.directory / SUMMARY, self._text)
        _show(print, f"tables, pictures and logs are in {self.directory}")


def read_summary(text: str) -> list[Part]:
    r"""Return the parts of a summary.md, in their order and without its title: the inverse of `Report`.

    Tables that were cut for the terminal are whole again.

    Example:
        >>> for part in read_summary("# a run\n\nIt went well.\n\nShares\n\n|  | x |\n| --- | --- |\n| a | 1 |\n"):
        ...     print(part.kind, part.content)
        sentence It went well.
        table Table(title='Shares', columns=['', 'x'], rows=[['a', '1']])
    """
    parts: list[Part] = []
    blocks = re.split(r"(\n{2,})", text.strip("\n"))
    for gap, block in zip(["", *blocks[1::2]], blocks[::2], strict=True):
        if block.startswith("# "):
            continue
        if block.startswith("## "):
            parts.append(Part("heading", block[3:]))
        elif block.startswith("| "):
            # The title is the paragraph before the table; an empty one leaves two more ends of lines.
            titled = len(gap) < 4 and bool(parts) and parts[-1].kind == "sentence"
            _add_table(parts, parts.pop().content if titled else "", block)
        elif found := re.fullmatch(r"!\[.*?\]\((.*)\)", block):
            parts.append(Part("picture", found[1]))
        else:
            parts.append(Part("sentence", block))
    return parts


def _add_table(parts: list[Part], title: str, block: str) -> None:
    """Add a table in Markdown, or the columns with which it continues the one before."""
    columns, _, *rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
    ]
    last = parts[-1].content if parts and parts[-1].kind == "table" else None
    first = [row[0] for row in rows]
    if last is not None and title == f"{last.title} (continued)" and [row[0] for row in last.rows] == first:
        joined = [[*before, *row[1:]] for before, row in zip(last.rows, rows, strict=True)]
        parts[-1] = Part("table", Table(last.title, [*last.columns, *columns[1:]], joined))
    else:
        parts.append(Part("table", Table(title, columns, rows)))


def _show(show: Callable[[Any], None], what: Any) -> None:
    """Show something, unless nobody reads it any more: `| head` must not cost a run its pictures and its summary."""
    try:
        show(what)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
