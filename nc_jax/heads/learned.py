"""The usual linear classifier, whose class vectors are free parameters: the baseline of every comparison."""

import jax
import jax.numpy as jnp

from nc_jax.arrays import safe_norm
from nc_jax.heads.head import Declared, Head, Initial, constant
from nc_jax.heads.output import HeadOutput, check_width, scale_features
from nc_jax.heads.sampling import of_columns


def learned(
    num_classes: int,
    *,
    radius: float | None = None,  # as in a plain linear classifier
    normalize_columns: bool = False,  # as in a plain linear classifier
    use_bias: bool = True,  # as in a plain linear classifier
    class_scales: bool = False,  # as in a plain linear classifier
) -> Head:
    """Linear classifier whose parameters `kernel` (d, K) and `bias` (K,) are trained.

    With `class_scales`, a third parameter `scales` (K,), at first 1, multiplies the class vectors. Learnable weight
    scaling (LWS) trains nothing else in its second stage; see `nc_jax.training.frozen`.

    Args:
        num_classes: K.
        radius: length to which every feature vector is scaled; None leaves the features as they are.
        normalize_columns: divide each column of `kernel` by its length, so that class vectors have unit length.
        use_bias: learn a bias.
        class_scales: learn a number for each class that multiplies its class vector, after `normalize_columns`, and not
            its bias. (In the released program it multiplies the bias, too.)

    Raises:
        ValueError: from `apply`, if the features do not have shape (N, d) or the radius is not positive.

    Example:
        >>> params, state = learned(3).init(jax.random.key(0), dim=5)
        >>> jax.tree.map(jnp.shape, params), state
        ({'bias': (3,), 'kernel': (5, 3)}, {})

    Reference: for the scales, Kang et al., Decoupling representation and classifier for long-tailed recognition (2020),
    section 4.
    """

    def declare(dim, dtype):
        del dtype  # parameters are float32, whatever the dtype of the features
        kernel = Initial(lambda key: jax.nn.initializers.lecun_normal()(key, (dim, num_classes)))
        scales = {"scales": constant(lambda: jnp.ones((num_classes,)))} if class_scales else {}
        return Declared({"kernel": kernel} | bias_of(num_classes, use_bias) | scales, {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        frame = params["kernel"]
        check_width(features, frame.shape[0])
        if normalize_columns:
            norms = safe_norm(frame, axis=0)
            frame = frame / jnp.where(norms > 0, norms, 1)
        if class_scales:
            frame = frame * params["scales"][None]
        bias = params["bias"] if use_bias else jnp.zeros((num_classes,), frame.dtype)
        return HeadOutput(features @ frame + bias[None], features, frame, bias), state

    return Head("learned", num_classes, declare, forward, subsampled=of_columns)


def bias_of(num_classes: int, use_bias: bool) -> dict[str, Initial]:
    """Declare a bias that is zero at the start, or nothing if the head has no bias."""
    return {"bias": constant(lambda: jnp.zeros((num_classes,)))} if use_bias else {}
