"""What the convolutional networks share."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32
from nc_jax.models.normalization import BatchNorm

# He et al., Delving deep into rectifiers (2015). Fan-out, as in torchvision, preserves the gradient.
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def layers(network: Any, *, use_bias: bool = False, kernel_init: Initializer = FAN_OUT) -> tuple[Any, Any]:
    """Return a network's kinds of layers, filled in with its dtype, scales, biases and axis.

    Args:
        network: has `dtype`, `use_scale`, `use_bias` and `axis_name`, the last three of its normalisations.
        use_bias: of the convolutions: needless where a normalisation follows.
        kernel_init: of the convolutions.

    Returns:
        Constructors of convolutions and of batch normalisations.
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
    """Average in float32: a mean of many bfloat16 values needs more digits than they have, and so do class means."""
    return jnp.mean(at_least_float32(activations), axis=(1, 2))
