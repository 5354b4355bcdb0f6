"""Residual networks of He et al. (2016), as backbones: images -> features."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.checks import check_at_least
from nc_jax.models.convolutional import layers, mean_over_pixels


class _Layout(NamedTuple):
    bottleneck: bool
    stages: Sequence[int]  # blocks per stage


LAYOUTS = {  # by depth: He et al. (2016), table 1
    18: _Layout(False, (2, 2, 2, 2)),
    34: _Layout(False, (3, 4, 6, 3)),
    50: _Layout(True, (3, 4, 6, 3)),
    101: _Layout(True, (3, 4, 23, 3)),
    152: _Layout(True, (3, 8, 36, 3)),
}
BASE_WIDTH = 64  # channels of the stem and of the first stage's 3x3 convolutions, He et al. (2016), table 1
EXPANSION = 4  # output channels over channels of a bottleneck's 3x3 convolution, He et al. (2016), table 1


class ResNet(nn.Module):
    r"""Residual network without its classifier: convolutions, BatchNorm, ReLU and a global average.

    As in torchvision, the 3x3 convolution of a bottleneck has its stride, shortcuts are 1x1 convolutions where the
    shape changes, and every 3x3 convolution is padded by one pixel on each side. The features are averages of ReLUs, so
    none is negative.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        stem: "imagenet", a 7x7 convolution of stride 2 and a max-pool, or "cifar", a 3x3 convolution of stride 1 for
            images of 28 to 64 pixels.
        width_multiplier: factor on every number of channels except `final_dim`.
        final_dim: feature dimension d ("fixdim"): number of output channels of the last block. If it differs from the
            number of input channels, the block's shortcut is a 1x1 convolution. None: 512 times `width_multiplier`,
            with bottlenecks 2048 times.
        use_scale: BatchNorm learns a scale. With `use_scale` and `use_bias` False, BatchNorm has no parameters.
        use_bias: BatchNorm learns a bias. Convolutions never have one.
        zero_init_residual: start the last BatchNorm of every block with scale 0, so that the branch starts at zero.
        dtype: dtype of activations and matrix products, for instance bfloat16. Parameters, batch statistics and
            features are at least float32.

    Raises:
        ValueError: when called, if the depth, the stem or a width is not one of those above, or if
            `zero_init_residual` is True without `use_scale`.

    Example:
        >>> import jax
        >>> model, images = ResNet(18, stem="cifar", width_multiplier=1 / 16), jnp.zeros((2, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 32)

    Reference: He, Zhang, Ren and Sun, Deep residual learning for image recognition (2016); Goyal et al., Accurate,
    large minibatch SGD (2017), section 5.1 for the stride and the zero initial scale; Zhu et al. (2021), released
    program, for `final_dim` and the "cifar" stem.
    """

    depth: int
    stem: Literal["imagenet", "cifar"] = "imagenet"
    width_multiplier: float = 1.0
    final_dim: int | None = None
    use_scale: bool = True
    use_bias: bool = True
    zero_init_residual: bool = False  # torchvision
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
        layout, width = self._layout(), round(BASE_WIDTH * self.width_multiplier)
        convolution, norm = layers(self)
        block = _Bottleneck if layout.bottleneck else _BasicBlock

        activations = inputs.astype(self.dtype)
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        activations = convolution(width, (size, size), stride, size // 2, name="stem")(activations)
        activations = nn.relu(norm(name="stem_norm")(activations, train=train, mask=mask))
        if self.stem == "imagenet":
            padding: Any = ((1, 1), (1, 1))  # Flax annotates a string
            activations = nn.max_pool(activations, (3, 3), (2, 2), padding)
        for stage, num_blocks in enumerate(layout.stages):
            for index in range(num_blocks):
                last = stage == len(layout.stages) - 1 and index == num_blocks - 1
                activations = block(
                    width=width * 2**stage,
                    dim=self.final_dim if last else None,
                    stride=2 if stage > 0 and index == 0 else 1,
                    zero_init=self.zero_init_residual,
                    convolution=convolution,
                    norm=norm,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(activations, train=train, mask=mask)
        return mean_over_pixels(activations)

    def _layout(self) -> _Layout:
        if self.depth not in LAYOUTS:
            raise ValueError(f"depth must be one of {', '.join(map(str, LAYOUTS))}; got {self.depth}")
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f'stem must be "imagenet" or "cifar"; got {self.stem!r}')
        if round(BASE_WIDTH * self.width_multiplier) < 1:
            raise ValueError(
                f"width_multiplier must leave at least one of {BASE_WIDTH} channels; got {self.width_multiplier}"
            )
        check_at_least("final_dim", self.final_dim, optional=True)
        if self.zero_init_residual and not self.use_scale:
            raise ValueError("zero_init_residual needs a scale to initialise; got use_scale=False")
        return LAYOUTS[self.depth]


class _Block(nn.Module):
    """A residual block: relu(shortcut(x) + branch(x)).

    Attributes:
        width: channels of the 3x3 convolutions.
        dim: output channels; None is the usual number.
        stride: stride of the block.
        zero_init: start with a branch that is zero.
        convolution: constructor of a convolution.
        norm: constructor of a BatchNorm.
    """

    width: int
    dim: int | None
    stride: int
    zero_init: bool
    convolution: Any
    norm: Any

    def join(self, inputs: Array, branch: Array, **keywords: Any) -> Array:
        """Normalise the branch and add it to the inputs, or to a 1x1 convolution of them if the shapes differ."""
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        branch = self.norm(scale_init=scale_init, name="last_norm")(branch, **keywords)
        if inputs.shape != branch.shape:
            inputs = self.convolution(branch.shape[-1], (1, 1), self.stride, 0, name="shortcut")(inputs)
            inputs = self.norm(name="shortcut_norm")(inputs, **keywords)
        return nn.relu(inputs + branch)


class _BasicBlock(_Block):
    """A residual block with two 3x3 convolutions."""

    @nn.compact
    def __call__(self, inputs: Array, **keywords: Any) -> Array:
        branch = self.convolution(self.width, (3, 3), self.stride, 1, name="conv1")(inputs)
        branch = nn.relu(self.norm(name="norm1")(branch, **keywords))
        branch = self.convolution(self.dim or self.width, (3, 3), 1, 1, name="conv2")(branch)
        return self.join(inputs, branch, **keywords)


class _Bottleneck(_Block):
    """A residual block with a 3x3 convolution between two 1x1 convolutions, which narrow and widen."""

    @nn.compact
    def __call__(self, inputs: Array, **keywords: Any) -> Array:
        branch = self.convolution(self.width, (1, 1), 1, 0, name="conv1")(inputs)
        branch = nn.relu(self.norm(name="norm1")(branch, **keywords))
        branch = self.convolution(self.width, (3, 3), self.stride, 1, name="conv2")(branch)
        branch = nn.relu(self.norm(name="norm2")(branch, **keywords))
        branch = self.convolution(self.dim or self.width * EXPANSION, (1, 1), 1, 0, name="conv3")(branch)
        return self.join(inputs, branch, **keywords)
