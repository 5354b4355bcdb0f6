"""What is known about the collapse of a network: named numbers with a sentence each, a table of classes, and notes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nc_jax.metrics.entries import Entry, plain
from nc_jax.metrics.statistics import ClassStatistics

MARGIN_BINS = 200  # of 0.02 each, over the range [-2, 2] of cosine margins


class ClassTable(NamedTuple):
    """What a `Report` says about each class; arrays with one number per class.

    Attributes:
        count: number of examples.
        mean_length: length of the centred class mean; NaN for a class without examples, here and below.
        variance: mean squared distance of the examples to their class mean.
        nearest: the class with the nearest class mean; -1 if there is none.
        distance: distance to that mean.
        nearest_centre_accuracy: share of the examples whose nearest class mean is their own.
        accuracy: share of the examples that the classifier gets right; None without a classifier.
    """

    count: Int[np.ndarray, " classes"]
    mean_length: Float[np.ndarray, " classes"]
    variance: Float[np.ndarray, " classes"]
    nearest: Int[np.ndarray, " classes"]
    distance: Float[np.ndarray, " classes"]
    nearest_centre_accuracy: Float[np.ndarray, " classes"]
    accuracy: Float[np.ndarray, " classes"] | None

    def to_json(self) -> dict[str, list[Any]]:
        """Return the columns as lists; NaN becomes null."""
        columns = {name: column.tolist() for name, column in self._asdict().items() if column is not None}
        return {name: [plain(value) for value in column] for name, column in columns.items()}


@dataclasses.dataclass(frozen=True)
class Report(Mapping[str, Entry]):
    """What `nc_jax.metrics.report` and `Measurement.report` return: a mapping from names to entries, and more.

    `report["nc1_pinv"].value` is a number and `report["nc1_pinv"].sentence` says what it means. `print(report)` shows
    all entries, and `report.to_json()` is ready for `json.dump`.

    Attributes:
        entries: the numbers by name, those of the classifier only if there was one.
        classes: what is known of each class.
        notes: sentences about what was left out and what to beware of.
        statistics: class statistics of the features.
        margins: histogram of the cosine margins, counts of `MARGIN_BINS` equal bins over [-2, 2].
    """

    entries: dict[str, Entry]
    classes: ClassTable
    notes: tuple[str, ...]
    statistics: ClassStatistics
    margins: Int[np.ndarray, " bins"]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        width = max(map(len, self.entries))
        head = f"{'':<{width}}  {'value':>10}  {'at collapse':>11}"
        lines = [
            f"{name:<{width}}  {shown(entry.value):>10}  {shown_at_collapse(entry):>11}  {entry.sentence}"
            for name, entry in self.items()
        ]
        return "\n".join([*self.notes, head, *lines])

    def to_json(self) -> dict[str, Any]:
        """Return all but the statistics as JSON can hold it: NaN becomes null, infinity "inf"."""
        dim, num_classes = self.statistics.shifts.shape
        return {
            "examples": int(self.classes.count.sum()),
            "classes": num_classes,
            "dimensions": dim,
            "notes": list(self.notes),
            "metrics": {name: entry.to_json() for name, entry in self.items()},
            "per_class": self.classes.to_json(),
            "cosine_margins": {"from": -2.0, "to": 2.0, "counts": self.margins.tolist()},
        }


def shown(value: float | int | None) -> str:
    """Return a number as people read it: four significant digits, and whole numbers as they are.

    Example:
        >>> shown(0.123456), shown(9.0), shown(1.0e-7), shown(None)
        ('0.1235', '9', '1e-07', '')
    """
    return "" if value is None else f"{value:.4g}"


def shown_at_collapse(entry: Entry) -> str:
    """Return the value of an entry at collapse as people read it, "≥" or "≤" before a bound; "" if it is not known."""
    sign = {"at least": "≥ ", "at most": "≤ "}.get(entry.bound, "")
    return "" if entry.at_collapse is None else f"{sign}{shown(entry.at_collapse)}"
