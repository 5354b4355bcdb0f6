"""Settings as nested frozen dataclasses: to JSON and back by type, changed and compared by dotted names."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

Settings = TypeVar("Settings")


def to_json(settings: Any) -> Any:
    """Return settings as JSON can hold them: dataclasses as objects, tuples as lists, paths as strings.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     widths: tuple[int, ...] = (2, 3)
        ...     folder: Path | None = Path("runs")
        >>> to_json(Options())
        {'widths': [2, 3], 'folder': 'runs'}
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: to_json(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(name): to_json(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_json(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings


def fingerprint(*parts: Any) -> str:
    """Return a short hash of settings, or of whatever `to_json` takes: equal for equal values.

    Example:
        >>> fingerprint({"rate": 0.1, "widths": (2, 3)}) == fingerprint({"widths": [2, 3], "rate": 0.1})
        True
        >>> len(fingerprint("a"))
        16
    """
    text = json.dumps([to_json(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]  # 64 bits: no two of a billion settings meet


def from_json(like: Settings, document: Mapping[str, Any], *, path: str = "") -> Settings:
    """Return settings that `to_json` has written, by the types that their fields have.

    Args:
        like: an instance; it says the types, and the values of fields that the document lacks.
        document: what `to_json` has returned.
        path: dotted name of these settings in those around them.

    Raises:
        ValueError: if a name does not exist or a value does not fit; the sentence has its dotted name.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     widths: tuple[int, ...] = (2, 3)
        ...     folder: Path | None = None
        >>> from_json(Options(), {"widths": [4], "folder": "runs"}) == Options((4,), Path("runs"))
        True
    """
    kind: Any = type(like)
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    given = {}
    for name, value in document.items():
        where = f"{path}{name}"
        if name not in names:
            raise ValueError(f"settings must have names that exist{_near(name, names)}; got {where!r}")
        old = getattr(like, name)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            given[name] = from_json(old, value, path=f"{where}.")
        else:
            given[name] = _fitting(value, hints[name], where)
    return dataclasses.replace(like, **given)  # pyright: ignore[reportArgumentType]


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return settings with some values replaced.

    Args:
        settings: nested dataclasses.
        changes: new values by dotted name, `{"optimizer.learning_rate": 0.1}`.

    Raises:
        ValueError: if a name does not exist or a value does not fit.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Inner:
        ...     rate: float = 0.5
        >>> @dataclasses.dataclass(frozen=True)
        ... class Outer:
        ...     inner: Inner = dataclasses.field(default_factory=Inner)
        >>> changed(Outer(), {"inner.rate": 0.25})
        Outer(inner=Inner(rate=0.25))
    """
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        *above, last = name.split(".")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return from_json(settings, nested) if nested else settings


def differences(one: Any, other: Any, *, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two instances of a class differ: both values, by dotted name."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
            found |= differences(ours, theirs, path=f"{path}{field.name}.")
        elif ours != theirs:
            found[f"{path}{field.name}"] = (ours, theirs)
    return found


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _fitting(value: Any, hint: Any, where: str) -> Any:
    """Return a value as the annotation wants it.

    Raises:
        ValueError: if it does not fit.
    """
    for option in _options(hint):
        found = _as(value, option)
        if found is not _NO:
            return found
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in _options(hint))
    raise ValueError(f"{where} must be {wanted}; got {value!r}")


def _options(hint: Any) -> Iterator[Any]:
    """Go through the members of a union; what surrounds a type (tyro's marks) is taken off."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _options(part)
    else:
        yield hint


_NO = object()


def _as(value: Any, hint: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _tuples(value)
    if origin is Literal:
        return value if value in parts else _NO
    if hint is type(None):
        return None if value is None else _NO
    if hint is Path:
        return Path(value) if isinstance(value, str | Path) else _NO
    if hint in (bool, str):
        return value if isinstance(value, hint) else _NO
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _NO
    if hint is float:
        # JSON and people write 1 for 1.0.
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _NO
    if origin is tuple:
        return _as_tuple(value, parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()} if isinstance(value, Mapping) else _NO
    return value if isinstance(hint, type) and isinstance(value, hint) else _NO


def _as_tuple(value: Any, parts: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _NO
    hints = [parts[0]] * len(value) if len(parts) == 2 and parts[1] is Ellipsis else list(parts)
    if len(hints) != len(value):
        return _NO
    found = []
    for one, hint in zip(value, hints, strict=True):
        fitting = next((new for option in _options(hint) if (new := _as(one, option)) is not _NO), _NO)
        if fitting is _NO:
            return _NO
        found.append(fitting)
    return tuple(found)


def _tuples(value: Any) -> Any:
    """Return a value of unknown type as settings hold it: sequences as tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list | tuple) else value
