"""All backbones but ResNet: published sizes, shapes and dtypes, padding left out, the same on eight devices."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nc_jax import collective
from nc_jax.models import VGG, Classifier, DenseNet, EfficientNet, LearnedHead, ViT, WideResNet
from nc_jax.training import AXIS, data_parallel

NUM_ROWS, NUM_EXAMPLES = 16, 11  # the other rows are padding; on eight devices two have nothing else, one has half
MASK = np.arange(NUM_ROWS) < NUM_EXAMPLES


def shapes_of(model, side=32):
    return networks.shapes_of(model, (side, side, 3))


def drawn_variables(model, side):
    return networks.drawn_variables(model, (side, side, 3))


def num_params(backbone, num_classes, side):
    params = shapes_of(Classifier(backbone, LearnedHead(num_classes)), side)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "published"),
    [  # with a classifier of 1000 classes, torchvision's documentation of its models
        (VGG(11), 132_868_840),
        (VGG(13), 133_053_736),
        (VGG(16), 138_365_992),
        (VGG(19), 143_678_248),
        (DenseNet(121), 7_978_856),
        (DenseNet(169), 14_149_480),
        (EfficientNet(), 5_288_548),
        (EfficientNet(1.1, 1.2), 9_109_994),  # B2: both multipliers round
        # timm's vit_*_patch16_224
        (ViT("tiny"), 5_717_416),
        (ViT("small"), 22_050_664),
        (ViT("base"), 86_567_656),
    ],
)
def test_imagenet_models_have_the_published_number_of_parameters(backbone, published):
    assert num_params(backbone, 1000, 224) == published


@pytest.mark.parametrize(
    ("backbone", "published"),
    [  # with a classifier of 10 classes
        (WideResNet(), 36_479_194),  # "36.5M" in the paper, this number in the model zoo imgclsmob, as the next two
        (WideResNet(16), 17_116_634),
        (WideResNet(40, width_multiplier=8.0), 35_748_314),
        (DenseNet(40, stem="cifar", growth=12, bottleneck=False), 1_019_722),  # "1.0M" in the paper
        (DenseNet(100, stem="cifar", growth=12), 769_162),  # "0.8M" in the paper, this number in imgclsmob
        (VGG(11, top="cifar"), 9_231_114),  # kuangliu/pytorch-cifar, as the next
        (VGG(16, top="cifar"), 14_728_266),
    ],
)
def test_cifar_models_have_the_published_number_of_parameters(backbone, published):
    assert num_params(backbone, 10, 32) == published


@pytest.mark.parametrize(
    ("backbone", "side", "dim"),
    [
        (WideResNet(10, width_multiplier=2.0), 28, 128),
        (WideResNet(10, width_multiplier=0.5, final_dim=7), 32, 7),
        (VGG(11, width_multiplier=0.25), 64, 1024),
        (VGG(11, final_dim=7), 32, 7),
        (VGG(13, top="cifar"), 40, 512),
        (VGG(11, top="cifar", final_dim=7), 32, 7),
        (DenseNet(121), 29, 1024),
        (DenseNet(40, stem="cifar", growth=12, bottleneck=False), 4, 448),
        (EfficientNet(depth_multiplier=0.1), 33, 1280),
        (EfficientNet(0.5, 0.1, stem="cifar", final_dim=7), 28, 7),
        (ViT("small", patch=4, depth=1), 32, 384),
        (ViT("tiny", patch=7, depth=1, width_multiplier=0.125), 28, 24),
    ],
)
def test_features_have_the_promised_dimension(backbone, side, dim):
    images = jax.ShapeDtypeStruct((3, side, side, 1), jnp.float32)
    features = jax.eval_shape(lambda images: backbone.init_with_output(jax.random.key(0), images)[0], images)
    assert (features.shape, features.dtype) == ((3, dim), jnp.float32)


class Case(NamedTuple):
    """A backbone small enough to run, and the side of its images."""

    backbone: type[nn.Module]
    options: Mapping[str, Any]
    side: int


CASES = {
    "WideResNet": Case(WideResNet, {"depth": 10, "width_multiplier": 0.25}, 8),
    "VGG": Case(VGG, {"depth": 11, "top": "cifar", "width_multiplier": 1 / 16}, 32),
    "DenseNet": Case(DenseNet, {"depth": 10, "stem": "cifar", "growth": 4}, 8),
    "EfficientNet": Case(EfficientNet, {"width_multiplier": 1 / 8, "depth_multiplier": 0.25}, 16),
    "ViT": Case(ViT, {"layout": "tiny", "patch": 4, "depth": 2, "width_multiplier": 1 / 16}, 8),
}


def drawn_images(side):
    return np.random.default_rng(1).normal(size=(NUM_ROWS, side, side, 3)).astype(np.float32)


def compiled(function):
    """`jax.jit` for functions that run a few times only: without optimisation, compilation takes half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def train_pass(model):
    """Features, new statistics and gradients of a loss on the examples."""

    def run(variables, images, mask):
        def loss(params):
            features, updated = model.apply(
                {**variables, "params": params}, images, train=True, mask=mask, mutable=["batch_stats"]
            )
            cotangent = jnp.where(mask[:, None], jnp.cos(jnp.arange(features.size).reshape(features.shape)), 0)
            return jnp.sum(features * cotangent), (features, updated)

        gradient, (features, updated) = jax.grad(loss, has_aux=True)(variables["params"])
        return features, updated, gradient

    return run


