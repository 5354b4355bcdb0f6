"""What stands between a backbone and a head in the hierarchy-aware frame's networks."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import at_least_float32
from nc_jax.models.normalization import BatchNorm


class Transformation(nn.Module):
    """Transformation layer: batch normalisation, then residual blocks of [Linear, batch normalisation, PReLU] x 2.

    What goes in and out has the same width d; with two blocks it has 4 d^2 + 14 d parameters. The last operation is an
    addition, so its outputs have either sign, as features that are to align with a frame need.

    Attributes:
        blocks: number of residual blocks.
        momentum: of the batch normalisation, weight of the old statistics.

    Reference: Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 4.
    """

    blocks: int = 2  # Liang and Davis (2023)
    momentum: float = 0.9  # as `BatchNorm`; the released program has 0.999 on CIFAR

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Transform the features of a batch; `mask` says which rows are examples (None: all)."""
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
    """Rectifier with a learned slope per channel for negative inputs.

    Reference: He et al., Delving deep into rectifiers (2015); the initial slope is theirs.
    """

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Return x where it is positive, else slope times x."""
        slope = self.param("slope", nn.initializers.constant(0.25), inputs.shape[-1:])
        return jnp.where(inputs > 0, inputs, slope * inputs)


class Bottleneck(nn.Module):
    """The older program's layer: batch normalisation, Linear, batch normalisation, ELU ("type I").

    Attributes:
        dim: width of the result.

    Reference: Liang and Davis (2023), section 4, after Garg, Sani and Anand (2022).
    """

    dim: int = 600  # Garg et al. (2022), for ResNet-50

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch out"]:
        """Transform the features of a batch; `mask` says which rows are examples (None: all)."""
        features = BatchNorm(name="norm1")(features, train=train, mask=mask)
        features = nn.Dense(self.dim, name="linear")(features)
        return nn.elu(BatchNorm(name="norm2")(features, train=train, mask=mask))


class Projection(nn.Module):
    """A convolution of 1 x 1 without bias to d channels, then pooling over the image.

    Pooled features are taken, too: an average commutes with the convolution, which is then a matrix product, so that it
    serves every backbone that averages at its end. A maximum does not; give it feature maps.

    Attributes:
        dim: number of channels, d; K in the paper's "type II" networks.
        pool: "average" (the paper's scripts) or "max" (its program's default).

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
        """Project features (N, c), or feature maps (N, ..., c), on d channels.

        Raises:
            ValueError: if the maximum is asked for and the features have been pooled.
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
    """A backbone and what comes after it, as one backbone for `Classifier`.

    "Type II" of the paper is `WithNeck(backbone, (Projection(K), Transformation()))`, "type I" of the older programs
    `WithNeck(backbone, (Bottleneck(600),))`; either goes with every head.

    Attributes:
        backbone: module (inputs, train=..., mask=...) -> features.
        necks: modules (features, train=..., mask=...) -> features, one after the other.
    """

    backbone: nn.Module
    necks: Sequence[nn.Module]

    def __call__(
        self, inputs: Array, *, train: bool = False, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch dim"]:
        """Return the features of a batch."""
        features = self.backbone(inputs, train=train, mask=mask)
        for neck in self.necks:
            features = neck(features, train=train, mask=mask)
        return features
