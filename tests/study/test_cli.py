"""The command line: presets, nested settings, saved settings, and ends in one sentence."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import nearest_etf
from nc_jax.study import About, Plan, RunOptions, main, progress
from nc_jax.study.runs import open_run
from nc_jax.training import NonFiniteError, PreemptedError

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Pair:
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if self.low > self.high:
            raise ValueError(f"low must be at most high; got {self.low} and {self.high}")


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    pair: Pair = dataclasses.field(default_factory=Pair)
    inner: Inner = dataclasses.field(default_factory=Inner)
    folder: Path = Path("a")
    seeds: int = 3


PRESETS = {"default": Config(), "small": Config(seeds=1)}


def run(config):
    with open_run("test_cli", config) as (directory, config):
        found.append((directory, config))


found: list = []


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found.clear()


ABOUT = {"default": About("three seeds", 6.0, "nothing"), "small": About("one seed")}


def call(*words, run=run):
    main(run, PRESETS, list(words), about=ABOUT, plan=plan)


def plan(config):
    return Plan(f"{config.seeds} runs", lambda: 10.0 * config.seeds, "steps")


@pytest.mark.slow
def test_a_run_has_the_presets_settings_and_the_flags():
    call("small", "--inner.rate", "0.25", "--workdir", "here")
    ((directory, config),) = found
    assert (directory, config.seeds, config.inner.rate, config.preset) == (Path("here"), 1, 0.25, "small")
    saved = json.loads(Path("here/config.json").read_text())
    assert saved["config"]["inner"] == {"rate": 0.25}
    assert saved["environment"]["versions"]["jax"]


def test_saved_settings_are_given_back_by_type():
    call("--inner.rate", "0.25", "--folder", "b", "--workdir", "one")
    call("--config", "one/config.json", "--seeds", "7", "--workdir", "two")
    call("--resume", "one")
    (_, first), (_, second), (_, resumed) = found
    assert second == dataclasses.replace(first, workdir=Path("two"), config=Path("one/config.json"), seeds=7)
    assert resumed == dataclasses.replace(first, workdir=None, resume=Path("one"))
    assert isinstance(resumed.folder, Path)


def test_a_dry_run_writes_nothing(capsys):
    call("small", "--dry-run")
    said = capsys.readouterr().out
    assert said.startswith("1 runs: 10 steps; no time has been measured for this preset")
    assert not list(Path.cwd().iterdir())


def test_a_dry_run_says_about_how_long_in_proportion_to_the_steps(capsys):
    call("--dry-run")
    assert capsys.readouterr().out == "3 runs: 30 steps; about 6 min on two CPU cores\n"
    call("--seeds", "12", "--dry-run")
    said = capsys.readouterr().out
    assert said.startswith("12 runs: 120 steps; about 24 min on two CPU cores if a step takes as long")


def test_help_lists_presets_with_runs_time_and_numbers(capsys):
    with pytest.raises(SystemExit) as stop:
        call("small", "--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m {__name__} [PRESET] [--setting value ...]\n\nThe command line")
    assert "default  three seeds; 3 runs, 6 min; nothing\n" in said
    assert "Settings, with their values in the preset small:" in said
    assert "--inner.rate FLOAT" in said
    assert said.count("usage:") == 1


def test_pictures_of_a_run_can_be_made_anew_in_another_format():
    call("--workdir", "one")
    call("--resume", "one", "--picture-format", "pdf")
    assert [config.picture_format for _, config in found] == [None, "pdf"]


def test_a_run_can_be_resumed_from_its_start():
    call("--workdir", "one")
    call("--resume", "one", "--restart")
    call("--resume", "one")
    assert [config.restart for _, config in found] == [False, True, False]


def test_settings_of_a_run_are_taken_however_the_flag_is_written():
    call("--seeds", "7", "--workdir", "one")
    call("--config=one/config.json", "--workdir", "two")
    assert [config.seeds for _, config in found] == [7, 7]


MISTAKES = {
    "unknown preset": (["huge"], "the preset must be one of default, small; got 'huge'"),
    "unknown flag": (["--seedz", "3"], "--seedz"),
    "wrong value": (["--seeds", "many"], "many"),
    "nothing to resume": (["--resume", "nowhere"], "the directory of a run has a config.json; got nowhere, without"),
    "resume with settings": (["--resume", "nowhere", "--seeds", "2"], "it must be the only argument"),
    "no file": (["--config"], "--config"),
    "no settings there": (["--config", "nowhere/config.json"], "the directory of a run has a config.json; got nowhere"),
    "settings and a preset": (["small", "--config", "a"], "--config takes all settings of a run, so it needs no pres"),
    "a group that does not fit": (["--pair.low", "3"], "Error parsing pair: low must be at most high; got 3.0 and 1.0"),
    "nothing to restart": (["--restart"], "--restart goes with --resume, which names the run; got none"),
    "distributed": (["--distributed"], "--distributed needs --workdir or --resume"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_status_2(mistake, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["this-program"])
    words, sentence = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        call(*words)
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert sentence in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert "this-program" not in printed
    assert not list(Path.cwd().iterdir())  # nothing was written


def test_a_run_of_another_experiment_is_not_resumed(capsys):
    Path("other").mkdir()
    Path("other/config.json").write_text('{"experiment": "landscape", "config": {}}')
    with pytest.raises(SystemExit):
        call("--resume", "other")
    assert "must be of a test_cli run; got one of landscape" in capsys.readouterr().err


def test_an_existing_directory_is_not_touched(capsys):
    Path("precious").mkdir()
    with pytest.raises(SystemExit) as stop:
        call("--workdir", "precious")
    assert stop.value.code == 2
    assert "a new run needs a directory that does not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted; go on with: python -m "),
        (PreemptedError("r was asked to stop"), 75, "r was asked to stop; go on with: python -m "),
        (NonFiniteError("training needs finite numbers"), 2, "error: training needs finite numbers"),
    ],
)
def test_how_a_run_ends_is_said_with_the_command_to_go_on(error, status, sentence, capsys):
    def stopped(config):
        run(config)
        raise error

    with pytest.raises(SystemExit) as stop:
        call("--workdir", "here", run=stopped)
    printed = capsys.readouterr().err
    assert stop.value.code == status
    assert printed.startswith(sentence)
    assert printed.count("\n") == 1
    assert status == 2 or printed.endswith("--resume here\n")


MINE = """'An experiment of my own.'
from experiments.unconstrained_features import PRESETS
from nc_jax.study import main
from nc_jax.study.runs import open_run

