"""Wide residual networks of Zagoruyko and Komodakis (2016), as backbones: images -> features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.checks import check_at_least
from nc_jax.models.convolutional import layers, mean_over_pixels

# Channels of the stem; the first stage has k times as many. Zagoruyko and Komodakis (2016), table 1.
BASE_WIDTH = 16
NUM_STAGES = 3  # Zagoruyko and Komodakis (2016), table 1


class WideResNet(nn.Module):
    r"""Wide residual network (WRN-depth-k) without its classifier: pre-activation blocks and a global average.

    A 3x3 stem of 16 channels is followed by three stages of n = (depth - 4) / 6 blocks each, with 16k, 32k and 64k
    channels for a width multiplier k. The sum to which the blocks add is normalised and rectified only at the end, by
    the last BatchNorm and ReLU. The features are averages of the result, so none is negative. The network is for images
    of 28 to 64 pixels. The dropout that the paper tries between the two convolutions of a block is left out: it would
    need a random key in every call.

    Attributes:
        depth: 6n + 4 for a whole n >= 1.
        width_multiplier: k, the factor on the channels of the stages; may be a fraction. The stem keeps its 16
            channels.
        final_dim: feature dimension d ("fixdim"): number of output channels of the last block. If it differs from the
            number of input channels, the block's shortcut is a 1x1 convolution. None: 64k.
        use_scale: BatchNorm learns a scale. With `use_scale` and `use_bias` False, BatchNorm has no parameters.
        use_bias: BatchNorm learns a bias. Convolutions never have one.
        dtype: dtype of activations and matrix products, for instance bfloat16. Parameters, batch statistics and
            features are at least float32.

    Raises:
        ValueError: when called, if the depth or a width is not one of those above.

    Example:
        >>> import jax
        >>> model, images = WideResNet(10, width_multiplier=0.5), jnp.zeros((2, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 32)

    Reference: Zagoruyko and Komodakis, Wide residual networks (2016), figure 1 (c) and table 1; He et al., Identity
    mappings in deep residual networks (2016), for the order of layers.
    """

    depth: int = 28  # WRN-28-10, the network for CIFAR that the paper compares with others
    width_multiplier: float = 10.0
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
        num_blocks, width = self._num_blocks(), round(BASE_WIDTH * self.width_multiplier)
        convolution, norm = layers(self)

        activations = convolution(BASE_WIDTH, (3, 3), 1, 1, name="stem")(inputs.astype(self.dtype))
        for stage in range(NUM_STAGES):
            for index in range(num_blocks):
                last = stage == NUM_STAGES - 1 and index == num_blocks - 1
                activations = _PreActivationBlock(
                    width=width * 2**stage,
                    dim=self.final_dim if last else None,
                    stride=2 if stage > 0 and index == 0 else 1,
                    convolution=convolution,
                    norm=norm,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(activations, train=train, mask=mask)
        activations = nn.relu(norm(name="last_norm")(activations, train=train, mask=mask))
        return mean_over_pixels(activations)

    def _num_blocks(self) -> int:
        """Return the number of blocks per stage."""
        num_blocks, rest = divmod(self.depth - 4, 2 * NUM_STAGES)
        if rest or num_blocks < 1:
            raise ValueError(f"depth must be 6n + 4 for a whole n >= 1; got {self.depth}")
        if round(BASE_WIDTH * self.width_multiplier) < 1:
            raise ValueError(
                f"width_multiplier must leave at least one of {BASE_WIDTH} channels; got {self.width_multiplier}"
            )
        check_at_least("final_dim", self.final_dim, optional=True)
        return num_blocks


class _PreActivationBlock(nn.Module):
    """A residual block: shortcut + branch. BatchNorm and ReLU precede each of the branch's two 3x3 convolutions.

    Attributes:
        width: channels of the first convolution, and of the second if `dim` is None.
        dim: output channels; None is the width.
        stride: stride of the first convolution.
        convolution: constructor of a convolution.
        norm: constructor of a BatchNorm.
    """

    width: int
    dim: int | None
    stride: int
    convolution: Any
    norm: Any

    @nn.compact
    def __call__(self, inputs: Array, **keywords: Any) -> Array:
        activated = nn.relu(self.norm(name="norm1")(inputs, **keywords))
        branch = self.convolution(self.width, (3, 3), self.stride, 1, name="conv1")(activated)
        branch = nn.relu(self.norm(name="norm2")(branch, **keywords))
        branch = self.convolution(self.dim or self.width, (3, 3), 1, 1, name="conv2")(branch)
        if inputs.shape != branch.shape:  # a shortcut that is a convolution starts after the ReLU, any other before it
            inputs = self.convolution(branch.shape[-1], (1, 1), self.stride, 0, name="shortcut")(activated)
        return inputs + branch
