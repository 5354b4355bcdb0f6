"""The directory of a run: whole or absent, one process at a time, and read back or refused in a sentence."""

import dataclasses
import json
from pathlib import Path

import pytest

from nc_jax.files import BusyError
from nc_jax.study import RunOptions
from nc_jax.study.runs import new_directory, open_run, read_config


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5

    def __post_init__(self):
        if not self.rate > 0:
            raise ValueError(f"rate must be positive; got {self.rate}")


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    inner: Inner = dataclasses.field(default_factory=Inner)
    seeds: int = 3


def made(directory: Path, **settings) -> Path:
    with open_run("test_runs", Config(workdir=directory, **settings)):
        pass
    return directory


def test_a_fresh_run_has_the_settings_that_a_resumed_one_reads(tmp_path):
    with open_run("test_runs", Config(workdir=tmp_path / "a", inner=Inner(1))) as (directory, fresh):
        pass
    with open_run("test_runs", Config(resume=directory)) as (_, resumed):
        pass
    assert (fresh.inner, type(fresh.inner.rate)) == (resumed.inner, float)
    assert fresh.fingerprint() == resumed.fingerprint()
    assert fresh.fingerprint() != dataclasses.replace(fresh, seeds=4).fingerprint()
    assert fresh.fingerprint("seeds") == dataclasses.replace(fresh, seeds=4).fingerprint("seeds")


def test_a_second_process_is_told_who_works_there(tmp_path):
    directory = made(tmp_path / "a")
    with open_run("test_runs", Config(resume=directory)):
        sentence = r"only one process at a time may work on the run in .*a; process \d+ on \S+ is doing so"
        with pytest.raises(BusyError, match=sentence), open_run("test_runs", Config(resume=directory)):
            pass
    with open_run("test_runs", Config(resume=directory)):  # it ended, and the file of the lock is still there
        pass


class KilledError(Exception):
    """The exception with which a test kills a run."""


@pytest.mark.parametrize("place", ["nc_jax.study.runs.environment", "pathlib.Path.rename"])
def test_a_run_that_is_killed_as_it_begins_can_be_begun_again(tmp_path, monkeypatch, place):
    def killed(*arguments):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(place, killed)
        patched.setattr("shutil.rmtree", lambda *arguments, **options: None)  # a killed process tidies nothing up
        with pytest.raises(KilledError):
            made(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    settings = made(tmp_path / "a") / "config.json"
    assert read_config(settings, "test_runs", Config()) == Config(workdir=tmp_path / "a")


def test_two_runs_do_not_get_one_directory(tmp_path, monkeypatch):
    directory = made(tmp_path / "a")
    sentence = rf"does not exist yet; got {directory} \(to go on with the run in it: --resume {directory}\)"
    with pytest.raises(FileExistsError, match=sentence):
        made(directory)
    # The other process was quicker after this one had looked.
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    with pytest.raises(FileExistsError, match=sentence):
        new_directory("test_runs", "default", Config(workdir=directory))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


DAMAGES = {
    "torn": (b'{"experiment": "te', r"must hold the settings of a run in JSON; got a damaged file \(Unterminated"),
    "no UTF-8": (b'{"experiment": "\xff"}', r"must hold the settings of a run in JSON; got a damaged file"),
    "empty": (b"", r"must hold the settings of a run in JSON; got a damaged file"),
    "too deep": (b'{"a":' * 100_000, r"must hold the settings of a run in JSON; got a damaged file"),
    "a list": (b"[1]", r'must hold "experiment", a name, and "config", settings; got \[1\]'),
    "no experiment": (b'{"config": {}}', r'must hold "experiment", a name, and "config", settings; got {'),
    "no settings": (b'{"experiment": "test_runs"}', r'must hold "experiment", a name, and "config", settings; got {'),
    "of another": (b'{"experiment": "a", "config": {}}', r"must be of a test_runs run; got one of a"),
}
WRONG = {
    "another version": ({"sedes": 3}, r"settings must have names that exist \(did you mean seeds\?\); got 'sedes'"),
    "wrong type": ({"seeds": "eight"}, r"seeds must be int; got 'eight'"),
    "no group": ({"inner": 3}, r"inner must be Inner; got 3"),
    "out of range": ({"inner": {"rate": -1}}, r"rate must be positive; got -1"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, *WRONG])
def test_settings_that_cannot_be_read_are_named_with_their_file(tmp_path, damage):
    path = tmp_path / "config.json"
    if damage in DAMAGES:
        content, sentence = DAMAGES[damage]
    else:
        settings, sentence = WRONG[damage]
        content = json.dumps({"experiment": "test_runs", "config": settings}).encode()
        sentence = "must hold settings that this version knows; " + sentence
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json {sentence}"):
        read_config(path, "test_runs", Config())
