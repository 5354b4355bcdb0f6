"""Code that all benchmarks share: clocks, checks of answers, and the result file.

A benchmark consists of a frozen dataclass of settings (derived from `Options`), a dict of presets, and a function
run(config) -> dict. This function checks every answer, times it, and returns the result of `report`.
"""

import dataclasses
import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from nc_jax.study import Table
from nc_jax.study import main as study_main
from nc_jax.study.config import to_json
from nc_jax.study.environment import environment
from nc_jax.study.tables import show_table

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the result goes.

    Attributes:
        results: directory of the JSON and PNG files.
        preset: the name of the preset (set by the command line).
    """

    results: Path = ROOT / "benchmarks" / "results"
    preset: tyro.conf.Suppress[str] = "default"


class WrongAnswerError(AssertionError):
    """An answer differs from the right one by more than its tolerance, so no time is reported for it."""


def main(
    run: Callable[[Any], dict],
    presets: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    *,
    synchronous: bool = False,
) -> None:
    """Parse `[preset] [--flag value ...]` and run; see `nc_jax.study.main`.

    Args:
        run: the benchmark.
        presets: its settings by name.
        argv: words of the command line; None takes those with which the process was started.
        synchronous: run programs on a CPU in the calling thread. Otherwise JAX hands them to another thread, which
            takes 50 us. Inside a training step, a solve does not have this cost.
    """
    if synchronous:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    study_main(run, presets, argv)


def available(*packages: str) -> bool:
    """Return whether the packages that a comparison needs are installed; print a message if not."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed, so its rows are left out: pip install -e '.[bench]'")
    return not missing


def progress(what: str) -> None:
    """Print to standard error what is being measured, because a benchmark may take minutes."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


# --- Clocks. ---


Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of repeated calls.

    Attributes:
        median: median time of a call.
        lower_quartile: lower quartile of the times.
        upper_quartile: upper quartile of the times.
        minimum: shortest time.
        repeats: number of timed calls.
        compile: time of the first call minus the median, that is, of compilation and first allocations.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    repeats: int
    compile: float

    def row(self) -> dict[str, float]:
        """Return the numbers under the names that they have in the JSON file."""
        return {
            "seconds": self.median,
            "seconds_lower_quartile": self.lower_quartile,
            "seconds_upper_quartile": self.upper_quartile,
            "seconds_minimum": self.minimum,
            "repeats": self.repeats,
            "compile_seconds": self.compile,
        }


# In a comparison, other programs run between the calls of a program, so its caches are cold and its threads asleep. So
# a call that is shorter than this (in seconds) is timed as in a loop: after one untimed call come so many calls in a
# row that together they take this long. Each call is waited for.
SHORT_CALL = 0.02


def measure(
    function: Callable[..., Any], *args: Any, repeats: int = 20, warmup: int = 2, budget: float = 20.0
) -> Timing:
    """Time one function with its arguments; see `compare` for the options."""
    return compare({"": lambda: function(*args)}, repeats=repeats, warmup=warmup, budget=budget)[""]


def compare(
    functions: Mapping[Name, Callable[[], Any]],
    *,
    repeats: int = 20,
    warmup: int = 2,
    budget: float = 20.0,
    minimum: int = 3,
    check: Callable[[Name, Any], bool] = lambda name, result: True,
) -> dict[Name, Timing]:
    """Time several functions in turns (A, B, A, B, ...), so that other load on the machine affects all of them equally.

    Every call is waited for until its result is ready. The first call of each function is timed separately, because it
    compiles; its result is checked.

    Args:
        functions: functions without arguments, by name (or by any other key).
        repeats: timed calls of each function; for a short function, timed rows of calls (see SHORT_CALL).
        warmup: untimed calls after the first; a function whose calls are longer than SHORT_CALL gets at most one.
        budget: seconds after which a function gets no more timed calls, if it has had `minimum` of them.
        minimum: least number of timed calls of each function.
        check: called with a name and the first result before anything is timed. It may raise a `WrongAnswerError`, or
            return False to leave the function out.

    Returns:
        A timing for each name that was not left out.
    """
    first = {}
    for name, function in functions.items():
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds = time.perf_counter() - start
        if check(name, result):
            first[name] = seconds
        del result
    functions = {name: functions[name] for name in first}
    lengths = {}
    for name, function in functions.items():
        lengths[name] = first[name] if first[name] < SHORT_CALL else _seconds(function)
        for _ in range(warmup):
            if lengths[name] > SHORT_CALL:
                break
            lengths[name] = _seconds(function)
    samples: dict[Name, list[float]] = {name: [] for name in first}
    for _ in range(max(repeats, 1)):
        for name, function in functions.items():
            taken = samples[name]
            number = max(1, math.ceil(SHORT_CALL / lengths[name]))
            if len(taken) >= minimum and number * sum(taken) > budget:
                continue
            if number > 1:
                _seconds(function)
            taken.append(_seconds(function, number))
    return {name: _timing(taken, first[name]) for name, taken in samples.items()}


@dataclasses.dataclass(frozen=True)
class SolverOptions(Options):
    """What the benchmarks of solvers have in common: precisions, problems, and how long programs are timed.

    Attributes:
        precisions: precisions of matrix products, see `jax.default_matmul_precision`.
        repeats: timed calls of each program.
        budget: seconds after which a program gets no more timed calls, if it has had `minimum` of them.
        minimum: least number of timed calls of each program.
        seed: random seed of the problems.
    """

    precisions: tuple[str, ...] = ("highest",)
    repeats: int = 20
    budget: float = 15.0
    minimum: int = 2
    seed: int = 0

    def compare(
        self, functions: Mapping[Name, Callable[[], Any]], check: Callable[[Name, Any], bool]
    ) -> dict[Name, Timing]:
        """Time functions in turns, as these settings say; see `compare`."""
        return compare(functions, repeats=self.repeats, budget=self.budget, minimum=self.minimum, check=check)


def ratio(slow: Timing, fast: Timing) -> float:
    """Return the median of the first timing divided by that of the second."""
    return slow.median / fast.median


def _seconds(function: Callable[[], Any], number: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(number):
        jax.block_until_ready(function())
    return (time.perf_counter() - start) / number


def _timing(samples: list[float], first: float) -> Timing:
    low, median, high = (float(value) for value in np.quantile(samples, (0.25, 0.5, 0.75)))
    return Timing(median, low, high, min(samples), len(samples), max(first - median, 0.0))


# --- Answers. ---


def relative_error(found: Any, expected: Any) -> float:
    """Return the Frobenius norm of the difference over that of the expected array, in float64; infinity for NaN."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    return float(error) if math.isfinite(error) else math.inf


