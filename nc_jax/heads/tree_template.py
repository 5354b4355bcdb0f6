"""The hierarchy-aware frame as a template, for a rotated or a nearest head."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from nc_jax.frames import LearnedTemplate, Template, as_template, hierarchical_template, separated_template
from nc_jax.hierarchy import LabelTree, Mapping, similarity


def tree_template(
    tree: LabelTree,
    gamma: float = 3.0,  # the default of `similarity`
    *,
    learn: bool = False,
    min_similarity: float | Literal["max-separation", "grid"] = "max-separation",
    mapping: Mapping = "exponential",
) -> Template | LearnedTemplate:
    """Return the template of a hierarchy-aware frame: unit class vectors whose cosines follow distances in a tree.

    Args:
        tree: label tree whose classes are in the order of the labels.
        gamma: rate at which similarity decays with distance in the tree. If it is learned, its initial value.
        learn: train gamma, by its logarithm. Gradients reach gamma through the closed form of s and, in a nearest head,
            through the inner problem.
        min_similarity: lower end s of the similarities, or a rule that finds s; see `nc_jax.hierarchy.similarity`. A
            learned gamma requires "max-separation".
        mapping: function from relative distance to similarity; see `nc_jax.hierarchy.similarity`. A learned gamma
            requires "exponential".

    Returns:
        The template, shape (r, K) with unit columns; a `LearnedTemplate` of shape (K - 1, K) if gamma is learned.

    Raises:
        ValueError: if `learn` comes with another `min_similarity` or `mapping`, or `nc_jax.hierarchy.similarity` raises
            one.

    Example:
        >>> from nc_jax.hierarchy import from_nested
        >>> tree_template(from_nested({"animal": ["cat", "dog"], "car": ["bus", "van"]})).shape
        (3, 4)

    Reference: Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 3.2.
    """
    distances = tree.distances()
    if not learn:
        wanted = similarity(distances, gamma, min_similarity, mapping)
        matrix = hierarchical_template(wanted)
        # Tested in float64: in float32, a sum of a thousand entries needs a tolerance that would hide a small offset.
        centred = bool(np.abs(matrix.sum(axis=1)).max() < 1e-9 * len(wanted))
        return as_template(jnp.asarray(matrix, jnp.float32), centred=centred)
    if min_similarity != "max-separation" or mapping != "exponential":
        raise ValueError("a gamma is learned for the exponential map at the maximal separation only")
    return LearnedTemplate(
        initial=lambda: {"log_gamma": jnp.asarray(float(np.log(gamma)), jnp.float32)},
        build=lambda params: as_template(separated_template(distances, jnp.exp(params["log_gamma"])), centred=False),
        shape=(len(tree.classes) - 1, len(tree.classes)),
    )
