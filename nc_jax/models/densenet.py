"""Densely connected networks of Huang et al. (2017), as backbones: images -> features."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.checks import check_at_least
from nc_jax.models.convolutional import FAN_IN, layers, mean_over_pixels

LAYOUTS = {  # layers per dense block, by depth: Huang et al. (2017), table 1
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
}
BOTTLENECK = 4  # channels of a 1x1 convolution in units of the growth rate, Huang et al. (2017), section 3
# Channels of the stem without bottlenecks; with bottlenecks the stem has twice the growth rate. Huang et al. (2017),
# section 3.
PLAIN_STEM_WIDTH = 16
MIN_SIDE = {"imagenet": 29, "cifar": 4}  # smallest side of an image for which the last dense block gets a pixel


class DenseNet(nn.Module):
    r"""Densely connected network without its classifier: every layer of a block sees all layers before it.

    A layer consists of BatchNorm, ReLU and a 3x3 convolution, and appends `growth` channels to its input. Between two
    blocks a 1x1 convolution and a 2x2 average halve the image. The features are averages of a last BatchNorm and ReLU,
    so none is negative. Depth and growth determine their dimension (1024 for DenseNet-121); no option sets it. The
    paper's dropout, used there without data augmentation, is left out: it would need a random key in every call.

    Attributes:
        depth: 121, 169 or 201 with the "imagenet" stem. With the "cifar" stem, 6n + 4, or 3n + 4 without bottlenecks:
            three blocks of n layers each.
        stem: "imagenet", a 7x7 convolution of stride 2 and a max-pool, or "cifar", a 3x3 convolution of stride 1 for
            images of 28 to 64 pixels.
        growth: number of channels that a layer adds. It sets all widths of the network.
        bottleneck: the paper's "BC" variant. A 1x1 convolution to 4 x growth channels precedes every 3x3 convolution,
            the number of channels is halved between two blocks, and the stem gives 2 x growth channels instead of 16.
            The paper's DenseNet-40 has False.
        use_scale: BatchNorm learns a scale. With `use_scale` and `use_bias` False, BatchNorm has no parameters.
        use_bias: BatchNorm learns a bias. Convolutions never have one.
        dtype: dtype of activations and matrix products, for instance bfloat16. Parameters, batch statistics and
            features are at least float32.

    Raises:
        ValueError: when called, if the depth, the stem or the growth is not one of those above, if `bottleneck` is
            False with the "imagenet" stem, or if the image is too small.

    Example:
        >>> import jax
        >>> model, images = DenseNet(10, stem="cifar", growth=12), jnp.zeros((2, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 27)

    Reference: Huang, Liu, van der Maaten and Weinberger, Densely connected convolutional networks (2017); torchvision
    for the BatchNorm and ReLU of the "imagenet" stem.
    """

    depth: int
    stem: Literal["imagenet", "cifar"] = "imagenet"
    growth: int = 32  # Huang et al. (2017), table 1; 12, 24 or 40 in their networks for CIFAR, table 2
    bottleneck: bool = True
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
            inputs: (N, H, W, C), any number of channels; H and W at least 29, with the "cifar" stem at least 4.
            train: normalise by the batch statistics and update the running statistics.
            mask: True for examples, False for padding, shape (N,); None: all are examples. Padding does not count in
                the batch statistics.

        Returns:
            Features, shape (N, d).
        """
        layout = self._layout(*inputs.shape[1:3])
        # Fan-in, as in torchvision. Fan-out would count only `growth` output channels, although all later layers of the
        # block use them.
        convolution, norm = layers(self, kernel_init=FAN_IN)

        activations = inputs.astype(self.dtype)
        width = 2 * self.growth if self.bottleneck else PLAIN_STEM_WIDTH
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        activations = convolution(width, (size, size), stride, size // 2, name="stem")(activations)
        if self.stem == "imagenet":
            activations = nn.relu(norm(name="stem_norm")(activations, train=train, mask=mask))
            padding: Any = ((1, 1), (1, 1))  # Flax annotates a string
            activations = nn.max_pool(activations, (3, 3), (2, 2), padding)
        for block, num_layers in enumerate(layout, start=1):
            if block > 1:
                width = activations.shape[-1] // (2 if self.bottleneck else 1)
                name = f"transition{block - 1}"
                activations = nn.relu(norm(name=f"{name}_norm")(activations, train=train, mask=mask))
                activations = convolution(width, (1, 1), 1, 0, name=name)(activations)
                activations = nn.avg_pool(activations, (2, 2), (2, 2))
            for index in range(1, num_layers + 1):
                layer = _Layer(
                    growth=self.growth,
                    bottleneck=self.bottleneck,
                    convolution=convolution,
                    norm=norm,
                    name=f"block{block}_layer{index}",
                )
                added = layer(activations, train=train, mask=mask)
                activations = jnp.concatenate([activations, added], axis=-1)
        activations = nn.relu(norm(name="last_norm")(activations, train=train, mask=mask))
        return mean_over_pixels(activations)

    def _layout(self, height: int, width: int) -> Sequence[int]:
        if self.stem not in MIN_SIDE:
            raise ValueError(f'stem must be "imagenet" or "cifar"; got {self.stem!r}')
        check_at_least("growth", self.growth)
        if min(height, width) < MIN_SIDE[self.stem]:
            raise ValueError(
                f"images must be at least {MIN_SIDE[self.stem]} pixels high and wide; got {height} x {width}"
            )
        if self.stem == "cifar":
            convolutions = 2 if self.bottleneck else 1
            num_layers, rest = divmod(self.depth - 4, 3 * convolutions)
            if rest or num_layers < 1:
                raise ValueError(f"depth must be {3 * convolutions}n + 4 for a whole n >= 1; got {self.depth}")
            return (num_layers,) * 3
        if self.depth not in LAYOUTS:
            raise ValueError(
                f"depth must be one of {', '.join(map(str, LAYOUTS))} with the imagenet stem; got {self.depth}"
            )
        if not self.bottleneck:
            raise ValueError("bottleneck must be True with the imagenet stem; got False")
        return LAYOUTS[self.depth]


class _Layer(nn.Module):
    """The channels that one layer appends to its input.

    Attributes:
        growth: number of these channels.
        bottleneck: put a 1x1 convolution before the 3x3 one.
        convolution: constructor of a convolution.
        norm: constructor of a BatchNorm.
    """

    growth: int
    bottleneck: bool
    convolution: Any
    norm: Any

    @nn.compact
    def __call__(self, activations: Array, **keywords: Any) -> Array:
        if self.bottleneck:
            activations = nn.relu(self.norm(name="norm1")(activations, **keywords))
            activations = self.convolution(BOTTLENECK * self.growth, (1, 1), 1, 0, name="conv1")(activations)
        activations = nn.relu(self.norm(name="norm2")(activations, **keywords))
        return self.convolution(self.growth, (3, 3), 1, 1, name="conv2")(activations)
