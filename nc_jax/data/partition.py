"""Partitions of a data set among clients: which client owns which example, alike or with other classes at each.

Every partition is exact and a pure function of its arguments. Each training example belongs to one client, and each
client has an example; what cannot be given in this way is refused. Where test examples are given, too, those of each
class are divided among the clients in proportion to their training examples of that class. So a client is tested on
classes that it has trained on, in nearly the same proportions, and every test example of a class lies at some client
that knows the class.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from nc_jax.checks import Labels, as_array, check_label_range, check_label_shape
from nc_jax.data.draws import draws_for
from nc_jax.data.proportions import divided, divided_by_logs, filled, log_gammas

# The high half of the random key tells the purpose of the numbers.
_TRAIN, _TEST, _CLIENTS, _LAWS = ((1 << 59) + purpose for purpose in range(4))


class Partition(NamedTuple):
    """The examples of each client, as ascending example numbers; an example belongs to at most one client.

    Attributes:
        train: for each client, its training examples, shape (N_c,).
        test: for each client, its test examples, which may be none; None if no test examples were divided.
    """

    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...] | None = None

    @property
    def num_clients(self) -> int:
        """Number of clients C."""
        return len(self.train)

    def owners(self, num_examples: int) -> Int[np.ndarray, " examples"]:
        """Return the client 0..C-1 of each of N training examples, int32; -1 where it belongs to none.

        Raises:
            ValueError: if an example of a client is not among the N.

        Example:
            >>> Partition((np.array([0, 3]), np.array([1]))).owners(4)
            array([ 0,  1, -1,  0], dtype=int32)
        """
        return _owners(self.train, num_examples)

    def test_owners(self, num_examples: int) -> Int[np.ndarray, " examples"]:
        """Return the client 0..C-1 of each of N test examples, int32; -1 where it belongs to none.

        Raises:
            ValueError: if no test examples were divided, or an example of a client is not among the N.
        """
        if self.test is None:
            raise ValueError("owners of test examples need a partition that was made with test_labels; got none")
        return _owners(self.test, num_examples)


def iid(labels: Labels, clients: int, *, seed: int, test_labels: Labels | None = None) -> Partition:
    """Divide the examples at random: every client has N / C of them, up to one, whatever their classes.

    Args:
        labels: classes of the training examples, integers from 0 up, shape (N,).
        clients: number of clients C, 1..N.
        seed: random seed, 0..2^64-1.
        test_labels: classes of the test examples, which are divided like the training examples; None: there are none.

    Raises:
        ValueError: if labels are no class numbers, there are fewer training examples than clients, or a class has test
            examples only.

    Example:
        >>> [len(examples) for examples in iid(np.zeros(7, int), 3, seed=0).train]
        [3, 2, 2]

    Reference: McMahan et al. (2017), section 3.
    """
    labels = _checked(labels, clients)
    owners = np.empty(len(labels), np.int32)
    order = np.argsort(draws_for(seed, _CLIENTS).random_raw(len(labels)), kind="stable")
    owners[order] = np.arange(len(labels)) % clients
    return _with_test(labels, owners, clients, seed, test_labels)


def dirichlet(
    labels: Labels,
    clients: int,
    *,
    beta: float,
    seed: int,
    min_size: int = 1,  # every client needs an example to train on
    test_labels: Labels | None = None,
    capped: bool = False,
    test_as_drawn: bool = False,
) -> Partition:
    r"""Divide each class by proportions that are drawn from a Dirichlet law: the smaller beta, the fewer classes each.

    .. math:: (p_{k,1}, \dots, p_{k,C}) \sim \mathrm{Dir}(\beta, \dots, \beta), \qquad n_{k,c} \approx p_{k,c} \, n_k

    The counts are rounded by largest remainders, so they sum to n_k. As long as a client then has fewer than `min_size`
    examples, it gets one of the client that has most, of the class of which that one has most.

    Args:
        labels: classes of the training examples, integers from 0 up, shape (N,).
        clients: number of clients C, 1..N.
        beta: concentration, a finite number above 0. About 1e5 gives every client nearly the same share of each class.
        seed: random seed, 0..2^64-1.
        min_size: least number of training examples of a client, 1..N / C.
        test_labels: classes of the test examples; None: there are none.
        capped: a client that has N / C examples or more gets none of later classes, and the others share them: clients
            have more equal sizes, but the last classes lie at few of them. The papers' released programs do this.
        test_as_drawn: divide test examples by the drawn proportions themselves, with a cap of their own, in place of
            the clients' training examples. A client may then be tested on a class that it has no training example of.
            The released program of FedGELA does this.

    Raises:
        ValueError: if an argument is out of its range, labels are no class numbers, or a class has test examples only.

    Example:
        >>> parts = dirichlet(np.repeat([0, 1, 2], 100), 3, beta=0.1, seed=4)
        >>> sum(len(examples) for examples in parts.train)
        300

    Reference: Hsu, Qi and Brown (2019) for the law; the cap as in the released program of Yurochkin et al. (2019).
    """
    labels = _checked(labels, clients)
    if not 0 < beta < np.inf:
        raise ValueError(f"beta must be a finite number above 0; got {beta}")
    if not 1 <= min_size <= len(labels) // clients:
        raise ValueError(
            f"min_size must lie in 1..{len(labels) // clients}, what {len(labels)} examples give {clients} clients; "
            f"got {min_size}"
        )
    totals = np.bincount(labels)
    logs = log_gammas(beta, draws_for(seed, _LAWS).random_raw((2, len(totals), clients)))
    counts = filled(divided_by_logs(totals, logs, capped=capped), min_size)
    owners = _dealt(labels, counts, seed, _TRAIN)
    if test_labels is None or not test_as_drawn:
        return _with_test(labels, owners, clients, seed, test_labels)
    test_labels = _checked_test(test_labels, totals)
    test_counts = divided_by_logs(np.bincount(test_labels, minlength=len(totals)), logs, capped=capped)
    return Partition(_members(owners, clients), _members(_dealt(test_labels, test_counts, seed, _TEST), clients))


def by_classes(
    labels: Labels, clients: int, *, classes_per_client: int, seed: int, test_labels: Labels | None = None
) -> Partition:
    """Give each client examples of a few classes only, and divide each class equally among the clients that hold it.

    The classes are handed out in their order, client after client, until each of them lies somewhere; from then on, a
    client draws at random among the classes that it does not have. This is partial class disjointness.

    Args:
        labels: classes of the training examples, integers from 0 up, shape (N,); K of them have an example.
        clients: number of clients C, 1..N.
        classes_per_client: 1..K, with `classes_per_client * clients >= K`. A client has fewer classes where a class has
            fewer examples than clients that hold it.
        seed: random seed, 0..2^64-1.
        test_labels: classes of the test examples, which are divided like the training examples; None: there are none.

    Raises:
        ValueError: if an argument is out of its range, labels are no class numbers, a class would lie at no client, a
            client would have no example, or a class has test examples only.

    Example:
        >>> labels = np.repeat(np.arange(4), 6)
        >>> parts = by_classes(labels, 3, classes_per_client=2, seed=0)
        >>> [np.bincount(labels[examples], minlength=4).tolist() for examples in parts.train]
        [[3, 3, 0, 0], [0, 0, 6, 6], [3, 3, 0, 0]]

    Reference: Fan et al., Federated learning with bilateral curation for partially class-disjoint data (2023).
    """
    labels = _checked(labels, clients)
    totals = np.bincount(labels)
    present = np.flatnonzero(totals)
    if not 1 <= classes_per_client <= len(present):
        raise ValueError(
            f"classes_per_client must lie in 1..{len(present)}, the number of classes; got {classes_per_client}"
        )
    if classes_per_client * clients < len(present):
        raise ValueError(
            f"every class must lie at a client, so classes_per_client * clients must be at least {len(present)}; "
            f"got {classes_per_client} * {clients}"
        )
    # Ranks of the classes at each client: those that are handed out in order come first, the others at random.
    numbers = draws_for(seed, _CLIENTS).random_raw((clients, len(present)))
    in_order = np.arange(len(present)) // classes_per_client == np.arange(clients)[:, None]
    chosen = np.lexsort((numbers, ~in_order))[:, :classes_per_client]
    holders = np.zeros((clients, len(totals)), np.int64)
    holders[np.arange(clients)[:, None], present[chosen]] = 1
    owners = _dealt(labels, divided(totals, holders), seed, _TRAIN)
    return _with_test(labels, owners, clients, seed, test_labels)


def shards(
    labels: Labels, clients: int, *, shards_per_client: int, seed: int, test_labels: Labels | None = None
) -> Partition:
    """Sort the examples by class, cut them into equal shards, and give each client some shards at random.

    Args:
        labels: classes of the training examples, integers from 0 up, shape (N,).
        clients: number of clients C, 1..N.
        shards_per_client: at least 1, with `shards_per_client * clients <= N`. Sizes of shards differ by at most one.
        seed: random seed, 0..2^64-1.
        test_labels: classes of the test examples, which are divided like the training examples; None: there are none.

    Raises:
        ValueError: if an argument is out of its range, labels are no class numbers, or a class has test examples only.

    Example:
        >>> labels = np.repeat(np.arange(4), 6)
        >>> parts = shards(labels, 2, shards_per_client=2, seed=1)
        >>> [np.bincount(labels[examples], minlength=4).tolist() for examples in parts.train]
        [[0, 6, 6, 0], [6, 0, 0, 6]]

    Reference: McMahan et al. (2017), section 3: two shards of 300 digits for each of 100 clients.
    """
    labels = _checked(labels, clients)
    if not 1 <= shards_per_client <= len(labels) // clients:
        raise ValueError(
            f"shards_per_client must lie in 1..{len(labels) // clients}, what {len(labels)} examples give {clients} "
            f"clients; got {shards_per_client}"
        )
    number = clients * shards_per_client
    client_of_shard = np.empty(number, np.int32)
    shards_in_order = np.argsort(draws_for(seed, _CLIENTS).random_raw(number), kind="stable")
    client_of_shard[shards_in_order] = np.arange(number) % clients
    owners = np.empty(len(labels), np.int32)
    order = np.lexsort((draws_for(seed, _TRAIN).random_raw(len(labels)), labels))
    owners[order] = client_of_shard[np.arange(len(labels)) * number // len(labels)]
    return _with_test(labels, owners, clients, seed, test_labels)


def grouped(groups: Any, *, test_groups: Any = None) -> Partition:
    """Give every group of examples to a client of its own: the recordings of a speaker, the pages of a writer.

    Clients are numbered in ascending order of their groups, as `np.unique(groups)` has them. To test on a part of each
    group, choose it with `nc_jax.data.parts.share_of_each_class(labels, share, groups=groups)`.

    Args:
        groups: numbers or names, of the group of each training example, shape (N,).
        test_groups: the same of each test example; None: there are none.

    Raises:
        ValueError: if groups do not have one axis, there is none, or a group has test examples only.

    Example:
        >>> grouped(np.array(["b", "a", "b"]), test_groups=np.array(["a"])).train
        (array([1]), array([0, 2]))
    """
    groups = as_array(groups, "groups")
    if groups.ndim != 1 or not len(groups):
        raise ValueError(f"groups must have shape (examples,) with at least one example; got {groups.shape}")
    names, owners = np.unique(groups, return_inverse=True)
    train = _members(owners.astype(np.int32), len(names))
    if test_groups is None:
        return Partition(train)
    test_groups = np.asarray(as_array(test_groups, "test_groups"))
    if test_groups.ndim != 1:
        raise ValueError(f"test_groups must have shape (examples,); got {test_groups.shape}")
    unknown = test_groups[~np.isin(test_groups, names)].tolist()
    if unknown:
        raise ValueError(f"every group of a test example must have a training example; group {unknown[0]!r} has none")
    return Partition(train, _members(np.searchsorted(names, test_groups).astype(np.int32), len(names)))


def _checked(labels: Labels, clients: int) -> Int[np.ndarray, " examples"]:
    labels = np.asarray(as_array(labels, "labels"))
    check_label_shape(labels)
    check_label_range(labels, None, padding=False)
    if not 1 <= clients <= len(labels):
        raise ValueError(
            f"the number of clients must lie in 1..{len(labels)}, so that each has an example of {len(labels)}; "
            f"got {clients}"
        )
    return labels.astype(np.int64)


def _checked_test(labels: Labels, totals: Int[np.ndarray, " classes"]) -> Int[np.ndarray, " examples"]:
    labels = np.asarray(as_array(labels, "test_labels"))
    check_label_shape(labels)
    check_label_range(labels, None, padding=False)
    unknown = labels[~np.isin(labels, np.flatnonzero(totals))]
    if len(unknown):
        raise ValueError(f"every class of a test example must have a training example; class {unknown.min()} has none")
    return labels.astype(np.int64)


def _with_test(
    labels: Int[np.ndarray, " examples"],
    owners: Int[np.ndarray, " examples"],
    clients: int,
    seed: int,
    test_labels: Labels | None,
) -> Partition:
    """Complete a partition: test examples of a class go to clients in proportion to their training examples of it."""
    train = _members(owners, clients)
    empty = [client for client, examples in enumerate(train) if not len(examples)]
    if empty:
        raise ValueError(
            "every client must have a training example, for which its classes need as many examples as clients that "
            f"hold them; client {empty[0]} has none"
        )
    if test_labels is None:
        return Partition(train)
    totals = np.bincount(labels)
    test_labels = _checked_test(test_labels, totals)
    counts = np.bincount(owners * len(totals) + labels, minlength=clients * len(totals)).reshape(clients, -1)
    test_counts = divided(np.bincount(test_labels, minlength=len(totals)), counts)
    return Partition(train, _members(_dealt(test_labels, test_counts, seed, _TEST), clients))


def _dealt(
    labels: Int[np.ndarray, " examples"], counts: Int[np.ndarray, "clients classes"], seed: int, purpose: int
) -> Int[np.ndarray, " examples"]:
    """Deal the shuffled examples of each class to the clients, in the numbers that `counts` says."""
    owners = np.empty(len(labels), np.int32)
    order = np.lexsort((draws_for(seed, purpose).random_raw(len(labels)), labels))
    owners[order] = np.repeat(np.tile(np.arange(len(counts)), counts.shape[1]), counts.T.ravel())
    return owners


def _members(owners: Int[np.ndarray, " examples"], clients: int) -> tuple[np.ndarray, ...]:
    order = np.argsort(owners, kind="stable")
    return tuple(np.split(order, np.cumsum(np.bincount(owners, minlength=clients))[:-1]))


def _owners(parts: Sequence[np.ndarray], num_examples: int) -> Int[np.ndarray, " examples"]:
    largest = max((int(part.max()) for part in parts if len(part)), default=-1)
    if largest >= num_examples:
        raise ValueError(f"examples of the clients must lie in 0..{num_examples - 1}; got {largest}")
    owners = np.full(num_examples, -1, np.int32)
    for client, examples in enumerate(parts):
        owners[examples] = client
    return owners
