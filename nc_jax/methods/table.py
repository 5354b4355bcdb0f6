"""The table of all methods, by the names that commands take."""

import difflib
from collections.abc import Mapping

from nc_jax.methods import (
    continual,
    federated,
    few_shot,
    hierarchy,
    long_tail,
    orthogonal,
    simplex,
    smoothing,
    uniformity,
)
from nc_jax.methods.method import Method


def joined(*families: Mapping[str, Method]) -> dict[str, Method]:
    """Join dictionaries of methods into one.

    Raises:
        ValueError: if two dictionaries use the same name.
    """
    table: dict[str, Method] = {}
    for family in families:
        twice = sorted(set(table) & set(family))
        if twice:
            raise ValueError(f"every method needs a name of its own; got two of {', '.join(twice)}")
        table |= family
    return table


METHODS = joined(
    simplex.METHODS,
    hierarchy.METHODS,
    orthogonal.METHODS,
    smoothing.METHODS,
    continual.METHODS,
    long_tail.METHODS,
    few_shot.METHODS,
    uniformity.METHODS,
    federated.METHODS,
)


def method(name: str) -> Method:
    """Return a method by name.

    Raises:
        ValueError: if there is no method of this name.
    """
    if name not in METHODS:
        near = "".join(f"; did you mean {other!r}?" for other in difflib.get_close_matches(name, METHODS, 1))
        raise ValueError(f"a method must be one of {', '.join(METHODS)}; got {name!r}{near}")
    return METHODS[name]
