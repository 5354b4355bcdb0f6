"""What decides a run, as plain names and values: two runs with equal fingerprints end in the same state.

Models, optimisers, losses and extensions are values built from dataclasses, tuples, arrays and functions. `describe`
walks through all of them, into the variables that a function has closed over, and writes down every number on the way.
So the learning rate inside an optax transformation, which is a closure, is part of the fingerprint.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nc_jax.closures import variables_of

Fingerprint = dict[str, str]  # a value, written down, by its place

# Fields of every Linen module that say where it stands in a model, and not what it computes.
_PLACES = frozenset({"parent", "name"})


def describe(value: Any, place: str = "") -> Fingerprint:
    """Write down a value: a line for each number, text, array or function in it.

    Args:
        value: what decides a run. A value with a method `fingerprint` describes itself by what that returns. Arrays are
            described by shape, dtype and a hash of their content, functions by their module and name, their default
            arguments and the variables that they close over; but not by their program text.
        place: name under which the value appears.

    Returns:
        Descriptions by place. A place is a path of attribute names and keys, such as "model.head.options.gamma".

    Example:
        >>> describe({"seed": 3, "decay": [0.5, None]}, "run")
        {'run.seed': '3', 'run.decay.0': '0.5', 'run.decay.1': 'None'}
    """
    found: Fingerprint = {}
    _walk(value, place, found, frozenset())
    return found


def difference(stored: Fingerprint, here: Fingerprint) -> str:
    """Say how two fingerprints differ, as "name is new instead of old"; "" if they are equal.

    Names at most three differences. A setting that two functions hold counts once.
    """
    said = {}
    for name in {**stored, **here}:
        new, old = here.get(name, "absent"), stored.get(name, "absent")
        if new != old:
            said.setdefault((name.rpartition(".")[2], new, old), f"{name} is {new} instead of {old}")
    sentences = list(said.values())
    more = [f"{len(sentences) - 3} more differ"] if len(sentences) > 3 else []
    return ", ".join(sentences[:3] + more)


def content_of(array: np.ndarray) -> memoryview:
    """Return the bytes of an array, without a copy if they lie in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _walk(value: Any, place: str, found: Fingerprint, above: frozenset[int]) -> None:
    """Add the descriptions of a value, which lies inside the values with the identities `above`."""
    if id(value) in above:
        found[place] = "itself"  # a function that calls itself, for instance
        return
    above |= {id(value)}

    def inside(parts: Mapping[str, Any], kind: str = "") -> None:
        if kind or not parts:
            found[place] = kind or "empty"
        for name, part in parts.items():
            _walk(part, f"{place}.{name}" if place else name, found, above)

    own = getattr(value, "fingerprint", None)
    if callable(own) and not isinstance(value, type):
        _walk(own(), place, found, above)
    elif value is None or isinstance(value, bool | int | str | bytes | complex | Path):
        found[place] = str(value)
    elif isinstance(value, float):  # 3.0 decides the same as 3
        found[place] = str(int(value)) if value.is_integer() else repr(value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        found[place] = _of_array(value)
    elif isinstance(value, type):
        found[place] = f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, functools.partial):
        inside({"function": value.func, **_numbered(value.args), **value.keywords})
    elif dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in _PLACES]
        inside({name: getattr(value, name, None) for name in fields}, type(value).__qualname__)
    elif isinstance(value, Mapping):
        inside({str(name): part for name, part in value.items()})
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        inside(value._asdict(), type(value).__qualname__)  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, list | tuple):
        inside(_numbered(value))
    elif isinstance(value, Set):
        found[place] = ", ".join(sorted(map(str, value)))
    elif callable(value) and hasattr(value, "__wrapped__"):  # of jax.jit and functools.cache, for instance
        _walk(value.__wrapped__, place, found, above)
    elif isinstance(value, types.MethodType):
        inside({"self": value.__self__}, value.__qualname__)
    elif isinstance(value, types.FunctionType):
        inside(variables_of(value), f"{value.__module__}.{value.__qualname__}")
    elif isinstance(value, Callable) and hasattr(value, "__qualname__"):  # of a compiled module
        found[place] = f"{value.__module__}.{value.__qualname__}"
    else:
        inside(dict(getattr(value, "__dict__", {})), type(value).__qualname__)


def _of_array(array: Any) -> str:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    if array.ndim == 0:
        return str(array.item())
    content = hashlib.sha1(content_of(array), usedforsecurity=False)
    return f"{array.dtype}{list(array.shape)} {content.hexdigest()}"


def _numbered(values: Any) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}
