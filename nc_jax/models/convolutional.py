"""Layers and initial weights that the convolutional networks share."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32
from nc_jax.models.normalization import BatchNorm

# He et al., Delving deep into rectifiers (2015). Fan-out preserves the size of the gradient; torchvision uses it.
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def layers(network: Any, *, use_bias: bool = False, kernel_init: Initializer = FAN_OUT) -> tuple[Any, Any]:
    """Return constructors of a network's convolutions and batch normalisations, with the network's settings filled in.

    Args:
        network: module with the attributes `dtype` (of all layers), `use_scale` and `use_bias` (of the normalisations).
        use_bias: give the convolutions a bias. A convolution before a normalisation needs none.
        kernel_init: initialiser of the convolutions' kernels.

    Returns:
        A constructor of convolutions and a constructor of batch normalisations.
    """
    convolution = partial(nn.Conv, use_bias=use_bias, dtype=network.dtype, kernel_init=kernel_init)
    norm = partial(
        BatchNorm,
        use_scale=network.use_scale,
        use_bias=network.use_bias,
        dtype=network.dtype,
    )
    return convolution, norm


def mean_over_pixels(activations: Float[Array, "batch height width dim"]) -> Float[Array, "batch dim"]:
    """Average over height and width, in at least float32: bfloat16 has too few digits for means of many values."""
    return jnp.mean(at_least_float32(activations), axis=(1, 2))
