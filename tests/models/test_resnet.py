"""ResNets: published sizes, batch statistics in training only, the same on eight devices, padding left out."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from nc_jax import collective
from nc_jax.data import Batch
from nc_jax.models import BatchNorm, Classifier, LearnedHead, ResNet
from nc_jax.training import AXIS, create_state, data_parallel, make_train_step

TINY = {"depth": 18, "stem": "cifar", "width_multiplier": 1 / 16}  # four channels after the stem
KEY = jax.random.key(0, impl="rbg")  # compiles for twenty kernels in 4 s on two cores; the default generator takes 18 s


def shapes_of(model, size=32):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))


def num_params(num_classes, **resnet):
    params = shapes_of(Classifier(ResNet(**resnet), LearnedHead(num_classes)))["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def tiny():
    """A tiny network, its initial variables, a batch of images, and the output and variables of a training pass."""
    model = ResNet(**TINY)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    variables = jax.jit(model.init)(KEY, images)
    return model, variables, images, jax.jit(apply_in_training(ResNet(**TINY)))(variables, images)


def apply_in_training(model):
    return lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"])


# torchvision's documentation of its models.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_imagenet_models_have_the_published_number_of_parameters(depth, published):
    assert num_params(1000, depth=depth) == published


# Counted in the released program of Zhu et al. (2021), 10 classes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "stem", "wide", "narrow"),
    [
        (18, "imagenet", 11_181_642, 8_867_542),
        (18, "cifar", 11_173_962, 8_859_862),
        (50, "imagenet", 23_528_522, 22_481_110),
        (50, "cifar", 23_520_842, 22_473_430),
    ],
)
def test_fixed_feature_dimensions_save_the_published_number_of_parameters(depth, stem, wide, narrow):
    assert num_params(10, depth=depth, stem=stem) == wide
    assert num_params(10, depth=depth, stem=stem, final_dim=10) == narrow


def test_affine_free_networks_have_convolutions_only():
    params = shapes_of(ResNet(18, use_scale=False, use_bias=False))["params"]
    assert {path[-1] for path in flatten_dict(params)} == {"kernel"}
    scaled = shapes_of(ResNet(18, use_bias=False))["params"]
    assert {path[-1] for path in flatten_dict(scaled)} == {"kernel", "scale"}


@pytest.mark.parametrize(
    ("resnet", "size", "dim"),
    [
        ({"depth": 18}, 224, 512),
        ({"depth": 50}, 224, 2048),
        ({"depth": 34, "stem": "cifar"}, 28, 512),
        ({"depth": 50, "stem": "cifar", "width_multiplier": 2.0}, 32, 4096),
        ({"depth": 18, "width_multiplier": 1 / 64}, 33, 8),
        ({"depth": 18, "width_multiplier": 0.5, "final_dim": 7}, 64, 7),
    ],
)
def test_features_have_the_promised_dimension(resnet, size, dim):
    model = ResNet(**resnet)
    images = jax.ShapeDtypeStruct((3, size, size, 1), jnp.float32)
    features = jax.eval_shape(lambda images: model.init_with_output(jax.random.key(0), images)[0], images)
    assert (features.shape, features.dtype) == ((3, dim), jnp.float32)


@pytest.mark.slow
def test_batch_statistics_change_in_training_only(tiny):
    model, variables, images, (features, updated) = tiny
    evaluated, after = jax.jit(lambda v, x: model.apply(v, x, mutable=["batch_stats"]))(variables, images)
    chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    assert float(jnp.min(features)) >= 0  # averages of ReLUs
    assert not np.allclose(features, evaluated)


@pytest.mark.slow
def test_initial_kernels_preserve_the_gradient(tiny):
    """He initialisation by fan-out: variance 2 / (receptive field x output channels)."""
    kernels = {path: leaf for path, leaf in flatten_dict(tiny[1]["params"]).items() if path[-1] == "kernel"}
    scaled = [
        np.ravel(kernel) * np.sqrt(math.prod(kernel.shape[:2]) * kernel.shape[3] / 2) for kernel in kernels.values()
    ]
    assert np.std(np.concatenate(scaled)) == pytest.approx(1, abs=0.02)  # 4e4 weights: a standard error of 0.004


def test_blocks_start_as_their_shortcuts_if_asked_to():
    def initial_scales():
        params = ResNet(**TINY, zero_init_residual=True).init(KEY, jnp.ones((1, 8, 8, 3)))["params"]
        return {path: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "scale"}

    for path, scale in jax.jit(initial_scales)().items():  # compiled: the rest of the initialisation is cut out
        assert np.all(scale == (0 if path[-2] == "last_norm" else 1))


@pytest.mark.slow
def test_bfloat16_is_for_computing_and_float32_for_keeping(tiny):
    _, variables, images, (features, updated) = tiny
    narrow = jax.jit(apply_in_training(ResNet(**TINY, dtype=jnp.bfloat16)))
    found, found_updated = narrow(variables, images)
    chex.assert_trees_all_equal_shapes_and_dtypes((found, found_updated), (features, updated))
    assert "convolution" in (text := narrow.lower(variables, images).as_text())
    assert all("bf16" in line for line in text.splitlines() if "stablehlo.convolution" in line)
    error = np.linalg.norm(found - features) / np.linalg.norm(features)
    assert 1e-4 < error < 0.05  # seventeen layers of 8-bit mantissas


@pytest.mark.slow
def test_eight_devices_share_their_batch_statistics(tiny):
    """One training step, gradients included, is the same on eight devices; two of them hold nothing but padding."""
    images, labels = tiny[2], jnp.arange(16) % 3
    batch = Batch(images, labels, jnp.arange(16) < 11)
    ends = []
    for axis_name, run in (
        (None, jax.jit),
        (AXIS, data_parallel),
    ):
        model = Classifier(ResNet(**TINY), LearnedHead(3))
        optimizer = optax.sgd(0.1)
        state = create_state(model, optimizer, KEY, images)
        ends.append(jax.device_get(run(make_train_step(model, optimizer, axis_name=axis_name))(state, batch)))
    assert bool(ends[0][1].finite)
    chex.assert_trees_all_close(ends[0], ends[1], rtol=1e-3, atol=1e-5)  # float32 sums in another order


# --- BatchNorm alone: Flax's as the oracle. ---

FLAX = {"rtol": 1e-7, "atol": 1e-10}  # float64 but for the running statistics, which Flax keeps in float32


def normalise(inputs, mask=None, *, cotangent=None, **options):
    """Outputs, new statistics and input gradient of one training pass of a fresh layer."""
    layer = BatchNorm(**options)
    variables = BatchNorm().init(jax.random.key(0), inputs, train=True)
    cotangent = jnp.ones_like(inputs) if cotangent is None else cotangent

    def loss(inputs):
        outputs, updated = layer.apply(variables, inputs, train=True, mask=mask, mutable=["batch_stats"])
        return jnp.sum(outputs * cotangent), (outputs, updated["batch_stats"])

    gradient, (outputs, statistics) = jax.grad(loss, has_aux=True)(inputs)
    return outputs, statistics, gradient


def normalise_by_flax(inputs, cotangent):
    layer = nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)
    variables = layer.init(jax.random.key(0), inputs)

    def loss(inputs):
        outputs, updated = layer.apply(variables, inputs, mutable=["batch_stats"])
        return jnp.sum(outputs * cotangent), (outputs, updated["batch_stats"])

    gradient, (outputs, statistics) = jax.grad(loss, has_aux=True)(inputs)
    return outputs, statistics, gradient


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_batch_norm_is_that_of_flax():
    inputs, cotangent = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 6, 5, 5, 4))
    found, expected = normalise(inputs, cotangent=cotangent), normalise_by_flax(inputs, cotangent)
    chex.assert_trees_all_close(found, expected, **FLAX)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_padding_does_not_count():
    inputs, cotangent = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 6, 5, 5, 4))
    mask = jnp.array([True, False, True, True, False, False])
    garbage = jnp.where(mask[:, None, None, None], inputs, jnp.inf)
    outputs, statistics, _ = normalise(garbage, mask)
    expected = normalise_by_flax(inputs[mask], cotangent[mask])
    chex.assert_trees_all_close((outputs[mask], statistics), expected[:2], **FLAX)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_devices_with_different_numbers_of_examples_weigh_accordingly():
    inputs, cotangent = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 16, 5, 4))
    mask = jnp.arange(16) < 11  # two examples on each of five devices, one on the sixth, none on the others
    cotangent = jnp.where(mask[:, None, None], cotangent, 0)  # padding has no loss

    def shared(_, batch):
        with collective.over(AXIS):
            outputs, statistics, gradient = normalise(batch["x"], batch["mask"], cotangent=batch["g"])
        return statistics, jax.lax.all_gather((outputs, gradient), AXIS, tiled=True)

    statistics, (outputs, gradient) = data_parallel(shared)(0, {"x": inputs, "mask": mask, "g": cotangent})
    expected = normalise_by_flax(inputs[mask], cotangent[mask])
    chex.assert_trees_all_close((outputs[mask], statistics, gradient[mask]), expected, **FLAX)
    assert not np.any(gradient[~mask])


@pytest.mark.slow
def test_a_batch_of_padding_leaves_the_running_statistics():
    outputs, statistics, _ = normalise(jnp.ones((4, 3)), jnp.zeros(4, bool))
    np.testing.assert_array_equal(statistics["mean"], np.zeros(3))
    np.testing.assert_array_equal(statistics["var"], np.ones(3))
    assert np.all(np.isfinite(outputs))


@pytest.mark.slow
def test_channels_far_from_zero_keep_their_variance_once_their_mean_is_known():
    """In float32 the mean of squares minus the square of the mean is off by 10 to 100 percent here."""
    inputs = 3000 + jax.random.normal(jax.random.key(0), (256, 4, 4, 2))
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    variables["batch_stats"] = {"mean": jnp.full(2, 2999.0), "var": jnp.ones(2)}
    outputs, _ = BatchNorm().apply(variables, inputs, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.std(outputs, axis=(0, 1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 20}, "depth must be one of 18, 34, 50, 101, 152; got 20"),
        ({"depth": 18, "width_multiplier": 0.0}, "width_multiplier must leave at least one of 64 channels; got 0"),
        ({"depth": 18, "final_dim": 0}, "final_dim must be at least 1, or None; got 0"),
        ({"depth": 18, "zero_init_residual": True, "use_scale": False}, "zero_init_residual needs a scale"),
    ],
)
def test_what_cannot_be_built_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        shapes_of(ResNet(**options))
