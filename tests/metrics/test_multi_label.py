"""The tag-wise average: collapse in closed form, a loop over sets as oracle, sets that lack a tag, no value."""

import jax
import numpy as np
import pytest

from nc_jax.metrics import ClassStatistics, tag_sets, tag_wise_average

RNG = np.random.default_rng(0)
K, DIM = 4, 5
# All sets of one, two and three of four tags, in a random order, two examples each.
ALL = np.array([[i >> k & 1 for k in range(K)] for i in range(1, 15)], bool)
TAGS = np.concatenate([ALL[RNG.permutation(len(ALL))], ALL])
NOISE = RNG.normal(size=(len(TAGS), DIM))
SIMPLEX = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0][:K] @ np.eye(DIM) * 3
SIMPLEX = SIMPLEX - SIMPLEX.mean(axis=0)
SCALE = np.array([0, 1.0, 0.8, 2.5])  # of sets of one, two and three tags
COLLAPSED = SCALE[TAGS.sum(axis=1)][:, None] * (TAGS @ SIMPLEX / TAGS.sum(axis=1, keepdims=True))


def measured(features, tags=TAGS):
    sets, numbers = tag_sets(tags)
    program = jax.jit(
        lambda x, y: tag_wise_average(ClassStatistics.from_batch(x, y, len(sets), scatter=False), sets)[1:]
    )
    multiplicities = tuple(np.unique(sets.sum(axis=1))[1:].tolist())
    return multiplicities, program(features, numbers)


def angle(one, other):
    return np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def expected(features, tags, multiplicity):
    means = {}
    for row in np.unique(tags, axis=0):
        means[tuple(np.flatnonzero(row).tolist())] = features[(tags == row).all(axis=1)].mean(axis=0)
    sets = [chosen for chosen in means if len(chosen) == multiplicity and all((tag,) in means for tag in chosen)]
    averages = {chosen: np.mean([means[(tag,)] for tag in chosen], axis=0) for chosen in sets}
    own = np.mean([angle(means[chosen], averages[chosen]) for chosen in sets])
    others = np.mean([angle(means[chosen], averages[other]) for chosen in sets for other in sets])
    left, right = (np.concatenate([part[chosen] for chosen in sets]) for part in (means, averages))
    scale = max(left @ right / (right @ right), 0)
    return own / others, np.linalg.norm(left - scale * right) / np.linalg.norm(left), scale, len(sets)


@pytest.mark.slow
def test_collapse_is_zero_for_every_number_of_tags():
    multiplicities, (angles, distances, scales, counts) = measured(np.float32(COLLAPSED))
    assert multiplicities == (2, 3)
    np.testing.assert_allclose(angles, 0, atol=1e-6)
    np.testing.assert_allclose(distances, 0, atol=1e-6)
    np.testing.assert_allclose(scales, SCALE[2:], rtol=1e-5)
    assert counts.tolist() == [6, 4]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 1e-15, 1e15])
def test_equals_a_loop_over_the_sets(size):
    features = np.float32(size * (COLLAPSED + NOISE))
    multiplicities, columns = measured(features)
    for place, multiplicity in enumerate(multiplicities):
        wanted = expected(features.astype(float), TAGS, multiplicity)
        np.testing.assert_allclose([column[place] for column in columns], wanted, rtol=2e-5)


@pytest.mark.slow
def test_a_length_of_its_own_is_no_collapse():
    """Angles do not see it; the distance does."""
    long = COLLAPSED * np.where((ALL[2] == TAGS).all(axis=1), 3, 1)[:, None]  # the tags 0 and 1
    _, (angles, distances, _, _) = measured(np.float32(long))
    np.testing.assert_allclose(angles, 0, atol=1e-6)
    assert distances[0] > 0.2
    assert distances[1] < 1e-6


@pytest.mark.slow
def test_a_set_counts_if_its_tags_occur_alone():
    kept = ~(np.eye(K, dtype=bool)[3] == TAGS).all(axis=1)  # tag 3 never occurs alone
    without = np.concatenate([TAGS[kept], np.zeros((2, K), bool)])  # examples without a tag are padding
    features = np.concatenate([(COLLAPSED + NOISE)[kept], np.full((2, DIM), np.nan)])
    multiplicities, columns = measured(features, without)
    assert columns[3].tolist() == [3, 1]
    for place, multiplicity in enumerate(multiplicities):
        wanted = expected(features[:-2], without[:-2], multiplicity)
        np.testing.assert_allclose([column[place] for column in columns], wanted, rtol=1e-4)


@pytest.mark.slow
def test_what_does_not_exist_is_nan():
    several = TAGS.sum(axis=1) > 1
    _, (angles, distances, scales, counts) = measured(COLLAPSED[several], TAGS[several])  # no tag alone
    assert np.isnan(np.stack([angles, distances, scales])).all()
    assert counts.tolist() == [0, 0]
    _, columns = measured(0 * COLLAPSED)
    assert np.isnan(np.stack(columns[:3])).all()
    sets, numbers = tag_sets(np.eye(K, dtype=int))
    single = tag_wise_average(ClassStatistics.from_batch(np.eye(K), numbers, K, scatter=False), sets)
    assert (single.multiplicities, single.angles.shape) == ((), (0,))


STATS = ClassStatistics.init(3, DIM, scatter=False)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tag_sets(np.array([[0, 2]])),
            r"tags must be 0 and 1 of shape \(batch, tags\); got int64 of shape \(1, 2",
        ),
        (
            lambda: tag_sets(np.array([0, 1])),
            r"tags must be 0 and 1 of shape \(batch, tags\); got int64 of shape \(2,\)",
        ),
        (
            lambda: tag_wise_average(STATS, np.eye(3)),
            r"sets must be booleans of shape \(3, tags\), one row for each class of the statistics; got float64 of",
        ),
        (
            lambda: tag_wise_average(STATS, np.array([[True, False], [False, True]])),
            r"sets must be booleans of shape \(3, tags\), one row for each class of the statistics; got bool of",
        ),
        (lambda: tag_wise_average(STATS, np.zeros((3, 2), bool)), "sets must be different and have a tag each; got an"),
        (lambda: tag_wise_average(STATS, np.ones((3, 2), bool)), "sets must be different and have a tag each; got an"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()
