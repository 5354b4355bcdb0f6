"""The nearest class mean: against distances, and with classes that have not been seen."""

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import nearest_mean_scores

GENERATOR = np.random.default_rng(0)
FEATURES, MEANS = GENERATOR.normal(size=(30, 5)), GENERATOR.normal(size=(5, 4))
DISTANCES = np.linalg.norm(FEATURES[:, :, None] - MEANS, axis=1)


@pytest.mark.slow
def test_the_largest_score_is_the_smallest_distance():
    scores = np.asarray(nearest_mean_scores(FEATURES, MEANS))
    np.testing.assert_array_equal(np.argsort(-scores, axis=1), np.argsort(DISTANCES, axis=1))


@pytest.mark.slow
def test_classes_that_were_not_seen_are_never_chosen():
    scores = np.asarray(nearest_mean_scores(FEATURES, MEANS, jnp.array([True, False, True, False])))
    np.testing.assert_array_equal(np.argmax(scores, axis=1), np.where(DISTANCES[:, 0] < DISTANCES[:, 2], 0, 2))
    assert np.isneginf(scores[:, [1, 3]]).all()


@pytest.mark.slow
def test_before_any_class_was_seen_all_are_alike():
    scores = nearest_mean_scores(FEATURES, np.zeros((5, 4)), jnp.zeros(4, bool))
    np.testing.assert_array_equal(scores, 0)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="features and class_means must have shapes"):
        nearest_mean_scores(FEATURES, MEANS[:4])
