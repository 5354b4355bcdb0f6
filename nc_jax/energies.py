"""Energies of class vectors: how evenly their directions are spread over the unit sphere.

Class vectors are the columns of an array of shape (d, K). Only their directions count. All functions are pure. They
work under `jax.jit`, `jax.grad` and `jax.vmap`, and compute in float32 or wider.

A column that is zero or not finite has no direction: the result is NaN. Pairs of equal directions have distance exactly
0, as do those whose distance is below 1e-19 in float32 and has no square. Gradients are never NaN: a pair of equal
directions, whose difference has no direction, gets none.
"""

import functools
import math
import numbers
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.checks import Mask, Reals
from nc_jax.pairs import (
    Pairs,
    SquaredDistances,
    checked_tile,
    fold_pairs,
    pairs_of,
    squared_angles,
    squared_chords,
)


def riesz_energy(
    vectors: Reals,
    s: float | int = 1.0,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    distance: Literal["chord", "angle"] = "chord",
    present: Mask | None = None,
    tile: int | None = None,
) -> Float[Array, ""]:
    r"""Riesz energy of directions: small where they are spread evenly.

    .. math:: E_s = \sum_{i \ne j} K_s(\hat w_i, \hat w_j), \qquad K_s(u, v) = \operatorname{sign}(s) \|u - v\|^{-s},
        \qquad K_0(u, v) = -\log \|u - v\|

    The sum is over ordered pairs, K (K - 1) of them. For s >= 0, two equal directions give inf. The sum is formed
    relative to its largest term, so a kernel that over- or underflows does no harm where the energy itself is
    representable. An energy that is too large for the dtype is inf. Its gradient, and one that is too large itself, has
    the right direction and a length that the dtype holds.

    Args:
        vectors: class vectors as columns, shape (d, K), of any length, K >= 2.
        s: exponent above -2. At -2 every set of vectors that sums to zero has the least energy.
        reduction: "mean" over ordered pairs, or their "sum".
        distance: "chord", the distance in space, or "angle", in radians (the distance on the sphere).
        present: shape (K,), which classes count; None: all of them. With fewer than two, the mean is NaN.
        tile: number of columns that are compared with as many at once. The result does not depend on it, except for
            rounding. None: all up to 512 columns, and beyond at most 1,024, in equal blocks; so memory is at most
            1,024^2 and not K^2 numbers.

    Returns:
        The energy, a scalar in float32 or wider.

    Raises:
        ValueError: if s is not a finite number above -2, or shapes or options are wrong.

    Example:
        >>> float(riesz_energy(jnp.array([[1.0, -1.0], [0.0, 0.0]]), 2))
        0.25

    Reference: Borodachov, Hardin and Saff, Discrete Energy on Rectifiable Sets (2019), section 2.
    """
    s = checked_exponent(s)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum"; got {reduction!r}')
    if distance not in ("chord", "angle"):
        raise ValueError(f'distance must be "chord" or "angle"; got {distance!r}')
    pairs, squared = pairs_of(vectors, present), squared_chords if distance == "chord" else squared_angles
    return _riesz(pairs, s=s, total=reduction == "sum", tile=checked_tile(tile, pairs), squared=squared)


def separation(vectors: Reals, *, present: Mask | None = None, tile: int | None = None) -> Float[Array, ""]:
    r"""Least distance of two directions, :math:`\min_{i \ne j} \|\hat w_i - \hat w_j\|`.

    Of K <= d + 1 directions it is at most sqrt(2 K / (K - 1)), and of K > d + 1 at most sqrt(2). The gradient is the
    mean over the pairs that attain it, and zero where the separation is zero.

    Args:
        vectors: class vectors as columns, shape (d, K), of any length, K >= 2.
        present: shape (K,), which classes count; None: all of them. With fewer than two, the result is NaN.
        tile: number of columns that are compared with as many at once, as in `riesz_energy`.

    Returns:
        A scalar in [0, 2], in float32 or wider.

    Raises:
        ValueError: if shapes or options are wrong.

    Example:
        >>> round(float(separation(jnp.eye(3))), 6)
        1.414214
    """
    pairs = pairs_of(vectors, present)
    return _least(pairs, tile=checked_tile(tile, pairs))


