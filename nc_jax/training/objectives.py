"""Losses as a training step takes them (`StepOptions.loss`): from a head's output, labels and the number of the step.

Each joins pure functions of `nc_jax.losses`, and gives one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from nc_jax import losses
from nc_jax.frames.properties import cosines
from nc_jax.hierarchy import LabelTree
from nc_jax.losses import MixingSchedule
from nc_jax.models import HeadOutput
from nc_jax.training.step import Loss


def aligned(mixing: MixingSchedule, epoch_steps: int) -> Loss:
    """Mixture of cross-entropy and cosine alignment to the head's own frame, whatever that is.

    Args:
        mixing: epoch -> (beta, alpha); of `nc_jax.losses.mixing_schedule`.
        epoch_steps: optimiser steps per epoch.

    Reference: Liang and Davis (2023), section 3.3.
    """

    def loss(output: HeadOutput, labels: Array, step: Array) -> Array:
        beta, alpha = mixing(step // epoch_steps)
        alignment = losses.cosine_alignment(output.features, labels, output.frame, cosines(output.frame))
        return beta * losses.cross_entropy(output.logits, labels) + alpha * alignment

    return loss


def soft_labels(tree: LabelTree, hardness: float) -> Loss:
    """Divergence from labels that spread over near classes; see `nc_jax.losses.soft_targets`."""
    targets = jnp.asarray(losses.soft_targets(tree.distances(), hardness), jnp.float32)
    return lambda output, labels, step: losses.soft_label_loss(output.logits, labels, targets)


def hierarchical(tree: LabelTree, alpha: float, *, normalised: bool = True) -> Loss:
    """Hierarchical cross-entropy of the logits (HXE), or of a `TreeSoftmaxHead`'s log-probabilities (YOLO-v2).

    Args:
        tree: with its classes in the order of the labels.
        alpha: see `nc_jax.losses.level_weights`.
        normalised: scale the weights such that the finest level's is 1, so that learning rates mean what they mean for
            cross-entropy; False keeps the released program's scale, about one over the number of nodes.
    """
    levels, weights = jnp.asarray(tree.levels()), losses.level_weights(tree, alpha)
    scaled = jnp.asarray(weights / weights[-1] if normalised else weights, jnp.float32)
    return lambda output, labels, step: losses.hierarchical_cross_entropy(output.logits, labels, levels, scaled)


def embedding() -> Loss:
    """One minus the cosine to the class's own vector; see `nc_jax.losses.cosine_embedding`."""
    return lambda output, labels, step: losses.cosine_embedding(output.features, labels, output.frame)


def flamingo(tree: LabelTree) -> Loss:
    """Cross-entropy on every level, of a `LevelsHead`."""
    levels = jnp.asarray(tree.levels())
    return lambda output, labels, step: losses.level_cross_entropies(output.levels.logits, labels, levels)


def hierarchy_aware_features(tree: LabelTree) -> Loss:
    """HAFeature's loss, of a `LevelsHead` of that kind."""
    levels = tree.levels()

    def loss(output: HeadOutput, labels: Array, step: Array) -> Array:
        del step
        return losses.hierarchy_aware_features(output.levels.logits, output.levels.frames, labels, levels)

    return loss
