"""The hierarchy-aware frame and its peers: methods that use a label tree."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from nc_jax import heads, losses
from nc_jax.frames import hierarchical_constructor
from nc_jax.frames.properties import cosines
from nc_jax.heads import FrameConstructor, Head, HeadOutput, LevelOutput
from nc_jax.hierarchy import similarity
from nc_jax.methods.method import Method, Setting
from nc_jax.methods.options import HierarchyOptions, MappingName
from nc_jax.training import Loss

# Maps f from u = d / d_max (tree distance over the largest one) to cosines, in addition to the two that
# `nc_jax.hierarchy.similarity` implements.
MAPPINGS: dict[str, Callable[..., np.ndarray]] = {
    "reciprocal": lambda u, gamma: 1 / (1 + gamma * u),
    "gaussian": lambda u, gamma: np.exp(-gamma * u**2),
    "cosine": lambda u, gamma: np.cos(np.pi * u / 2),
}
# Name in tables -> the options (mapping, gamma) of that map of u = d / d_max.
MAPS: dict[str, tuple[MappingName, float]] = {
    "exp(-3 u)": ("exponential", 3.0),
    "exp(-0.5 u)": ("exponential", 0.5),
    "1 - u": ("linear", 1.0),
    "1 / (1 + 3 u)": ("reciprocal", 3.0),
    "exp(-3 u^2)": ("gaussian", 3.0),
    "cos(pi u / 2)": ("cosine", 1.0),
}


def mapping_of(options: HierarchyOptions) -> Any:
    """Return the `mapping` argument of `nc_jax.hierarchy.similarity` that the options describe."""
    found = MAPPINGS.get(options.mapping)
    return options.mapping if found is None else partial(found, gamma=options.gamma)


def wanted_cosines(options: HierarchyOptions, distances: np.ndarray) -> np.ndarray:
    """Return the cosines between the class vectors of the hierarchy-aware frame.

    Args:
        options: the mapping from distances to cosines, and its gamma.
        distances: tree distances between classes, shape (K, K).

    Returns:
        Cosines, shape (K, K).

    Raises:
        ValueError: if the distances are not symmetric or not zero on the diagonal only, if gamma is not positive, or
            if no frame has such cosines.
    """
    return similarity(distances, options.gamma, mapping=mapping_of(options))


# --- Frames. ---


def _frame(setting: Setting) -> FrameConstructor:
    return hierarchical_constructor(wanted_cosines(setting.hierarchy, setting.known_tree().distances()))


def _shuffled(setting: Setting) -> FrameConstructor:
    construct = _frame(setting)

    def shuffled(*shape: int, key: PRNGKeyArray, **options: Any) -> Array:
        # The run's random key assigns the classes to the leaves, so all seeds share one compiled program.
        return jax.random.permutation(jax.random.fold_in(key, 1), construct(*shape, key=key, **options), axis=1)

    return shuffled


def _embedded(setting: Setting) -> FrameConstructor:
    return hierarchical_constructor(similarity(setting.known_tree().distances(), min_similarity=0.0, mapping="linear"))


def _fixed(frame: Callable[[Setting], FrameConstructor]) -> Callable[[Setting], Head]:
    return lambda setting: heads.fixed(setting.num_classes, frame=frame(setting))


def _nearest(setting: Setting, *, learn: bool = False) -> Head:
    options = setting.hierarchy
    if learn and options.mapping != "exponential":
        raise ValueError(
            "the method nearest-gamma learns the gamma of the mapping exponential only; "
            f"got --hierarchy.mapping {options.mapping}"
        )
    template = heads.tree_template(setting.known_tree(), options.gamma, learn=learn, mapping=mapping_of(options))
    return heads.nearest(setting.num_classes, template=template, options=setting.head)


# --- Losses. ---


def aligned(setting: Setting) -> Loss:
    """Mixture of cross-entropy and cosine alignment; the wanted cosines are those of the head's current frame.

    Reference: Liang and Davis (2023), section 3.3.
    """
    mixing = losses.mixing_schedule(setting.hierarchy.alpha, setting.epochs)

    def loss(output, batch, context):
        beta, alpha = mixing(context.step // setting.epoch_steps)
        alignment = losses.cosine_alignment(output.features, batch.labels, output.frame, cosines(output.frame))
        return beta * losses.cross_entropy(output.logits, batch.labels) + alpha * alignment

    return loss


def soft_labels(setting: Setting) -> Loss:
    """Kullback-Leibler divergence to soft labels, which give near classes some probability; see `soft_targets`."""
    distances = setting.known_tree().distances()
    targets = jnp.asarray(losses.soft_targets(distances, setting.hierarchy.hardness), jnp.float32)
    return lambda output, batch, context: losses.soft_label_loss(output.logits, batch.labels, targets)


def hierarchical(setting: Setting, *, alpha: float | None = None) -> Loss:
    """Hierarchical cross-entropy of the logits (method hxe) or of a tree softmax's log-probabilities (method yolo).

    The weights of the levels are scaled so that the finest level has weight 1. Learning rates then have the same
    effect as with cross-entropy. (In the released program of Bertinetto et al. (2020) the scale is about one over the
    number of nodes.)

    Args:
        setting: gives the label tree.
        alpha: weights decay with the level l as exp(-alpha l); None takes `setting.hierarchy.hxe_alpha`.

    Raises:
        ValueError: if the setting has no label tree.
    """
    tree = setting.known_tree()
    weights = losses.level_weights(tree, setting.hierarchy.hxe_alpha if alpha is None else alpha)
    levels, scaled = jnp.asarray(tree.levels()), jnp.asarray(weights / weights[-1], jnp.float32)
    return lambda output, batch, context: losses.hierarchical_cross_entropy(output.logits, batch.labels, levels, scaled)


def embedding(setting: Setting) -> Loss:
    """One minus the cosine between an example's features and the class vector of its label."""
    del setting
    return lambda output, batch, context: losses.cosine_embedding(output.features, batch.labels, output.frame)


