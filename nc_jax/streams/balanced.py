"""Epochs of draws with replacement, in which small classes are shown more often than they occur; and two stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nc_jax.checks import check_at_least, check_whole
from nc_jax.data.draws import draws_for, uniform
from nc_jax.data.source import ExampleSource, labels_of
from nc_jax.streams.epochs import steps_per_epoch
from nc_jax.streams.stream import Plan, Stream

# The high half of the random key tells the purpose of the numbers; streams of epochs use the small ones.
_DRAWS = 1 << 61


@dataclass(frozen=True, eq=False)
class Weighted:
    r"""N independent draws per epoch, with probabilities that depend on the size of the example's class.

    Class k, with :math:`n_k` of the N examples, is drawn with probability

    .. math:: p_k = n_k^q \, \Big/ \sum_j n_j^q

    and then one of its examples, all of them with the same probability. q = 1 draws every example equally often, q = 0
    every class, and q = 1/2 lies between them. A negative q shows small classes more often than large ones; q = -1 is
    the reversed sampling of Zhou et al. (2020). A class without an example is never drawn.

    An epoch has as many steps as one of `Epochs`; its last batch is filled up with padding.

    Attributes:
        source: N >= 1 examples, whose labels are known without reading them.
        batch_size: examples per step over all processes.
        epochs: number of epochs.
        power: q, a finite number.

    Raises:
        ValueError: if a number is out of its range, or the labels of the source are not known.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> arrays = LabelledArrays(np.zeros((90, 2)), np.repeat([0, 1], [85, 5]), num_classes=2)
        >>> index = Weighted(arrays, batch_size=45, epochs=1).plan(seed=0, segment=0).index
        >>> index.shape, bool(30 < arrays.labels[index].sum() < 60)
        ((2, 45), True)

    Reference: Kang et al., Decoupling representation and classifier for long-tailed recognition (2020), eq. (1).
    """

    source: ExampleSource
    batch_size: int
    epochs: int
    power: float = 0.0  # Kang et al. (2020): class-balanced, for their second stage

    def __post_init__(self):
        steps_per_epoch(len(self.source), self.batch_size)
        check_at_least("epochs", self.epochs)
        if not np.isfinite(self.power):
            raise ValueError(f"power of weighted draws must be finite; got {self.power}")
        if labels_of(self.source) is None:
            raise ValueError(f"weighted draws need a set whose labels are known; got {self.source!r}")

    @property
    def ends(self) -> range:
        """Step numbers at which epochs end."""
        steps = steps_per_epoch(len(self.source), self.batch_size)
        return range(steps, self.epochs * steps + 1, steps)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches besides the source and the seed: see `nc_jax.training.fingerprint`."""
        return {"batch_size": self.batch_size, "power": self.power}

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of an epoch; `segment` is its number, from 0."""
        labels = labels_of(self.source)
        assert labels is not None, "checked above"
        numbers = uniform(draws_for(seed, _DRAWS + segment).random_raw((2, len(labels))))
        counts = np.bincount(labels)
        ends = np.cumsum(_probabilities(counts, self.power))
        # Its end is exactly 1, so that a draw is always below the end of a class that has examples.
        classes = np.searchsorted(ends / ends[-1], numbers[0], side="right")
        members, starts = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
        chosen = members[starts[classes] + (numbers[1] * counts[classes]).astype(np.int64)]
        steps = steps_per_epoch(len(labels), self.batch_size)
        index = np.full(steps * self.batch_size, -1, np.int32)
        index[: len(chosen)] = chosen
        return Plan(index.reshape(steps, self.batch_size))


@dataclass(frozen=True, eq=False)
class Staged:
    """The first segments of one stream, and then the rest of another one: training in two stages.

    With `Epochs` first and `Weighted` after it, for instance, the classifier is trained on balanced draws when the
    features have been trained on all examples. Both streams have the same segments, and the second one goes on where
    the first one stops. So it does not repeat the orders that the first one has shown.

    Attributes:
        first: gives segments 0..segments-1.
        second: gives the segments after them.
        segments: number of segments of the first stage, >= 0; for streams of epochs, the number of epochs.

    Raises:
        ValueError: if the batch sizes, numbers of segments or of steps differ, or `segments` is out of its range.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> from nc_jax.streams import Epochs
        >>> arrays = LabelledArrays(np.zeros((90, 2)), np.repeat([0, 1], [85, 5]), num_classes=2)
        >>> stream = Staged(Epochs(arrays, 90, epochs=5), Weighted(arrays, 90, epochs=5), segments=4)
        >>> [int(arrays.labels[stream.plan(0, epoch).index].sum()) for epoch in (3, 4)]
        [5, 47]

    Reference: Kang et al. (2020), section 4.
    """

    first: Stream
    second: Stream
    segments: int

    def __post_init__(self):
        shapes = [(stream.batch_size, len(stream.ends), stream.ends[-1]) for stream in (self.first, self.second)]
        if shapes[0] != shapes[1]:
            first, second = ("batches of {}, {} segments and {} steps".format(*shape) for shape in shapes)
            raise ValueError(f"both stages must have the same steps; got {first}, and {second}")
        check_whole("segments", self.segments)
        if not 0 <= self.segments <= len(self.ends):
            raise ValueError(f"the first stage must have 0..{len(self.ends)} segments; got {self.segments}")

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self.first.batch_size

    @property
    def ends(self) -> Sequence[int]:
        """Step numbers at which segments end."""
        return self.first.ends

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of all steps of a segment."""
        return (self.first if segment < self.segments else self.second).plan(seed, segment)


def _probabilities(counts: Int[np.ndarray, " classes"], power: float) -> Float[np.ndarray, " classes"]:
    """Return numbers that are proportional to n_k^q, 0 where n_k is, the largest of them 1."""
    present = counts > 0
    reference = counts[present].max() if power >= 0 else counts[present].min()  # so that no power overflows
    return np.where(present, (np.maximum(counts, 1) / reference) ** power, 0.0)
