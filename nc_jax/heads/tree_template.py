"""The hierarchy-aware frame as a template, which a rotated or a nearest head takes into feature space."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from nc_jax.frames import LearnedTemplate, Template, as_template, hierarchical_template, separated_template
from nc_jax.hierarchy import LabelTree, Mapping, similarity


def tree_template(
    tree: LabelTree,
    gamma: float = 3.0,  # as `similarity`
    *,
    learn: bool = False,
    min_similarity: float | Literal["max-separation", "grid"] = "max-separation",
    mapping: Mapping = "exponential",
) -> Template | LearnedTemplate:
    """Return the template of a hierarchy-aware frame: (r, K), its columns of unit length and with the tree's cosines.

    Args:
        tree: with its classes in the order of the labels.
        gamma: how fast similarity decays with distance; with `learn`, its value at the start.
        learn: make gamma a parameter, in its logarithm. Its derivative goes through the most separated s, which is
            given in closed form, and through the inner problem of the nearest frame.
        min_similarity: see `similarity`; a learned gamma has the most separated s.
        mapping: see `similarity`.

    Raises:
        ValueError: as `similarity`; if gamma is to be learned where it, or s, plays no part.

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
        # Found out in float64: in float32 a sum of a thousand entries would need a tolerance that hides small parts.
        centred = bool(np.abs(matrix.sum(axis=1)).max() < 1e-9 * len(wanted))
        return as_template(jnp.asarray(matrix, jnp.float32), centred=centred)
    if min_similarity != "max-separation" or mapping != "exponential":
        raise ValueError("a gamma is learned for the exponential map at the maximal separation only")
    return LearnedTemplate(
        initial=lambda: {"log_gamma": jnp.asarray(float(np.log(gamma)), jnp.float32)},
        build=lambda params: as_template(separated_template(distances, jnp.exp(params["log_gamma"])), centred=False),
        shape=(len(tree.classes) - 1, len(tree.classes)),
    )
