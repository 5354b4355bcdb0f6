"""What is done: a file with a line for every finished part of a run, so that a resumed run does none again."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Key = Mapping[str, str | int | float]  # everything that decides a result


class Ledger:
    """Results by their keys, one JSON line each: {"key": {...}, "found": {...}}.

    A line is written when its part is finished, and reaches the disk before the next part begins. A line that a crash
    cut short is dropped, and its part is done again. Numbers that are not finite are kept.

    Args:
        path: path of the file, which is created with its first line.

    Raises:
        ValueError: if a line other than the last is no such line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Ledger(Path(folder) / "results.jsonl")
        ...     first = ledger.once({"seed": 0}, lambda: {"accuracy": 0.5})
        ...     again = ledger.once({"seed": 0}, lambda: {"accuracy": 0.9})
        >>> first, again
        ({'accuracy': 0.5}, {'accuracy': 0.5})
    """

    def __init__(self, path: Path):
        self.path = path
        self._found: dict[str, Any] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._found[_name(row["key"])] = row["found"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f'{path} must hold {{"key": ..., "found": ...}} in each line; line {number} is {line[:40]!r}'
                ) from None
        if torn:
            # Cut off, or the next line would be joined to it.
            with path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def items(self) -> list[tuple[dict[str, Any], Any]]:
        """Return all results with their keys, in the order in which they were found."""
        return [(json.loads(name), found) for name, found in self._found.items()]

    def get(self, key: Key) -> Any:
        """Return a result, None if there is none."""
        return self._found.get(_name(key))

    def once(self, key: Key, compute: Callable[[], Any], *, write: bool = True) -> Any:
        """Return a result: the one that is there, or what is computed now.

        Args:
            key: everything that decides the result.
            compute: () -> the result, as JSON can hold it.
            write: whether to write a new result down.

        Returns:
            The result as JSON gives it back, so that a fresh and a resumed run see the same.
        """
        name = _name(key)
        if name not in self._found:
            found = json.loads(json.dumps(compute()))
            if write:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": dict(key), "found": found}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            self._found[name] = found
        return self._found[name]

    def __len__(self) -> int:
        return len(self._found)


def _name(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)
