"""The table of methods: names are unique and unknown ones are refused."""

import pytest

from nc_jax.methods import METHODS, method, simplex, table


def test_an_unknown_method_is_refused_with_the_names_there_are():
    assert method("nearest") is METHODS["nearest"]
    with pytest.raises(ValueError, match=r"^a method must be one of learned, .*; got 'nearst'$"):
        method("nearst")


def test_two_families_cannot_name_a_method_alike():
    with pytest.raises(ValueError, match="every method needs a name of its own; got two of aligned, "):
        table.joined(simplex.METHODS, simplex.METHODS)
