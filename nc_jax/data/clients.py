"""Examples that belong to clients, and what tells how different the clients are."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from nc_jax.checks import Reals, as_array, check_at_least
from nc_jax.data.arrays import LabelledArrays


@dataclasses.dataclass(frozen=True, eq=False)
class ClientArrays(LabelledArrays):
    """Inputs and labels of which each belongs to a client, or to none. `ClientArrays.of` makes them of labelled arrays.

    Args:
        inputs: as for `LabelledArrays`.
        labels: as for `LabelledArrays`.
        num_classes: as for `LabelledArrays`.
        class_names: as for `LabelledArrays`.
        clients: client of each example, integers of shape (N,) in 0..C-1, or -1 for none; stored as int32.
        num_clients: C >= 1.

    Raises:
        ValueError: if the clients do not meet these conditions, or the rest not those of `LabelledArrays`.
    """

    clients: np.ndarray | Any = ()
    num_clients: int = 0

    _PER_EXAMPLE: ClassVar[tuple[str, ...]] = (*LabelledArrays._PER_EXAMPLE, "clients")

    def __post_init__(self) -> None:
        super().__post_init__()
        clients = np.asarray(as_array(self.clients, "clients"))
        check_at_least("num_clients", self.num_clients)
        if clients.shape != (len(self),) or not (np.issubdtype(clients.dtype, np.integer) or not len(self)):
            raise ValueError(
                f"clients must be integers of shape ({len(self)},), one for each example; "
                f"got {clients.dtype} of shape {clients.shape}"
            )
        outside = np.flatnonzero((clients < -1) | (clients >= self.num_clients))
        if outside.size:
            raise ValueError(
                f"clients must lie in 0..{self.num_clients - 1}, or be -1 for none; "
                f"got {clients[outside[0]]} at example {outside[0]}"
            )
        clients = clients.astype(np.int32)
        clients.flags.writeable = False
        object.__setattr__(self, "clients", clients)

    def __repr__(self) -> str:
        return f"ClientArrays{super().__repr__().removeprefix('LabelledArrays')[:-1]}, {self.num_clients} clients)"

    @classmethod
    def of(cls, arrays: LabelledArrays, owners: Any, num_clients: int, *, empty: bool = False) -> "ClientArrays":
        """Say to which clients the examples of labelled arrays belong.

        Args:
            arrays: N examples; clients that they already have are replaced.
            owners: client of each example, shape (N,), as `Partition.owners` and `Partition.test_owners` have them.
            num_clients: C >= 1.
            empty: allow clients without an example, for instance in a test set.

        Raises:
            ValueError: if the clients are not in -1..C-1, one for each example, or a client has none.

        Example:
            >>> arrays = LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3)
            >>> ClientArrays.of(arrays, np.array([0, 1, 0, -1]), 2)
            ClientArrays(4 examples of shape (2,) float64, 3 classes, 2 clients)
        """
        made = cls(arrays.inputs, arrays.labels, arrays.num_classes, arrays.class_names, owners, num_clients)
        sizes = made.client_counts().sum(axis=1)
        if not empty and not sizes.all():
            raise ValueError(f"every client must have an example; client {np.argmin(sizes)} of {num_clients} has none")
        return made

    def subset(self, indices: Integer[np.ndarray, " chosen"] | Bool[np.ndarray, " examples"]) -> "ClientArrays":
        """The chosen examples, in the given order, with their clients.

        There are as many clients as before, also if some have no example any more: `client_counts` tells.

        Args:
            indices: as for `LabelledArrays.subset`.

        Raises:
            ValueError: as for `LabelledArrays.subset`.
        """
        found = super().subset(indices)
        assert isinstance(found, ClientArrays)  # dataclasses.replace keeps the type
        return found

    def client_counts(self) -> Int[np.ndarray, "clients classes"]:
        """Number of examples of each class at each client.

        Returns:
            Counts of shape (C, K), int64; examples of no client are not counted.

        Example:
            >>> arrays = LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3)
            >>> ClientArrays.of(arrays, np.array([0, 1, 0, -1]), 2).client_counts()
            array([[1, 0, 1],
                   [0, 0, 1]])
        """
        owned = self.clients >= 0
        cells = self.clients[owned].astype(np.int64) * self.num_classes + self.labels[owned]
        return np.bincount(cells, minlength=self.num_clients * self.num_classes).reshape(self.num_clients, -1)


class PartitionStatistics(NamedTuple):
    """How different the clients of a partition are.

    Attributes:
        sizes: number of examples n_c of each client, shape (C,).
        classes_per_client: number of classes of which a client has an example, shape (C,).
        divergence: total variation distance of a client's class distribution from that of all clients together, in
            [0, 1]: the share of its examples that would need another class. NaN for a client without examples.
        effective_clients: (sum_c n_c)^2 / sum_c n_c^2, the number of clients of equal size whose weighted mean is as
            concentrated, in [1, C].
    """

    sizes: Int[np.ndarray, " clients"]
    classes_per_client: Int[np.ndarray, " clients"]
    divergence: Float[np.ndarray, " clients"]
    effective_clients: float


def partition_statistics(counts: Reals) -> PartitionStatistics:
    r"""Describe a partition by the class counts of its clients.

    .. math:: \mathrm{divergence}_c = \tfrac12 \sum_k \Big| \frac{n_{k,c}}{n_c} - \frac{n_k}{n} \Big|

    Args:
        counts: number of examples of each class at each client, integers of shape (C, K); see
            `ClientArrays.client_counts`.

    Raises:
        ValueError: if the counts are not integers >= 0 of shape (C, K), or there is no example at all.

    Example:
        >>> found = partition_statistics([[3, 0], [1, 2]])
        >>> found.classes_per_client, found.divergence.round(3), found.effective_clients
        (array([1, 2]), array([0.333, 0.333]), 2.0)
    """
    counts = np.asarray(as_array(counts, "counts"))
    if counts.ndim != 2 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any() or not counts.any():
        raise ValueError(
            "counts must be integers from 0 up of shape (clients, classes), not all 0; "
            f"got {counts.dtype} of shape {counts.shape} with sum {counts.sum()}"
        )
    counts = counts.astype(np.int64)
    sizes = counts.sum(axis=1)
    own = counts / np.where(sizes, sizes, np.nan)[:, None]
    divergence = np.abs(own - counts.sum(axis=0) / sizes.sum()).sum(axis=1) / 2
    effective = float(sizes.sum()) ** 2 / float((sizes.astype(float) ** 2).sum())
    return PartitionStatistics(sizes, np.count_nonzero(counts, axis=1), divergence, effective)
