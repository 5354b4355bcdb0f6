"""A method is a value: a head, a loss and whatever else it adds to a step. Each is a function of the `Setting`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import optax

from nc_jax.federated import Federation
from nc_jax.heads import Head, NearestOptions
from nc_jax.hierarchy import LabelTree
from nc_jax.methods.options import (
    ContinualOptions,
    FederatedOptions,
    HierarchyOptions,
    TailOptions,
    UniformityOptions,
)
from nc_jax.streams import Stream
from nc_jax.training import Extension, Loss, cross_entropy


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known before training about data set and run. Methods take it, so one method serves every data set.

    Attributes:
        num_classes: number of classes K.
        epochs: passes over the training set; over the examples of each task, if there are several tasks.
        epoch_steps: optimiser steps per epoch.
        num_examples: number of training examples N.
        class_counts: number of training examples of each class; None where the labels are not known without reading
            the examples, and where the order of the classes depends on the seed.
        tree: label tree whose classes are in the order of the labels; None if the data set has no tree.
        head: settings of the head.
        hierarchy: settings of the methods that use a label tree.
        continual: settings of continual learning.
        tail: settings of long-tailed learning.
        uniformity: settings of the methods that spread class vectors over the sphere.
        federated: settings of federated learning.
        task_of_class: number of the task of each class; None if there is one task, or all tasks have all classes.
        task_steps: number of optimiser steps of each task; None if there is one task, or if it depends on the seed.
    """

    num_classes: int
    epochs: int = 1
    epoch_steps: int = 1
    num_examples: int = 1
    class_counts: tuple[int, ...] | None = None
    tree: LabelTree | None = None
    head: NearestOptions = field(default_factory=NearestOptions)
    hierarchy: HierarchyOptions = field(default_factory=HierarchyOptions)
    continual: ContinualOptions = field(default_factory=ContinualOptions)
    tail: TailOptions = field(default_factory=TailOptions)
    uniformity: UniformityOptions = field(default_factory=UniformityOptions)
    federated: FederatedOptions = field(default_factory=FederatedOptions)
    task_of_class: tuple[int, ...] | None = None
    task_steps: tuple[int, ...] | None = None

    def known_tree(self) -> LabelTree:
        """Return the tree.

        Raises:
            ValueError: if there is none.
        """
        if self.tree is None:
            raise ValueError("this method needs a label tree; got none (name one with --data.tree)")
        return self.tree

    def known_counts(self) -> tuple[int, ...]:
        """Return the number of training examples of each class, at least 1.

        Raises:
            ValueError: if they are not known, or a class has none.
        """
        if self.class_counts is None:
            raise ValueError(
                "this method needs the number of training examples of each class; got none (the training set must be "
                "in memory, and its classes in an order that does not depend on the seed)"
            )
        if 0 in self.class_counts:
            raise ValueError(
                f"this method needs a training example of every class; class {self.class_counts.index(0)} has none"
            )
        return self.class_counts

    def step_at(self, share: float) -> int:
        """Return the number of optimiser steps after a share of the epochs, at a whole epoch."""
        return round(share * self.epochs) * self.epoch_steps


def _cross_entropy(setting: Setting) -> Loss:
    del setting
    return cross_entropy


def _nothing(setting: Setting) -> tuple[Extension, ...]:
    del setting
    return ()


def _unchanged(setting: Setting, stream: Stream) -> Stream:
    del setting
    return stream


def _as_chosen(setting: Setting, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    del setting
    return optimizer


def _averaged(setting: Setting) -> Federation:
    del setting
    return Federation()


@dataclass(frozen=True)
class Method:
    """A method, a row of `METHODS`: its frame, placement and loss, and whatever else its paper adds to training.

    Attributes:
        title: name in tables and plots.
        head: function setting -> head, which fixes the frame and its placement.
        loss: function setting -> loss; the loss maps the head's output to a number for each example. Cross-entropy if
            not given.
        extensions: function setting -> extensions, which change a training step. None by default.
        stream: function (setting, stream) -> stream, which may change what examples make up which step. It is called
            with the stream that visits every example once per epoch, and returns that stream by default.
        reference: paper, section and equation.
        caution: what a user should know before this method is trusted; "" says nothing. Comparisons show it.
        optimizer: function (setting, optimiser) -> optimiser, which may freeze a part of the model for some steps
            (`nc_jax.training.frozen`). It is called with the optimiser that the user has chosen, and returns that one
            by default.
        federation: function setting -> what clients keep and how the server joins what they send, if the data are
            spread over clients. By default they keep nothing, and the server takes the mean of their models.
    """

    title: str
    head: Callable[[Setting], Head]
    loss: Callable[[Setting], Loss] = _cross_entropy
    extensions: Callable[[Setting], tuple[Extension, ...]] = _nothing
    stream: Callable[[Setting, Stream], Stream] = _unchanged
    reference: str = ""
    caution: str = ""
    optimizer: Callable[[Setting, optax.GradientTransformation], optax.GradientTransformation] = _as_chosen
    federation: Callable[[Setting], Federation] = _averaged