def smooth_separation(
    vectors: Reals, sharpness: float | int = 10.0, *, present: Mask | None = None, tile: int | None = None
) -> Float[Array, ""]:
    r"""Smooth form of the least distance of two directions: a soft minimum over pairs.

    .. math:: -\frac{1}{\gamma} \log \frac{1}{K (K - 1)} \sum_{i \ne j} e^{-\gamma \|\hat w_i - \hat w_j\|}

    It lies between the separation and the separation plus log(K (K - 1) / 2) / gamma. If all distances are equal, it is
    the separation.

    Args:
        vectors: class vectors as columns, shape (d, K), of any length, K >= 2.
        sharpness: gamma > 0, in units of 1 / distance.
        present: shape (K,), which classes count; None: all of them. With fewer than two, the result is NaN.
        tile: number of columns that are compared with as many at once, as in `riesz_energy`.

    Returns:
        A scalar in [0, 2], in float32 or wider.

    Raises:
        ValueError: if the sharpness is not finite and positive, or shapes or options are wrong.

    Example:
        >>> round(float(smooth_separation(jnp.eye(3), 5.0)), 6)
        1.414214
    """
    sharpness = _checked_positive("sharpness", sharpness)
    pairs = pairs_of(vectors, present)
    return _smooth_least(pairs, sharpness=sharpness, tile=checked_tile(tile, pairs))


def log_gram_determinant(
    vectors: Reals, gamma: float | int = 1.0, *, jitter: float | int = 0.0, present: Mask | None = None
) -> Float[Array, ""]:
    r"""Logarithm of the determinant of the Gaussian kernel of directions, at most 0: large where they differ.

    .. math:: \log \det (G + \epsilon I), \qquad G_{ij} = \exp(-\gamma \|\hat w_i - \hat w_j\|^2)

    With a jitter of 0, two equal directions give -inf. So does a kernel that is singular up to the rounding of the
    dtype (a pivot of its Cholesky factor below K eps), as that of many classes in few dimensions for a small gamma:
    what rounding leaves of such a determinant says nothing. The gradient is then zero.

    Args:
        vectors: class vectors as columns, shape (d, K), of any length, K >= 2.
        gamma: gamma > 0, in units of 1 / squared distance.
        jitter: epsilon >= 0, added to the diagonal.
        present: shape (K,), which classes count; None: all of them. With fewer than two, the result is NaN.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: if gamma is not finite and positive, the jitter not finite and at least 0, or the shape is wrong.

    Example:
        >>> round(float(log_gram_determinant(jnp.array([[1.0, -1.0]]), 1.0)), 6)
        -0.000335
    """
    gamma = _checked_positive("gamma", gamma)
    if not (isinstance(jitter, numbers.Real) and 0 <= jitter < math.inf):
        raise ValueError(f"jitter must be a finite number of at least 0; got {jitter!r}")
    return _log_determinant(pairs_of(vectors, present), gamma=gamma, jitter=float(jitter))


def checked_exponent(s: Any) -> float:
    """Return the exponent of a Riesz energy as a float, once it is a finite number above -2."""
    if not (isinstance(s, numbers.Real) and -2 < float(s) < math.inf):
        raise ValueError(f"s must be a finite number above -2; got {s!r}")
    return float(s)


def _checked_positive(name: str, value: Any) -> float:
    if not (isinstance(value, numbers.Real) and 0 < float(value) < math.inf):
        raise ValueError(f"{name} must be a finite number above 0; got {value!r}")
    return float(value)


# The programs are compiled as wholes, because JAX would compile a loop anew at each call outside of jax.jit.


@functools.partial(jax.jit, static_argnames=("s", "total", "tile", "squared"))
def _riesz(pairs: Pairs, *, s: float, total: bool, tile: int, squared: SquaredDistances) -> Array:
    def add(carry: tuple[Array, Any], squared: Array, mask: Array) -> tuple[Array, Any]:
        equal, kernels = carry
        apart = mask & (squared > 0)
        logs = jnp.log(jnp.where(apart, squared, 1)) / 2
        kernels = kernels - jnp.sum(logs) if s == 0 else _add_exp(kernels, -s * logs, apart)
        return equal | jnp.any(mask & ~apart), kernels

    dtype = pairs.directions.dtype
    start = jnp.zeros((), dtype) if s == 0 else _no_exp(dtype)
    equal, kernels = fold_pairs(pairs, tile, add, (jnp.zeros((), bool), start), squared)
    if s == 0:
        energy = kernels / jnp.maximum(pairs.number, 1)
    else:
        # A derivative is larger than the energy by up to |s| / (least squared distance), and is summed over classes.
        gap = jnp.maximum(2 * kernels[0] / s, 0) + math.log(8 * max(abs(s), 1) * pairs.directions.shape[1])
        energy = math.copysign(1, s) * _bounded_exp(_log_mean(kernels, pairs.number), gap)
    if s >= 0:  # added, so that the other pairs keep their gradient
        energy = energy + jnp.where(equal, jnp.inf, 0)
    some = pairs.number > 0
    energy = jnp.where(some, 2 * pairs.number * energy, 0) if total else jnp.where(some, energy, jnp.nan)
    return jnp.where(pairs.sound, energy, jnp.nan)


