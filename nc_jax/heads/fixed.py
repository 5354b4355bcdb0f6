"""Head whose class vectors are set at the start and never trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.frames import nonnegative_orthogonal, owner, simplex_etf
from nc_jax.heads.head import Declared, Head, Initial, constant
from nc_jax.heads.learned import bias_of
from nc_jax.heads.output import HeadOutput, check_radius, check_width, scale_features
from nc_jax.heads.sampling import of_columns

FrameConstructor = Callable[..., Float[Array, "dim classes"]]  # (num_classes, dim, *, key, dtype) -> (d, K)
# From so many classes on, sums over each class's own features were faster on two CPU cores than the matrix product in
# every case of `benchmarks.orthogonal_logits`: 1.3 to 3.9 times at K = 200, 4.5 to 10 times at K = 1000. At K = 100
# it was 0.9 to 3.4 times, at K = 10 0.3 to 1.1 times.
CLASSES_FOR_SUMS = 200


def fixed(
    num_classes: int,
    *,
    frame: FrameConstructor = simplex_etf,
    radius: float | None = None,
    use_bias: bool = False,
    learn_scale: bool = False,
) -> Head:
    """Classifier whose frame is kept in the head's state and is not trained.

    The frame is stored in float32, or in float64 if the features have that dtype. In bfloat16, the cosines of a simplex
    ETF would be off by 1e-3.

    The class vectors of `nc_jax.frames.nonnegative_orthogonal` share no feature. With this frame the state also has
    "owner", the class of each feature, int32, shape (d,); whoever replaces one of the two replaces both. With many
    classes, logits are then sums over each class's own features on a CPU, N d products instead of N d K.

    Args:
        num_classes: K.
        frame: constructor (num_classes, dim, *, key, dtype) -> (d, K), such as `nc_jax.frames.simplex_etf`.
        radius: length to which every feature vector is scaled; None leaves the features as they are.
        use_bias: learn a bias, as the released program of Zhu et al. does.
        learn_scale: learn one number that multiplies the frame, at first 1, as FNO's weighted softmax does. Without
            bias and scale, this head has no parameters.

    Raises:
        ValueError: if the radius is not positive; from `init`, if the constructor refuses K and d; from `apply`, if the
            features do not have shape (N, d).

    Example:
        >>> params, state = fixed(4).init(jax.random.key(0), dim=6)
        >>> params, state["frame"].shape
        ({}, (6, 4))

    Reference: Zhu et al., A geometric analysis of neural collapse with unconstrained features (2021), section 3.3; Kim
    and Kim, Fixed non-negative orthogonal classifier (FNO, 2024), for the scale.
    """
    check_radius(radius)

    def declare(dim, dtype):
        wide = jnp.promote_types(dtype, jnp.float32)
        draw = lambda key: frame(num_classes, dim, key=key, dtype=wide)  # noqa: E731
        # Traces the constructor without computing anything, so a frame that does not fit raises its error at once.
        jax.eval_shape(draw, jax.random.key(0))
        scale = {"scale": constant(lambda: jnp.ones(()))} if learn_scale else {}
        disjoint = frame is nonnegative_orthogonal
        owners = {"owner": Initial(owner, random=False, follows="frame")} if disjoint else {}
        return Declared(bias_of(num_classes, use_bias) | scale, {"frame": Initial(draw)} | owners)

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        vectors: Any = state["frame"]
        check_width(features, vectors.shape[0])
        wide = features.astype(jnp.promote_types(features.dtype, vectors.dtype))
        logits = _logits(wide, vectors, state.get("owner"))
        if learn_scale:
            # The gradient of the scale is cheaper through the logits: through the frame it takes another product.
            scale = params["scale"]
            logits, vectors = scale.astype(logits.dtype) * logits, scale.astype(vectors.dtype) * vectors
        if not use_bias:
            return HeadOutput(logits, features, vectors, jnp.zeros((num_classes,), vectors.dtype)), state
        return HeadOutput(logits + params["bias"][None], features, vectors, params["bias"]), state

    return Head("fixed", num_classes, declare, forward, collection="frame", subsampled=of_columns)


def _logits(
    features: Float[Array, "batch dim"], frame: Float[Array, "dim classes"], owners: Int[Array, " dim"] | None
) -> Float[Array, "batch classes"]:
    """Logits, shape (N, K); with the owners of the features by whichever way is faster."""
    if owners is None or frame.shape[1] < CLASSES_FOR_SUMS:
        return features @ frame
    return jax.lax.platform_dependent(features, frame, owners, cpu=_sums, default=lambda h, w, _: h @ w)


def _sums(
    features: Float[Array, "batch dim"], frame: Float[Array, "dim classes"], owners: Int[Array, " dim"]
) -> Float[Array, "batch classes"]:
    """Logits as sums over the features that each class owns, shape (N, K)."""
    entries = frame[jnp.arange(len(frame)), owners]
    # Rows of one feature lie together in memory, so a sum adds whole rows.
    return jax.ops.segment_sum((features * entries[None]).T, owners, num_segments=frame.shape[1]).T