def flamingo(setting: Setting) -> Loss:
    """Flamingo's loss: the sum of the cross-entropies on all levels of the tree. Needs a head from `heads.levels`."""
    levels = jnp.asarray(setting.known_tree().levels())
    return lambda output, batch, context: losses.level_cross_entropies(_all_levels(output).logits, batch.labels, levels)


def hierarchy_aware_features(setting: Setting) -> Loss:
    """HAFeature's loss. Needs a head from `heads.levels` with kind "hafeature"."""
    levels = setting.known_tree().levels()
    return lambda output, batch, context: losses.hierarchy_aware_features(
        _all_levels(output).logits, _all_levels(output).frames, batch.labels, levels, everyone=context.everyone
    )


def _all_levels(output: HeadOutput) -> LevelOutput:
    if output.levels is None:
        raise ValueError("this loss needs a head with a classifier for every level; got one without")
    return output.levels


def _levels(kind: Literal["flamingo", "hafeature"]) -> Callable[[Setting], Head]:
    return lambda setting: heads.levels(setting.known_tree(), kind, spread=setting.hierarchy.spread)


def _linear(setting: Setting) -> Head:
    return heads.learned(setting.num_classes)


METHODS = {
    "ce": Method("cross-entropy", _linear),
    "soft-labels": Method("soft labels", _linear, soft_labels, reference="Bertinetto et al. (2020), section 3.3"),
    "hxe": Method("HXE", _linear, hierarchical, reference="Bertinetto et al. (2020), section 3.2"),
    "yolo": Method(
        "YOLO-v2",
        lambda setting: heads.tree_softmax(setting.known_tree()),
        partial(hierarchical, alpha=0.0),
        reference="Redmon and Farhadi (2017), section 4",
    ),
    "barz-denzler": Method(
        "Barz-Denzler", _fixed(_embedded), embedding, reference="Barz and Denzler (2019), section 3.3"
    ),
    "flamingo": Method("Flamingo", _levels("flamingo"), flamingo, reference="Chang et al. (2021), section 3"),
    "hafeature": Method(
        "HAFeature", _levels("hafeature"), hierarchy_aware_features, reference="Garg, Sani and Anand (2022)"
    ),
    # The same as haframe, except that all pairs of classes have the same cosine, as in a flat tree.
    "etf": Method("fixed ETF, cosine loss", lambda setting: heads.fixed(setting.num_classes), aligned),
    "haframe-ce": Method("HAFrame, alpha 0", _fixed(_frame)),
    "shuffled": Method("HAFrame, shuffled tree", _fixed(_shuffled), aligned),
    "haframe": Method("HAFrame", _fixed(_frame), aligned, reference="Liang and Davis (2023), section 3"),
    "nearest-haframe": Method("nearest HAFrame", _nearest, aligned),
    "nearest-gamma": Method("nearest HAFrame, gamma learned", partial(_nearest, learn=True), aligned),
}
