"""VGG networks of Simonyan and Zisserman (2015) with BatchNorm, as backbones: images -> features."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32
from nc_jax.checks import check_at_least
from nc_jax.models.convolutional import layers, mean_over_pixels

LAYOUTS = {  # convolutions per stage, by depth: Simonyan and Zisserman (2015), table 1, columns A, B, D and E
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)  # channels per stage: Simonyan and Zisserman (2015), table 1
DENSE_WIDTH = 4096  # units of each of the two fully connected layers: Simonyan and Zisserman (2015), table 1
MIN_SIDE = 2 ** len(WIDTHS)  # a stage halves the image


class VGG(nn.Module):
    r"""VGG network without its classifier: 3x3 convolutions, BatchNorm and ReLU in five stages, each with a max-pool.

    The same as torchvision's vgg*_bn, but without the dropout after the fully connected layers, which would need a
    random key in every call. The features are ReLUs, or averages of them, so none is negative.

    Attributes:
        depth: 11, 13, 16 or 19.
        top: what follows the convolutions. "imagenet": two fully connected layers of 4096 units, each with a ReLU;
            their parameters fit images of one size only (224 pixels in the paper). "cifar": a global average.
        width_multiplier: factor on every number of channels and of units except `final_dim`.
        final_dim: feature dimension d ("fixdim"): number of units of the last fully connected layer ("imagenet") or of
            channels of the last convolution ("cifar"). None: 4096 or 512 times `width_multiplier`, respectively.
        use_scale: BatchNorm learns a scale. With `use_scale` and `use_bias` False, BatchNorm has no parameters.
        use_bias: BatchNorm and the convolutions learn a bias, as in torchvision. In training, the BatchNorm after a
            convolution removes the convolution's bias again.
        dtype: dtype of activations and matrix products, for instance bfloat16. Parameters, batch statistics and
            features are at least float32.

    Raises:
        ValueError: when called, if the depth, the top or a width is not one of those above, or if the image is too
            small.

    Example:
        >>> import jax
        >>> model, images = VGG(11, top="cifar", width_multiplier=1 / 16), jnp.zeros((2, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 32)

    Reference: Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition (2015);
    torchvision for BatchNorm and the initial weights.
    """

    depth: int
    top: Literal["imagenet", "cifar"] = "imagenet"
    width_multiplier: float = 1.0
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
            inputs: (N, H, W, C), any number of channels; H and W at least 32.
            train: normalise by the batch statistics and update the running statistics.
            mask: True for examples, False for padding, shape (N,); None: all are examples. Padding does not count in
                the batch statistics.

        Returns:
            Features, shape (N, d).
        """
        layout = self._layout(*inputs.shape[1:3])
        convolution, norm = layers(self, use_bias=self.use_bias)

        activations = inputs.astype(self.dtype)
        for stage, (num_convolutions, width) in enumerate(zip(layout, WIDTHS, strict=True), start=1):
            for index in range(1, num_convolutions + 1):
                last = stage == len(layout) and index == num_convolutions
                dim = self.final_dim if last and self.top == "cifar" else None
                activations = convolution(
                    dim or round(width * self.width_multiplier), (3, 3), 1, 1, name=f"stage{stage}_conv{index}"
                )(activations)
                activations = norm(name=f"stage{stage}_norm{index}")(activations, train=train, mask=mask)
                activations = nn.relu(activations)
            activations = nn.max_pool(activations, (2, 2), (2, 2))
        if self.top == "cifar":
            return mean_over_pixels(activations)

        activations = activations.reshape(activations.shape[0], -1)
        width = round(DENSE_WIDTH * self.width_multiplier)
        for index, units in enumerate((width, self.final_dim or width), start=1):
            dense = nn.Dense(
                units,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.01),  # torchvision
                name=f"dense{index}",
            )
            activations = nn.relu(dense(activations))
        return at_least_float32(activations)

    def _layout(self, height: int, width: int) -> Sequence[int]:
        if self.depth not in LAYOUTS:
            raise ValueError(f"depth must be one of {', '.join(map(str, LAYOUTS))}; got {self.depth}")
        if self.top not in ("imagenet", "cifar"):
            raise ValueError(f'top must be "imagenet" or "cifar"; got {self.top!r}')
        if round(WIDTHS[0] * self.width_multiplier) < 1:
            raise ValueError(
                f"width_multiplier must leave at least one of {WIDTHS[0]} channels; got {self.width_multiplier}"
            )
        check_at_least("final_dim", self.final_dim, optional=True)
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"images must be at least {MIN_SIDE} pixels high and wide; got {height} x {width}")
        return LAYOUTS[self.depth]
