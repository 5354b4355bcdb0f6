"""Sums over pairs of directions, in blocks: for many classes, no array has an entry for every pair.

Class vectors are the columns of an array of shape (d, K). A column that is zero or not finite has no direction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import at_least_float32, matmul, normalized, transpose
from nc_jax.checks import Mask, Reals, check_at_least, checked_mask, real_array

# The rounding error of a squared distance from a Gram matrix is some eps. Relative to a distance of 0.1 it is about
# 1e-5 in float32, which is what sums over pairs have anyway; below, differences take over.
_CLOSE = 1e-2
_SMALL = 2**18  # up to this many products, differences cost less than a decision between two programs
_ONE_BLOCK = 512  # up to this many columns; beyond, several blocks take no longer, and half the memory or less
_TILE = 1024  # at most 4 MiB for a block in float32; larger ones leave the caches of a CPU core

# (left, right, mask) -> squared distances of the columns of two blocks; outside of the mask they may be inaccurate.
SquaredDistances = Callable[[Array, Array, Array], Array]


def squared_distances(left: Reals, right: Reals) -> Float[Array, "left right"]:
    r"""Squared distances of unit columns, :math:`\|u_i - v_j\|^2`, accurate also where two columns nearly coincide.

    They come from one matrix product, as :math:`\|u\|^2 + \|v\|^2 - 2 u^\top v`. This loses all digits of a distance
    below 1e-3 in float32. So if a pair is nearer than 0.1, the block is computed from differences of entries. Equal
    columns have distance exactly 0.

    Args:
        left: unit vectors as columns, shape (d, M).
        right: unit vectors as columns, shape (d, N).

    Returns:
        Shape (M, N), at least 0.

    Raises:
        ValueError: if the arrays are not matrices with the same number of rows.

    Example:
        >>> squared_distances(jnp.eye(2), jnp.eye(2)).tolist()
        [[0.0, 2.0], [2.0, 0.0]]
    """
    left, right = (at_least_float32(real_array(vectors, "unit vectors")) for vectors in (left, right))
    if left.ndim != 2 or right.ndim != 2 or left.shape[0] != right.shape[0]:
        raise ValueError(f"unit vectors must have shapes (dim, M) and (dim, N); got {left.shape} and {right.shape}")
    return squared_chords(left, right, None)


class Pairs(NamedTuple):
    """What the sums over pairs of directions need."""

    directions: Float[Array, "dim classes"]  # unit columns; zeros for classes that do not count or have no direction
    present: Bool[Array, " classes"]
    number: Float[Array, ""]  # number of unordered pairs
    sound: Bool[Array, ""]  # whether every class that counts has a direction


def pairs_of(vectors: Reals, present: Mask | None) -> Pairs:
    """Return the directions of class vectors, once their shape and that of the mask are right.

    Raises:
        ValueError: if they do not have shape (d, K), K >= 2, or the mask is not boolean of shape (K,).
    """
    vectors = at_least_float32(real_array(vectors, "vectors"))
    if vectors.ndim != 2 or vectors.shape[0] < 1 or vectors.shape[1] < 2:
        raise ValueError(f"vectors must have shape (dim, classes) with at least 2 classes; got shape {vectors.shape}")
    num_classes = vectors.shape[1]
    counted = jnp.ones(num_classes, bool) if present is None else checked_mask(present, num_classes, "present")
    finite = jnp.all(jnp.isfinite(vectors), axis=0)
    directions, lengths = normalized(jnp.where((finite & counted)[None], vectors, 0), axis=0)
    members = jnp.sum(counted).astype(vectors.dtype)
    sound = jnp.all(~counted | (lengths[0] > 0))
    return Pairs(directions, counted, members * (members - 1) / 2, sound)


def checked_tile(tile: int | None, pairs: Pairs) -> int:
    """Return the number of columns of a block: the given one, or one that suits K.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """
    num_classes = pairs.directions.shape[1]
    if tile is None:
        return num_classes if num_classes <= _ONE_BLOCK else -(-num_classes // max(2, -(-num_classes // _TILE)))
    check_at_least("tile", tile)
    return min(int(tile), num_classes)


def squared_chords(
    left: Float[Array, "dim left"], right: Float[Array, "dim right"], mask: Bool[Array, "left right"] | None
) -> Float[Array, "left right"]:
    """Squared distances of columns. Those outside of the mask may be inaccurate."""
    dim, rows, columns = *left.shape, right.shape[1]
    if dim * rows * columns <= _SMALL:
        return jnp.sum((left[:, :, None] - right[:, None, :]) ** 2, axis=0)

    def by_differences() -> Array:
        @jax.checkpoint  # without it, the gradient would keep a block for every row
        def add(total: Array, entries: tuple[Array, Array]) -> tuple[Array, None]:
            return total + (entries[0][:, None] - entries[1][None]) ** 2, None

        return jax.lax.scan(add, jnp.zeros((rows, columns), left.dtype), (left, right))[0]

    squares = jnp.sum(left**2, axis=0)[:, None] + jnp.sum(right**2, axis=0)[None]
    squared = jnp.maximum(squares - 2 * matmul(transpose(left), right), 0)
    close = squared < _CLOSE if mask is None else mask & (squared < _CLOSE)
    return jax.lax.cond(jnp.any(close), by_differences, lambda: squared)


def squared_angles(
    left: Float[Array, "dim left"], right: Float[Array, "dim right"], mask: Bool[Array, "left right"]
) -> Float[Array, "left right"]:
    """Squared angles between columns, in radians. Those outside of the mask may be inaccurate."""
    return angle_between(squared_chords(left, right, mask), squared_chords(left, -right, mask)) ** 2


def angle_between(squared: Array, squared_to_opposite: Array) -> Array:
    """Angle between unit vectors from their squared distance and that to the opposite; derivative 0 at 0 and pi."""
    apart, together = (jnp.maximum(one, 0) for one in (squared, squared_to_opposite))  # a NaN stays one
    apart, together = (jnp.where(one == 0, 0, jnp.sqrt(jnp.where(one == 0, 1, one))) for one in (apart, together))
    return 2 * jnp.arctan2(apart, together)


def fold_pairs(
    pairs: Pairs,
    tile: int,
    add: Callable[[Any, Array, Array], Any],
    start: Any,
    squared: SquaredDistances = squared_chords,
) -> Any:
    """Fold `add(carry, squared distances, mask)` over blocks of pairs i < j. Distances outside of the mask are 1."""
    num_classes = pairs.directions.shape[1]
    blocks = -(-num_classes // tile)
    missing = blocks * tile - num_classes
    directions = jnp.pad(pairs.directions, ((0, 0), (0, missing)))
    present, places = jnp.pad(pairs.present, (0, missing)), jnp.arange(tile, dtype=jnp.int32)

    def step(carry: Any, first: Array, second: Array) -> Any:
        left, right = (jax.lax.dynamic_slice_in_dim(directions, at, tile, axis=1) for at in (first, second))
        rows, columns = (jax.lax.dynamic_slice_in_dim(present, at, tile) for at in (first, second))
        mask = (rows[:, None] & columns[None]) & ((first + places)[:, None] < (second + places)[None])
        return add(carry, jnp.where(mask, squared(left, right, mask), 1), mask)

    if blocks == 1:
        return step(start, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    # Without the checkpoint, the gradient would keep every block: K^2 numbers.
    step = jax.checkpoint(step)
    corners = tile * jnp.stack(jnp.triu_indices(blocks)).astype(jnp.int32)
    return jax.lax.scan(lambda carry, corner: (step(carry, corner[0], corner[1]), None), start, corners.T)[0]
