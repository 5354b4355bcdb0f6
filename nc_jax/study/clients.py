"""A data set spread over the clients of federated learning: what a seed trains and tests on."""

from typing import Any

from nc_jax.data import partition
from nc_jax.data.clients import ClientArrays
from nc_jax.data.partition import Partition
from nc_jax.methods import FederatedOptions
from nc_jax.study.data import Data
from nc_jax.study.tasks import both_in_memory


def spread(data: Data, options: FederatedOptions, seed: int) -> Data:
    """Return a data set of which every example belongs to a client, in the training set and in the test set.

    Args:
        data: the data set.
        options: how many clients there are, and what a client has.
        seed: seed of the run, which draws the partition.

    Raises:
        ValueError: if the data set cannot be spread in this way.
    """
    if options.clients is None:
        return data
    data = both_in_memory(data, "be spread over clients")
    train: Any = data.train
    test: Any = data.test
    if options.partition == "groups":
        if not isinstance(train, ClientArrays):
            raise ValueError(
                "clients that are groups need a data set with groups (--data.groups names the column of a table); got "
                f"{train!r}"
            )
        if train.num_clients != options.clients:
            raise ValueError(f"clients must be the number of groups, {train.num_clients}; got {options.clients}")
        return data
    found = _partition(train.labels, test.labels, options, seed)
    return data._replace(
        train=ClientArrays.of(train, found.owners(len(train)), options.clients),
        test=ClientArrays.of(test, found.test_owners(len(test)), options.clients, empty=True),
    )


def _partition(labels: Any, test_labels: Any, options: FederatedOptions, seed: int) -> Partition:
    clients, common = options.clients or 1, {"seed": seed, "test_labels": test_labels}
    if options.partition == "iid":
        return partition.iid(labels, clients, **common)
    if options.partition == "dirichlet":
        return partition.dirichlet(labels, clients, beta=options.beta, min_size=options.min_size, **common)
    if options.partition == "classes":
        return partition.by_classes(labels, clients, classes_per_client=options.per_client, **common)
    return partition.shards(labels, clients, shards_per_client=options.per_client, **common)
