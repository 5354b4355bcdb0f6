"""Losses that know a tree, against the released programs' values and the definitions node by node."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import PAIRS, UNEVEN

from nc_jax.hierarchy import LabelTree
from nc_jax.losses import (
    conditional_risk_scores,
    cross_entropy,
    hierarchical_cross_entropy,
    level_weights,
    soft_label_loss,
    soft_targets,
    tree_log_softmax,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())
TREE = LabelTree.from_edges(PAIRS)
LEVELS = jnp.asarray(TREE.levels())
F32 = 2e-6


@pytest.mark.parametrize("beta", GOLDEN["soft_labels"]["by_beta"])
def test_soft_targets(beta):
    # The golden matrix has targets as columns; for this symmetric tree that is the same.
    golden = GOLDEN["soft_labels"]["by_beta"][beta]
    np.testing.assert_allclose(soft_targets(TREE.distances(), float(beta)).T, golden, rtol=1e-6)


@pytest.mark.slow
def test_soft_label_loss_is_a_divergence():
    targets = jnp.asarray(soft_targets(TREE.distances(), 4.0), jnp.float32)
    labels = jnp.array([2, 0])
    np.testing.assert_allclose(soft_label_loss(jnp.log(targets[labels]), labels, targets), 0, atol=1e-6)
    logits = jax.random.normal(jax.random.key(0), (2, 4))
    np.testing.assert_allclose(soft_label_loss(logits, labels, jnp.eye(4)), cross_entropy(logits, labels), rtol=1e-5)
    with pytest.raises(ValueError, match="hardness must be positive"):
        soft_targets(TREE.distances(), 0.0)


@pytest.mark.parametrize("alpha", GOLDEN["hxe_4class"]["by_alpha"])
def test_hierarchical_cross_entropy(alpha):
    golden = GOLDEN["hxe_4class"]
    weights = level_weights(TREE, float(alpha))
    np.testing.assert_allclose(weights[1], golden["by_alpha"][alpha]["edge_weights"]["(0, 0)"], rtol=1e-9)
    logits, labels = jnp.asarray(golden["logits"], jnp.float32), jnp.asarray(golden["y"])
    found = hierarchical_cross_entropy(logits, labels, LEVELS, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(found.mean(), golden["by_alpha"][alpha]["loss"], rtol=F32)
    flat = hierarchical_cross_entropy(logits, labels, LEVELS, jnp.ones(2))
    np.testing.assert_allclose(flat.mean(), golden["flat_CE"], rtol=F32)


@pytest.mark.slow
def test_a_leaf_below_the_root_has_a_finite_loss_and_gradient():
    tree = LabelTree.from_edges(UNEVEN)
    weights, levels = jnp.array([3.0, 2.0, 1.0]), jnp.asarray(tree.levels())
    logits = jax.random.normal(jax.random.key(0), (1, 5))
    p = np.asarray(jax.nn.softmax(logits))[0]
    expected = {"e": -3 * np.log(p[4]), "d": -3 * np.log(p[3])}
    expected["b"] = -3 * np.log(p[:3].sum()) - 2 * np.log(p[1:3].sum() / p[:3].sum()) - np.log(p[1] / p[1:3].sum())
    for name, value in expected.items():
        label = jnp.array([tree.classes.index(name)])
        np.testing.assert_allclose(hierarchical_cross_entropy(logits, label, levels, weights)[0], value, rtol=1e-5)
        gradient = jax.grad(lambda z, y=label: hierarchical_cross_entropy(z, y, levels, weights).sum())(logits)
        assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_conditional_probabilities_of_a_tree():
    golden = GOLDEN["yolo_v2_4class"]
    places = [golden["classes"].index(node) for node in TREE.nodes[1:]]
    logits = jnp.asarray(golden["logits"], jnp.float32)[:, places]  # no logit for the root, which has no siblings
    found = tree_log_softmax(logits, TREE)
    np.testing.assert_allclose(jnp.exp(found), golden["leaf_probs"], rtol=1e-5)
    for alpha, name in ((0.0, "loss_alpha0"), (0.4, "loss_alpha0_4")):
        weights = jnp.asarray(level_weights(TREE, alpha), jnp.float32)
        losses = hierarchical_cross_entropy(found, jnp.asarray(golden["y"]), LEVELS, weights)
        np.testing.assert_allclose(losses.mean(), golden[name], rtol=1e-5)
    with pytest.raises(ValueError, match="6 nodes besides the root; got 7"):
        tree_log_softmax(jnp.zeros((1, 7)), TREE)
    gradient = jax.grad(lambda z: tree_log_softmax(1e3 * z, TREE)[0, 0])(logits)
    assert np.isfinite(gradient).all()


def test_conditional_risk():
    golden = GOLDEN["crm_and_metrics"]
    probabilities = jnp.maximum(jnp.asarray(golden["P"], jnp.float32), 1e-30)
    scores = conditional_risk_scores(jnp.log(probabilities), TREE.distances())
    np.testing.assert_allclose(scores, golden["neg_risk"], rtol=1e-5)
    np.testing.assert_array_equal(jnp.argmax(scores, axis=1), golden["argmax_crm"])
