"""A backbone and a head: which backbones a classifier calls, and how."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nc_jax.models import Classifier, LearnedHead, NearestHead, WithNeck

INPUTS, LABELS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 5)), jnp.float32), jnp.arange(12) % 4


class OnlyTrain(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train=False):
        return nn.Dropout(0.5, deterministic=not train)(inputs)


class NNXBackbone(nnx.Module):
    """A backbone without the keywords `train` and `mask`, which `to_linen` hides behind **kwargs."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(5, 8, rngs=rngs)

    def __call__(self, inputs):
        return self.linear(inputs)


class NNXWithKeywords(NNXBackbone):
    def __call__(self, inputs, *, train, mask):
        assert mask is None or mask.shape == (12,)
        return self.linear(inputs) if train else self.linear(inputs) + 1


PLAIN = {
    "Dense": nn.Dense(8),
    "Sequential": nn.Sequential([nn.Dense(8), nn.relu]),
    "NNX": nnx.bridge.to_linen(NNXBackbone),
    "a neck": WithNeck(nn.Dense(6), (nn.Dense(8),)),
}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", PLAIN.values(), ids=PLAIN)
def test_layers_without_train_and_mask_are_backbones_too(backbone):
    model = Classifier(backbone, NearestHead(4))
    variables = model.init(jax.random.key(0), INPUTS)
    output, updated = model.apply(variables, INPUTS, LABELS, train=True, mutable=["nearest"])
    assert output.features.shape == (12, 8)
    assert int(updated["nearest"]["head"]["steps"]) == 1


def test_a_backbone_of_nnx_is_told_whether_it_trains():
    model = Classifier(nnx.bridge.to_linen(NNXWithKeywords), LearnedHead(4))
    variables = model.init(jax.random.key(0), INPUTS)
    trained, evaluated = (model.apply(variables, INPUTS, LABELS, train=train).features for train in (True, False))
    np.testing.assert_allclose(evaluated - trained, 1, atol=1e-5)


def test_a_layer_with_one_of_the_two_keywords_is_refused():
    with pytest.raises(ValueError, match="keywords train and mask, or neither; OnlyTrain takes only train"):
        Classifier(OnlyTrain(), LearnedHead(4)).init(jax.random.key(0), INPUTS)


def test_one_hot_labels_are_refused():
    model = Classifier(nn.Dense(8), LearnedHead(4))
    with pytest.raises(ValueError, match="take argmax"):
        model.init(jax.random.key(0), INPUTS, jax.nn.one_hot(LABELS, 4))
