"""The directory of a run: made whole or not at all, locked while a process works in it, read back by type."""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from nc_jax.study.config import from_json, to_json
from nc_jax.study.ends import WORK
from nc_jax.study.environment import environment

SETTINGS, LOCK = "config.json", "run.lock"
Config = TypeVar("Config")


@contextlib.contextmanager
def open_run(experiment: str, config: Any) -> Iterator[tuple[Path, Any]]:
    """Make the directory of a new run, or open the one to resume; no other process works in it meanwhile.

    Args:
        experiment: name of the experiment.
        config: settings with at least the fields of `nc_jax.study.RunOptions`.

    Yields:
        The directory, and the settings to use.

    Raises:
        FileExistsError: if a new run's directory exists.
        FileNotFoundError: if there is no run to resume.
        ValueError: if the directory is another experiment's, or its settings cannot be read or do not exist any more.
        BusyError: if another process works in the directory.
    """
    from nc_jax.files import exclusive  # with all that training imports

    first = jax.process_index() == 0
    if config.resume is not None:
        directory, saved = config.resume, read_config(config.resume / SETTINGS, experiment, config)
        here = {name: getattr(config, name) for name in ("resume", "restart", "distributed")} | {"workdir": None}
        here["picture_format"] = config.picture_format or saved.picture_format
        config = dataclasses.replace(saved, **here)
    else:
        directory = new_directory(experiment, config.preset, config) if first else config.workdir
        config = from_json(config, to_json(config))  # as a resumed run reads them
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the run's directory exists")
    # Of several processes the first one writes; the others only read.
    with exclusive(directory / LOCK, f"the run in {directory}") if first else contextlib.nullcontext():
        WORK["directory"] = directory
        yield directory, config


def new_directory(experiment: str, name: str, config: Any) -> Path:
    """Make a directory that holds a config.json; whoever kills the program leaves all of it or nothing.

    Args:
        experiment: name of the experiment.
        name: what the directory is called behind the time, where the settings do not name one.
        config: the settings; their `workdir` may name the directory.

    Raises:
        FileExistsError: if the directory exists, even if it is empty.
    """
    from nc_jax.files import write_atomically  # with all that training imports

    path = config.workdir or Path("runs") / experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    if os.path.lexists(path):
        raise _exists(path)
    document = {"experiment": experiment, "config": to_json(config), "environment": environment()}
    # Not by the number of the process, which in a container is that of the one that was killed.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        write_atomically(part / SETTINGS, json.dumps(document, indent=2) + "\n")
        part.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
            raise _exists(path) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _exists(path: Path) -> FileExistsError:
    go_on = f" (to go on with the run in it: --resume {path})" if (path / SETTINGS).is_file() else ""
    return FileExistsError(f"a new run needs a directory that does not exist yet; got {path}{go_on}")


def read_document(path: Path) -> dict[str, Any]:
    """Read a config.json: "experiment", "config" and "environment".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the directory of a run has a {SETTINGS}; got {path.parent}, without")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold the settings of a run in JSON; got a damaged file ({error})") from None
    found = document if isinstance(document, dict) else {}
    if not isinstance(found.get("experiment"), str) or not isinstance(found.get("config"), dict):
        raise ValueError(f'{path} must hold "experiment", a name, and "config", settings; got {document!r:.60}')
    return document


def read_config(path: Path, experiment: str, like: Config) -> Config:
    """Read the settings of a run.

    Args:
        path: path of the run's config.json.
        experiment: name of the experiment to which the run must belong.
        like: settings of that experiment, for the types.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another experiment, or holds settings that do not exist or do not fit.
    """
    document = read_document(path)
    if document["experiment"] != experiment:
        raise ValueError(f"{path} must be of a {experiment} run; got one of {document['experiment']}")
    try:
        return from_json(like, document["config"])
    except ValueError as error:
        raise ValueError(f"{path} must hold settings that this version knows; {error}") from None
