"""Settings: to a file and back by type, changed and compared by dotted names."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from nc_jax.study.config import changed, differences, from_json, to_json


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    widths: tuple[int, ...] = (2, 3)
    window: bool | tuple[int, int] = False
    alpha: float | Literal["cosine"] = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    folder: Path | None = None
    name: str = "digits"
    grid: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    pairs: tuple[tuple[str, float], ...] = ()


CASES = [
    Outer(),
    Outer(Inner(1.0, (), (3, 4), "cosine"), Path("runs/a"), "b"),
    Outer(Inner(window=True), grid={"case": {"variant": {"inner.widths": (1,), "x": None}}}),
    Outer(pairs=(("a", 1.0), ("b", 2.5))),
]


@pytest.mark.parametrize("config", CASES, ids=range(len(CASES)))
def test_settings_survive_json_by_type(config):
    again = from_json(Outer(), json.loads(json.dumps(to_json(config))))
    assert again == config
    assert type(again.folder) is type(config.folder)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"nmae": "x"}, r"settings must have names that exist \(did you mean name\?\); got 'nmae'"),
        ({"inner": {"rate": "fast"}}, "inner.rate must be float; got 'fast'"),
        ({"inner": {"widths": [1, "two"]}}, r"inner.widths must be .*; got \[1, 'two'\]"),
        ({"inner": {"window": [1, 2, 3]}}, "inner.window must be bool or .*; got"),
        ({"inner": {"alpha": "sine"}}, "inner.alpha must be float or .*; got 'sine'"),
        ({"inner": {"rate": True}}, "inner.rate must be float; got True"),
    ],
)
def test_what_does_not_fit_is_named(document, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_json(Outer(), document)


def test_changes_have_dotted_names():
    found = changed(Outer(), {"inner.rate": 1, "inner.widths": (5,), "folder": "here"})
    assert found == Outer(Inner(1, (5,)), Path("here"))
    assert changed(Outer(), {}) == Outer()
    with pytest.raises(ValueError, match=r"inner.raet"):
        changed(Outer(), {"inner.raet": 1.0})


def test_differences_are_found_by_the_same_names():
    one, other = CASES[0], CASES[1]
    assert differences(one, one) == {}
    assert differences(one, other)["inner.widths"] == ((2, 3), ())
    assert set(differences(one, other)) == {
        "inner.rate",
        "inner.widths",
        "inner.window",
        "inner.alpha",
        "folder",
        "name",
    }
