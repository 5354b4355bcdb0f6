"""Every flag of every experiment, found in the types of its settings: through the command line, a file, and a run."""

import dataclasses
import functools
import importlib
import json
import operator
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from experiments import analyse, nearest_etf, outliers, robustness
from nc_jax.data.augment import AUGMENTATIONS
from nc_jax.study import Comparison, main
from nc_jax.study.backbones import BACKBONES
from nc_jax.study.cli import WHERE, parse
from nc_jax.study.config import from_json, to_json
from nc_jax.study.runs import open_run

ROOT = Path(__file__).resolve().parents[2]
MODULES = [importlib.import_module(f"experiments.{path.stem}") for path in (ROOT / "experiments").glob("[a-z]*.py")]
# Experiments that have the same settings differ in values only, which are another contract's.
STARTS = {
    type(module.PRESETS["default"]): module.PRESETS["default"] for module in MODULES if hasattr(module, "PRESETS")
}
# These have a plain optimiser, with which every other one can be chosen.
STARTS |= {Comparison: nearest_etf.PRESETS["default"], robustness.Config: robustness.Config()}
STARTS |= {outliers.Config: outliers.Config()}
STARTS |= {analyse.Config: analyse.Config(())}
# Choices that a type does not tell.
NAMES = {"backbone.name": BACKBONES, "data.augmentation": tuple(AUGMENTATIONS)}
# Flags that do not go with all others, so each is given alone, with what it needs.
ALONE = {
    "optimizer.name": [],
    "optimizer.schedule": ["--optimizer.milestones", "1"],
    "optimizer.decayed": ["--optimizer.weight-decay", "0.1"],
    "optimizer.nesterov": [],
    "backbone.name": [],
    "backbone.final_dim": ["--backbone.name", "resnet18"],
}
Flag = tuple[str, Any]  # dotted name, type


def flags_of(kind: type, path: str = "") -> typing.Iterator[Flag]:
    """Go through the settings that can be set, those of nested settings too."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        if dataclasses.is_dataclass(hint):
            yield from flags_of(hint, f"{path}{field.name}.")
        elif typing.get_args(tyro.conf.Suppress[int])[1] not in marks:
            yield f"{path}{field.name}", hint


def words_of(hint: Any, default: Any) -> list[list[str]]:
    """Return words that give values of a type, all of them not the default."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return words_of(parts[0], default)
    if origin in (typing.Union, types.UnionType):
        return [words for part in parts for words in words_of(part, default)]
    if origin is Literal:
        return [[choice] for choice in parts if choice != default]
    if origin is tuple:
        inner = [words_of(part, None)[0] for part in parts if part is not Ellipsis]
        if Ellipsis in parts:  # two values, numbers in ascending order
            inner = [*inner, *([words_of(float, 1.0)[0]] if parts[0] is float else inner)]
        return [[word for words in inner for word in words]]
    if hint is type(None):
        return [] if default is None else [["None"]]
    if hint is bool:
        return [[str(value)] for value in (True, False) if value is not default]
    if hint is float:
        return [[str(default / 2 if isinstance(default, float) and default else 0.25)]]
    return [[{int: str((default if isinstance(default, int) else 2) + 1), str: "a", Path: "some/where"}[hint]]]


def given(name: str, hint: Any, words: list[str]) -> list[str]:
    """Return the words of a flag; a plain truth value is set by the flag's name alone."""
    above, _, last = name.replace("_", "-").rpartition(".")
    before = f"{above}." if above else ""
    if hint is bool:
        return [f"--{before}{last}" if words == ["True"] else f"--{before}no-{last}"]
    return [f"--{before}{last}", *words]


def first_of(flag: Flag, start: Any) -> list[str]:
    """Return the words that give a flag a first value."""
    name, hint = flag
    return [] if name in ALONE else given(name, hint, words_of(hint, operator.attrgetter(name)(start))[0])


def rounds_of(start: Any) -> list[tuple[list[str], list[str]]]:
    """Return command lines in which every flag has each of its values, and the names of the flags in each."""
    together: list[tuple[list[str], list[str]]] = []
    alone: list[tuple[list[str], list[str]]] = []
    for name, hint in flags_of(type(start)):
        default = operator.attrgetter(name)(start)
        choices = [[choice] for choice in NAMES.get(name, ()) if choice != default] or words_of(hint, default)
        if typing.get_origin(hint) is typing.Annotated:  # a positional argument
            alone.append((choices[0], [name]))
        elif name in ALONE:
            alone += [(given(name, hint, words) + ALONE[name], [name]) for words in choices]
        else:
            while len(together) < len(choices):
                together.append(([], []))
            for place, words in enumerate(choices):
                together[place][0].extend(given(name, hint, words))
                together[place][1].append(name)
    return together + alone


