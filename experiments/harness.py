"""What every experiment shares: its command line, its run directory, its tables.

An experiment is a frozen dataclass of settings, a dict of presets, and a function run(config) -> dict. The settings
have at least the fields of `RunOptions`.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils
from rich.console import Console
from rich.table import Table
from scipy import stats

from nc_jax.training import NonFiniteError, PreemptedError
from nc_jax.training.logging import create_run_directory, environment, write_atomically
from nc_jax.training.preemption import EXIT_STATUS


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run lives.

    Attributes:
        workdir: directory of a new run, which must not exist; None makes runs/<experiment>/<time>-<preset>.
        resume: directory of an interrupted run to finish, with the settings that it was started with.
        distributed: one of several processes, each started with the same command: `jax.distributed.initialize()` finds
            the others (SLURM, Open MPI, TPU pods). The directory of the run must be named, and be visible to all.
        preset: the name of the preset (set by the command line).
    """

    workdir: Path | None = None
    resume: Path | None = None
    distributed: bool = False
    preset: tyro.conf.Suppress[str] = "default"


Config = TypeVar("Config", bound=RunOptions)

# What a user can cause and mend: it ends in one sentence and status 2. Anything else is a bug and shows its traceback.
USER_ERRORS = (ValueError, FileExistsError, FileNotFoundError, NonFiniteError)


def main(run: Callable[[Any], dict], presets: dict[str, Config], argv: Sequence[str] | None = None) -> None:
    """Parse `[preset] [--flag value ...]` and run; end in status 2 and one sentence where that is not possible."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "default"
    if preset not in presets:
        fail(f"the preset must be one of {', '.join(presets)}; got {preset!r}")
    config = parse(presets[preset], arguments)
    allowed = dataclasses.replace(presets["default"], resume=config.resume, distributed=config.distributed)
    if config.resume is not None and config != allowed:
        fail("--resume takes the settings of the run that it resumes, so it must be the only argument")
    if config.distributed:
        if config.resume is None and config.workdir is None:
            fail("--distributed needs --workdir or --resume: every process must know the run's directory")
        jax.distributed.initialize()
    if os.environ.get("NC_JAX_DEBUG"):
        run(config)
        return
    try:
        run(config)
    except PreemptedError as error:
        print(f"{error}; go on with --resume", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None
    except USER_ERRORS as error:
        fail(str(error))


def parse(default: Config, arguments: list[str]) -> Config:
    """Turn flags into settings, starting from a preset's."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(type(default), default=default, args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        # Tyro draws a box around several lines; a sentence is easier to read and to search for.
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
        # The first line is the box's title; the box itself is drawn or typed, depending on the terminal.
        lines = [line.strip("│|╭╮╰╯─- ") for line in plain.splitlines()]
        _, *said = [line for line in lines if re.search(r"\w", line) and not line.startswith("For full helptext")]
        fail(f"the command line must name settings that exist and values that fit; {' '.join(said)}")


