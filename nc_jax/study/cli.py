"""The command line of experiments and benchmarks: presets, nested settings, run directories, ends in a sentence."""

import contextlib
import contextvars
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import tyro
from jax.experimental import multihost_utils

from nc_jax.study.config import from_json, to_json
from nc_jax.study.environment import environment

INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run lives.

    Attributes:
        workdir: directory of a new run, which must not exist; None makes runs/<experiment>/<time>-<preset>.
        resume: directory of an interrupted run to finish, with the settings that it was started with.
        config: settings of an earlier run (its config.json) to start a new one with.
        dry_run: say how many runs and steps it would take, and end.
        distributed: one of several processes, each started with the same command: `jax.distributed.initialize()` finds
            the others (SLURM, Open MPI, TPU pods). The directory of the run must be named, and be visible to all.
        preset: the name of the preset (set by the command line).
    """

    workdir: Path | None = None
    resume: Path | None = None
    config: Path | None = None
    dry_run: bool = False
    distributed: bool = False
    preset: tyro.conf.Suppress[str] = "default"


Config = TypeVar("Config")

# What a user can cause and mend, as training's NonFiniteError: it ends in one sentence and status 2. Anything else is a
# bug and shows its traceback.
USER_ERRORS = (ValueError, FileExistsError, FileNotFoundError)
# The directory of the run that this process works on, for the sentence with which it may end.
_OPEN: contextvars.ContextVar[Path | None] = contextvars.ContextVar("open run", default=None)


def main(
    run: Callable[[Any], Any],
    presets: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    *,
    header: str | None = None,
    plan: Callable[[Any], str] | None = None,
    check: Callable[[Any, Any], None] | None = None,
) -> None:
    """Parse `[preset] [--flag value ...]` and run; end in status 2 and one sentence where that is not possible.

    Args:
        run: the program, a function of its settings.
        presets: its settings by name; one is called "default".
        argv: the words of the command line; None takes this process's.
        header: docstring of the module, shown by --help.
        plan: settings -> what --dry-run says.
        check: (settings, preset) -> None, or a ValueError about what the command line changed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    preset = words.pop(0) if words and not words[0].startswith("-") else "default"
    if preset not in presets:
        fail(f"the preset must be one of {', '.join(presets)}; got {preset!r}")
    start = dataclasses.replace(presets[preset], preset=preset)
    name = _module(run)
    usage = f"python -m {name} [{' | '.join(presets)}] [--setting value ...]"
    text = f"{(header or sys.modules[run.__module__].__doc__ or '').strip()}\n\nPresets: {', '.join(presets)}."
    with _one_sentence(name):
        words, start = _given(words, start, name)
        config = parse(start, words, usage=usage, text=text)
        if isinstance(config, RunOptions):
            _check_run(config, start)
        if check is not None and getattr(config, "resume", None) is None:
            check(config, start)
        if getattr(config, "dry_run", False):
            print("no plan is known for this program" if plan is None else plan(config))
            return
        if getattr(config, "distributed", False):
            jax.distributed.initialize()
        run(config)


def parse(default: Config, arguments: Sequence[str], *, usage: str | None = None, text: str | None = None) -> Config:
    """Turn flags into settings, starting from a preset's. Nested settings are `--optimizer.learning-rate`.

    Args:
        default: settings to start from.
        arguments: words of the command line, without the preset.
        usage: first line of --help.
        text: what --help says before the flags.
    """
    output = io.StringIO()
    try:
        if {"--help", "-h"} & set(arguments) and text:
            print(f"usage: {usage}\n\n{text}\n")
        with contextlib.redirect_stderr(output):
            return tyro.cli(type(default), default=default, args=list(arguments), description="Settings:", prog=usage)
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