@pytest.mark.parametrize("kind", STARTS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_flag_has_an_effect_and_survives_the_file_by_type(kind):
    start = STARTS[kind]
    seen = set()
    for words, names in rounds_of(start):
        config = parse(start, words)
        for name in names:
            value, default = (operator.attrgetter(name)(one) for one in (config, start))
            assert value != default, f"{name} is what it was, with {words}"
        again = from_json(start, json.loads(json.dumps(to_json(config))))
        assert again == config
        assert repr(again) == repr(config)  # 1 == 1.0, and their types differ
        seen |= set(names)
    assert seen == {name for name, _ in flags_of(kind)}


@pytest.mark.parametrize(
    "kind", [kind for kind in STARTS if kind is not analyse.Config], ids=lambda kind: kind.__name__
)
def test_a_resumed_run_has_every_setting_that_was_given(kind, tmp_path):
    found: list[Any] = []

    def run(config):
        with open_run("anything", config) as (_, opened):
            found.append(opened)

    words = [word for flag in flags_of(kind) if flag[0] not in WHERE for word in first_of(flag, STARTS[kind])]
    main(run, {"default": STARTS[kind]}, [*words, "--workdir", str(tmp_path / "a")])
    main(run, {"default": STARTS[kind]}, ["--resume", str(tmp_path / "a")])
    first, resumed = found
    assert resumed == dataclasses.replace(first, workdir=None, resume=tmp_path / "a")
    assert resumed.fingerprint() == first.fingerprint()


# Pairs that go together, and networks that an optimiser needs; every other choice goes with each of them.
OPTIMIZERS = (
    ("sgd", "constant"),
    ("adam", "step"),
    ("adamw", "multistep"),
    ("sgd", "cosine"),
    ("sgd", "one-cycle"),
    ("lbfgs", "constant"),
    ("adam", "cosine"),
)
TINY = ["--data.per-class", "12", "--data.tree", "digits", "--seeds", "1", "--methods", "nearest", "haframe"]
TINY += ["--loop.epochs", "1", "--loop.batch-size", "120", "--loop.devices", "1", "--optimizer.milestones", "0.5"]
TINY += ["--backbone.hidden", "12", "--backbone.dim", "12", "--backbone.neck-dim", "12", "--optimizer.learning-rate"]
TINY += ["0.01"]
# AGD needs a network without biases; this one has what the MLP lacks, too.
NETWORK = ["--optimizer.name", "agd", "--methods", "nearest", "--backbone.name", "resnet18", "--backbone.stem"]
NETWORK += ["imagenet", "--backbone.dtype", "bfloat16", "--backbone.final-dim", "12", "--backbone.width-multiplier"]
NETWORK += ["0.0625", "--loop.resident", "False"]


@functools.cache
def choices() -> dict[str, list[str]]:
    """Return the values of every flag of a comparison that has a fixed number of them."""
    found = {}
    for name, hint in flags_of(Comparison):
        parts = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal]
        if parts and name not in ALONE and name not in ("backbone.dtype", "backbone.stem"):
            found[name] = [choice for part in parts for choice in typing.get_args(part)]
        elif hint is bool and name not in (*WHERE, *ALONE):
            found[name] = ["True", "False"]
    return found


def train(words: list[str], directory: Path, digits_dir: str) -> dict[str, Any]:
    where = ["--workdir", str(directory), "--data.data-dir", digits_dir]
    main(nearest_etf.run_comparison, nearest_etf.PRESETS, ["smoke", *TINY, *words, *where])
    return json.loads((directory / "summary.json").read_text())["cases"][""]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(OPTIMIZERS)))
def test_every_choice_is_run_once(number, tmp_path, digits_dir):
    assert max(map(len, choices().values())) <= len(OPTIMIZERS), "a round for every choice"
    optimizer, schedule = OPTIMIZERS[number]
    words = ["--optimizer.name", optimizer, "--optimizer.schedule", schedule]
    if optimizer == "sgd":
        words += ["--optimizer.nesterov", "--optimizer.weight-decay", "0.1", "--optimizer.decayed", "kernels"]
    hints = dict(flags_of(Comparison))
    for name, values in choices().items():
        words += given(name, hints[name], [values[number % len(values)]])
    found = train(words, tmp_path / "run", digits_dir)
    assert set(found) == {"nearest", "HAFrame"}
    for numbers in found.values():
        assert all(value == value for value in numbers["test/loss"])


@pytest.mark.slow
def test_the_choices_of_a_convolutional_network_are_run_once(tmp_path, digits_dir):
    assert list(train(NETWORK, tmp_path / "run", digits_dir)) == ["nearest"]


@pytest.mark.slow
def test_a_run_starts_from_the_backbone_of_another_and_is_resumed(tmp_path, digits_dir):
    train(["--methods", "learned"], tmp_path / "first", digits_dir)
    checkpoint = tmp_path / "first" / "checkpoints" / "learned-seed0"
    words = ["--methods", "learned", "--backbone.checkpoint", str(checkpoint)]
    found = train(words, tmp_path / "second", digits_dir)
    (tmp_path / "second" / "results.jsonl").unlink()  # so that the settings are used again
    main(nearest_etf.run_comparison, nearest_etf.PRESETS, ["--resume", str(tmp_path / "second"), "--restart"])
    assert (tmp_path / "second" / "superseded" / "learned-seed0").is_dir()
    again = json.loads((tmp_path / "second" / "summary.json").read_text())["cases"][""]
    assert again["learned"]["test/accuracy"] == found["learned"]["test/accuracy"]


def test_every_choice_is_in_a_round():
    hints = dict(flags_of(Comparison))
    optimizers, schedules = (set(typing.get_args(hints[f"optimizer.{name}"])) for name in ("name", "schedule"))
    assert {name for name, _ in OPTIMIZERS} | {"agd"} == optimizers
    assert {schedule for _, schedule in OPTIMIZERS} == schedules