def fail(sentence: str) -> NoReturn:
    """End the program with a sentence on standard error and exit status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def open_run(experiment: str, config: Config) -> tuple[Path, Config]:
    """Create the run's directory with its config.json, or read the one to resume.

    Returns:
        The directory, and the settings to use.

    Raises:
        FileExistsError: if a new run's directory exists.
        FileNotFoundError: if there is no run to resume.
    """
    if config.resume is None:
        if jax.process_index() == 0:
            directory = create_run_directory(experiment, config.preset, path=config.workdir)
            settings = {name: _plain(value) for name, value in dataclasses.asdict(config).items()}
            document = {"experiment": experiment, "config": settings, "environment": environment()}
            write_atomically(directory / "config.json", json.dumps(document, indent=2) + "\n")
        else:
            assert config.workdir is not None, "main has checked it"
            directory = config.workdir
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the run's directory exists")
        return directory, config
    path = config.resume / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume needs the directory of a {experiment} run; got {config.resume}, without config.json"
        )
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["experiment"] != experiment:
        raise ValueError(f"--resume needs the directory of a {experiment} run; got one of {document['experiment']}")
    saved: dict[str, Any] = document["config"]
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    here = {"workdir": None, "resume": config.resume, "distributed": config.distributed}
    return config.resume, dataclasses.replace(config, **settings | here)


def part(path: Path, compute: Callable[[], Any]) -> Any:
    """Return a part's result: from its JSON file, if an earlier attempt at the run finished it."""
    if not path.exists():
        began = time.perf_counter()
        write_atomically(path, json.dumps(compute()) + "\n")
        print(f"{path.stem}: {time.perf_counter() - began:.1f} s", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def subrun(run: Callable[[Any], dict], config: RunOptions, directory: Path) -> dict[str, Any]:
    """Run an experiment in a folder of another's, unless that is done; go on if it was interrupted.

    Returns:
        Its summary.json.
    """
    path = directory / "summary.json"
    if not path.exists():
        where: dict[str, Any] = {"resume": directory} if directory.exists() else {"workdir": directory}
        run(dataclasses.replace(config, **where))
        # No other run uses its programs, which hold up to gigabytes, and memory maps, of which Linux allows 65,530.
        jax.clear_caches()
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def mean_and_sd(values: Sequence[float], digits: int) -> str:
    """Return "mean ± standard deviation" over seeds, or "-" if no value is a number."""
    return _mean_and(values, digits, lambda finite: float(finite.std(ddof=1)))


def mean_and_interval(values: Sequence[float], digits: int, level: float = 0.95) -> str:
    """Return "mean ± half width" of the mean's confidence interval over seeds, by Student's t with ddof = 1."""
    quantile = (1 + level) / 2
    return _mean_and(values, digits, lambda finite: stats.t.ppf(quantile, len(finite) - 1) * stats.sem(finite))


def _mean_and(values: Sequence[float], digits: int, spread_of: Callable[[np.ndarray], float]) -> str:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return "-"
    spread = f" ± {spread_of(finite):.{digits}f}" if len(finite) > 1 else ""
    missing = f" ({len(finite)} of {len(values)})" if len(finite) < len(values) else ""
    return f"{finite.mean():.{digits}f}{spread}{missing}"


def paired_difference(ours: Sequence[float], theirs: Sequence[float], digits: int, *, wilcoxon: bool = False) -> str:
    """Return the mean difference over seeds with the p value of a two-sided paired t test.

    Seeds in which one of the two is not a number are left out; without spread there is no test.

    Args:
        ours: a number per seed.
        theirs: the same.
        digits: behind the point.
        wilcoxon: add the p value of the signed-rank test. It is exact; with n seeds it cannot fall below 2^(1 - n).
    """
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return "-"
    mean = f"{differences.mean():+.{digits}f}"
    if np.ptp(differences) == 0:
        return mean
    tests: list[Any] = [stats.ttest_1samp(differences, 0)]
    if wilcoxon:
        tests.append(stats.wilcoxon(differences))
    return f"{mean} (p = {', '.join(f'{test.pvalue:.2g}' for test in tests)})"


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Return the geometric mean of theirs / ours over seeds with the p value of a paired t test of its logarithm.

    Seeds in which one of the two is not a number are left out, and counted.
    """
    pairs = np.array([theirs, ours], float)
    pairs = pairs[:, np.all(np.isfinite(pairs) & (pairs > 0), axis=0)]
    if not pairs.size:
        return "-"
    logarithms = np.log(pairs[0] / pairs[1])
    missing = f" ({len(logarithms)} of {len(ours)})" if len(logarithms) < len(ours) else ""
    ratio = f"{np.exp(logarithms.mean()):.3g}"
    if len(logarithms) < 2 or np.ptp(logarithms) == 0:
        return f"{ratio}{missing}"
    test: Any = stats.ttest_1samp(logarithms, 0)
    return f"{ratio} (p = {test.pvalue:.2g}){missing}"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on the terminal."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
