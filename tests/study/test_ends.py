"""How a program ends that cannot go on: one sentence for what a user can mend, a traceback for a bug."""

import errno
import os
from pathlib import Path

import jax
import pytest

from nc_jax.extras import MissingExtraError
from nc_jax.files import BusyError
from nc_jax.study import ends
from nc_jax.study.ends import WORK, one_sentence, sentence_of, started_by_nc_jax, way_to_go_on


def full_disk_in_a_thread() -> BaseException:
    """What comes out of a library that writes in threads of its own."""
    try:
        try:
            raise ValueError('Error writing "d/1": No space left on device [os_error_code=28]')
        except ValueError as error:
            raise RuntimeError("a write failed") from error
    except RuntimeError as error:
        return error


GO_ON = "go on with: python -m experiments.x --resume runs/x/a"
FULL = f"room for results; got 'No space left on device'; all that was finished is in runs/x/a; make room, and {GO_ON}"
MENDED = {
    "read-only": (OSError(errno.EROFS, "Read-only file system", "a"), "got 'Read-only file system' for a"),
    "no permission": (PermissionError(13, "Permission denied", "a"), "got 'Permission denied' for a"),
    "below a file": (NotADirectoryError(20, "Not a directory", "a/b"), "got 'Not a directory' for a/b"),
    "long name": (OSError(36, "File name too long", "a" * 9), "got 'File name too long' for aaaaaaaaa"),
    "full": (OSError(errno.ENOSPC, "No space left on device", "a"), FULL),
    "over its quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
    "full, elsewhere": (full_disk_in_a_thread(), FULL),
    "ours": (FileNotFoundError("a folder must exist; got a"), "a folder must exist; got a"),
    "busy": (BusyError("only one process at a time"), "only one process at a time"),
    "an extra": (MissingExtraError("a picture needs matplotlib"), "a picture needs matplotlib"),
    "a damaged image": (ValueError("image a.png must be readable; got b"), "image a.png must be readable; got b"),
    "device memory": (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), "needs less); got 'RESOURCE_EXHA"),
    "memory": (MemoryError("Unable to allocate 9 GiB"), "needs less); got 'Unable to allocate 9 GiB'"),
}


def end(error: BaseException):
    """End a program that works on a run."""
    with one_sentence("-m experiments.x"):
        WORK["directory"] = Path("runs/x/a")
        raise error


@pytest.mark.parametrize("what", MENDED)
def test_what_a_user_can_mend_is_one_sentence_and_status_2(what, capsys):
    error, sentence = MENDED[what]
    with pytest.raises(SystemExit) as stop:
        end(error)
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.startswith("error: ")
    assert sentence in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a"),
        RuntimeError("a"),
        KeyError("a"),
        NotImplementedError("a"),
        jax.errors.JaxRuntimeError("INTERNAL: a"),
    ],
)
def test_a_bug_shows_its_traceback(error):
    assert sentence_of(error) is None
    with pytest.raises(type(error)):
        end(error)


def test_without_a_run_there_is_nothing_to_go_on_with():
    with one_sentence("-m experiments.x"):
        assert way_to_go_on() == "no run had begun, so start again with the same command"


def test_the_way_to_go_on_is_the_command_by_which_one_came(capsys):
    with started_by_nc_jax(), pytest.raises(SystemExit):
        end(KeyboardInterrupt())
    assert capsys.readouterr().err == "interrupted; go on with: nc-jax run x --resume runs/x/a\n"
    with pytest.raises(SystemExit):
        end(KeyboardInterrupt())
    assert capsys.readouterr().err == f"interrupted; {GO_ON}\n"


PLACES = {
    "below a file": ("file/run", "got 'Not a directory' for file/run"),
    "a name that is too long": ("n" * 300, "got 'File name too long' for nnn"),
    "no name": ("", "a new run needs a directory that does not exist yet; got ."),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_directory_that_cannot_be_made_is_named(place, tmp_path, monkeypatch, capsys):
    from experiments import haframe_trees
    from nc_jax.study import main

    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    workdir, sentence = PLACES[place]
    with pytest.raises(SystemExit) as stop:
        main(haframe_trees.run, haframe_trees.PRESETS, ["smoke", "--workdir", workdir])
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert sentence in printed
    assert printed.count("\n") == 1
    assert os.listdir() == ["file"]


def test_an_installation_names_the_command_that_works_there(monkeypatch):
    """An installation has the experiments within nc_jax, where `python -m experiments` does not find them."""
    text = "python -m experiments.haframe smoke, or python -m experiments"
    assert ends.as_started_here(text) == text
    monkeypatch.setattr(ends, "INSTALLED", True)
    assert ends.as_started_here(text) == "nc-jax run haframe smoke, or nc-jax list"
    with one_sentence("-m experiments.haframe"):
        WORK["directory"] = Path("runs/a")
        assert way_to_go_on() == "go on with: nc-jax run haframe --resume runs/a"
