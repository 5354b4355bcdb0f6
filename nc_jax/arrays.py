"""Small array functions that all mathematical modules use."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float


def matmul(left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """Matrix product in full precision.

    By default, recent accelerators multiply float32 matrices in TF32 (11-bit mantissas). This library depends on
    accurate orthogonality and Gram matrices, so it requests full precision.
    """
    product = functools.partial(jnp.matmul, precision="highest")
    sizes = left.shape + right.shape
    sized = left.ndim == right.ndim == 2 and all(isinstance(size, int) for size in sizes)  # jax.export leaves some open
    tall = sized and left.shape[0] >= _TALL * max(*right.shape, 1) and max(right.shape) <= _SMALL
    if not (tall and jax.default_backend() == "cpu"):
        return product(left, right)
    # XLA's loops for small products run along the rows of the result. They are six times faster along its long side
    # (1.6 instead of 10 us for 512 x 9 times 9 x 9 on an EPYC core; no gain from 32 columns on), so the transposed
    # product is formed. Without the barriers XLA would undo the transposition. Each factor has its own barrier, because
    # JAX cannot transpose one barrier around a factor that is linear in the input and a factor that is constant.
    barrier = jax.lax.optimization_barrier
    return transpose(barrier(product(barrier(transpose(right)), barrier(transpose(left)))))


_TALL, _SMALL = 4, 16


def transpose(matrix: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch columns rows"]:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def symmetric_part(matrix: Float[Array, "*batch size size"]) -> Float[Array, "*batch size size"]:
    """Return (A + A^T) / 2."""
    return (matrix + transpose(matrix)) / 2


def skew_part(matrix: Float[Array, "*batch size size"]) -> Float[Array, "*batch size size"]:
    """Return (A - A^T) / 2."""
    return (matrix - transpose(matrix)) / 2


def wider(dtype: DTypeLike, other: DTypeLike = jnp.float32) -> DTypeLike:
    """Return the dtype that holds both dtypes, also where JAX promotes dtypes in its strict mode only."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, other)


def at_least_float32(array: Array) -> Float[Array, "..."]:
    """Return the array in float32 if its dtype is integer, bfloat16 or float16, and unchanged otherwise."""
    array = jnp.asarray(array)
    return array.astype(wider(array.dtype))


def unit_scale(array: Float[Array, "..."], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Power of two next to the largest absolute value, a constant for derivatives.

    Dividing by it is exact and brings the largest value to at most 4, so squares neither overflow nor underflow. Of
    zeros it is the smallest normal number; of numbers that are not finite, 1.

    Args:
        array: any array, in float32 or float64.
        axis: axes over which the largest value is taken; the result keeps them with size 1. None: all axes.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(array), axis=axis, keepdims=True, initial=0))
    limits = jnp.finfo(largest.dtype)
    # XLA multiplies by the reciprocal, and flushes it to zero if it is subnormal.
    exponent = jnp.clip(jnp.frexp(largest)[1] - 1, limits.minexp, limits.maxexp - 2)
    power = jnp.ldexp(jnp.ones_like(largest), jnp.where(largest > 0, exponent, limits.minexp))
    return jnp.where(jnp.isfinite(largest), power, 1)


