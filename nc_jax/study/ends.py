"""How a program ends that cannot go on: in one sentence and a status where a user, or a scheduler, is the cause."""

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from nc_jax.extras import MissingExtraError
from nc_jax.files import BusyError
from nc_jax.study.progress import say

INTERRUPTED, UNREAD = 130, 141  # what shells report of programs that Ctrl-C ended, or that wrote to a closed pipe
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# The run that this process works on, and its module, for the sentence with which it may end.
WORK: dict[str, Any] = {}
# A checkout has the experiments beside nc_jax, an installation has them within it.
INSTALLED = (Path(__file__).parents[1] / "experiments").is_dir()
_STARTED: dict[str, Any] = {"by nc-jax": False, "own": None}


def as_started_here(text: str) -> str:
    """Return a text with the commands that start experiments here.

    Those are the commands of nc-jax for users who came by it, and in an installation, where only it finds experiments.

    Example:
        >>> with started_by_nc_jax():
        ...     as_started_here("python -m experiments.landscape --dry-run")
        'nc-jax run landscape --dry-run'
    """
    if not (INSTALLED or _STARTED["by nc-jax"]):
        return text
    return text.replace("python -m experiments.", "nc-jax run ").replace("python -m experiments", "nc-jax list")


def fail(sentence: str) -> NoReturn:
    """End the program with a sentence on standard error and exit status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def started_by_nc_jax() -> Iterator[None]:
    """Name the commands of nc-jax wherever a `with` block says how to start or to go on: the user came by them.

    A program of the user's own that calls these commands goes on by itself: it may have added methods.
    """
    before = dict(_STARTED)
    _STARTED.update({"by nc-jax": True, "own": _program_of_the_user()})
    try:
        yield
    finally:
        _STARTED.update(before)


def program_of_main() -> str:
    """Return what follows `python` in the command that started this process: `-m MODULE`, or the path of a file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.quote(sys.argv[0]) if spec is None else f"-m {spec.name.removesuffix('.__main__')}"


def _program_of_the_user() -> str | None:
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None or Path(path).resolve().is_relative_to(Path(sys.prefix).resolve()):
        return None  # an interactive session, or a program of the environment such as nc-jax
    program = program_of_main()
    return None if program == "-m nc_jax" else program


def way_to_go_on() -> str:
    """Return the complete command that finishes the run on which this process works."""
    if "directory" not in WORK:
        return "no run had begun, so start again with the same command"
    program = as_started_here(f"python {WORK['program']}") if _STARTED["own"] is None else f"python {_STARTED['own']}"
    return f"go on with: {program} --resume {shlex.quote(str(WORK['directory']))}"


@contextlib.contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """End in a sentence and a status where a user, or a scheduler, is the cause.

    Anything else is a bug and shows its traceback; with NC_JAX_DEBUG=1 in the environment everything does.

    Args:
        program: what follows `python` in its command, for the one that goes on with the run.
    """
    WORK.clear()
    WORK["program"] = program
    if os.environ.get("NC_JAX_DEBUG"):
        yield
        return
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(UNREAD) from None
    except BaseException as error:
        preempted, status, _ = _ends_of_training()
        if isinstance(error, (preempted, KeyboardInterrupt)):
            interrupted = isinstance(error, KeyboardInterrupt)
            say(f"{'interrupted' if interrupted else error}; {way_to_go_on()}")
            raise SystemExit(INTERRUPTED if interrupted else status) from None
        sentence = sentence_of(error)
        if sentence is None:
            raise
        fail(sentence)


def sentence_of(error: BaseException) -> str | None:
    """Return what a user is told about an error that the user can cause and mend; None for a bug.

    Example:
        >>> print(sentence_of(PermissionError(13, "Permission denied", "runs/a")))
        files must be readable and writable; got 'Permission denied' for runs/a
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    if any(_is_full(one) for one in chain):
        kept = f"; all that was finished is in {WORK['directory']}" if "directory" in WORK else ""
        return (
            f"the disk must have room for results; got 'No space left on device'{kept}; make room, and {way_to_go_on()}"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"files must be readable and writable; got {error.strerror!r} for {error.filename or 'a file'}"
    first = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or (isinstance(error, jax.errors.JaxRuntimeError) and "EXHAUSTED" in first):
        return f"the memory must hold all arrays (in training, a smaller --loop.batch-size needs less); got {first!r}"
    _, _, mended = _ends_of_training()
    return str(error) if isinstance(error, (ValueError, OSError, BusyError, MissingExtraError, *mended)) else None


def _is_full(error: BaseException) -> bool:
    """Whether the disk is full; libraries that write in threads of their own say so in words only."""
    return getattr(error, "errno", None) in NO_SPACE or "No space left on device" in str(error)


def _ends_of_training() -> tuple[Any, int, tuple[type[BaseException], ...]]:
    """Return training's error of preemption, its status, and what users can mend; nothing where it is not loaded."""
    training = sys.modules.get("nc_jax.training")
    if training is None:
        return (), 0, ()
    mended = (training.NonFiniteError, training.CheckpointError, training.UnequalDevicesError)
    return training.PreemptedError, training.preemption.EXIT_STATUS, mended
