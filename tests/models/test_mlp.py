"""The multilayer perceptron against its formula, and the classifier made of a backbone and a head."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.models import MLP, Classifier, FixedHead, LearnedHead, NearestHead

KEY = jax.random.key(0)
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 0, 1])
F32_EXACT = 1e-5


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_equals_the_formula(hidden):
    network = MLP(hidden, 4)
    variables = network.init(KEY, INPUTS)
    layers = [variables["params"][f"Dense_{number}"] for number in range(len(hidden))]
    expected = INPUTS
    for layer in layers:
        expected = np.maximum(expected @ layer["kernel"] + layer["bias"], 0)
    last = variables["params"]["features"]
    expected = expected @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(network.apply(variables, INPUTS), expected, atol=F32_EXACT)
    np.testing.assert_array_equal(network.apply(variables, INPUTS, train=True), network.apply(variables, INPUTS))
    assert len(variables["params"]) == len(hidden) + 1
    assert (expected < 0).any(), "the features are linear"


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", [LearnedHead(3), FixedHead(3, radius=5.0), NearestHead(3)], ids=lambda head: head.head.name
)
def test_a_classifier_is_a_backbone_and_a_head(head):
    model = Classifier(MLP((8,), 4), head)
    variables = model.init(KEY, INPUTS)
    assert set(variables["params"]["backbone"]) == {"Dense_0", "features"}
    output, _ = model.apply(variables, INPUTS, LABELS, train=True, mutable=["nearest"])
    features = MLP((8,), 4).apply({"params": variables["params"]["backbone"]}, INPUTS)
    if head.head.name != "learned":
        features = 5 * features / jnp.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(output.features, features, atol=F32_EXACT)
    np.testing.assert_allclose(output.logits, features @ output.frame + output.bias, atol=F32_EXACT)
    assert (output.solution is None) == (head.head.name != "nearest")
    assert model.apply(variables, INPUTS).logits.shape == (5, 3), "no labels are needed to classify"