@functools.partial(jax.jit, static_argnames="tile")
def _least(pairs: Pairs, *, tile: int) -> Array:
    def add(carry: tuple[Array, Array, Array], squared: Array, mask: Array) -> tuple[Array, Array, Array]:
        least, total, count = carry
        new = jnp.minimum(least, jax.lax.stop_gradient(jnp.min(jnp.where(mask, squared, jnp.inf))))
        kept, attained = least == new, mask & (squared == new)
        total = jnp.where(kept, total, 0) + jnp.sum(jnp.where(attained, squared, 0))
        return new, total, jnp.where(kept, count, 0) + jnp.sum(attained.astype(count.dtype))

    zero = jnp.zeros((), pairs.directions.dtype)
    _, total, count = fold_pairs(pairs, tile, add, (zero + jnp.inf, zero, zero))
    least = _root(total / jnp.maximum(count, 1))
    return jnp.where(pairs.sound & (pairs.number > 0), least, jnp.nan)


@functools.partial(jax.jit, static_argnames=("sharpness", "tile"))
def _smooth_least(pairs: Pairs, *, sharpness: float, tile: int) -> Array:
    def add(carry: Any, squared: Array, mask: Array) -> Any:
        return _add_exp(carry, -sharpness * _root(squared), mask)

    kernels = fold_pairs(pairs, tile, add, _no_exp(pairs.directions.dtype))
    value = -_log_mean(kernels, pairs.number) / sharpness
    return jnp.where(pairs.sound & (pairs.number > 0), value, jnp.nan)


@functools.partial(jax.jit, static_argnames=("gamma", "jitter"))
def _log_determinant(pairs: Pairs, *, gamma: float, jitter: float) -> Array:
    directions, num_classes = pairs.directions, pairs.directions.shape[1]
    eye = jnp.eye(num_classes, dtype=directions.dtype)
    off = (eye == 0) & pairs.present[:, None] & pairs.present[None]  # other classes are a block of the identity
    squared = jnp.where(off, squared_chords(directions, directions, off), 0)
    kernel = jnp.where(off, jnp.exp(-gamma * squared), eye * (1 + jitter * pairs.present))
    # The first factor decides whether there is one, so that the derivative is only taken of a factor that exists.
    pivots = jnp.diagonal(jnp.linalg.cholesky(jax.lax.stop_gradient(kernel)))
    regular = jnp.all(pivots**2 > num_classes * jnp.finfo(pivots.dtype).eps)  # False for a NaN, too
    if jitter == 0:
        regular &= ~jnp.any(off & (squared == 0))
    factor = jnp.linalg.cholesky(jnp.where(regular, kernel, eye))
    value = jnp.where(regular, 2 * jnp.sum(jnp.log(jnp.diagonal(factor))), -jnp.inf)
    return jnp.where(pairs.sound & (pairs.number > 0), value, jnp.nan)


def _root(squared: Array) -> Array:
    """Square root, with derivative zero at zero."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


# A sum of exponentials as (m, S) = exp(m) S, where m is the largest logarithm and a constant for derivatives.


def _no_exp(dtype: Any) -> tuple[Array, Array]:
    return jnp.asarray(jnp.finfo(dtype).min, dtype), jnp.zeros((), dtype)


def _add_exp(carry: tuple[Array, Array], logs: Array, mask: Array) -> tuple[Array, Array]:
    largest, total = carry
    logs = jnp.where(mask, logs, largest)
    new = jax.lax.stop_gradient(jnp.maximum(largest, jnp.max(logs)))
    return new, total * jnp.exp(largest - new) + jnp.sum(jnp.where(mask, jnp.exp(logs - new), 0))


def _log_mean(carry: tuple[Array, Array], number: Array) -> Array:
    """Logarithm of the mean; -inf for a sum over nothing."""
    largest, total = carry
    some = total > 0
    return jnp.where(some, largest + jnp.log(jnp.where(some, total, 1)) - jnp.log(jnp.maximum(number, 1)), -jnp.inf)


def _bounded_exp(log: Array, gap: Array) -> Array:
    """Exponential; inf where it is too large for the dtype.

    Its derivative is at most the largest number of the dtype, divided by exp(gap): room for the factors that follow.
    """
    finite = jnp.finfo(log.dtype)
    limit = math.log(float(finite.max)) * (1 - 4 * float(finite.eps))  # its own rounding must not make it infinite
    constant, cap = jax.lax.stop_gradient(log), jax.lax.stop_gradient(limit - gap)
    value = jnp.where(constant > limit, jnp.inf, jnp.exp(jnp.minimum(constant, limit)))
    return jnp.where(constant > cap, value + jnp.exp(cap) * (log - constant), jnp.exp(jnp.minimum(log, cap)))
