"""The hierarchy-aware frame and its peers, each a head and a loss: what `experiments.haframe` compares."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from nc_jax.frames import hierarchical_constructor
from nc_jax.hierarchy import LabelTree, similarity
from nc_jax.losses import mixing_schedule
from nc_jax.losses.alignment import ScheduleName
from nc_jax.models import (
    FixedHead,
    HierarchicalTemplate,
    LearnedHead,
    LevelsHead,
    NearestHead,
    TreeSoftmaxHead,
)
from nc_jax.training import AXIS, objectives
from nc_jax.training.step import Loss

MethodName = Literal[
    "ce",
    "soft-labels",
    "hxe",
    "yolo",
    "barz-denzler",
    "flamingo",
    "hafeature",
    "etf",
    "haframe-ce",
    "shuffled",
    "haframe",
    "nearest",
    "nearest-gamma",
]
TITLES: dict[str, str] = {
    "ce": "cross-entropy",
    "crm": "cross-entropy + CRM",
    "soft-labels": "soft labels",
    "hxe": "HXE",
    "yolo": "YOLO-v2",
    "barz-denzler": "Barz-Denzler",
    "flamingo": "Flamingo",
    "hafeature": "HAFeature",
    "etf": "fixed ETF, cosine loss",
    "haframe-ce": "HAFrame, alpha 0",
    "shuffled": "HAFrame, shuffled tree",
    "haframe": "HAFrame",
    "haframe+crm": "HAFrame + CRM",
    "nearest": "nearest HAFrame",
    "nearest-gamma": "nearest HAFrame, gamma learned",
}
# Maps f(u) of u = d / d_max beside the two that `nc_jax.hierarchy.similarity` knows, Liang and Davis's (2023).
MAPPINGS: dict[str, Callable[..., np.ndarray]] = {
    "reciprocal": lambda u, gamma: 1 / (1 + gamma * u),
    "gaussian": lambda u, gamma: np.exp(-gamma * u**2),
    "cosine": lambda u, gamma: np.cos(np.pi * u / 2),
}
MappingName = Literal["exponential", "linear", "reciprocal", "gaussian", "cosine"]


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """Settings of the methods.

    Attributes:
        gamma: of the hierarchy-aware frame.
        alpha: weight of the alignment, a number or the name of a schedule.
        mapping: of distances to cosines: one of `nc_jax.hierarchy.similarity` or of `MAPPINGS`.
        hardness: of the soft labels.
        hxe_alpha: of HXE.
        spread: see `nc_jax.losses.feature_slices`, of Flamingo.
        radius: length of the features of the nearest heads.
    """

    gamma: float = 3.0  # the prototype of issue 7
    alpha: float | ScheduleName = 0.5  # Liang and Davis (2023), FGVC-Aircraft and tieredImageNet-H
    mapping: MappingName = "exponential"
    hardness: float = 10.0  # Bertinetto et al. (2020), between 4 and 30
    hxe_alpha: float = 0.4  # Bertinetto et al. (2020), between 0.1 and 0.6
    spread: bool = False
    radius: float | None = None


def mapping_of(options: MethodOptions) -> Any:
    """Return the map of distances to cosines as `nc_jax.hierarchy.similarity` takes it."""
    found = MAPPINGS.get(options.mapping)
    return options.mapping if found is None else partial(found, gamma=options.gamma)


def wanted_cosines(options: MethodOptions, distances: np.ndarray) -> np.ndarray:
    """Return the cosines that HAFrame's class vectors have, of distances between classes; both (K, K)."""
    return similarity(distances, options.gamma, mapping=mapping_of(options))


def make(
    method: MethodName, options: MethodOptions, tree: LabelTree, *, epochs: int, epoch_steps: int
) -> tuple[Any, Loss | None]:
    """Return the head and the loss of a method.

    Args:
        method: which.
        options: see there.
        tree: with its classes in the order of the labels.
        epochs: of the training, for schedules of alpha.
        epoch_steps: optimiser steps per epoch.
    """
    count = len(tree.classes)
    align = objectives.aligned(mixing_schedule(options.alpha, epochs), epoch_steps)
    construct = hierarchical_constructor(wanted_cosines(options, tree.distances()))

    def shuffled(*shape: int, key: PRNGKeyArray, **options: Any) -> Array:
        # The classes are dealt to the leaves by the run's seed: by the key, so that all seeds share a compiled program.
        return jax.random.permutation(jax.random.fold_in(key, 1), construct(*shape, key=key, **options), axis=1)

    def nearest(learn: bool) -> NearestHead:
        template = HierarchicalTemplate(tree, options.gamma, learn=learn, mapping=mapping_of(options))
        # The frame's vectors do not sum to zero, so the means are not centred.
        return NearestHead(count, radius=options.radius, template=template, centred=False, axis_name=AXIS)

    def embedded() -> FixedHead:
        wanted = similarity(tree.distances(), min_similarity=0.0, mapping="linear")
        return FixedHead(count, frame=hierarchical_constructor(wanted))

    methods: dict[str, Callable[[], tuple[Any, Loss | None]]] = {
        "ce": lambda: (LearnedHead(count), None),
        "soft-labels": lambda: (LearnedHead(count), objectives.soft_labels(tree, options.hardness)),
        "hxe": lambda: (LearnedHead(count), objectives.hierarchical(tree, options.hxe_alpha)),
        "yolo": lambda: (TreeSoftmaxHead(tree), objectives.hierarchical(tree, 0.0)),
        "barz-denzler": lambda: (embedded(), objectives.embedding()),
        "flamingo": lambda: (LevelsHead(tree, "flamingo", options.spread), objectives.flamingo(tree)),
        "hafeature": lambda: (LevelsHead(tree, "hafeature"), objectives.hierarchy_aware_features(tree)),
        # Its cosines are those of a flat tree; everything else is HAFrame's.
        "etf": lambda: (FixedHead(count), align),
        "haframe-ce": lambda: (FixedHead(count, frame=construct), None),
        "shuffled": lambda: (FixedHead(count, frame=shuffled), align),
        "haframe": lambda: (FixedHead(count, frame=construct), align),
        "nearest": lambda: (nearest(False), align),
        "nearest-gamma": lambda: (nearest(True), align),
    }
    return methods[method]()
