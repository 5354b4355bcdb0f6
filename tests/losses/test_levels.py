"""Losses of a classifier per level, against the released programs' values."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.losses import (
    cross_entropy,
    dissimilarity,
    feature_slices,
    hierarchy_aware_features,
    jensen_shannon,
    level_cross_entropies,
    level_geometry,
    summed_probabilities,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())
PARENTS = np.array([0, 0, 1, 1], np.int32)
LEVELS = np.array([[0, 0, 1, 1], [0, 1, 2, 3]], np.int32)


def golden_array(section, name):
    return jnp.asarray(GOLDEN[section][name], jnp.float32)


@pytest.mark.parametrize("name", [name for name in GOLDEN["flamingo_slices"] if name != "how"])
def test_feature_slices(name):
    known = GOLDEN["flamingo_slices"][name]
    found = feature_slices(known[-1][1], len(known), spread=name.startswith("wrn"))
    assert [list(part) for part in found] == known


def test_more_levels_than_dimensions():
    with pytest.raises(ValueError, match="got dim=3 for 4 levels"):
        feature_slices(3, 4)


@pytest.mark.slow
def test_divergence_and_dissimilarity():
    golden = GOLDEN["hafeature_losses"]
    p, q = golden_array("hafeature_losses", "p"), golden_array("hafeature_losses", "q")
    np.testing.assert_allclose(jensen_shannon(p, q).mean(), golden["jsd_similar"], rtol=1e-5)
    np.testing.assert_allclose(3 - jensen_shannon(p, q).mean(), golden["jsd_dissimilar_margin3"], rtol=1e-6)
    batch, used = jnp.stack([p[0], q[0], q[0]]), jnp.array([True, True, False])
    found = dissimilarity(batch, jnp.array([0, 1, 2]), used)  # one pair: the last row is padding
    np.testing.assert_allclose(found, 3 - jensen_shannon(p[:1], q[:1])[0], rtol=1e-6)
    assert dissimilarity(batch, jnp.array([1, 1, 1]), used) == 3


@pytest.mark.slow
def test_geometry_and_summed_probabilities():
    golden = GOLDEN["hafeature_geometry"]
    assert golden["children"] == [[0, 1], [2, 3]]
    coarse, fine = (golden_array("hafeature_geometry", name).T for name in ("Wc", "Wf"))
    np.testing.assert_allclose(level_geometry(coarse, fine, PARENTS), golden["geo_loss_mean_cos"], rtol=1e-6)
    summed = summed_probabilities(golden_array("hafeature_geometry", "p_fine"), PARENTS, 2)
    np.testing.assert_allclose(summed, golden["p_hat"], rtol=1e-6)
    divergence = jensen_shannon(summed, golden_array("hafeature_geometry", "p_coarse"))
    np.testing.assert_allclose(divergence.mean(), golden["jsd"], rtol=1e-5)


@pytest.mark.slow
def test_the_whole_loss_is_the_sum_of_its_parts():
    keys = jax.random.split(jax.random.key(0), 4)
    logits = [jax.random.normal(keys[0], (3, 2)), jax.random.normal(keys[1], (3, 4))]
    frames = [jax.random.normal(keys[2], (5, 2)), jax.random.normal(keys[3], (5, 4))]
    labels = jnp.array([0, 3, -1])
    coarse, fine = (jax.nn.softmax(z) for z in logits)
    expected = cross_entropy(logits[1], labels) + jensen_shannon(summed_probabilities(fine, PARENTS, 2), coarse)
    expected += dissimilarity(coarse, jnp.array([0, 1, 0]), labels >= 0) - level_geometry(*frames, PARENTS)
    found = hierarchy_aware_features(logits, frames, labels, LEVELS)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5)
    flamingo = level_cross_entropies(logits, labels, jnp.asarray(LEVELS))
    parts = cross_entropy(logits[0], jnp.array([0, 1, 0])) + cross_entropy(logits[1], jnp.array([0, 3, 0]))
    np.testing.assert_allclose(flamingo, parts, rtol=1e-6)
