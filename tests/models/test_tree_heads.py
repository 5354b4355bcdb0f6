"""Heads that know a tree: probabilities, levels, the nearest hierarchy-aware frame and its learned gamma."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from trees import PAIRS, UNEVEN

from nc_jax.frames import hierarchical_constructor, hierarchical_template
from nc_jax.frames.properties import gram
from nc_jax.heads import tree_template
from nc_jax.hierarchy import LabelTree, similarity
from nc_jax.losses import cross_entropy
from nc_jax.models import FixedHead, LevelsHead, NearestHead, TreeSoftmaxHead

TREE, KEY = LabelTree.from_edges(PAIRS), jax.random.key(0)
SIMILARITY = similarity(TREE.distances(), 2.0)
K, DIM, N = 4, 6, 24


def batch(seed=0, num_classes=K):
    rng = np.random.default_rng(seed)
    labels = np.resize(np.arange(num_classes), N)
    features = np.random.default_rng(9).normal(size=(num_classes, DIM))[labels] + 0.3 * rng.normal(size=(N, DIM))
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)


def test_a_fixed_head_takes_the_frame():
    head = FixedHead(K, frame=hierarchical_constructor(SIMILARITY))
    output, variables = head.init_with_output(KEY, jnp.zeros((1, DIM)))
    np.testing.assert_allclose(gram(output.frame), SIMILARITY, atol=1e-6)
    assert "params" not in variables
    with pytest.raises(ValueError, match="dim >= 3; got dim=2"):
        head.init(KEY, jnp.zeros((1, 2)))


@pytest.mark.slow
def test_a_tree_softmax_is_normalised_and_linear_up_to_a_constant():
    tree = LabelTree.from_edges(UNEVEN)
    head = TreeSoftmaxHead(tree)
    features = jax.random.normal(KEY, (3, DIM))
    output, variables = head.init_with_output(KEY, features)
    np.testing.assert_allclose(jnp.exp(output.logits).sum(axis=1), 1, rtol=1e-5)
    node = features @ variables["params"]["kernel"]
    assert output.frame.shape == (DIM, 5)
    e, d = (tree.nodes.index(name) - 1 for name in "ey")
    # "e" and the path to "d" part at the root: their log-probabilities differ by their logits there.
    np.testing.assert_allclose(output.logits[:, 4] - output.logits[:, 3], node[:, e] - node[:, d], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flamingo", "hafeature"])
def test_a_classifier_per_level(kind):
    head = LevelsHead(TREE, kind)
    features = jax.random.normal(KEY, (3, DIM))
    output, variables = head.init_with_output(KEY, features)
    assert [z.shape for z in output.levels.logits] == [(3, 2), (3, 4)]
    np.testing.assert_allclose(features @ output.frame + output.bias, output.logits, rtol=1e-5, atol=1e-6)

    def coarse_loss(features):
        return cross_entropy(head.apply(variables, features).levels.logits[0], jnp.array([0, 1, 0])).sum()

    slopes = jnp.abs(jax.grad(coarse_loss)(features)).sum(axis=0)
    if kind == "flamingo":  # the coarse classifier sees the finer part, but does not move it
        assert (slopes[:3] > 0).all()
        assert (slopes[3:] == 0).all()
        np.testing.assert_array_equal(output.frame[:3], 0)
    else:
        assert (slopes > 0).all()
        np.testing.assert_allclose(jnp.linalg.norm(output.levels.frames[0], axis=0), 1, rtol=1e-5)


# A balanced tree's most separated vectors sum to zero, and so the means are centred; those of an uneven one do not.
BALANCED, UNBALANCED = TREE, LabelTree.from_edges(UNEVEN)


@pytest.mark.slow
@pytest.mark.parametrize(("tree", "dim"), [(BALANCED, 3), (BALANCED, 4), (BALANCED, 6), (UNBALANCED, 6)])
def test_the_nearest_hierarchy_aware_frame(tree, dim):
    num_classes, wanted = len(tree.classes), similarity(tree.distances(), 2.0)
    features, labels = batch(num_classes=num_classes)
    features = features[:, :dim]
    head = NearestHead(num_classes, template=tree_template(tree, 2.0), radius=None)
    variables = head.init(KEY, features)
    np.testing.assert_allclose(gram(variables["nearest"]["frame"]), wanted, atol=1e-6)
    output, updated = head.apply(variables, features, labels, train=True, mutable=["nearest"])
    means = np.stack([features[labels == k].mean(axis=0) for k in range(num_classes)], axis=1)
    rotation = oracles.polar_by_svd(means @ hierarchical_template(wanted).T)
    np.testing.assert_allclose(output.frame, rotation @ hierarchical_template(wanted), atol=2e-4)
    np.testing.assert_allclose(gram(output.frame), wanted, atol=1e-5)
    global_mean = np.mean(features, axis=0) if tree is BALANCED else np.zeros(dim)
    np.testing.assert_allclose(output.bias, -global_mean @ output.frame, atol=1e-7 if tree is UNBALANCED else 1e-5)
    evaluated = head.apply(updated, features)
    np.testing.assert_allclose(evaluated.logits, features @ output.frame + output.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gamma_is_learned_through_the_inner_problem(x64):
    """The derivative of the loss in log gamma, against finite differences of the whole layer."""
    features, labels = batch()
    features = features.astype(jnp.float64)
    head = NearestHead(K, template=tree_template(TREE, 2.0, learn=True), radius=None)
    variables = jax.tree.map(lambda leaf: leaf, head.init(KEY, features))
    rest = {"nearest": variables["nearest"]}

    def loss(log_gamma):
        params = {"template": {"log_gamma": log_gamma}}
        output, _ = head.apply({"params": params, **rest}, features, labels, train=True, mutable=["nearest"])
        return cross_entropy(output.logits, labels).mean()

    loss, start = jax.jit(loss), jnp.log(2.0)
    np.testing.assert_allclose(variables["params"]["template"]["log_gamma"], start, rtol=1e-6)
    expected = oracles.central_difference(lambda step: float(loss(start + step)), 1e-2)
    np.testing.assert_allclose(jax.grad(loss)(start), expected, rtol=1e-3)


def test_a_template_that_does_not_fit_is_refused():
    template = tree_template(TREE, 2.0)
    with pytest.raises(ValueError, match=r"a template needs 5 columns; got shape \(3, 4\)"):
        NearestHead(5, template=template)
    with pytest.raises(ValueError, match="a template of 3 rows needs features of dim >= 3; got dim=2"):
        NearestHead(4, template=template).init(KEY, jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="exponential map"):
        tree_template(TREE, learn=True, mapping="linear")