def sentence(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message, at most 200 characters."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"[:200]


def require_close(what: str, found: Any, expected: Any, tolerance: float) -> float:
    """Return the relative error of an answer.

    Raises:
        WrongAnswerError: if the error exceeds the tolerance.
    """
    return require_at_most(f"the relative error of {what}", relative_error(found, expected), tolerance)


def require_at_most(what: str, value: float, limit: float) -> float:
    """Return a value that must not exceed a limit.

    Raises:
        WrongAnswerError: if the value exceeds the limit, or is NaN.
    """
    if not value <= limit:
        raise WrongAnswerError(f"{what} must be at most {limit:.1e} for its time to mean anything; got {value:.1e}")
    return value


# --- Results. ---


@dataclasses.dataclass(frozen=True)
class Claim:
    """A number that the benchmark reports by name, possibly with a target.

    Attributes:
        statement: what the number is.
        case: the problem on which it was obtained.
        obtained: the number.
        at_least: target of a number for which larger is better; None for no such target.
        at_most: target of a number for which smaller is better; None for no such target.
        unit: unit of the number, for instance "ms"; "x" for a ratio.
    """

    statement: str
    case: str
    obtained: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.obtained >= self.at_least
        return above and (self.at_most is None or self.obtained <= self.at_most)


def report(
    name: str,
    config: Options,
    *,
    rows: Sequence[Mapping[str, Any]],
    table: Table,
    claims: Sequence[Claim] = (),
    draw: Callable[[Figure], None] | None = None,
) -> dict[str, Any]:
    """Show the table and write <results>/<name>-<preset>-<device kind>-<time>.json, with a PNG beside it.

    Args:
        name: name of the benchmark (its module).
        config: settings with which it ran.
        rows: all measured numbers, as flat dicts of JSON values.
        table: the numbers to show on the terminal and in the README.
        claims: the numbers that have a name, with their targets.
        draw: function that draws into an empty figure; None draws nothing.

    Returns:
        The document that was written, and its path under "path".

    Raises:
        FileExistsError: if the file exists, because results are never overwritten.
    """
    kind = re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    config.results.mkdir(parents=True, exist_ok=True)
    path = config.results / f"{name}-{config.preset}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    document = {
        "benchmark": name,
        "preset": config.preset,
        "config": to_json(config),
        "environment": environment(),
        "claims": [dataclasses.asdict(claim) | {"met": claim.met} for claim in claims],
        "table": {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]},
        "rows": [{key: _json_value(value) for key, value in row.items()} for row in rows],
    }
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if draw is not None:
        figure = Figure(figsize=(9, 4), layout="constrained")
        draw(figure)
        figure.savefig(path.with_suffix(".png"), dpi=120)
    show_table(table)
    if claims:
        show_table(claims_table(claims))
    print(f"written: {path}")
    return document | {"path": path}


def _json_value(value: Any) -> Any:
    """Return None for a number that is not finite, which JSON cannot represent; other values unchanged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return the table of claims: their targets, and the numbers that were obtained."""
    rows = []
    for claim in claims:
        limits = (("at least", claim.at_least), ("at most", claim.at_most))
        targets = [f"{word} {limit:g} {claim.unit}".strip() for word, limit in limits if limit is not None]
        verdict = {True: "yes", False: "no", None: "-"}[claim.met]
        obtained = f"{number(claim.obtained)} {claim.unit}".strip()
        rows.append([claim.statement, claim.case, ", ".join(targets) or "-", obtained, verdict])
    return Table("claims", ("claim", "case", "target", "obtained", "met"), rows)


def number(value: float) -> str:
    """Return a number with three significant digits, without an exponent if the text stays short."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(digits, 0)}f}" if -4 < digits < 6 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Return seconds with a unit and three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e6)} us"


def quartiles(row: Mapping[str, Any]) -> str:
    """Return the quartiles of a row as text; "-" for a row without a timing."""
    if "seconds" not in row:
        return "-"
    return f"{duration(row['seconds_lower_quartile'])} .. {duration(row['seconds_upper_quartile'])}"
