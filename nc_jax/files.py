"""Files that survive a crash, and files that one process at a time may use."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO


class BusyError(RuntimeError):
    """Another process is at work in the same place."""


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock during a `with` block. The kernel frees it when the process ends, however it ends.

    File systems without locks (some network file systems) do not protect: there the block runs unlocked.

    Args:
        path: file of the lock. It is created, says which process holds the lock, and stays.
        what: what the lock protects, for the error.

    Raises:
        BusyError: if another process, or another block in this one, holds the lock.
    """
    with path.open("a+", encoding="utf-8") as file:
        if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BusyError(f"only one process at a time may work on {what}; {holder} is doing so")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines. Several processes may append to one file at the same time.

    A last line without its end was cut short by a crash; it is removed first. The line survives the end of the process;
    `sync` makes it survive the end of the machine, too.
    """
    line = (json.dumps(row) + "\n").encode()
    with path.open("ab+") as file:
        _lock(file, fcntl.LOCK_EX)
        torn = _torn_end(file)
        if torn:
            file.truncate(file.seek(0, os.SEEK_END) - torn)
        file.write(line)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without a last line that a crash cut short; [] if there is no file.

    Raises:
        ValueError: if another line is not a JSON object. The error names the file and the line.
    """
    if not path.exists():
        return []
    rows = []
    *lines, torn = path.read_bytes().split(b"\n")
    del torn  # what follows the last end of a line
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:  # no JSON, or no UTF-8
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path} must hold one JSON object a line; line {number} is {_shown(line)}")
        rows.append(row)
    return rows


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it holds either all the old or all the new content, even if the machine crashes."""
    with replaced(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Write a file piece by piece in a `with` block; it gets its name at the end of the block, and only then.

    Args:
        path: path of the file. If the block ends in an error, what is there stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a write that failed: a full disk, for instance


def check_new_file(path: Path, endings: Sequence[str]) -> None:
    """Raise an error unless a new file of one of some formats can be written, so that no work is lost at its end.

    Args:
        path: path of the file.
        endings: endings of the names of files that can be written, such as ".csv".

    Raises:
        ValueError: if the name has another ending.
        FileExistsError: if there is something of that name.
        FileNotFoundError: if there is no such folder.

    Example:
        >>> check_new_file(Path("page.htm"), [".html"])
        Traceback (most recent call last):
        ValueError: the name of the file must end in .html; got page.htm
    """
    if path.suffix not in endings:
        raise ValueError(f"the name of the file must end in {' or '.join(endings)}; got {path}")
    if os.path.lexists(path):
        raise FileExistsError(f"a new file needs a name that does not exist yet; got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"a new file needs a folder that exists; got {path}")


def free_name(path: Path) -> Path:
    """Return the path if nothing is there, else the first of path-2, path-3, ... where nothing is."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def sync(path: Path) -> None:
    """Wait until all that was written to a file is on the disk; nothing happens if there is no file."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _lock(file: Any, operation: int) -> bool:
    """Lock an open file; return whether no one else holds the lock. True where the file system knows no locks."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _torn_end(file: Any) -> int:
    """Return the number of bytes after the last end of a line."""
    size, tail = file.seek(0, os.SEEK_END), b""
    while size and b"\n" not in tail:
        start = max(size - 65536, 0)
        file.seek(start)
        tail = file.read(size - start) + tail
        size = start
    return len(tail) - (tail.rfind(b"\n") + 1)


def _shown(line: bytes) -> str:
    return repr(line[:40].decode(errors="replace"))
