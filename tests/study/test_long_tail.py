"""Data sets with a long tail, and what experiments on them measure."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.data import LabelledArrays
from nc_jax.frames import simplex_etf
from nc_jax.hierarchy import from_nested
from nc_jax.methods import ContinualOptions, TailOptions
from nc_jax.metrics import ClassStatistics
from nc_jax.study import Comparison
from nc_jax.study.data import Data
from nc_jax.study.long_tail import alignment, groups_of, recalls
from nc_jax.study.tails import tailed
from nc_jax.study.trainers import of_run, setting_of
from nc_jax.training import Evaluation

K = 6
TAIL = TailOptions(ratio=0.1)


def blobs(seed: int, count: int) -> LabelledArrays:
    generator = np.random.default_rng(seed)
    return LabelledArrays(generator.normal(size=(count, 8)), np.arange(count) % K, K, tuple("abcdef"))


class OnDemand:
    """Examples whose labels are known only when they are read."""

    num_classes = K

    def __len__(self):
        return 96

    def take(self, indices, seed=0):
        raise NotImplementedError


DATA = Data(blobs(0, 96), blobs(1, 48), augment=None, preprocess=None, size=8)


@pytest.mark.parametrize("profile", ["exponential", "step", "pareto", "majority"])
def test_all_seeds_have_one_tail_but_other_rare_classes(profile):
    options = dataclasses.replace(TAIL, profile=profile)
    parts = [tailed(DATA, options, seed) for seed in range(4)]
    (counts,) = {tuple(part.train.class_counts().tolist()) for part in parts}
    assert counts[0] == 16
    assert counts[-1] == 1
    assert list(counts) == sorted(counts, reverse=True)
    assert len({part.class_names for part in parts}) > 1
    for part in parts:
        assert len(part.test) == len(DATA.test)
        assert setting_of(Comparison(tail=options), part).class_counts == counts
        # Inputs keep their class, under its new number.
        for here, there in ((part.train, DATA.train), (part.test, DATA.test)):
            names = {here.inputs[row].tobytes(): here.class_names[here.labels[row]] for row in range(len(here))}
            known = {there.inputs[row].tobytes(): there.class_names[there.labels[row]] for row in range(len(there))}
            assert all(known[inputs] == name for inputs, name in names.items())


def test_without_a_ratio_a_set_stays_as_it_is():
    assert tailed(DATA, TailOptions(), 0) is DATA


def test_a_given_order_makes_the_last_class_the_rarest():
    part = tailed(DATA, dataclasses.replace(TAIL, order="given"), 3)
    assert part.class_names == DATA.class_names
    assert part.order is None


def test_a_tail_comes_as_tasks_and_results_are_numbered_back():
    settings = Comparison(tail=TAIL, continual=ContinualOptions(tasks=3))
    part = of_run(DATA, settings, 1)
    ranks = np.array([DATA.class_names.index(name) for name in part.class_names])
    np.testing.assert_array_equal(part.as_numbered(ranks), np.arange(K))
    assert setting_of(settings, part).class_counts is None  # the order of the tasks depends on the seed


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (DATA, TailOptions(ratio=0.01), r"every class must keep an example .* class \d of 6 would have none"),
        (
            DATA._replace(tree=from_nested({"root": list("abcdef")}).ordered(tuple("abcdef"))),
            TAIL,
            r"the classes of a label tree keep their order \(--tail.order given\); got an order drawn by the seed",
        ),
        (DATA._replace(train=OnDemand()), TAIL, "a set must be in memory to get a long tail"),
    ],
)
def test_a_tail_that_cannot_be_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        tailed(data, options, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ratio": 100.0},
            r"ratio must lie in \(0, 1\], the rarest class over the most frequent one, such as 0",
        ),
        ({"ratio": 0.0}, r"ratio must lie in \(0, 1\]"),
        ({"tau": -1.0}, r"tau must be at least 0 and finite; got -1\.0"),
        ({"mixup": 0.0}, r"mixup must be positive and finite; got 0\.0"),
        ({"beta": 1.0}, r"beta must lie in \[0, 1\); got 1\.0"),
        ({"second_stage": 1.0}, r"second_stage must lie in \[0, 1\); got 1\.0"),
        ({"strength": 0.0}, r"strength must lie in \(0, 1\]; got 0\.0"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TailOptions(**changes)


# --- What is measured. ---


def evaluation_of(means, frame, bias=None, confusion=None):
    features, labels = jnp.asarray(means).T, jnp.arange(means.shape[1])
    statistics = ClassStatistics.from_batch(features, labels, means.shape[1])
    return Evaluation({}, statistics, jnp.asarray(frame), jnp.zeros(len(labels)) if bias is None else bias, confusion)


@pytest.mark.slow
def test_a_collapsed_classifier_is_aligned_and_a_turned_one_is_not():
    groups = groups_of(tailed(DATA, TAIL, 0))
    assert {name: members.tolist() for name, members in groups.items()} == {
        "many": [0, 1],
        "medium": [2, 3],
        "few": [4, 5],
    }
    frame = np.asarray(simplex_etf(K, 12))
    found = alignment(evaluation_of(3 * frame, frame), groups)
    np.testing.assert_allclose(found["exponent_ratio"], 1, atol=1e-5)
    np.testing.assert_allclose(found["few_cosine"], -1 / (K - 1), atol=1e-5)
    for name in ("angle", "angle/few", "principal_angle"):
        np.testing.assert_allclose(found[name], 0, atol=0.05)
    # Class vectors 30 degrees out of the space of the class means: the exponent falls by the squared cosine.
    basis = np.linalg.svd(frame, full_matrices=True)[0]
    inside, outside = basis[:, : K - 1], basis[:, K - 1 : 2 * K - 2]
    turned = np.sqrt(3) / 2 * frame + 1 / 2 * outside @ inside.T @ frame
    found = alignment(evaluation_of(3 * frame, turned), groups)
    np.testing.assert_allclose(found["exponent_ratio"], 3 / 4, atol=1e-4)
    np.testing.assert_allclose([found["angle"], found["principal_angle"]], 30, atol=0.1)


@pytest.mark.slow
def test_recalls_are_means_over_classes_and_leave_out_those_without_test_examples():
    confusion = np.diag([4, 2, 2, 1, 0, 0])
    confusion[1, 0] = 2
    confusion[4, 0] = 3
    frame = simplex_etf(K, 12)
    groups = {"many": np.array([0, 1]), "medium": np.array([2, 3]), "few": np.array([4, 5])}
    found = recalls(evaluation_of(frame, frame, confusion=confusion), groups)
    assert found == {"balanced_accuracy": 3.5 / 5, "many": 0.75, "medium": 1.0, "few": 0.0}


def test_labels_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="classes are grouped by their sizes in a set whose labels are known; got"):
        groups_of(DATA._replace(train=OnDemand()))
