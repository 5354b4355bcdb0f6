"""Everything about the collapse of a network in one call: `report` for arrays, `Measurement` for a stream of batches.

The data are read twice. The first pass takes class statistics. The second one, which needs the class means, compares
every example with them and with the classifier. Memory holds one batch and the statistics, never all features.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax.arrays import at_least_float32
from nc_jax.checks import (
    PADDING_LABEL,
    Labels,
    Reals,
    as_array,
    check_label_range,
    check_label_shape,
    check_whole,
    checked_labels,
    is_traced,
    real_array,
)
from nc_jax.metrics.at_collapse import values_at_collapse
from nc_jax.metrics.collapse import checked_bias
from nc_jax.metrics.entries import KINDS, Entry
from nc_jax.metrics.entry_values import class_values, geometry_values, hull_margins, variability_values
from nc_jax.metrics.report import MARGIN_BINS, ClassTable, Report
from nc_jax.metrics.second_pass import Directions, Sums, compare, directions_of, merged, of_finite, values_of
from nc_jax.metrics.simplex import frame_of_shape
from nc_jax.metrics.statistics import ClassStatistics

CHUNK_BYTES = 2**26  # 64 MiB of float32 features or scores at once: enough for fast products, small beside the programs
MOST_DIMENSIONS = 4096  # with a scatter: decompositions of a matrix of this size take two minutes of a CPU core


class Measurement:
    """Measures a stream of batches that is read twice, within the memory of one batch.

    Args:
        num_classes: K >= 2.
        dim: d, the dimension of the features. Up to `MOST_DIMENSIONS` the within-class scatter is kept, a d x d matrix;
            without it, "nc1_pinv" and "vci" are left out.
        frame: class vectors of the classifier as columns, shape (d, K); None for features without a classifier.
        bias: shape (K,), or None for a classifier without a bias.
        rows: take the class vectors from the rows of `frame`, shape (K, d), as in `torch.nn.Linear.weight`.

    Raises:
        ValueError: if K < 2, d < 1, the shapes of frame and bias do not fit, or there is a bias without a frame.

    Example:
        >>> features, labels = jnp.array([[2.0, 0.0], [2.0, 1.0], [-2.0, 0.0]]), jnp.array([0, 0, 1])
        >>> measurement = Measurement(num_classes=2, dim=2)
        >>> for take in (measurement.first_pass, measurement.second_pass):
        ...     take(features[:2], labels[:2])
        ...     take(features[2:], labels[2:])
        >>> measurement.report()["nearest_centre_accuracy"].value
        1.0
    """

    def __init__(
        self, num_classes: int, dim: int, frame: Reals | None = None, bias: Reals | None = None, *, rows: bool = False
    ):
        for name, number, least in (("num_classes", num_classes, 2), ("dim", dim, 1)):
            check_whole(name, number)
            if number < least:
                raise ValueError(f"a report needs {name} of at least {least}; got {number}")
        if frame is None and bias is not None:
            raise ValueError("a bias needs the frame of its classifier; got bias without frame")
        self.num_classes, self.dim = int(num_classes), int(dim)
        self.frame = self.bias = None
        if frame is not None:
            self.frame = at_least_float32(frame_of_shape(frame, (self.dim, self.num_classes), rows=rows))
            self.bias = None if bias is None else checked_bias(bias, self.frame)
            _check_finite(self.frame, self.bias)
        self._stats: ClassStatistics | None = None
        self._sums: Sums | None = None
        self._directions: Directions | None = None
        self._rows = self._unlabelled = self._not_finite = 0

    @property
    def statistics(self) -> ClassStatistics:
        """Class statistics of the first pass.

        Raises:
            ValueError: if that has not seen finite features of at least two classes.
        """
        there = 0 if self._stats is None else int(jnp.sum(self._stats.present))
        if self._stats is None or there < 2:
            raise ValueError(
                f"a report needs finite features of at least 2 classes; got those of {there} in the first pass"
            )
        return self._stats

    def first_pass(self, features: Reals, labels: Labels) -> None:
        """Add a batch to the class statistics.

        Args:
            features: shape (N, d). A row with a number that is not finite is left out and counted.
            labels: classes 0..K-1 as integers, shape (N,); -1 for rows that do not count. A batch with fewer rows than
                an earlier one is padded; one with more is a new shape, for which programs are compiled anew.

        Raises:
            ValueError: if the features are not real numbers of shape (N, d), or the labels are not integers of shape
                (N,) in -1..K-1.
        """
        rows, classes = self._checked(features, labels)
        if self._stats is None:
            dtype = at_least_float32(rows[:1]).dtype
            self._stats = ClassStatistics.init(self.num_classes, self.dim, dtype, scatter=self.dim <= MOST_DIMENSIONS)
        self._stats, not_finite = jax.block_until_ready(_add(self._stats, rows, classes))
        self._not_finite += int(not_finite)
        self._unlabelled += int(np.sum(np.asarray(as_array(labels, "labels")) == PADDING_LABEL))

    def second_pass(self, features: Reals, labels: Labels) -> None:
        """Compare the examples of a batch with the class means of the first pass, and with the classifier.

        Args:
            features: shape (N, d); the same examples as in the first pass, in any order.
            labels: shape (N,).

        Raises:
            ValueError: as in the first pass, and if that has not seen features of two classes.
        """
        rows, classes = self._checked(features, labels)
        if self._directions is None:
            self._directions = directions_of(self.statistics, self.frame, self.bias)
        sums = compare(self._directions, rows, classes)
        self._sums = jax.block_until_ready(sums if self._sums is None else merged(self._sums, sums))

    def report(self, *, geometry: bool = True) -> Report:
        """Compute everything. Without a second pass, what needs one is left out.

        Args:
            geometry: compute also what is known of class means and classifier beside NC1, margins and accuracies.
                Without it, reports of many layers take less time.

        Raises:
            ValueError: if there were fewer than two classes, or the two passes have seen different numbers of examples.
        """
        stats, sums = self.statistics, self._sums
        counts = np.asarray(stats.counts)
        number, present = int(counts.sum()), int(np.sum(counts > 0))
        if sums is not None and int(sums.cosines.count) != number:
            raise ValueError(
                f"both passes must see the same examples; got {number} in the first and {int(sums.cosines.count)} in "
                "the second"
            )
        values = variability_values(stats)
        if geometry:
            values |= geometry_values(stats, self.frame, self.bias) | hull_margins(stats, self.frame)
        if sums is not None:
            values |= values_of(sums)
        collapse = values_at_collapse(present if self.frame is None else self.num_classes, present, self.dim)
        entries = {
            name: Entry(float(values[name]), *collapse.get(name, (None, "")), *kind)
            for name, kind in KINDS.items()
            if name in values
        }

        def share(of: Int[Array, " classes"] | None) -> Float[np.ndarray, " classes"]:
            right = np.full(len(counts), np.nan) if of is None else np.asarray(of)
            return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)

        scaled = stats.at_unit_scale()
        # The square of a variance's unit may leave the range of float32.
        unit = float(stats.unit) / float(scaled.unit)
        lengths, variances, nearest, distances = (np.asarray(column) for column in class_values(scaled))
        classes = ClassTable(
            counts,
            mean_length=lengths * unit,
            variance=variances.astype(np.float64) * unit**2,
            nearest=nearest,
            distance=distances * unit,
            nearest_centre_accuracy=share(None if sums is None else sums.nearest_right),
            accuracy=None if sums is None or sums.right is None else share(sums.right),
        )
        histogram = np.zeros(MARGIN_BINS, np.int32) if sums is None else np.asarray(sums.histogram)
        return Report(entries, classes, tuple(self._notes(counts)), stats, histogram)

    def _checked(self, features: Reals, labels: Labels) -> tuple[Array, Array]:
        """Return a batch with as many rows as the largest so far, the new ones being padding."""
        if is_traced(features) or is_traced(labels):
            raise ValueError("a report needs known features and labels; got traced ones: call it outside jax.jit")
        rows = real_array(features, "features")
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"features must have shape (batch, {self.dim}); got {rows.shape}")
        classes = checked_labels(labels, self.num_classes, rows=len(rows))
        self._rows = max(self._rows, len(rows), 1)
        missing = self._rows - len(rows)
        if missing:
            rows = jnp.pad(rows, ((0, missing), (0, 0)))
            classes = jnp.pad(classes, (0, missing), constant_values=PADDING_LABEL)
        return rows, classes

    def _notes(self, counts: Int[np.ndarray, " classes"]) -> Iterator[str]:
        """Yield sentences about what was left out and what to beware of."""
        number, there = int(counts.sum()), np.flatnonzero(counts)
        if self._not_finite:
            yield f"Rows that are left out because a feature is not finite: {self._not_finite}."
        if self._unlabelled:
            yield f"Rows that are left out because their label is -1: {self._unlabelled}."
        missing = np.flatnonzero(counts == 0)
        if len(missing):
            some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            hint = "; subtract 1 from labels that begin at 1" if there[0] == 1 else ""
            yield f"Classes without examples, which have no mean: {len(missing)} of {len(counts)} ({some}{hint})."
        single = int(np.sum(counts == 1))
        if single:
            yield f"Classes with one example only, which have no variance, so that NC1 is too small: {single}."
        if len(there) > self.dim + 1:
            yield (
                f"No simplex of {len(there)} classes fits into {self.dim} dimensions, so NC2 has a floor above 0; at "
                "generalized collapse the energy gap is 0, or nan where the least energy is not known."
            )
        zero = [] if self.frame is None else np.flatnonzero(~np.any(np.asarray(self.frame), axis=0))
        if len(zero):
            yield f"Class vectors that are zero, whose angles are nan: {len(zero)} (first that of class {zero[0]})."
        if number <= self.dim:
            yield f"With {number} examples in {self.dim} dimensions, the VCI is 0 for almost any features."
        if self.dim > MOST_DIMENSIONS:
            yield (
                f"nc1_pinv and vci, which need a matrix of {self.dim} x {self.dim}, are left out (from "
                f"{MOST_DIMENSIONS + 1} dimensions on)."
            )


def report(
    features: Reals,
    labels: Labels,
    frame: Reals | None = None,
    bias: Reals | None = None,
    *,
    num_classes: int | None = None,
    rows: bool = False,
) -> Report:
    """Measure the collapse of features, and of a classifier if there is one: everything that this package knows.

    Args:
        features: outputs of the last hidden layer for all examples, shape (N, d); arrays of NumPy or JAX (also memory
            maps), or tensors of PyTorch. They are read in pieces of `CHUNK_BYTES`.
        labels: classes 0..K-1 as integers, shape (N,); -1 for rows that do not count.
        frame: class vectors of the classifier as columns, shape (d, K); None for features without a classifier.
        bias: shape (K,), or None for a classifier without a bias.
        num_classes: K. None: that of the frame or, without one, the largest label plus one, which a note then says.
        rows: take the class vectors from the rows of `frame`, shape (K, d), as in `torch.nn.Linear.weight`. For K = d
            the shape does not tell the two apart.

    Returns:
        A mapping of names to entries, with a table of classes and notes; see `Report`. Rows with a number that is not
        finite are left out, which a note says.

    Raises:
        ValueError: if shapes or dtypes do not fit, a label is no class, or fewer than two classes have examples.

    Example:
        >>> found = report([[2.0, 0.0], [2.0, 1.0], [-2.0, 0.0], [-2.0, 1.0]], [0, 0, 1, 1])
        >>> round(found["nc1_quotient"].value, 4), found["nc1_quotient"].at_collapse
        (0.0625, 0.0)
        >>> found.notes[0]
        'num_classes was not given: 2, the largest label plus one.'
    """
    features, labels = as_array(features, "features"), as_array(labels, "labels")
    if is_traced(features) or is_traced(labels):
        raise ValueError("a report needs known features and labels; got traced ones: call it outside jax.jit")
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"features must have shape (batch, dim) with dim >= 1; got {features.shape}")
    checked_labels(labels, rows=len(features))
    notes: list[str] = []
    if num_classes is None and frame is not None:
        frame = as_array(frame, "frame")
        num_classes = frame.shape[0 if rows else -1] if frame.ndim == 2 else None
    if num_classes is None:
        num_classes = number_of_classes(labels)
        notes.append(f"num_classes was not given: {num_classes}, the largest label plus one.")
    measurement = Measurement(num_classes, features.shape[1], frame, bias, rows=rows)
    labels = np.asarray(checked_labels(labels, num_classes, rows=len(features)))
    size = chunk_rows(features.shape[1], num_classes)
    for take in (measurement.first_pass, measurement.second_pass):
        for start in range(0, len(features), size):
            take(features[start : start + size], labels[start : start + size])
    found = measurement.report()
    return dataclasses.replace(found, notes=(*notes, *found.notes))


_MOST_CLASSES = 100_000_000  # statistics of more classes do not fit into a memory, so the labels are something else


def number_of_classes(labels: Labels) -> int:
    """Return the largest label plus one.

    Raises:
        ValueError: if the labels are not integers of shape (N,) from -1 up, or none of them is a class.
    """
    labels = np.asarray(as_array(labels, "labels"))
    check_label_shape(labels)
    check_label_range(labels, None)
    number = int(labels.max()) + 1 if labels.size else 0
    if number < 2:
        raise ValueError(f"labels must name at least 2 classes; got a largest label of {number - 1}")
    if number > _MOST_CLASSES:
        raise ValueError(f"labels must name at most {_MOST_CLASSES:,} classes; got a largest label of {number - 1:,}")
    return number


def chunk_rows(dim: int, num_classes: int) -> int:
    """Return how many examples are measured at once: their features, and their scores of all classes, take memory."""
    return max(CHUNK_BYTES // (4 * max(dim, num_classes)), 1)


def _check_finite(frame: Array, bias: Array | None) -> None:
    """Refuse a classifier with a NaN or an infinity, which no example would be assigned to."""
    for name, array in (("frame", frame), ("bias", bias)):
        broken = [] if array is None else np.flatnonzero(~np.isfinite(np.atleast_2d(array)).all(axis=0)).tolist()
        if broken:
            raise ValueError(
                f"the {name} of a classifier must be finite; got a NaN or an infinity for class {broken[0]}"
            )


@jax.jit
def _add(stats: ClassStatistics, features: Array, labels: Array) -> tuple[ClassStatistics, Int[Array, ""]]:
    """Return the statistics with a batch, and how many labelled rows were not finite."""
    labels, lost = of_finite(features, labels)
    return stats.update(features, labels), lost
