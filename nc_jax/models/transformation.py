"""Necks: layers between backbone and head, as in the networks of Liang and Davis (2023)."""

from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import at_least_float32
from nc_jax.models.layers import call_layer
from nc_jax.models.normalization import BatchNorm


class Transformation(nn.Module):
    """Transformation layer: batch normalisation, then residual blocks of [Linear, batch normalisation, PReLU] x 2.

    Inputs and outputs have the same dimension d. With two blocks the layer has 4 d^2 + 14 d parameters. The last
    operation is an addition, so outputs can be positive or negative; features need both to align with a frame.

    Attributes:
        blocks: number of residual blocks.
        momentum: weight of the old running statistics in the batch normalisations of the blocks.

    Reference: Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 4.
    """

    blocks: int = 2  # Liang and Davis (2023)
    momentum: float = 0.9  # default of `BatchNorm`; the released program has 0.999 on CIFAR

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Transform features (N, d); `mask` is True for examples, False for padding (None: all are examples)."""
        dim = features.shape[-1]
        features = BatchNorm(name="norm")(features, train=train, mask=mask)
        for block in range(1, self.blocks + 1):
            inner = features
            for layer in (1, 2):
                name = f"block{block}"
                inner = nn.Dense(dim, use_bias=False, name=f"{name}_linear{layer}")(inner)
                norm = BatchNorm(momentum=self.momentum, name=f"{name}_norm{layer}")
                inner = PReLU(name=f"{name}_prelu{layer}")(norm(inner, train=train, mask=mask))
            features = features + inner
        return features


class PReLU(nn.Module):
    """Rectifier with a learned slope per channel for negative inputs, initially 0.25.

    Reference: He et al., Delving deep into rectifiers (2015), also for the initial slope.
    """

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Return x where x is positive, and slope times x elsewhere."""
        slope = self.param("slope", nn.initializers.constant(0.25), inputs.shape[-1:])
        return jnp.where(inputs > 0, inputs, slope.reshape(*(1,) * (inputs.ndim - 1), -1) * inputs)


class Bottleneck(nn.Module):
    """The "type I" neck: batch normalisation, Linear, batch normalisation, ELU.

    Attributes:
        dim: dimension of the result.

    Reference: Liang and Davis (2023), section 4, after Garg, Sani and Anand (2022).
    """

    dim: int = 600  # Garg et al. (2022), for ResNet-50

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch out"]:
        """Transform features (N, c); `mask` is True for examples, False for padding (None: all are examples)."""
        features = BatchNorm(name="norm1")(features, train=train, mask=mask)
        features = nn.Dense(self.dim, name="linear")(features)
        return nn.elu(BatchNorm(name="norm2")(features, train=train, mask=mask))


class Projection(nn.Module):
    """A 1x1 convolution without bias to d channels, then pooling over the image.

    With average pooling, the input may also be pooled features: averaging commutes with the convolution, which is then
    a matrix product. So this module works with every backbone that ends with an average. Maximum pooling does not
    commute; it needs feature maps.

    Attributes:
        dim: number of output channels d. In the paper's "type II" networks it is the number of classes K.
        pool: "average" (used in the paper's scripts) or "max" (default of the released program).

    Reference: Liang and Davis (2023), section 4.
    """

    dim: int
    pool: Literal["average", "max"] = "average"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch *space channels"],
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Project features (N, c), or feature maps (N, ..., c), to d channels; the result has shape (N, d).

        Raises:
            ValueError: if `pool` is "max" and the features are already pooled.
        """
        del train, mask
        if features.ndim == 2 and self.pool == "max":
            raise ValueError(f"the maximum is taken of feature maps; got pooled features of shape {features.shape}")
        features = nn.Dense(self.dim, use_bias=False, name="convolution")(features)
        axes = tuple(range(1, features.ndim - 1))
        if not axes:
            return features
        return jnp.max(features, axes) if self.pool == "max" else jnp.mean(at_least_float32(features), axes)


class WithNeck(nn.Module):
    """A backbone and the necks after it, as one backbone for `Classifier`.

    The paper's "type II" is `WithNeck(backbone, (Projection(K), Transformation()))`. "Type I" is
    `WithNeck(backbone, (Bottleneck(600),))`. Both go with every head.

    Attributes:
        backbone: module (inputs, train=..., mask=...) -> features.
        necks: modules or functions (features, train=..., mask=...) -> features, or features -> features, one after the
            other.
    """

    backbone: nn.Module
    necks: Sequence[Callable[..., Array]]

    def __call__(
        self, inputs: Array, *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Return the features of a batch, as the last neck gives them."""
        for layer in (self.backbone, *self.necks):
            inputs = call_layer(layer, inputs, train=train, mask=mask)
        return inputs