@pytest.fixture(scope="module", params=CASES)
def tiny(request):
    """A tiny network, its variables, images, its compiled training pass, and the result of this pass."""
    case = CASES[request.param]
    model = case.backbone(**case.options)
    variables = drawn_variables(model, case.side)
    images, run = drawn_images(case.side), compiled(train_pass(model))
    return case, variables, images, run, jax.device_get(run(variables, images, MASK))


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_kernel(tiny):
    _, variables, _, _, (features, _, gradient) = tiny
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, variables["params"])
    assert features.dtype == jnp.float32
    for path, leaf in flatten_dict(gradient).items():
        assert np.all(np.isfinite(leaf)), path
        assert path[-1] != "kernel" or np.any(leaf != 0), path


@pytest.mark.slow
def test_padding_does_not_count(tiny):
    _, variables, images, run, (features, updated, gradient) = tiny
    garbage = np.where(MASK[:, None, None, None], images, np.float32(1e3))
    found = jax.device_get(run(variables, garbage, MASK))
    chex.assert_trees_all_close((found[0][MASK], *found[1:]), (features[MASK], updated, gradient), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0][~MASK], features[~MASK])


@pytest.mark.slow
def test_batch_statistics_change_in_training_only(tiny):
    case, variables, images, _, (_, updated, _) = tiny
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), updated, {k: variables[k] for k in updated})
    assert all(jax.tree.leaves(moved))
    assert ("batch_stats" in variables) == (case.backbone is not ViT)
    # Evaluation changes no variable: Flax would raise on a write to an immutable collection.
    jax.eval_shape(case.backbone(**case.options).apply, variables, images)


