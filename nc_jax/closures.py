"""What a function decides its values by, beside its arguments: closed-over variables, defaults, bound arguments."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import jax

from nc_jax.checks import is_traced


def check_holds_nothing_traced(name: str, function: Any) -> None:
    """Raise a ValueError if a function holds a traced value: in its closure, its defaults or a partial's arguments."""
    for value in _held(function, set()):
        for leaf in jax.tree.leaves(value):
            if is_traced(leaf):
                raise ValueError(
                    f"{name} must close over known values only; got one that closes over a traced value "
                    f"{leaf.aval.str_short()}: compute that value outside jax.jit, jax.grad and jax.vmap"
                )


def variables_of(function: types.FunctionType) -> dict[str, Any]:
    """Return what decides the values of a function beside its arguments: closed-over variables and defaults, by name.

    A variable that has no value yet is None. Defaults of positional arguments are named "0", "1" and so on.
    """
    held: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # no value yet
            held[name] = None
    defaults = {str(number): value for number, value in enumerate(function.__defaults__ or ())}
    return held | defaults | (function.__kwdefaults__ or {})


def _held(function: Any, seen: set[int]) -> Iterator[Any]:
    if id(function) in seen:
        return
    seen.add(id(function))
    held = [*getattr(function, "__dict__", {}).values(), getattr(function, "__self__", None)]
    if isinstance(function, types.FunctionType):
        held += variables_of(function).values()
    if isinstance(function, functools.partial):
        held += [function.func, *function.args, *function.keywords.values()]
    for value in held:
        if callable(value):
            yield from _held(value, seen)
        else:
            yield value
