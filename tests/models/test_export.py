"""Backbones and heads by jax.export, for any batch size: written and read back, they give the same numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from networks import drawn_variables
from trees import PAIRS

from nc_jax import heads, models, nearest_simplex_etf
from nc_jax.frames import nonnegative_orthogonal
from nc_jax.heads import Head
from nc_jax.hierarchy import LabelTree
from nc_jax.manifolds import PARAMETRISATIONS
from nc_jax.models import (
    MLP,
    VGG,
    Bottleneck,
    Classifier,
    DenseNet,
    EfficientNet,
    NearestHead,
    Projection,
    ResNet,
    Transformation,
    ViT,
    WideResNet,
    WithNeck,
)

K, DIM = 4, 6
TREE = LabelTree.from_edges(PAIRS)
# The same program is compiled once more, for another batch size: products may add in another order.
SAME = {"rtol": 1e-5, "atol": 1e-5}


class Batched(NamedTuple):
    """An argument whose first axis is the batch."""

    shape: tuple[int, ...]
    dtype: Any = jnp.float32


def read_back(function: Callable, *arguments: Any) -> Callable:
    """The function after a round trip through bytes, for batches of any size.

    Args:
        function: what is exported.
        arguments: its arguments, or `Batched` for those that come in batches.
    """
    (batch,) = export.symbolic_shape("batch")

    def shaped(one):
        if isinstance(one, Batched):
            return jax.ShapeDtypeStruct((batch, *one.shape), one.dtype)
        return jax.ShapeDtypeStruct(np.shape(one), one.dtype)

    shapes = jax.tree.map(shaped, arguments, is_leaf=lambda one: isinstance(one, Batched))
    written = export.export(jax.jit(function))(*shapes).serialize()
    return export.deserialize(bytearray(written)).call


def assert_same(found, expected):
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, **SAME), found, expected)


# --- Heads. ---

HEADS = {
    "learned": heads.learned(K, radius=2.0, normalize_columns=True),
    "learned on the sphere": heads.learned(K, on_sphere=True),
    "fixed": heads.fixed(K, radius=5.0),
    "fixed, non-negative": heads.fixed(K, frame=nonnegative_orthogonal),
    "rotated": heads.rotated(K),
    **{f"rotated, {kind}": heads.rotated(K, parametrisation=kind) for kind in PARAMETRISATIONS},
    "nearest": heads.nearest(K),
    "nearest, full template": heads.nearest(K, reduced=False, centre="classes"),
    "nearest to a tree": heads.nearest(K, template=heads.tree_template(TREE), solver="trust_region"),
    "pooled": heads.pooled(K),
    "sampled": heads.sampled(heads.learned(K), 2),
    "sampled nearest": heads.sampled(heads.nearest(K), 2),
    "staged": heads.staged(heads.learned(K), heads.fixed(K), 3),
    "tree softmax": heads.tree_softmax(TREE),
    "levels": heads.levels(TREE),
    "levels on the sphere": heads.levels(TREE, "hafeature"),
}
FEATURES = np.random.default_rng(0).normal(size=(12, DIM)).astype(np.float32)
LABELS = np.arange(12) % K


def test_the_catalogue_has_every_head():
    public = {name: getattr(heads, name) for name in heads.__all__}
    constructors = {name for name, one in public.items() if getattr(one, "__annotations__", {}).get("return") is Head}
    assert {name.split(",")[0].replace(" softmax", "_softmax").split(" ")[0] for name in HEADS} >= constructors


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_head_classifies_batches_of_any_size(name):
    head = HEADS[name]
    params, state = head.init(jax.random.key(0), DIM)

    def classify(params, state, features):
        return head.apply(params, state, features)[0]

    portable = read_back(classify, params, state, Batched((DIM,)))
    for rows in (1, 12):
        assert_same(portable(params, state, FEATURES[:rows]), classify(params, state, FEATURES[:rows]))


# Sampled heads sort the classes of a batch, whose number must be known.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HEADS if "sampled" not in name])
def test_a_training_step_takes_batches_of_any_size(name):
    head = HEADS[name]
    params, state = head.init(jax.random.key(0), DIM)

    def step(params, state, features, labels):
        return head.apply(params, state, features, labels, train=True)

    portable = read_back(step, params, state, Batched((DIM,)), Batched((), jnp.int32))
    for rows in (8, 12):
        batch = FEATURES[:rows], LABELS[:rows].astype(np.int32)
        assert_same(portable(params, state, *batch), jax.jit(step)(params, state, *batch))


@pytest.mark.slow
def test_the_nearest_frame_itself_is_portable():
    means = jnp.asarray(FEATURES[:K].T)
    portable = read_back(lambda means: nearest_simplex_etf(means, solver="polar"), means)
    assert_same(portable(means), nearest_simplex_etf(means, solver="polar"))


# --- Backbones. ---

# Small in every way; VGG's layers for ImageNet need images of 32 x 32.
BACKBONES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "MLP": (MLP((8,), DIM), (3, 3, 1)),
    "MLP, bottleneck": (WithNeck(MLP((8,), 8), (Bottleneck(DIM),)), (9,)),
    "MLP, projection and transformation": (WithNeck(MLP((8,), 8), (Projection(DIM), Transformation())), (9,)),
    "ViT": (ViT("tiny", patch=4, depth=1, width_multiplier=1 / 16), (8, 8, 3)),
    "ResNet": (ResNet(18, stem="cifar", width_multiplier=1 / 16), (8, 8, 3)),
    "ResNet, bottlenecks": (ResNet(50, width_multiplier=1 / 16), (32, 32, 3)),
    "WideResNet": (WideResNet(10, width_multiplier=0.25), (8, 8, 3)),
    "VGG": (VGG(11, top="cifar", width_multiplier=1 / 16), (32, 32, 3)),
    "VGG, imagenet": (VGG(11, width_multiplier=1 / 64), (32, 32, 3)),
    "DenseNet": (DenseNet(10, stem="cifar", growth=4), (8, 8, 3)),
    "EfficientNet": (EfficientNet(width_multiplier=1 / 8, depth_multiplier=0.25), (16, 16, 3)),
}
QUICK = ("MLP", "MLP, bottleneck", "MLP, projection and transformation", "ViT")


def test_the_catalogue_has_every_backbone():
    others = {models.BatchNorm, models.Classifier, models.HeadModule, models.PReLU}
    kinds = {kind for kind in vars(models).values() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    parts = [part for network, _ in BACKBONES.values() for part in (network, *getattr(network, "necks", ()))]
    assert {type(part) for part in parts} >= kinds - others


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
def test_a_network_classifies_batches_of_any_size(name):
    backbone, shape = BACKBONES[name]
    model = Classifier(backbone, NearestHead(K, initial="random"))
    variables = drawn_variables(model, shape)
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    portable = read_back(model.apply, variables, Batched(shape))
    for rows in (1, 3):
        expected = jax.jit(model.apply)(variables, images[:rows])
        assert_same(portable(variables, images[:rows]), expected)
        assert np.isfinite(expected.logits).all()
        assert np.abs(expected.logits).max() > 0.1
