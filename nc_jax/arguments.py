"""Checks of arguments that functions share: each raises an error of one sentence before anything is computed."""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


def is_traced(value: Any) -> bool:
    """Whether a value is not known yet, because JAX traces the program (under jit, grad or vmap)."""
    from jax.core import Tracer  # not an attribute that type checkers know

    return isinstance(value, Tracer)


def real_array(name: str, value: Any) -> Array:
    """Return an array, a list or a number as a JAX array.

    Raises:
        ValueError: if it does not consist of real numbers.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of real numbers; got {_kind(value)}") from None
    if jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer):
        return array
    raise ValueError(f"{name} must be an array of real numbers; got dtype {array.dtype}")


def check_whole(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a whole number (of Python or NumPy)."""
    try:
        operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {value!r}") from None


def check_floating(dtype: DTypeLike) -> None:
    """Raise a ValueError unless the dtype is floating."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype; got {jnp.dtype(dtype).name}")


def check_key(key: Any) -> None:
    """Raise a ValueError unless the value is a random key, typed or as two or four unsigned integers, or None."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0
    raw = dtype is not None and dtype == jnp.uint32 and key.ndim == 1
    if not (key is None or typed or raw):
        raise ValueError(f"key must be a random key, as jax.random.key(0) makes one; got {_kind(key)}")


def check_holds_nothing_traced(name: str, function: Any) -> None:
    """Raise a ValueError if a function holds a traced value: in its closure, its defaults or a partial's arguments."""
    for value in _held(function, set()):
        for leaf in jax.tree.leaves(value):
            if is_traced(leaf):
                raise ValueError(
                    f"{name} must close over known values only; got one that closes over a traced value "
                    f"{leaf.aval.str_short()}: compute that value outside jax.jit, jax.grad and jax.vmap"
                )


def _held(function: Any, seen: set[int]) -> Iterator[Any]:
    if id(function) in seen:
        return
    seen.add(id(function))
    held = list(getattr(function, "__dict__", {}).values())
    held += getattr(function, "__defaults__", None) or ()
    held += (getattr(function, "__kwdefaults__", None) or {}).values()
    held.append(getattr(function, "__self__", None))
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    if isinstance(function, functools.partial):
        held += [function.func, *function.args, *function.keywords.values()]
    for value in held:
        if callable(value):
            yield from _held(value, seen)
        else:
            yield value


def _kind(value: Any) -> str:
    return (
        f"shape {value.shape} of {value.dtype}" if hasattr(value, "dtype") else f"{type(value).__name__} {value!r:.40}"
    )
