"""Batch normalisation that leaves out padding and sums over the devices that share a batch."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32
from nc_jax.collective import all_sum


class BatchNorm(nn.Module):
    r"""Normalises every channel by mean and variance: those of the batch in training, running ones in evaluation.

    Inside `nc_jax.collective.over`, which the training step uses, the statistics are those of the batch on all devices.
    Unlike `flax.linen.BatchNorm`, this module leaves padding out. The result is also right if the devices hold
    different numbers of examples, or none. The parameters (`scale`, `bias`) and the running statistics (`mean` and the
    biased `var`, in the collection "batch_stats") have the same names, shapes and meaning as in `flax.linen.BatchNorm`.

    Attributes:
        momentum: weight of the old value in the update of the running statistics.
        epsilon: number added to the variance.
        use_scale: learn a scale per channel.
        use_bias: learn a bias per channel, initially zero.
        scale_init: initialiser of the scale.
        dtype: dtype of the result; None takes that of the input. Statistics and parameters are at least float32.

    Reference: Ioffe and Szegedy, Batch normalization (2015), algorithm 1.
    """

    momentum: float = 0.9  # as torch.nn.BatchNorm2d, which calls the weight of the new value, 0.1, momentum
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
            inputs: channels last, shape (N, ..., C).
            train: normalise by the statistics of the batch, and update the running statistics.
            mask: True for examples, False for padding, shape (N,); None: all are examples. Padding is normalised too,
                but does not count in the statistics. A batch without any example leaves the running statistics
                unchanged.
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
        over_rows = (1,) * (inputs.ndim - 1)
        outputs = (inputs - mean.reshape(*over_rows, -1)) * factor.reshape(*over_rows, -1)
        if self.use_bias:
            outputs = outputs + self.param("bias", nn.initializers.zeros, channels).reshape(*over_rows, -1)
        return outputs.astype(self.dtype or inputs.dtype)

    def _moments(self, inputs: Array, origin: Array, mask: Array | None) -> tuple[Array, Array, Array]:
        """Return mean (C,), biased variance (C,) and number of values per channel, over all devices."""
        axes = tuple(range(inputs.ndim - 1))
        # One pass over the data: E[x^2] - E[x]^2, after the running mean is subtracted from x. Without this shift, the
        # difference would lose most digits in channels whose mean is large compared with their deviation.
        origin = jax.lax.stop_gradient(origin)
        shifted = at_least_float32(inputs) - origin.reshape(*(1,) * (inputs.ndim - 1), -1)
        rows = jnp.asarray(inputs.shape[0])
        if mask is not None:
            shifted = jnp.where(mask.reshape(-1, *[1] * (inputs.ndim - 1)), shifted, 0)
            rows = jnp.sum(mask)
        count = rows.astype(shifted.dtype) * math.prod(inputs.shape[1:-1])
        sums = jnp.concatenate([jnp.sum(shifted, axes), jnp.sum(shifted**2, axes), count[None]])
        sums = all_sum(sums)  # one collective per layer
        first, second = jnp.split(sums[:-1] / jnp.maximum(sums[-1], 1), 2)
        return origin + first, jnp.maximum(second - first**2, 0), sums[-1]
