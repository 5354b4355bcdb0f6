"""The baseline everywhere: a linear classifier whose class vectors are free parameters."""

import jax
import jax.numpy as jnp

from nc_jax.arrays import safe_norm
from nc_jax.heads.head import Declared, Head, Initial, constant
from nc_jax.heads.output import HeadOutput, scale_features


def learned(
    num_classes: int,
    *,
    radius: float | None = None,  # a plain linear classifier
    normalize_columns: bool = False,  # the same
    use_bias: bool = True,  # the same
) -> Head:
    """Linear classifier with free weights, `kernel` (d, K) and `bias` (K,).

    Args:
        num_classes: K.
        radius: features are scaled to this length; None leaves them as they are.
        normalize_columns: use unit class vectors, whatever the length of the weights.
        use_bias: learn a bias.

    Example:
        >>> params, state = learned(3).init(jax.random.key(0), dim=5)
        >>> jax.tree.map(jnp.shape, params), state
        ({'bias': (3,), 'kernel': (5, 3)}, {})
    """

    def declare(dim, dtype):
        del dtype  # parameters are float32, whatever the activations are
        kernel = Initial(lambda key: jax.nn.initializers.lecun_normal()(key, (dim, num_classes)))
        return Declared({"kernel": kernel} | bias_of(num_classes, use_bias), {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        frame = params["kernel"]
        if normalize_columns:
            norms = safe_norm(frame, axis=0)
            frame = frame / jnp.where(norms > 0, norms, 1)
        bias = params["bias"] if use_bias else jnp.zeros((num_classes,), frame.dtype)
        return HeadOutput(features @ frame + bias, features, frame, bias), state

    return Head("learned", num_classes, declare, forward)


def bias_of(num_classes: int, use_bias: bool) -> dict[str, Initial]:
    """Declare a bias that begins at zero, if there is to be one."""
    return {"bias": constant(lambda: jnp.zeros((num_classes,)))} if use_bias else {}
