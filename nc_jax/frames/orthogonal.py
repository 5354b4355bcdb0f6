"""The non-negative orthogonal frame: every class has features of its own, on which its vector is constant."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.arrays import wider
from nc_jax.checks import Reals, check_floating, check_key, check_whole, is_traced, real_array

NO_CLASS = -1  # owner of a feature that no class owns alone


def nonnegative_orthogonal(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    r"""Non-negative orthogonal frame: unit vectors that share no feature.

    The d features are divided among the K classes, all of them. Class k owns the set :math:`J_k` of :math:`n_k`
    features, and its vector is

    .. math:: (q_k)_j = 1/\sqrt{n_k} \text{ for } j \in J_k, \quad 0 \text{ otherwise}; \qquad q_i^\top q_k = 0 .

    The numbers :math:`n_k` differ by at most one: the d mod K features that are left over go to different classes.

    Args:
        num_classes: K >= 1.
        dim: feature dimension d >= K.
        key: random key that draws which features a class owns, and which classes own one more. None: class j mod K owns
            feature j.
        dtype: a floating dtype.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm.

    Raises:
        ValueError: if K < 1 or d < K, a size is not a whole number, the dtype is not floating, or the key is none. With
            d < K, some classes would have no feature, and no example of theirs could be recognised.

    Example:
        >>> nonnegative_orthogonal(2, 4).tolist()[:2]
        [[0.7071067690849304, 0.0], [0.0, 0.7071067690849304]]

    Reference: Kim and Kim, Fixed non-negative orthogonal classifier (FNO, 2024).
    """
    check_whole("num_classes", num_classes)
    check_whole("dim", dim)
    check_floating(dtype)
    check_key(key)
    if not 1 <= num_classes <= dim:
        raise ValueError(
            "a non-negative orthogonal frame needs dim >= num_classes >= 1, a feature for every class; "
            f"got dim={dim} and num_classes={num_classes}"
        )
    classes, features = jnp.arange(num_classes), jnp.arange(dim)
    owners = features % num_classes
    if key is not None:
        of_classes, of_features = jax.random.split(key)
        owners = jax.random.permutation(of_classes, classes)[jax.random.permutation(of_features, owners)]
    members = owners[:, None] == classes[None]
    sizes = jnp.sum(members, axis=0).astype(wider(dtype))
    return jnp.where(members, 1 / jnp.sqrt(sizes)[None], 0).astype(dtype)


def owner(frame: Reals) -> Int[Array, " dim"]:
    """Return the class that owns each feature of a frame whose class vectors share none.

    The frame itself says it, so nothing else has to be stored with a model.

    Args:
        frame: class vectors as columns that share no feature, shape (d, K), scaled by any number but zero.

    Returns:
        Class numbers, int32, shape (d,); -1 for a feature on which all class vectors are zero. Under `jax.jit`, where a
        feature that two classes share cannot be refused, it also gets -1.

    Raises:
        ValueError: if the frame is not a finite matrix, or two of its class vectors share a feature.

    Example:
        >>> owner(nonnegative_orthogonal(2, 5)).tolist()
        [0, 1, 0, 1, 0]
    """
    frame = real_array(frame, "frame")
    if frame.ndim != 2:
        raise ValueError(f"a frame must have shape (dim, classes); got shape {frame.shape}")
    if not is_traced(frame) and not np.all(np.isfinite(np.asarray(frame))):
        raise ValueError("a frame must be finite; got a NaN or an infinity")
    members = frame != 0
    shares = jnp.sum(members, axis=1)
    if not is_traced(shares) and (shared := np.flatnonzero(np.asarray(shares) > 1)).size:
        raise ValueError(
            "class vectors must share no feature, as those of a non-negative orthogonal frame; "
            f"got {shares[shared[0]]} that share feature {shared[0]}"
        )
    # The largest class number that a feature has. (`argmax` takes twice as long on a CPU.)
    owners = jnp.max(jnp.where(members, jnp.arange(frame.shape[1], dtype=jnp.int32)[None], NO_CLASS), axis=1)
    return jnp.where(shares == 1, owners, NO_CLASS)
