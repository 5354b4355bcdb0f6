"""Signs of life: one bar for the whole of a run on a terminal, and lines every half minute where there is none."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

QUIET = 30.0  # seconds between two lines of a log: often enough to see life, seldom enough to be read


class Heartbeat:
    """Prints a line on standard error every half minute, from a thread of its own; use it in a `with` block.

    Long computations, such as a compilation, give no chance to print in between; the thread does not wait for them.
    Of nested heartbeats only the innermost one prints. On a terminal none does.

    Args:
        line: returns what to print.
    """

    _nested: list["Heartbeat"] = []  # noqa: RUF012 - shared by all of a process, on purpose

    def __init__(self, line: Callable[[], str]):
        self._line, self._stop = line, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if not sys.stderr.isatty():
            self._nested.append(self)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self in self._nested:
            self._nested.remove(self)

    def _beat(self) -> None:
        while not self._stop.wait(QUIET):
            if self._nested and self._nested[-1] is self:
                say(self._line())


class Progress:
    """How far a run is; use it in a `with` block.

    On a terminal this is a bar with the time passed and the time left. Elsewhere, in a log file for instance, a line is
    printed at the start, every half minute, and at the end.

    Args:
        total: number of units, epochs for instance.
        unit: name of a unit.
    """

    def __init__(self, total: int, unit: str):
        self.total, self.unit, self.done, self._text = total, unit, 0, "starting"
        self._bar: Bar | None = None
        self._task: Any = None
        self._began = 0.0
        self._heart = Heartbeat(self._line)

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        if sys.stderr.isatty():
            self._bar = Bar(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{self.unit},"),
                TimeElapsedColumn(),
                TextColumn("so far,"),
                TimeRemainingColumn(),
                TextColumn("left: {task.description}"),
                console=Console(file=sys.stderr),
                # Tables and sentences go to the standard output, above the bar.
                redirect_stdout=True,
            )
            self._task = self._bar.add_task("", total=self.total)
            self._bar.start()
        else:
            say(f"0 of {self.total} {self.unit}")
        self._heart.__enter__()
        return self

    def advance(self, amount: int, text: str) -> None:
        """Count some more units as done.

        Args:
            amount: number of units; 0 changes the text only.
            text: what is running.
        """
        self.done += amount
        self._text = text
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, description=text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.__exit__(kind, error, trace)
        if self._bar is not None:
            self._bar.stop()
        else:
            say(f"{self.done} of {self.total} {self.unit} in {duration(time.monotonic() - self._began)}")

    def _line(self) -> str:
        passed = time.monotonic() - self._began
        left = f", about {duration(passed / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.done} of {self.total} {self.unit}, {duration(passed)} so far{left}: {self._text}"


def say(text: str) -> None:
    """Print a line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float | int) -> str:
    """Return a time as people say it.

    Example:
        >>> duration(42), duration(90), duration(1234), duration(7300)
        ('42 s', '1 min 30 s', '20 min', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10 or (minutes and not rest):
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