def open_run(experiment: str, config: Any) -> tuple[Path, Any]:
    """Create the run's directory with its config.json, or read the one to resume.

    Args:
        experiment: its name.
        config: settings with at least the fields of `RunOptions`.

    Returns:
        The directory, and the settings to use.

    Raises:
        FileExistsError: if a new run's directory exists.
        FileNotFoundError: if there is no run to resume.
        ValueError: if the directory is another experiment's, or its settings do not exist any more.
    """
    from nc_jax.training.logging import create_run_directory, write_atomically  # with all that training imports

    if config.resume is not None:
        saved = read_config(config.resume / "config.json", experiment, config)
        here = {"workdir": None, "resume": config.resume, "distributed": config.distributed}
        _OPEN.set(config.resume)
        return config.resume, dataclasses.replace(saved, **here)
    if jax.process_index() == 0:
        directory = create_run_directory(experiment, config.preset, path=config.workdir)
        document = {"experiment": experiment, "config": to_json(config), "environment": environment()}
        write_atomically(directory / "config.json", json.dumps(document, indent=2) + "\n")
    else:
        assert config.workdir is not None, "main has checked it"
        directory = config.workdir
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the run's directory exists")
    _OPEN.set(directory)
    return directory, config


def read_config(path: Path, experiment: str, like: Config) -> Config:
    """Read the settings of a run.

    Args:
        path: of its config.json.
        experiment: that it must be of.
        like: settings of that experiment, for the types.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another experiment's, or holds settings that do not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"a {experiment} run has a config.json; got {path.parent}, without")
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["experiment"] != experiment:
        raise ValueError(f"{path} must be of a {experiment} run; got one of {document['experiment']}")
    return from_json(like, document["config"])


def _given(words: list[str], start: Any, name: str) -> tuple[list[str], Any]:
    """Take `--config FILE` out of the words; return the settings to start from."""
    if "--config" not in words or not isinstance(start, RunOptions):
        return words, start
    place = words.index("--config")
    if place + 1 == len(words):
        raise ValueError("--config needs the config.json of a run; got nothing")
    path = Path(words[place + 1])
    saved = read_config(path, name.rpartition(".")[2], start)
    fresh = {"workdir": None, "resume": None, "config": path}
    return words[:place] + words[place + 2 :], dataclasses.replace(saved, **fresh)


def _check_run(config: RunOptions, start: RunOptions) -> None:
    allowed = dataclasses.replace(start, resume=config.resume, distributed=config.distributed)
    if config.resume is not None and (config != allowed or start.preset != "default"):
        raise ValueError("--resume takes the settings of the run that it resumes, so it must be the only argument")
    if config.distributed and config.resume is None and config.workdir is None:
        raise ValueError("--distributed needs --workdir or --resume: every process must know the run's directory")


@contextlib.contextmanager
def _one_sentence(name: str) -> Any:
    """End in a sentence and a status where a user, or a scheduler, is the cause."""
    if os.environ.get("NC_JAX_DEBUG"):
        yield
        return
    try:
        yield
    except BaseException as error:
        preempted, diverged, status = _ends_of_training()
        if isinstance(error, (preempted, KeyboardInterrupt)):
            directory = _OPEN.get()
            go_on = "nothing was written" if directory is None else f"go on with: python -m {name} --resume {directory}"
            interrupted = isinstance(error, KeyboardInterrupt)
            print(f"{'interrupted' if interrupted else error}; {go_on}", file=sys.stderr)
            raise SystemExit(INTERRUPTED if interrupted else status) from None
        if isinstance(error, (*USER_ERRORS, diverged)):
            fail(str(error))
        raise


def _ends_of_training() -> tuple[Any, Any, int]:
    """Return PreemptedError, NonFiniteError and the former's exit status; nothing while no program has loaded them."""
    training = sys.modules.get("nc_jax.training")
    if training is None:
        return (), (), 0
    return training.PreemptedError, training.NonFiniteError, training.preemption.EXIT_STATUS


def _module(run: Callable[..., Any]) -> str:
    """Return the name under which `python -m` finds a program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if run.__module__ == "__main__" and spec is not None else run.__module__
