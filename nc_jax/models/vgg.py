"""VGG networks of Simonyan and Zisserman (2015) with BatchNorm, as backbones: images -> features."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32
from nc_jax.models.convolutional import layers, mean_over_pixels

LAYOUTS = {  # convolutions per stage, by depth: Simonyan and Zisserman (2015), table 1, columns A, B, D and E
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)  # channels per stage, as there
DENSE_WIDTH = 4096  # of the two fully connected layers, as there
MIN_SIDE = 2 ** len(WIDTHS)  # a stage halves the image


class VGG(nn.Module):
    r"""VGG network without its classifier: 3x3 convolutions, BatchNorm and ReLU in five stages, each with a max-pool.

    Like torchvision's vgg*_bn, but for the dropout after its fully connected layers, which is left out: it would need a
    random key in every call. The features are ReLUs, or averages of them, so none is negative.

    Attributes:
        depth: 11, 13, 16 or 19.
        top: what follows the convolutions: "imagenet", two fully connected layers of 4096 units, each with a ReLU, or
            "cifar", a global average. The former's parameters fit images of one size only, 224 pixels in the paper.
        width_multiplier: multiplies every number of channels and of units, `final_dim` excepted.
        final_dim: feature dimension d ("fixdim"), given by the last fully connected layer, or by the last convolution
            where there is none. None is 4096 ("imagenet") or 512 ("cifar") times the width.
        use_scale: BatchNorm learns a scale; without it and `use_bias` the convolutional part is affine-free.
        use_bias: BatchNorm learns a bias. So do the convolutions, in torchvision too, though in training BatchNorm
            takes it out again.
        dtype: of activations and products, bfloat16 say; parameters, batch statistics and features are at least
            float32.

    Raises:
        ValueError: when called, if the depth, the top or a width is not one of those above, or an image too small.

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
            inputs: channels last, any number of them, at least 32 pixels high and wide.
            train: normalise by the batch's statistics and update the running ones.
            mask: which rows are examples; None: all. The others count for nothing in the batch statistics.
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
        if self.final_dim is not None and self.final_dim < 1:
            raise ValueError(f"final_dim must be at least 1, or None; got {self.final_dim}")
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"images must be at least {MIN_SIDE} pixels high and wide; got {height} x {width}")
        return LAYOUTS[self.depth]