def normalized(
    array: Float[Array, "..."], axis: int | tuple[int, ...] | None = None
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the array divided by its Euclidean norm, and the norm. Zeros stay zeros and get no gradient.

    The derivative is as accurate as the quotient at every scale. That of array / norm has the square of the norm in the
    denominator, which over- or underflows where the norm does not.

    Args:
        array: any array.
        axis: axes over which the squares are summed; the norm keeps them with size 1. None: all axes.
    """
    scale = unit_scale(array, axis)
    scaled = array / scale
    squares = jnp.sum(scaled**2, axis=axis, keepdims=True)
    # The inner `where` keeps the square root from being taken at zero, where its derivative is infinite. NaN stays NaN.
    root = jnp.sqrt(jnp.where(squares == 0, 1, squares))
    return jnp.where(squares == 0, 0, scaled / root), jnp.where(squares == 0, 0, root) * scale


def safe_norm(array: Float[Array, "..."], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Euclidean norm that has derivative zero at zero, and neither overflows nor underflows.

    Args:
        array: any array.
        axis: axes over which the squares are summed; the result keeps them with size 1. None: all axes.
    """
    return normalized(array, axis)[1]


def angles(left: Float[Array, "dim *columns"], right: Float[Array, "dim *columns"]) -> Float[Array, " *columns"]:
    r"""Angles between vectors along the first axis, in radians, as accurate near 0 and pi as elsewhere.

    .. math:: 2 \operatorname{atan2}(\|a - b\|, \|a + b\|) \qquad \text{for unit vectors } a, b

    An arccos would lose half of the digits near 0: the cosine of 1e-4 is 1 in float32.

    Args:
        left: vectors, shape (d, ...).
        right: vectors of the same shape.

    Returns:
        Numbers in [0, pi]. With one zero vector it is pi/2, with two it is 0. The derivative at equal directions is 0.

    Reference: Kahan, How futile are mindless assessments of roundoff in floating-point computation? (2006), section 12.
    """
    left, right = normalized(left, axis=0)[0], normalized(right, axis=0)[0]
    apart, together = safe_norm(left - right, axis=0)[0], safe_norm(left + right, axis=0)[0]
    # atan2 has no derivative at (0, 0), the case of two zero vectors.
    return 2 * jnp.arctan2(apart, jnp.where((apart == 0) & (together == 0), 1, together))


def slerp(
    vectors: Float[Array, "dim classes"], targets: Float[Array, "dim classes"], t: ArrayLike
) -> Float[Array, "dim classes"]:
    r"""Turn each column towards its target by a share t of the angle between them. Lengths stay as they are.

    .. math::
        \|w\| \, \frac{\sin((1 - t) \Omega) \, a + \sin(t \Omega) \, b}{\sin \Omega}, \qquad
        a = \frac{w}{\|w\|}, \quad b = \frac{v}{\|v\|}, \quad \Omega = \angle(a, b)

    This is spherical linear interpolation, on the shortest arc from w to the direction of v.

    Args:
        vectors: w as columns, shape (d, K).
        targets: v as columns, shape (d, K). Their lengths do not matter.
        t: share of the angle, a number in [0, 1]. At 0 the result is `vectors` exactly, at 1 the targets with the
            lengths of `vectors`.

    Returns:
        Shape (d, K). A column stays as it is where there is no shortest arc: where it or its target is zero, or where
        the two are opposite, to within the square root of the eps of the dtype.

    Raises:
        ValueError: if the shapes differ or are not (d, K).

    Example:
        >>> bool(jnp.allclose(slerp(jnp.array([[3.0], [0.0]]), jnp.array([[0.0], [1.0]]), 1 / 3)[1], 1.5))
        True

    Reference: Shoemake, Animating rotation with quaternion curves (1985).
    """
    vectors, targets = at_least_float32(vectors), at_least_float32(targets)
    if vectors.ndim != 2 or vectors.shape != targets.shape:
        raise ValueError(
            f"vectors and targets must have one shape (dim, classes); got {vectors.shape} and {targets.shape}"
        )
    directions, lengths = normalized(vectors, axis=0)
    goals, goal_lengths = normalized(targets, axis=0)
    # Rounding is divided by the sine of the angle, so next to opposite directions the length of the result is lost.
    opposite = safe_norm(directions + goals, axis=0) <= jnp.finfo(vectors.dtype).eps ** 0.5
    lost = opposite | (lengths == 0) | (goal_lengths == 0)
    angle = jnp.where(lost[0], 0, angles(directions, goals))
    stay, turn = _sine_ratio(1 - t, angle), _sine_ratio(t, angle)
    return jnp.where(lost, vectors, stay[None] * vectors + turn[None] * lengths * goals)


def _sine_ratio(t: ArrayLike, angle: Float[Array, " classes"]) -> Float[Array, " classes"]:
    """Return sin(t x) / sin(x), with its value and its derivative at x = 0."""
    t = jnp.asarray(t, angle.dtype)
    small = angle < 3e-3  # the next term of the series, 2e-3 x^6, is then below the eps of float64
    square, rest = jnp.where(small, angle, 0) ** 2, 1 - t * t
    series = t * (1 + rest * square / 6 + rest * (7 - 3 * t * t) * square**2 / 360)
    safe = jnp.where(small, 1, angle)
    return jnp.where(small, series, jnp.sin(t * safe) / jnp.sin(safe))
