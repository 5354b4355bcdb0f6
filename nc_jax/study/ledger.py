"""What is done: a file with a line for every finished part of a run, so that a resumed run does none again."""

import json
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
        ValueError: if a whole line is no such line.

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
        from nc_jax.files import read_lines  # with all that training imports

        self.path = path
        self._found: dict[str, Any] = {}
        for number, row in enumerate(read_lines(path), start=1):
            if not isinstance(row.get("key"), dict) or "found" not in row:
                raise ValueError(
                    f'{path} must hold {{"key": {{...}}, "found": ...}} in each line; line {number} is {row!r:.60}'
                )
            self._found[_name(row["key"])] = row["found"]

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
                from nc_jax.files import append_line, sync

                append_line(self.path, {"key": dict(key), "found": found})
                sync(self.path)
            self._found[name] = found
        return self._found[name]

    def __len__(self) -> int:
        return len(self._found)


def _name(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)