def run(config):
    with open_run("mine", config):
        raise KeyboardInterrupt

main(run, PRESETS)
"""


@pytest.mark.slow
def test_a_file_of_a_users_own_is_named_as_it_was_started(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)

    def start(*words):
        return subprocess.run(
            [sys.executable, "mine.py", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert start("--help").stdout.startswith("usage: python mine.py [PRESET]")
    stopped = start("--workdir", "here")
    assert stopped.returncode == 130
    assert stopped.stderr == "interrupted; go on with: python mine.py --resume here\n"


def test_the_environment_variable_shows_the_traceback(monkeypatch):
    monkeypatch.setitem(os.environ, "NC_JAX_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        call("--resume", "nowhere")


def test_what_a_preset_varies_is_not_overridden(capsys):
    from experiments import fixed_etf
    from nc_jax.study import refuse_overridden

    with pytest.raises(SystemExit):
        main(fixed_etf.run_comparison, fixed_etf.PRESETS, ["--backbone.final-dim", "7"], check=refuse_overridden)
    assert "backbone.final_dim is what this preset varies (d = K sets it to 10)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparisons_mistake_is_found_before_anything_is_written(tmp_path, capsys):
    for words, sentence in (
        (["--backbone.dim", "8"], "a simplex ETF of 10 classes needs dim >= 9; got dim=8"),
        (["--methods", "nearst"], "a method must be one of learned, fixed, "),
        (["--seeds", "0"], "at least one method and one seed are needed"),
        (["--data.without-class", "12"], "without_class must lie in 0..9; got 12"),
        (["--loop.batch-size", "33"], "a multiple of the 8 devices; got 33"),
        (["--methods", "haframe"], "this method needs a label tree"),
        (["--loop.devices", "99"], "devices must lie in 1..8, the local ones; got 99"),
        (["--head.radius", "-1"], "radius must be positive"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(nearest_etf.run_comparison, nearest_etf.PRESETS, ["smoke", "--data.data-dir", str(tmp_path), *words])
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_python_m_experiments_lists_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert "python -m experiments.nearest_etf\n    Does the nearest simplex ETF train faster" in done.stdout
    assert "paper-cifar10-resnet18" in done.stdout
    assert re.search(r"small MLP, 20 epochs; 24 runs, 1 min", " ".join(done.stdout.split()))


def test_a_log_file_shows_life_while_nothing_comes_to_an_end(monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET", 0.01)
    with progress.Heartbeat(lambda: "outer"), progress.Progress(10, "epochs") as bar:
        bar.advance(4, "nearest-seed0")
        said, deadline = "", time.monotonic() + 60
        while "nearest-seed0" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert "4 of 10 epochs" in said
    assert "about" in said
    assert "outer" not in said.split("0 of 10 epochs")[1]  # only the innermost one speaks


# A line of standard error, and how the sentence goes on that Ctrl-C gives after it.
MOMENTS = {
    "while modules are imported": ("jax._src", "no run had begun, so start again with the same command"),
    "in a run": ("0 of ", "go on with: python -m experiments.landscape --resume {directory}"),
    "in a run of nc-jax": ("0 of ", "go on with: nc-jax run landscape --resume {directory}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_in_a_real_process_is_one_sentence(moment, tmp_path):
    line, ending = MOMENTS[moment]
    door = ["nc_jax", "run", "landscape"] if "nc-jax" in moment else ["experiments.landscape"]
    command = [sys.executable, *(["-X", "importtime"] if "imported" in moment else []), "-m", *door]
    command += ["--workdir", str(tmp_path / "run")]
    # A shell that started the tests in the background has told them, and so their children, to ignore Ctrl-C.
    hear = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", hear, *command], cwd=ROOT, **pipes)
    assert process.stderr is not None
    while line not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted; " + ending.format(directory=tmp_path / "run")
    assert "Traceback" not in said
