"""Every experiment has a header, presets that can be saved, built and run, and runs that resume."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest

from nc_jax.study import Comparison, cli, main, plan
from nc_jax.study.config import from_json, to_json
from nc_jax.study.settings import expand

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py") if path.stem != "analyse")
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in NAMES}
PRESETS = [(name, preset) for name, module in MODULES.items() for preset in module.PRESETS]


def run_of(module):
    return getattr(module, "run_comparison", None) or module.run


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_what_it_claims_and_writes(name):
    header = MODULES[name].__doc__
    assert header.splitlines()[0].endswith(("?", "."))
    parts = ("Claim", "Command", "Expected", "Writes", "Data")
    places = [header.find(f"\n{part} ") for part in parts]
    assert places == sorted(places)
    assert min(places) > 0
    assert f"python -m experiments.{name}" in header
    assert {"default", "smoke"} <= MODULES[name].PRESETS.keys() == MODULES[name].ABOUT.keys()


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_survives_its_file_and_the_command_line(name, preset):
    presets = MODULES[name].PRESETS
    config = dataclasses.replace(presets[preset], preset=preset)
    saved = json.loads(json.dumps(to_json(config)))
    assert from_json(presets["default"], saved) == config
    assert cli.parse(config, []) == config


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_of_a_comparison_names_what_there_is(name, preset):
    config = MODULES[name].PRESETS[preset]
    if not isinstance(config, Comparison):
        pytest.skip("no comparison")
    groups = [group for case in expand(config).values() for group in case]
    assert len({(group.case, group.label) for group in groups}) == len(groups) > 0


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_header_and_the_presets(name, capsys):
    module = MODULES[name]
    with pytest.raises(SystemExit) as stop:
        main(run_of(module), module.PRESETS, ["--help"], about=module.ABOUT, plan=module.plan)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert module.__doc__.strip() in shown
    lines = shown.splitlines()
    for preset, about in module.ABOUT.items():
        (line,) = [line for line in lines if line.startswith(f"  {preset} ")]
        assert line.removeprefix(f"  {preset}").strip().startswith(about.what[:20])
    # Each description makes sense alone: --help shows it without its neighbours.
    for words in ("as there", "likewise", "see there", "the next", "as of"):
        assert words not in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_says_how_many_runs_and_how_long(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = MODULES[name]
    main(run_of(module), module.PRESETS, ["smoke", "--dry-run"], about=module.ABOUT, plan=module.plan)
    said = capsys.readouterr().out
    assert said.startswith(module.plan(module.PRESETS["smoke"]).parts)
    assert "about" in said or "no time has been measured" in said
    assert not list(tmp_path.iterdir())


def test_no_time_is_promised_for_another_network(capsys):
    module = MODULES["nearest_etf"]
    words = ["--backbone.name", "resnet18", "--dry-run"]
    main(run_of(module), module.PRESETS, words, about=module.ABOUT, plan=module.plan)
    said = capsys.readouterr().out
    assert "no time has been measured for these settings" in said
    assert "if a step takes as long" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_smoke_preset_runs_and_resumes(name, tmp_path, digits_dir, capsys):
    module, directory = MODULES[name], tmp_path / "run"
    data = ["--data.data-dir", digits_dir] if isinstance(module.PRESETS["smoke"], Comparison) else []
    main(run_of(module), module.PRESETS, ["smoke", "--workdir", str(directory), *data])
    header = module.__doc__
    promised = [word for word in header.split("Writes")[1].split("Data")[0].replace("\n", " ").split() if "." in word]
    for file in (word.strip(",;`") for word in promised):
        if file.endswith((".json", ".jsonl", ".md", ".png")) and "grid" not in file:
            assert any(directory.rglob(file)), f"{file} is promised"
    summary = json.loads((directory / "summary.json").read_text())
    if not (directory / "results.jsonl").exists():
        return
    # The state after a crash: the last result is missing, and the line before it is cut short.
    ledger = directory / "results.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    main(run_of(module), module.PRESETS, ["--resume", str(directory)])
    again = json.loads((directory / "summary.json").read_text())
    assert without_times(again) == without_times(summary)
    shutil.rmtree(directory)


def without_times(value):
    """A summary without values that depend on the machine, and with strings for NaN, which does not equal itself."""
    if isinstance(value, dict):
        timed = ("seconds", "milliseconds")
        return {name: without_times(inner) for name, inner in value.items() if not name.startswith(timed)}
    if isinstance(value, list):
        return [without_times(inner) for inner in value]
    return str(value) if value != value else value


def test_a_plan_counts_runs_and_steps(digits_dir):
    nearest = MODULES["nearest_etf"].PRESETS
    config = dataclasses.replace(
        nearest["default"], data=dataclasses.replace(nearest["default"].data, data_dir=digits_dir)
    )
    planned = plan(config)
    assert (planned.parts, planned.work()) == ("24 runs", 2880)
