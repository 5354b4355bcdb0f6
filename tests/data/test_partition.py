"""Partitions among clients: exact for every input, the laws they follow, the released program's rules, refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from scipy import stats

from nc_jax.data import Partition, by_classes, dirichlet, grouped, iid, shards

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "partition.json").read_text())["fedgela"]
LABELS, TEST_LABELS = np.repeat(np.arange(10), 100), np.repeat(np.arange(10), 20)  # as for the golden values

WAYS = {
    "iid": lambda labels, clients, draw, **rest: iid(labels, clients, **rest),
    "dirichlet": lambda labels, clients, draw, **rest: dirichlet(
        labels, clients, beta=draw(st.sampled_from([1e-320, 1e-3, 0.01, 0.5, 1e5, 1e300])), **rest
    ),
    "capped": lambda labels, clients, draw, **rest: dirichlet(
        labels, clients, beta=draw(st.sampled_from([1e-320, 0.1, 1e300])), capped=True, **rest
    ),
    "by_classes": lambda labels, clients, draw, **rest: by_classes(
        labels, clients, classes_per_client=draw(st.integers(1, len(np.unique(labels)))), **rest
    ),
    "shards": lambda labels, clients, draw, **rest: shards(
        labels, clients, shards_per_client=draw(st.integers(1, len(labels) // clients)), **rest
    ),
}


def tables(parts, labels, num_classes=10):
    return np.array([np.bincount(labels[part], minlength=num_classes) for part in parts])


def golden(name):
    return [np.array(list(GOLDEN[name][part].values())) for part in ("train_counts", "test_counts")]


def shares(count, holders):
    """Sizes of a class's parts, ascending: as equal as possible."""
    return sorted(len(part) for part in np.array_split(np.arange(count), holders))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@given(data=st.data())
