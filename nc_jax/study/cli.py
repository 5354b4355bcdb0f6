"""The command line of experiments and benchmarks: presets, nested settings, run directories, ends in a sentence."""

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import jax
import tyro
from jax.experimental import multihost_utils

from nc_jax.study.config import from_json, to_json
from nc_jax.study.environment import environment
from nc_jax.study.planning import MACHINE, About, Plan, describe_presets, forecast
from nc_jax.study.progress import Heartbeat, duration, say

INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run lives.

    Attributes:
        workdir: directory of a new run, which must not exist yet. None makes runs/<experiment>/<time>-<preset>.
        resume: directory of an interrupted run. The run is finished with the settings that it was started with; of a
            finished run, tables and pictures are made anew.
        config: path of an earlier run's config.json. A new run starts with those settings, and with the flags given
            beside this one.
        dry_run: say how many runs and steps the settings ask for and about how long they take, then end.
        distributed: start this process as one of several, each started with the same command.
            `jax.distributed.initialize()` finds the others (SLURM, Open MPI, TPU pods). The run's directory must be
            named by --workdir or --resume, and every process must see it.
        picture_format: file format of the pictures. None is png, or with --resume the format that the run had.
        preset: the name of the preset (set by the command line).
    """

    workdir: Path | None = None
    resume: Path | None = None
    config: Path | None = None
    dry_run: bool = False
    distributed: bool = False
    picture_format: Literal["png", "pdf", "svg"] | None = None
    preset: tyro.conf.Suppress[str] = "default"

    def picture(self, directory: Path, name: str) -> Path:
        """Return the path of a picture, with the suffix of its file format."""
        return directory / f"{name}.{self.picture_format or 'png'}"


WHERE = tuple(field.name for field in dataclasses.fields(RunOptions))  # settings that do not change what is computed
Config = TypeVar("Config")

# What a user can cause and mend, as training's NonFiniteError: it ends in one sentence and status 2. Anything else is a
# bug and shows its traceback.
USER_ERRORS = (ValueError, FileExistsError, FileNotFoundError)
# The run that this process works on, and its module, for the sentence with which it may end.
_OPEN: dict[str, Any] = {}


def main(
    run: Callable[[Any], Any],
    presets: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    *,
    about: Mapping[str, About] | None = None,
    plan: Callable[[Any], Plan] | None = None,
    check: Callable[[Any, Any], None] | None = None,
) -> None:
    """Parse `[preset] [--setting value ...]` and run; end in status 2 and one sentence where that is not possible.

    Args:
        run: the program, a function of its settings. The docstring of its module is the first part of --help.
        presets: its settings by name; one is called "default".
        argv: the words of the command line; None takes this process's.
        about: what is known about each preset, for --help and --dry-run.
        plan: settings -> the amount of work that they ask for, for --help and --dry-run.
        check: (settings, preset) -> None, or a ValueError about what the command line changed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    preset = words.pop(0) if words and not words[0].startswith("-") else "default"
    if preset not in presets:
        fail(f"the preset must be one of {', '.join(presets)}; got {preset!r}")
    start = dataclasses.replace(presets[preset], preset=preset)
    name = _module(run)
    with one_sentence(name):
        if {"--help", "-h"} & set(words):
            header = sys.modules[run.__module__].__doc__
            print(_help(name, (header or "").strip(), describe_presets(presets, about or {}, plan), start))
            raise SystemExit(0)
        words, start = _given(words, start, name)
        config = parse(start, words)
        if isinstance(config, RunOptions):
            _check_run(config, start)
        if check is not None and getattr(config, "resume", None) is None:
            check(config, start)
        if isinstance(config, RunOptions) and config.dry_run:
            asked = dataclasses.replace(config, **{name: getattr(start, name) for name in WHERE})
            known = (about or {}).get(preset)
            print("this program has no plan" if plan is None else forecast(plan, asked, start, known))
            return
        if getattr(config, "distributed", False):
            jax.distributed.initialize()
        began = time.monotonic()
        with Heartbeat(lambda: f"{name}: preparing, or writing results, {duration(time.monotonic() - began)} so far"):
            run(config)


