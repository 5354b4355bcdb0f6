"""A method is a value: a head, a loss, and what else it adds to a step, each built once the setting is known."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from nc_jax.heads import Head, NearestOptions
from nc_jax.hierarchy import LabelTree
from nc_jax.losses.alignment import MixingName
from nc_jax.streams import Stream
from nc_jax.training import Extension, Loss, cross_entropy

MappingName = Literal["exponential", "linear", "reciprocal", "gaussian", "cosine"]


@dataclass(frozen=True)
class HierarchyOptions:
    """What may be chosen about the methods that know a label tree.

    Attributes:
        gamma: how fast the cosines of the hierarchy-aware frame decay with the distance in the tree.
        alpha: weight of the alignment in the mixture with cross-entropy: a number, or the name of a schedule of
            `nc_jax.losses.mixing_schedule`.
        mapping: of distances to cosines: one of `nc_jax.hierarchy.similarity`'s, or of `nc_jax.methods.hierarchy`'s
            `MAPPINGS`.
        hardness: of soft labels, see `nc_jax.losses.soft_targets`.
        hxe_alpha: alpha of the hierarchical cross-entropy (HXE), see `nc_jax.losses.level_weights`.
        spread: how Flamingo cuts features into levels, see `nc_jax.losses.feature_slices`.
    """

    gamma: float = 3.0  # Liang and Davis (2023), tieredImageNet-H
    alpha: float | MixingName = 0.5  # Liang and Davis (2023), FGVC-Aircraft and tieredImageNet-H
    mapping: MappingName = "exponential"
    hardness: float = 10.0  # Bertinetto et al. (2020), between 4 and 30
    hxe_alpha: float = 0.4  # Bertinetto et al. (2020), between 0.1 and 0.6
    spread: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known before training, whatever the method: so one method serves every data set.

    Attributes:
        num_classes: K.
        epochs: passes over the training set.
        epoch_steps: optimiser steps per epoch.
        num_examples: N, of the training set.
        class_counts: training examples of each class; None for sets that are not in memory.
        tree: label tree with its classes in the order of the labels; None where there is none.
        head: choices about heads.
        hierarchy: choices about methods that know a tree.
    """

    num_classes: int
    epochs: int = 1
    epoch_steps: int = 1
    num_examples: int = 1
    class_counts: tuple[int, ...] | None = None
    tree: LabelTree | None = None
    head: NearestOptions = field(default_factory=NearestOptions)
    hierarchy: HierarchyOptions = field(default_factory=HierarchyOptions)

    def known_tree(self) -> LabelTree:
        """Return the tree.

        Raises:
            ValueError: if there is none.
        """
        if self.tree is None:
            raise ValueError("this method needs a label tree; got none (name one with --data.tree)")
        return self.tree


def _cross_entropy(setting: Setting) -> Loss:
    del setting
    return cross_entropy


def _nothing(setting: Setting) -> tuple[Extension, ...]:
    del setting
    return ()


def _unchanged(setting: Setting, stream: Stream) -> Stream:
    del setting
    return stream


@dataclass(frozen=True)
class Method:
    """A cell of the table frame x placement x loss, and what a paper adds to it. A row of `METHODS`.

    Attributes:
        title: in tables and plots.
        head: setting -> frame and placement.
        loss: setting -> a number for each example, from the head's output; cross-entropy if not given.
        extensions: setting -> what else happens in a step; nothing if not given.
        stream: (setting, every example once per epoch) -> which examples make up which step; the same if not given.
        reference: paper, section and equation.
    """

    title: str
    head: Callable[[Setting], Head]
    loss: Callable[[Setting], Loss] = _cross_entropy
    extensions: Callable[[Setting], tuple[Extension, ...]] = _nothing
    stream: Callable[[Setting, Stream], Stream] = _unchanged
    reference: str = ""