def test_every_example_has_one_client_and_every_client_an_example(way, data):
    labels = np.array(data.draw(st.lists(st.sampled_from([0, 1, 3, 4]), min_size=1, max_size=40)))
    test_labels = np.array(data.draw(st.lists(st.sampled_from(labels.tolist()), max_size=25)), int)
    clients, seed = data.draw(st.integers(1, len(labels))), data.draw(st.integers(0, 2**64 - 1))
    try:
        found = way(labels, clients, data.draw, seed=seed, test_labels=test_labels)
    except (
        ValueError
    ) as error:  # by_classes refuses what it cannot give: its classes are drawn before their sizes matter
        assert re.search(r"every client must have a training example|every class must lie at a client", str(error))  # noqa: PT017
        reject()
    assert found.num_clients == clients
    for parts, all_labels in ((found.train, labels), (found.test, test_labels)):
        assert len(parts) == clients
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(all_labels)))
        assert all((np.diff(part) > 0).all() for part in parts)
    assert all(len(part) for part in found.train)
    owners, test_owners = found.owners(len(labels)), found.test_owners(len(test_labels))
    assert owners.dtype == test_owners.dtype == np.int32
    for client in range(clients):
        np.testing.assert_array_equal(np.flatnonzero(owners == client), found.train[client])
        np.testing.assert_array_equal(np.flatnonzero(test_owners == client), found.test[client])
    # Tested are classes that a client has trained on, in proportion: rounding moves less than one example.
    train, test = tables(found.train, labels, 5), tables(found.test, test_labels, 5)
    ideal = train / np.maximum(train.sum(axis=0), 1) * np.bincount(test_labels, minlength=5)
    assert (np.abs(test - ideal) < 1 - 1e-9).all()
    assert not test[train == 0].any()


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any),
    beta=st.sampled_from([0.01, 0.3, 1e5]),
    data=st.data(),
)
def test_the_least_size_holds_by_construction(sizes, beta, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    clients = data.draw(st.integers(1, len(labels)))
    least = data.draw(st.integers(1, len(labels) // clients))
    found = dirichlet(labels, clients, beta=beta, seed=0, min_size=least)
    assert min(map(len, found.train)) >= least
    assert sum(map(len, found.train)) == len(labels)


@pytest.mark.parametrize("beta", [0.05, 0.5, 20.0])
def test_proportions_have_the_dirichlet_law(beta):
    # A client's share of a class has the law Beta(beta, 3 beta), for each of 400 classes by itself. Bins end half a
    # count from a whole number, so that rounding to counts moves (nearly) nothing over an edge.
    labels = np.repeat(np.arange(400), 1000)
    parts = dirichlet(labels, 4, beta=beta, seed=11).train
    law = stats.beta(beta, 3 * beta)
    edges = np.unique(np.floor(1000 * law.ppf(np.linspace(0, 1, 8)[1:-1])) + 0.5) / 1000
    for part in parts:
        counts = np.bincount(labels[part], minlength=400)
        found = np.bincount(np.searchsorted(edges, counts / 1000), minlength=len(edges) + 1)
        expected = 400 * np.diff(law.cdf([0, *edges, 1]))
        assert stats.chisquare(found, expected).pvalue > 1e-3


def test_extreme_concentrations_are_one_client_a_class_and_nearly_equal_shares():
    for beta in (1e-320, 1e-3, 0.01):  # gamma variates themselves would all be 0 for some class
        table = tables(dirichlet(LABELS, 10, beta=beta, seed=1).train, LABELS)
        assert table.max(axis=0).mean() > 95
    train, test = golden("dirichlet_parties10_beta100000")
    for table, total in ((train, 100), (tables(dirichlet(LABELS, 10, beta=1e5, seed=1).train, LABELS), 100)):
        assert (table.sum(axis=0) == total).all()
        assert np.abs(table - 10).max() <= 1
    assert (test.sum(axis=0) == 20).all()


@pytest.mark.parametrize("clients", [5, 10])
def test_the_released_cap_closes_a_client_that_has_its_share(clients):
    options = {"beta": 0.1, "seed": 3, "test_labels": TEST_LABELS}
    ours = dirichlet(LABELS, clients, **options, capped=True, test_as_drawn=True)
    made = tables(ours.train, LABELS), tables(ours.test, TEST_LABELS)
    # The released program rounds sums down, so its last client gets an example that rounding leaves, also when closed.
    for (train, test), exempt in ((golden(f"dirichlet_parties{clients}_beta0.1"), 1), (made, 0)):
        assert (train.sum(axis=0) == 100).all()
        assert (test.sum(axis=0) == 20).all()
        for table in (train, test):
            closed = (np.cumsum(table, axis=1) - table) * clients >= table.sum()
            assert not table[: clients - exempt][closed[: clients - exempt]].any()
            assert (table[closed] <= exempt).all()
    free = tables(dirichlet(LABELS, clients, **options).train, LABELS)
    assert free.sum(axis=1).max() > made[0].sum(axis=1).max()


def test_test_examples_as_drawn_may_be_of_classes_without_a_training_example():
    # The golden client 1 of five is tested on class 4, which it has no training example of.
    train, test = golden("dirichlet_parties5_beta0.1")
    assert test[1, 4] == 2
    assert train[1, 4] == 0
    labels, test_labels = LABELS[::50], np.repeat(np.arange(10), 500)  # proportions far below 1 / 2 show in tests only
    for as_drawn in (False, True):
        found = dirichlet(labels, 5, beta=0.3, seed=0, test_labels=test_labels, test_as_drawn=as_drawn)
        unseen = tables(found.train, labels) == 0
        assert tables(found.test, test_labels)[unseen].any() == as_drawn


@pytest.mark.parametrize("clients", [4, 10])
def test_classes_are_handed_out_as_in_the_released_program(clients):
    found = by_classes(LABELS, clients, classes_per_client=3, seed=5, test_labels=TEST_LABELS)
    made = tables(found.train, LABELS), tables(found.test, TEST_LABELS)
    for train, test in (golden(f"class_partition_parties{clients}_nlabel3"), made):
        assert ((train > 0).sum(axis=1) == 3).all()
        np.testing.assert_array_equal(train > 0, test > 0)
        for client in range(4):  # the first ten picks
            assert (train[client, 3 * client : 3 * client + 3] > 0).all()
        for label in range(10):
            holders = np.count_nonzero(train[:, label])
            assert sorted(train[train[:, label] > 0, label]) == shares(100, holders)
            assert sorted(test[train[:, label] > 0, label]) == shares(20, holders)


def test_a_client_may_have_all_classes():  # where the released program raises an UnboundLocalError
    table = tables(by_classes(LABELS, 3, classes_per_client=10, seed=0).train, LABELS)
    assert sorted(table.ravel()) == [33] * 20 + [34] * 10
    assert table.sum(axis=1).max() - table.sum(axis=1).min() <= 1  # of equal remainders, the smaller client gets one


def test_the_other_classes_of_a_client_are_drawn_uniformly():
    times = np.zeros(6)
    for seed in range(600):
        found = by_classes(np.arange(6).repeat(4), 4, classes_per_client=2, seed=seed).train[3]
        times[np.unique(found // 4)] += 1
    assert stats.chisquare(times).pvalue > 1e-3


def test_shards_are_parts_of_the_sorted_examples():
    labels = np.random.default_rng(0).permutation(LABELS)
    found = shards(labels, 50, shards_per_client=2, seed=0)
    assert {len(part) for part in found.train} == {20}
    table = tables(found.train, labels)
    assert np.isin(table, [0, 10, 20]).all()  # 100 shards of ten examples, each of one class
    uneven = shards(labels, 7, shards_per_client=3, seed=0)
    assert max(map(len, uneven.train)) - min(map(len, uneven.train)) <= 3


def test_random_clients_have_random_classes():
    found = iid(LABELS, 8, seed=0, test_labels=TEST_LABELS)
    assert {len(part) for part in found.train} == {125}
    assert stats.chi2_contingency(tables(found.train, LABELS)).pvalue > 1e-3
    assert {len(part) for part in found.test} <= set(range(21, 30))
    times = np.zeros((12, 3))
    for seed in range(600):
        times[np.arange(12), iid(np.zeros(12, int), 3, seed=seed).owners(12)] += 1
    assert stats.chi2_contingency(times).pvalue > 1e-3


def test_a_group_is_a_client():
    names, tests = np.array(["cy", "al", "cy", "bo", "al"]), np.array(["bo", "cy", "cy"])
    found = grouped(names, test_groups=tests)
    assert [part.tolist() for part in found.train] == [[1, 4], [3], [0, 2]]
    assert [part.tolist() for part in found.test] == [[], [0], [1, 2]]
    assert grouped(names).test is None


def test_partitions_never_change():
    # Measured once: a run must resume exactly under later versions of NumPy, SciPy and this package.
    labels = np.arange(24) % 4
    found = {
        "iid": iid(labels, 3, seed=7),
        "dirichlet": dirichlet(labels, 3, beta=0.5, seed=7),
        "by_classes": by_classes(labels, 3, classes_per_client=2, seed=7),
        "shards": shards(labels, 3, shards_per_client=2, seed=7),
    }
    assert {name: "".join(map(str, partition.owners(24))) for name, partition in found.items()} == {
        "iid": "021221022110100212110200",
        "dirichlet": "110210021020101211121012",
        "by_classes": "221100110011221122110011",
        "shards": "200121012122102110022001",
    }


@pytest.mark.slow
def test_the_page_shows_what_its_program_prints(capsys):
    page = (Path(__file__).parents[2] / "docs" / "partitions.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    rows = capsys.readouterr().out
    assert rows.count("\n") == 24
    assert rows in page


REFUSED = [
    (
        lambda: iid(LABELS, 0, seed=0),
        "number of clients must lie in 1..1000, so that each has an example of 1000; got 0",
    ),
    (lambda: iid(LABELS[:3], 4, seed=0), "number of clients must lie in 1..3, so that each has an example of 3; got 4"),
    (lambda: iid(LABELS * 1.0, 2, seed=0), "labels must be integers of shape (batch,); got dtype float64"),
    (lambda: iid(LABELS[:, None], 2, seed=0), "labels must be integers of shape (batch,); got shape (1000, 1)"),
    (lambda: iid(LABELS - 1, 2, seed=0), "labels must be at least 0; got -1 at index 0 (100 such labels)"),
    (lambda: iid(LABELS, 2, seed=-1), "seed must be a whole number in 0..2^64-1; got -1"),
    (
        lambda: iid(LABELS[:200], 2, seed=0, test_labels=TEST_LABELS),
        "every class of a test example must have a training example; class 2 has none",
    ),
    (
        lambda: dirichlet(LABELS[:200], 2, beta=1.0, seed=0, test_labels=TEST_LABELS, test_as_drawn=True),
        "every class of a test example must have a training example; class 2 has none",
    ),
    (lambda: dirichlet(LABELS, 2, beta=0.0, seed=0), "beta must be a finite number above 0; got 0.0"),
    (lambda: dirichlet(LABELS, 2, beta=np.inf, seed=0), "beta must be a finite number above 0; got inf"),
    (lambda: dirichlet(LABELS, 2, beta=np.nan, seed=0), "beta must be a finite number above 0; got nan"),
    (
        lambda: dirichlet(LABELS, 30, beta=1.0, seed=0, min_size=34),
        "min_size must lie in 1..33, what 1000 examples give 30 clients; got 34",
    ),
    (
        lambda: by_classes(LABELS, 3, classes_per_client=3, seed=0),
        "every class must lie at a client, so classes_per_client * clients must be at least 10; got 3 * 3",
    ),
    (
        lambda: by_classes(LABELS, 3, classes_per_client=11, seed=0),
        "classes_per_client must lie in 1..10, the number of classes; got 11",
    ),
    (
        lambda: by_classes(np.repeat([0, 1], [1, 9]), 10, classes_per_client=1, seed=0),
        "every client must have a training example, for which its classes need as many examples as clients that hold",
    ),
    (
        lambda: shards(LABELS, 30, shards_per_client=34, seed=0),
        "shards_per_client must lie in 1..33, what 1000 examples give 30 clients; got 34",
    ),
    (lambda: grouped(np.zeros((2, 2))), "groups must have shape (examples,) with at least one example; got (2, 2)"),
    (lambda: grouped([]), "groups must have shape (examples,) with at least one example; got (0,)"),
    (lambda: grouped([1], test_groups=1), "test_groups must have shape (examples,); got ()"),
    (
        lambda: grouped(["a", "b"], test_groups=["b", "c"]),
        "every group of a test example must have a training example; group 'c' has none",
    ),
    (lambda: iid(LABELS, 2, seed=0).owners(999), "examples of the clients must lie in 0..998; got 999"),
    (lambda: Partition((np.arange(3),)).test_owners(3), "owners of test examples need a partition that was made with"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refuses_with_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()