def parse(default: Config, arguments: Sequence[str]) -> Config:
    """Turn flags into settings, starting from a preset's. Nested settings are `--optimizer.learning-rate`.

    Args:
        default: settings to start from.
        arguments: words of the command line, without the preset.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(type(default), default=default, args=list(arguments), description="")
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        # Tyro draws a box around several lines; a sentence is easier to read and to search for.
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
        # The first line is the box's title; the box itself is drawn or typed, depending on the terminal.
        lines = [line.strip("│|╭╮╰╯─- ") for line in plain.splitlines()]
        _, *said = [line for line in lines if re.search(r"\w", line) and not line.startswith("For full helptext")]
        fail(f"the command line must name settings that exist and values that fit; {' '.join(said)}")


def _help(name: str, header: str, presets: str, start: Any) -> str:
    """Return what --help says: the program's header, its presets, and every setting with the preset's value."""
    settings = io.StringIO()
    with contextlib.redirect_stdout(settings), contextlib.suppress(SystemExit):
        tyro.cli(type(start), default=start, args=["--help"], description="")
    boxes = settings.getvalue().partition("\n\n")[2].strip()  # less tyro's line of usage, which is ours below
    usage = f"usage: python -m {name} [PRESET] [--setting value ...]"
    values = f"Settings, with their values in the preset {start.preset}:"
    return "\n\n".join([usage, header, f"Presets (time on {MACHINE}):\n{presets}", values, boxes])


def fail(sentence: str) -> NoReturn:
    """End the program with a sentence on standard error and exit status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def open_run(experiment: str, config: Any) -> tuple[Path, Any]:
    """Create the run's directory with its config.json, or read the one to resume.

    Args:
        experiment: name of the experiment.
        config: settings with at least the fields of `RunOptions`.

    Returns:
        The directory, and the settings to use.

    Raises:
        FileExistsError: if a new run's directory exists.
        FileNotFoundError: if there is no run to resume.
        ValueError: if the directory is another experiment's, or its settings do not exist any more.
    """
    from nc_jax.training.files import write_atomically  # with all that training imports
    from nc_jax.training.logging import create_run_directory

    if config.resume is not None:
        saved = read_config(config.resume / "config.json", experiment, config)
        here = {"workdir": None, "resume": config.resume, "distributed": config.distributed}
        here["picture_format"] = config.picture_format or saved.picture_format
        _OPEN["directory"] = config.resume
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
    _OPEN["directory"] = directory
    return directory, config


def read_config(path: Path, experiment: str, like: Config) -> Config:
    """Read the settings of a run.

    Args:
        path: path of the run's config.json.
        experiment: name of the experiment to which the run must belong.
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
    here = {name: getattr(config, name) for name in ("resume", "distributed", "picture_format")}
    if config.resume is not None and (config != dataclasses.replace(start, **here) or start.preset != "default"):
        raise ValueError(
            "--resume takes the settings of the run that it resumes, so it must be the only argument (but for "
            "--picture-format and --distributed)"
        )
    if config.distributed and config.resume is None and config.workdir is None:
        raise ValueError("--distributed needs --workdir or --resume: every process must know the run's directory")


def way_to_go_on() -> str:
    """Return the complete command that finishes the run on which this process works."""
    if "directory" not in _OPEN:
        return "no run had begun, so start again with the same command"
    return f"go on with: python -m {_OPEN['program']} --resume {_OPEN['directory']}"


@contextlib.contextmanager
def one_sentence(name: str) -> Any:
    """End in a sentence and a status where a user, or a scheduler, is the cause.

    Args:
        name: name of the module, for the command that goes on with the run.
    """
    _OPEN.clear()
    _OPEN["program"] = name
    if os.environ.get("NC_JAX_DEBUG"):
        yield
        return
    try:
        yield
    except BaseException as error:
        preempted, diverged, status = _ends_of_training()
        if isinstance(error, (preempted, KeyboardInterrupt)):
            interrupted = isinstance(error, KeyboardInterrupt)
            say(f"{'interrupted' if interrupted else error}; {way_to_go_on()}")
            raise SystemExit(INTERRUPTED if interrupted else status) from None
        if isinstance(error, (*USER_ERRORS, diverged)):
            fail(str(error))
        raise


def _ends_of_training() -> tuple[Any, Any, int]:
    """Return two errors of training and the status after preemption; nothing where training is not loaded."""
    training = sys.modules.get("nc_jax.training")
    if training is None:
        return (), (), 0
    return training.PreemptedError, training.NonFiniteError, training.preemption.EXIT_STATUS


def _module(run: Callable[..., Any]) -> str:
    """Return the name under which `python -m` finds a program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if run.__module__ == "__main__" and spec is not None else run.__module__
