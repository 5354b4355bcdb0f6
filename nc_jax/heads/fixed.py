"""Head whose class vectors are set at the start and never trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.frames import simplex_etf
from nc_jax.heads.head import Declared, Head, Initial
from nc_jax.heads.learned import bias_of
from nc_jax.heads.output import HeadOutput, check_width, scale_features

FrameConstructor = Callable[..., Float[Array, "dim classes"]]  # (num_classes, dim, *, key, dtype) -> (d, K)


def fixed(
    num_classes: int,
    *,
    frame: FrameConstructor = simplex_etf,
    radius: float | None = None,
    use_bias: bool = False,
) -> Head:
    """Classifier whose frame is kept in the head's state and is not trained.

    The frame is stored in float32, or in float64 if the features have that dtype. In bfloat16, the cosines of a simplex
    ETF would be off by 1e-3.

    Args:
        num_classes: K.
        frame: constructor (num_classes, dim, *, key, dtype) -> (d, K), such as `nc_jax.frames.simplex_etf`.
        radius: length to which every feature vector is scaled; None leaves the features as they are.
        use_bias: learn a bias, as the released program of Zhu et al. does. The bias is then the only parameter of this
            head; without it, the head has none.

    Raises:
        ValueError: from `init`, if the constructor refuses K and d; from `apply`, if the features do not have shape
            (N, d) or the radius is not positive.

    Example:
        >>> params, state = fixed(4).init(jax.random.key(0), dim=6)
        >>> params, state["frame"].shape
        ({}, (6, 4))

    Reference: Zhu et al., A geometric analysis of neural collapse with unconstrained features (2021), section 3.3.
    """

    def declare(dim, dtype):
        wide = jnp.promote_types(dtype, jnp.float32)
        draw = lambda key: frame(num_classes, dim, key=key, dtype=wide)  # noqa: E731
        # Traces the constructor without computing anything, so a frame that does not fit raises its error at once.
        jax.eval_shape(draw, jax.random.key(0))
        return Declared(bias_of(num_classes, use_bias), {"frame": Initial(draw)})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        vectors: Any = state["frame"]
        check_width(features, vectors.shape[0])
        logits = features.astype(jnp.promote_types(features.dtype, vectors.dtype)) @ vectors
        if not use_bias:
            return HeadOutput(logits, features, vectors, jnp.zeros((num_classes,), vectors.dtype)), state
        return HeadOutput(logits + params["bias"][None], features, vectors, params["bias"]), state

    return Head("fixed", num_classes, declare, forward, collection="frame")
