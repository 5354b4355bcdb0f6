"""What a run ends in: sentences, tables and pictures, on the terminal and in summary.md."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nc_jax.files import write_atomically
from nc_jax.study.planning import WIDTH
from nc_jax.study.tables import Table, markdown_table, show_table


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
        write_atomically(self.directory / "summary.md", self._text)
        _show(print, f"tables, pictures and logs are in {self.directory}")


def _show(show: Callable[[Any], None], what: Any) -> None:
    """Show something, unless nobody reads it any more: `| head` must not cost a run its pictures and its summary."""
    try:
        show(what)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