@pytest.mark.slow
def test_bfloat16_is_for_computing_and_float32_for_keeping(tiny):
    case, variables, images, _, (features, updated, _) = tiny
    model = case.backbone(**case.options, dtype=jnp.bfloat16)
    narrow = jax.jit(lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    found = jax.eval_shape(narrow, variables, images)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, (features, updated))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(model, case.side))} == {jnp.dtype("float32")}
    products = [
        line
        for line in narrow.lower(variables, images).as_text().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert products
    assert all("bf16" in line for line in products)


@pytest.mark.slow
def test_eight_devices_share_their_batch_statistics():
    """Features and statistics are the same on eight devices, though two of them hold nothing but padding."""
    case = CASES["WideResNet"]
    variables = drawn_variables(case.backbone(**case.options), case.side)

    model = case.backbone(**case.options)

    def alone(variables, batch):
        return model.apply(variables, batch["images"], train=True, mask=batch["mask"], mutable=["batch_stats"])

    def shared(variables, batch):
        with collective.over(AXIS):
            features, updated = alone(variables, batch)
        return jax.lax.all_gather(features, AXIS, tiled=True), updated

    batch = {"images": drawn_images(case.side), "mask": MASK}
    alone, shared = compiled(alone)(variables, batch), data_parallel(shared)(variables, batch)
    chex.assert_trees_all_close(jax.device_get(alone), jax.device_get(shared), rtol=1e-4, atol=1e-5)


def test_tokens_know_their_places():
    """A ViT without position embeddings would not see that two patches have changed places."""
    case = CASES["ViT"]
    model, variables = case.backbone(**case.options), drawn_variables(case.backbone(**case.options), case.side)
    image = drawn_images(case.side)[:1]
    pair = np.concatenate([image, np.roll(image, 4, axis=1)])  # swaps the upper patches with the lower ones
    without = {"params": {**variables["params"], "positions": np.zeros((1, 5, 12), np.float32)}}
    apply = compiled(model.apply)
    seen, blind = apply(variables, pair), apply(without, pair)
    np.testing.assert_allclose(blind[0], blind[1], atol=1e-5)
    assert not np.allclose(seen[0], seen[1], atol=1e-2)


@pytest.mark.slow
def test_initial_depthwise_kernels_preserve_the_gradient():
    """Their variance is 2 / (number of pixels), however many channels there are."""

    def kernel():
        images = jnp.ones((1, 8, 8, 3))
        params = EfficientNet(1.0, 0.25).init(jax.random.key(0, impl="rbg"), images)["params"]
        return params["stage5_block1"]["depthwise"]["kernel"]

    drawn = jax.jit(kernel)()  # compiled: the rest of the initialisation is cut out
    assert drawn.shape == (5, 5, 1, 6 * 80)
    assert np.std(drawn) == pytest.approx(math.sqrt(2 / 25), rel=0.03)  # 12,000 weights: a standard error of 0.6 %


def test_affine_free_networks_have_convolutions_only():
    free = {"use_scale": False, "use_bias": False}
    for backbone in (
        WideResNet(10, **free),
        VGG(11, top="cifar", **free),
        DenseNet(10, stem="cifar", **free),
    ):
        assert {path[-1] for path in flatten_dict(shapes_of(backbone)["params"])} == {"kernel"}


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        (WideResNet(27), "depth must be 6n \\+ 4 for a whole n >= 1; got 27"),
        (WideResNet(4), "depth must be 6n \\+ 4 for a whole n >= 1; got 4"),
        (WideResNet(10, width_multiplier=0.0), "width_multiplier must leave at least one of 16 channels; got 0"),
        (WideResNet(10, final_dim=0), "final_dim must be at least 1, or None; got 0"),
        (VGG(12), "depth must be one of 11, 13, 16, 19; got 12"),
        (VGG(11, width_multiplier=0.001), "width_multiplier must leave at least one of 64 channels; got 0.001"),
        (VGG(11, final_dim=-1), "final_dim must be at least 1, or None; got -1"),
        (DenseNet(40), "depth must be one of 121, 169, 201 with the imagenet stem; got 40"),
        (DenseNet(40, stem="cifar", bottleneck=True, growth=0), "growth must be at least 1; got 0"),
        (DenseNet(41, stem="cifar"), "depth must be 6n \\+ 4 for a whole n >= 1; got 41"),
        (DenseNet(41, stem="cifar", bottleneck=False), "depth must be 3n \\+ 4 for a whole n >= 1; got 41"),
        (DenseNet(121, bottleneck=False), "bottleneck must be True with the imagenet stem; got False"),
        (EfficientNet(0.0), "width_multiplier must be positive; got 0.0"),
        (EfficientNet(1.0, -1.0), "depth_multiplier must be positive; got -1.0"),
        (EfficientNet(final_dim=0), "final_dim must be at least 1, or None; got 0"),
        (ViT("tiny", patch=5), "sides of images must be multiples of patch=5; got 32 x 32"),
        (ViT("tiny", patch=0), "patch must be at least 1; got 0"),
        (ViT("tiny", patch=4, depth=0), "depth must be at least 1; got 0"),
        (ViT("tiny", patch=4, width_multiplier=1 / 192), "must leave a positive multiple of 3 channels; got 0.005"),
    ],
)
def test_what_cannot_be_built_is_refused(backbone, sentence):
    with pytest.raises(ValueError, match=sentence):
        shapes_of(backbone)


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        (VGG(11), "images must be at least 32 pixels high and wide; got 28 x 28"),
        (DenseNet(121), "images must be at least 29 pixels high and wide; got 28 x 28"),
    ],
)
def test_images_too_small_are_refused(backbone, sentence):
    with pytest.raises(ValueError, match=sentence):
        shapes_of(backbone, 28)
