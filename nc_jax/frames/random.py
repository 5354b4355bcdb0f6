"""Random class vectors: a frame without prescribed angles, as a baseline for other frames."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import normalized, wider
from nc_jax.checks import check_floating, check_key, check_whole


def random_unit(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    """Draw unit vectors independently and uniformly from the sphere.

    Args:
        num_classes: K >= 2.
        dim: feature dimension d >= 1.
        key: random key, required; it has the default None only so that all constructors have the same signature.
        dtype: a floating dtype.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm.

    Raises:
        ValueError: if K < 2, d < 1, a size is not a whole number, the dtype is not floating, or there is no key.

    Example:
        >>> random_unit(5, 3, key=jax.random.key(0)).shape
        (3, 5)

    Reference: Muller, A note on a method for generating points uniformly on n-dimensional spheres (1959).
    """
    check_whole("num_classes", num_classes)
    check_whole("dim", dim)
    check_floating(dtype)
    check_key(key)
    if num_classes < 2 or dim < 1:
        raise ValueError(f"random class vectors need num_classes >= 2 and dim >= 1; got {num_classes} and {dim}")
    if key is None:
        raise ValueError("random class vectors need a key; got None")
    drawn = jax.random.normal(key, (dim, num_classes), wider(dtype))
    return normalized(drawn, axis=0)[0].astype(dtype)
