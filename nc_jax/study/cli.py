"""The command line of experiments and benchmarks: presets, and nested settings."""

import contextlib
import dataclasses
import io
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import tyro

from nc_jax.study.config import fingerprint, to_json
from nc_jax.study.ends import as_started_here, fail, one_sentence, program_of_main
from nc_jax.study.planning import MACHINE, About, Plan, describe_presets, forecast
from nc_jax.study.progress import Heartbeat, duration
from nc_jax.study.runs import read_config
from nc_jax.study.xla import faster_convolutions


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run lives.

    Attributes:
        workdir: directory of a new run, which must not exist yet. None makes runs/<experiment>/<time>-<preset>.
        resume: directory of an interrupted run. The run is finished with the settings that it was started with; of a
            finished run, tables and pictures are made anew.
        restart: with --resume, train those parts of the run anew that were begun and are not finished. What they have
            saved is kept in the subfolder "superseded". This is the way on if data or program have changed since.
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
    restart: bool = False
    config: Path | None = None
    dry_run: bool = False
    distributed: bool = False
    picture_format: Literal["png", "pdf", "svg"] | None = None
    preset: tyro.conf.Suppress[str] = "default"

    def picture(self, directory: Path, name: str) -> Path:
        """Return the path of a picture, with the suffix of its file format."""
        return directory / f"{name}.{self.picture_format or 'png'}"

    def fingerprint(self, *besides: str) -> str:
        """Return a hash of the settings that decide what is computed.

        Args:
            besides: names of settings to leave out.
        """
        left_out = {*WHERE, *besides}
        return fingerprint({name: value for name, value in to_json(self).items() if name not in left_out})


WHERE = tuple(field.name for field in dataclasses.fields(RunOptions))  # settings that do not change what is computed
Config = TypeVar("Config")


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
    faster_convolutions()
    words = list(sys.argv[1:] if argv is None else argv)
    preset = words.pop(0) if words and not words[0].startswith("-") else "default"
    if preset not in presets:
        fail(f"the preset must be one of {', '.join(presets)}; got {preset!r}")
    start = dataclasses.replace(presets[preset], preset=preset)
    program = _program(run)
    name = Path(program).name.removesuffix(".py").removeprefix("-m ")
    with one_sentence(program):
        if {"--help", "-h"} & set(words):
            header = sys.modules[run.__module__].__doc__
            print(_help(program, (header or "").strip(), describe_presets(presets, about or {}, plan), start))
            raise SystemExit(0)
        config, start = _parsed(start, words, name)
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


def parse(default: Config | type[Config], arguments: Sequence[str], *, header: str | None = None) -> Config:
    """Turn flags into settings, starting from a preset's. Nested settings are `--optimizer.learning-rate`.

    Args:
        default: settings to start from; or their class, whose fields without a default must then be given.
        arguments: words of the command line, without the preset.
        header: what --help says before the settings.
    """
    if {"--help", "-h"} & set(arguments):
        print(f"{(header or '').strip()}\n\n{settings_help(default)}")
        raise SystemExit(0)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return _tyro(default, arguments)
    except SystemExit:
        # Tyro draws a box around several lines; a sentence is easier to read and to search for.
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()).partition("For full helptext")[0]
        # The first line is the box's title; the box itself is drawn or typed, depending on the terminal.
        lines = [re.sub(r"^-[- ]+(?=\w+ -)|[- ]+-$", "", line.strip("│|╭╮╰╯─ ")) for line in plain.splitlines()]
        _, *said = [line for line in lines if re.search(r"\w", line)]
        sentence = re.sub(r"^Missing from [^:]*:", "these are missing:", " ".join(said))
        fail(f"the command line must name settings that exist and values that fit; {sentence}")


def _tyro(default: Config | type[Config], arguments: Sequence[str]) -> Config:
    kind = default if isinstance(default, type) else type(default)
    start: Any = {} if kind is default else {"default": default}
    return tyro.cli(kind, args=list(arguments), description="", **start)


def settings_help(default: Any) -> str:
    """Return every setting with what it means and its value, as --help shows them."""
    settings = io.StringIO()
    with contextlib.redirect_stdout(settings), contextlib.suppress(SystemExit):
        _tyro(default, ["--help"])
    return settings.getvalue().partition("\n\n")[2].strip()  # less tyro's line of usage


def _help(program: str, header: str, presets: str, start: Any) -> str:
    """Return what --help says: the program's header, its presets, and every setting with the preset's value."""
    usage = f"usage: python {program} [PRESET] [--setting value ...]"
    values = f"Settings, with their values in the preset {start.preset}:"
    parts = [usage, header, f"Presets (time on {MACHINE}):\n{presets}", values, settings_help(start)]
    return as_started_here("\n\n".join(parts))


def _parsed(start: Any, words: list[str], name: str) -> tuple[Any, Any]:
    """Return the settings of a command line, and those that its flags change: a preset's, or those of --config."""
    config = parse(start, words)
    if not isinstance(config, RunOptions) or config.config is None:
        return config, start
    if start.preset != "default":
        raise ValueError(f"--config takes all settings of a run, so it needs no preset; got {start.preset!r}")
    saved = read_config(config.config, name.rpartition(".")[2], start)
    start = dataclasses.replace(saved, workdir=None, resume=None)
    return parse(start, words), start


def _check_run(config: RunOptions, start: RunOptions) -> None:
    here = {name: getattr(config, name) for name in ("resume", "restart", "distributed", "picture_format")}
    if config.resume is not None and (config != dataclasses.replace(start, **here) or start.preset != "default"):
        raise ValueError(
            "--resume takes the settings of the run that it resumes, so it must be the only argument (but for "
            "--restart, --picture-format and --distributed)"
        )
    if config.restart and config.resume is None:
        raise ValueError("--restart goes with --resume, which names the run; got none")
    if config.distributed and config.resume is None and config.workdir is None:
        raise ValueError("--distributed needs --workdir or --resume: every process must know the run's directory")


def _program(run: Callable[..., Any]) -> str:
    """Return what follows `python` in a command that starts a program: `-m MODULE`, or the path of a file."""
    if run.__module__ != "__main__":
        return f"-m {run.__module__}"
    return program_of_main()
