"""Small array helpers that every mathematical layer shares."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Recent accelerators multiply float32 matrices in TF32 (11-bit mantissas) unless told otherwise. Orthogonality and Gram
# matrices are the point of this library, so products that form them ask for full precision.
matmul = functools.partial(jnp.matmul, precision="highest")


def transpose(matrix: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch columns rows"]:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def symmetric_part(matrix: Float[Array, "*batch size size"]) -> Float[Array, "*batch size size"]:
    """Return (A + A^T) / 2."""
    return (matrix + transpose(matrix)) / 2


def skew_part(matrix: Float[Array, "*batch size size"]) -> Float[Array, "*batch size size"]:
    """Return (A - A^T) / 2."""
    return (matrix - transpose(matrix)) / 2


def at_least_float32(array: Array) -> Float[Array, "..."]:
    """Return the array in float32 if its dtype holds less (integers, bfloat16, float16), else unchanged."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def safe_norm(array: Float[Array, "..."], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Euclidean norm along `axis` (kept, of size 1), with a zero derivative at zero, and no overflow or underflow."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(array), axis=axis, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1)
    squares = jnp.sum((array / scale) ** 2, axis=axis, keepdims=True)
    # The inner `where` keeps the square root away from zero, where its derivative is infinite.
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) * scale
