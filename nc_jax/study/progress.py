"""One bar for the whole of a run, with the time that is left; lines every so often where there is no terminal."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

QUIET = 30.0  # seconds between two lines of a log: often enough to see life, seldom enough to be read


class Progress:
    """How far a run is; use it in a `with` block.

    Args:
        total: number of units, epochs for instance.
        unit: their name.
    """

    def __init__(self, total: int, unit: str):
        self.total, self.unit, self.done = total, unit, 0
        self._bar: Bar | None = None
        self._task: Any = None
        self._began = self._said = 0.0

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
            self._say(f"0 of {self.total} {self.unit}")
        return self

    def advance(self, amount: int, text: str) -> None:
        """Count some more units as done.

        Args:
            amount: how many; 0 changes the text only.
            text: what is running.
        """
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, description=text)
        elif time.monotonic() - self._said >= QUIET:
            self._say(f"{self.done} of {self.total} {self.unit}, {self._left()}: {text}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._say(f"{self.done} of {self.total} {self.unit} in {_duration(time.monotonic() - self._began)}")

    def _left(self) -> str:
        passed = time.monotonic() - self._began
        if not self.done:
            return f"{_duration(passed)} so far"
        return f"{_duration(passed)} so far, about {_duration(passed / self.done * (self.total - self.done))} left"

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
