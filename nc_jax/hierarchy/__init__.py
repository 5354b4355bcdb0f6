"""Hierarchies of classes: trees, distances in them, and the cosines that a hierarchy-aware frame should have.

NumPy only. The trees that come with the embedded data sets are in `nc_jax.data.hierarchies`.
"""

from nc_jax.hierarchy.drawing import draw_dendrogram
from nc_jax.hierarchy.readers import (
    cut_linkage,
    from_levels,
    from_linkage,
    from_nested,
    from_networkx,
    read_json,
    read_levels,
    read_parent_child,
    to_networkx,
)
from nc_jax.hierarchy.similarity import (
    GammaRange,
    Mapping,
    check_ultrametric,
    kernel,
    max_separation,
    similarity,
    similarity_range,
)
from nc_jax.hierarchy.tree import LabelTree
from nc_jax.hierarchy.wordnet import read_wordnet, synset_names

__all__ = [
    "GammaRange",
    "LabelTree",
    "Mapping",
    "check_ultrametric",
    "cut_linkage",
    "draw_dendrogram",
    "from_levels",
    "from_linkage",
    "from_nested",
    "from_networkx",
    "kernel",
    "max_separation",
    "read_json",
    "read_levels",
    "read_parent_child",
    "read_wordnet",
    "similarity",
    "similarity_range",
    "synset_names",
    "to_networkx",
]
