"""Batch normalisation that knows which rows are examples, and which devices share the batch."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32
from nc_jax.collective import all_sum


class BatchNorm(nn.Module):
    r"""Normalises every channel by the mean and variance of the batch in training, by running ones in evaluation.

    Devices that share a batch share its statistics: those over which `nc_jax.collective.over` sums, as the training
    step does. Unlike `flax.linen.BatchNorm` it leaves padding out, with the right weights also when the devices hold
    different numbers of examples, and even none. Parameters (`scale`, `bias`) and running statistics (`mean` and `var`,
    the biased one, in the collection "batch_stats") have the same names, shapes and meaning as there.

    Attributes:
        momentum: weight of the old running statistics when they are updated.
        epsilon: added to the variance.
        use_scale: learn a scale per channel, initially `scale_init`.
        use_bias: learn a bias per channel, initially zero.
        scale_init: initial scale.
        dtype: of the result; None is the input's. Statistics, running or not, and parameters are at least float32.

    Reference: Ioffe and Szegedy, Batch normalization (2015), algorithm 1.
    """

    momentum: float = 0.9  # torch.nn.BatchNorm2d, whose momentum is the weight of the new value: 0.1
    epsilon: float = 1e-5  # torch.nn.BatchNorm2d
    use_scale: bool = True
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch *space channels"], *, train: bool, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch *space channels"]:
        """Normalise a batch.

        Args:
            inputs: channels last.
            train: use the batch's statistics, and update the running ones with them.
            mask: which rows are examples; None: all. The others are normalised too, but count for nothing. A batch
                without any example leaves the running statistics as they are.
        """
        channels = inputs.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        mean, var = running_mean.value, running_var.value
        if train and not self.is_initializing():
            mean, var, count = self._moments(inputs, mean, mask)
            weight = jnp.where(count > 0, 1 - self.momentum, 0)
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value += weight * (jax.lax.stop_gradient(new) - running.value)

        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", self.scale_init, channels)
        outputs = (inputs - mean) * factor
        if self.use_bias:
            outputs = outputs + self.param("bias", nn.initializers.zeros, channels)
        return outputs.astype(self.dtype or inputs.dtype)

    def _moments(self, inputs: Array, origin: Array, mask: Array | None) -> tuple[Array, Array, Array]:
        """Mean (channels,), biased variance (channels,) and number of values per channel, over all devices."""
        axes = tuple(range(inputs.ndim - 1))
        # One pass, about the running mean: E[x^2] - E[x]^2 about zero cancels for channels far from it.
        origin = jax.lax.stop_gradient(origin)
        shifted = at_least_float32(inputs) - origin
        rows = jnp.asarray(inputs.shape[0])
        if mask is not None:
            shifted = jnp.where(mask.reshape(-1, *[1] * (inputs.ndim - 1)), shifted, 0)
            rows = jnp.sum(mask)
        count = rows.astype(shifted.dtype) * math.prod(inputs.shape[1:-1])
        sums = jnp.concatenate([jnp.sum(shifted, axes), jnp.sum(shifted**2, axes), count[None]])
        sums = all_sum(sums)  # one collective per layer
        first, second = jnp.split(sums[:-1] / jnp.maximum(sums[-1], 1), 2)
        return origin + first, jnp.maximum(second - first**2, 0), sums[-1]
