"""The command `nc-jax`: what it lists, what it refuses, and that experiments run through it from any folder."""

import subprocess
import sys

import pytest

from nc_jax.commands import COMMANDS, main


def test_help_names_every_command(capsys):
    main([])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)


def test_an_unknown_command_gets_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: the command must be one of measure, ")


def test_an_unknown_experiment_gets_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "nearest"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the experiment must be one of ")
    assert "nearest_etf" in said
    assert said.endswith("got 'nearest'\n")


@pytest.mark.slow
def test_an_experiment_runs_from_another_folder(tmp_path):
    (tmp_path / "experiments").mkdir()  # the user's own, which has the same name
    (tmp_path / "experiments" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    run = [sys.executable, "-m", "nc_jax", "run", "nearest_etf", "smoke", "--methods", "fixed", "--workdir", "run"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.md").is_file()


def test_the_list_and_the_help_name_the_command_by_which_one_came(capsys, monkeypatch):
    main(["list"])
    said = capsys.readouterr().out
    assert "nc-jax run nearest_etf\n" in said
    assert "python -m" not in said
    monkeypatch.delitem(sys.modules, "experiments.haframe_trees")  # Python warns of running what is imported
    monkeypatch.setattr(sys, "argv", ["nc-jax"])
    with pytest.raises(SystemExit):
        main(["run", "haframe_trees", "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: nc-jax run haframe_trees [PRESET]")
    assert "python -m" not in said
