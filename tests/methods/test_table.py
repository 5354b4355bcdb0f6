"""The table of methods: names are unique and unknown ones are refused."""

import pytest
from trees import PAIRS

from nc_jax.hierarchy import LabelTree
from nc_jax.methods import METHODS, HierarchyOptions, Setting, method, simplex, table


def test_an_unknown_method_is_refused_with_the_names_there_are():
    assert method("nearest") is METHODS["nearest"]
    with pytest.raises(
        ValueError, match=r"^a method must be one of learned, .*; got 'nearst'; did you mean 'nearest'\?$"
    ):
        method("nearst")


def test_two_families_cannot_name_a_method_alike():
    with pytest.raises(ValueError, match="every method needs a name of its own; got two of aligned, "):
        table.joined(simplex.METHODS, simplex.METHODS)


def test_gamma_is_learned_for_the_exponential_map_only():
    tree = LabelTree.from_edges(PAIRS)
    setting = Setting(num_classes=4, tree=tree, hierarchy=HierarchyOptions(mapping="linear"))
    with pytest.raises(ValueError, match=r"exponential only; got --hierarchy.mapping linear$"):
        method("nearest-gamma").head(setting)
    assert method("nearest-haframe").head(setting).num_classes == 4
