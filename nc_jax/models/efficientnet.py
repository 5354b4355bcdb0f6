"""EfficientNets of Tan and Le (2019), as backbones: images -> features."""

import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32
from nc_jax.checks import check_at_least
from nc_jax.models.convolutional import FAN_IN, layers, mean_over_pixels


class _Stage(NamedTuple):
    expansion: int  # channels of a block's depthwise convolution, in units of the block's input channels
    size: int  # side of the kernel of the depthwise convolution
    stride: int  # stride of the first block
    width: int  # output channels of a block
    num_blocks: int


STAGES = (  # Tan and Le (2019), table 1, where a stride of 2 shows as a lower resolution of the next stage
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
STEM_WIDTH = 32  # channels of the stem: Tan and Le (2019), table 1
TOP = 4  # channels of the last convolution, in units of the last stage's: Tan and Le (2019), table 1
SQUEEZE = 4  # a block's input channels over the squeezed channels: released program, ratio 0.25
DIVISOR = 8  # every number of channels is a multiple of this: released program


class EfficientNet(nn.Module):
    r"""EfficientNet without its classifier: inverted bottlenecks with squeeze-and-excitation, SiLU, global average.

    The multipliers (1, 1) of width and depth give B0, (1, 1.1) B1, (1.1, 1.2) B2, (1.2, 1.4) B3, (1.4, 1.8) B4. As in
    torchvision, every convolution is padded by half its size on each side, and BatchNorm has its usual momentum. The
    features are averages of SiLUs: some are negative, but none is below -0.279. Stochastic depth and dropout are left
    out: they would need a random key in every call.

    Attributes:
        width_multiplier: factor on every number of channels except `final_dim`. The products are rounded to multiples
            of 8, at least 8.
        depth_multiplier: factor on the number of blocks of every stage. The products are rounded up.
        stem: "imagenet": a 3x3 convolution of stride 2. "cifar": the same of stride 1, for images of 28 to 64 pixels.
        final_dim: feature dimension d ("fixdim"), the number of channels of the last 1x1 convolution. None: four times
            the channels of the last stage, which is 1280 for B0.
        use_scale: BatchNorm learns a scale.
        use_bias: BatchNorm learns a bias. The convolutions of squeeze-and-excitation always have a bias, the others
            never.
        dtype: dtype of activations and matrix products, for instance bfloat16. Parameters, batch statistics and
            features are at least float32.

    Raises:
        ValueError: when called, if a multiplier, the stem or `final_dim` is not one of those above.

    Example:
        >>> import jax
        >>> model, images = EfficientNet(1 / 8, 1 / 4), jnp.zeros((2, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 160)

    Reference: Tan and Le, EfficientNet: rethinking model scaling for convolutional neural networks (2019), and their
    released program for the rounding and the initial weights; Sandler et al., MobileNetV2 (2018), for the inverted
    bottleneck; Hu, Shen and Sun, Squeeze-and-excitation networks (2018).
    """

    width_multiplier: float = 1.0  # B0
    depth_multiplier: float = 1.0
    stem: Literal["imagenet", "cifar"] = "imagenet"
    final_dim: int | None = None
    use_scale: bool = True
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Return the features of a batch of images.

        Args:
            inputs: (N, H, W, C), any number of channels.
            train: normalise by the batch statistics and update the running statistics.
            mask: True for examples, False for padding, shape (N,); None: all are examples. Padding does not count in
                the batch statistics.

        Returns:
            Features, shape (N, d).
        """
        self._validate()
        convolution, norm = layers(self)

        activations = inputs.astype(self.dtype)
        width, stride = _rounded(STEM_WIDTH * self.width_multiplier), 2 if self.stem == "imagenet" else 1
        activations = convolution(width, (3, 3), stride, 1, name="stem")(activations)
        activations = nn.silu(norm(name="stem_norm")(activations, train=train, mask=mask))
        for number, stage in enumerate(STAGES, start=1):
            width = _rounded(stage.width * self.width_multiplier)
            for index in range(math.ceil(stage.num_blocks * self.depth_multiplier)):
                activations = _InvertedBottleneck(
                    width=width,
                    expansion=stage.expansion,
                    size=stage.size,
                    stride=stage.stride if index == 0 else 1,
                    convolution=convolution,
                    norm=norm,
                    name=f"stage{number}_block{index + 1}",
                )(activations, train=train, mask=mask)
        activations = convolution(self.final_dim or TOP * width, (1, 1), 1, 0, name="last")(activations)
        activations = nn.silu(norm(name="last_norm")(activations, train=train, mask=mask))
        return mean_over_pixels(activations)

    def _validate(self) -> None:
        for name in ("width_multiplier", "depth_multiplier"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f'stem must be "imagenet" or "cifar"; got {self.stem!r}')
        check_at_least("final_dim", self.final_dim, optional=True)


def _rounded(width: float) -> int:
    """Round to the nearest multiple of 8, or to the next larger one if the nearest is more than a tenth smaller."""
    nearest = max(DIVISOR, DIVISOR * math.floor(width / DIVISOR + 0.5))
    return nearest + DIVISOR if nearest < 0.9 * width else nearest


class _InvertedBottleneck(nn.Module):
    """A residual block: widen, convolve each channel by itself, weight the channels, narrow.

    Attributes:
        width: output channels.
        expansion: channels of the depthwise convolution, in units of the input channels.
        size: side of the kernel of the depthwise convolution.
        stride: stride of the depthwise convolution.
        convolution: constructor of a convolution.
        norm: constructor of a BatchNorm.
    """

    width: int
    expansion: int
    size: int
    stride: int
    convolution: Any
    norm: Any

    @nn.compact
    def __call__(self, inputs: Array, **keywords: Any) -> Array:
        branch, width = inputs, self.expansion * inputs.shape[-1]
        if self.expansion > 1:
            branch = self.convolution(width, (1, 1), 1, 0, name="expand")(branch)
            branch = nn.silu(self.norm(name="expand_norm")(branch, **keywords))
        depthwise = self.convolution(
            width,
            (self.size, self.size),
            self.stride,
            self.size // 2,
            feature_group_count=width,
            # In a depthwise convolution, an input channel reaches one output channel only. Flax's fan-out counts all
            # output channels, its fan-in counts correctly.
            kernel_init=FAN_IN,
            name="depthwise",
        )
        branch = nn.silu(self.norm(name="depthwise_norm")(depthwise(branch), **keywords))
        branch = branch * self.gates(branch, max(1, inputs.shape[-1] // SQUEEZE))
        branch = self.convolution(self.width, (1, 1), 1, 0, name="project")(branch)
        branch = self.norm(name="project_norm")(branch, **keywords)
        return inputs + branch if inputs.shape == branch.shape and self.stride == 1 else branch

    def gates(self, activations: Array, squeezed: int) -> Array:
        """Squeeze and excitation: for every image, factors in (0, 1) for the channels, from their averages."""
        averages = jnp.mean(at_least_float32(activations), axis=(1, 2), keepdims=True).astype(activations.dtype)
        hidden = nn.silu(self.convolution(squeezed, (1, 1), use_bias=True, name="squeeze")(averages))
        return nn.sigmoid(self.convolution(activations.shape[-1], (1, 1), use_bias=True, name="excite")(hidden))
