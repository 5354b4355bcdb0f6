"""The simplex equiangular tight frame, and the template from which it is rotated into feature space."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import matmul
from nc_jax.manifolds import Stiefel


def simplex_template(
    num_classes: int, *, reduced: bool = True, dtype: DTypeLike = jnp.float32
) -> Float[Array, "rank classes"]:
    r"""Simplex ETF in its own coordinates: T with T^T T = I - 11^T / K.

    The reduced template has orthonormal rows that span the space orthogonal to the vector of ones,

    .. math:: T = \big[\, I - c\,\mathbf 1 \mathbf 1^\top \;\big|\; -\mathbf 1/\sqrt K \,\big],
        \qquad c = \frac{1}{\sqrt K (\sqrt K + 1)},

    the rows of the Householder reflection that swaps 1/sqrt(K) with a coordinate vector, less the one it goes to.

    Args:
        num_classes: K >= 2.
        reduced: True gives shape (K - 1, K), of full rank, so that the nearest frame is unique. False gives the
            projection I - 11^T / K itself, shape (K, K), of rank K - 1, as the paper uses it.
        dtype: a floating dtype.

    Returns:
        The template; its columns have length sqrt((K - 1) / K) and cosines -1 / (K - 1).

    Raises:
        ValueError: if K < 2.

    Example:
        >>> simplex_template(3).shape, simplex_template(3, reduced=False).shape
        ((2, 3), (3, 3))

    Reference: Markou, Ajanthan and Gould (2024), section 3, for the full template M; the reduced one is derived here.
    """
    check_num_classes(num_classes)
    wide = jnp.promote_types(dtype, jnp.float32)
    if not reduced:
        template = jnp.eye(num_classes, dtype=wide) - 1 / num_classes
    else:
        root = math.sqrt(num_classes)
        square = jnp.eye(num_classes - 1, dtype=wide) - 1 / (root * (root + 1))
        template = jnp.concatenate([square, jnp.full((num_classes - 1, 1), -1 / root, wide)], axis=1)
    return template.astype(dtype)


@jax.tree_util.register_static
@dataclass(frozen=True)
class SimplexTemplate:
    """The reduced template times a scale, as an operator: its products cost O(d K), not the O(d K^2) of a dense matrix.

    `nearest_frame` takes it in place of `scale * simplex_template(num_classes)`; it is a `nc_jax.frames.Template`.

    Attributes:
        num_classes: K >= 2.
        scale: factor on all entries.
    """

    num_classes: int
    scale: float = 1.0

    @classmethod
    def of_unit_columns(cls, num_classes: int) -> "SimplexTemplate":
        """Return the template of the simplex ETF, whose class vectors have unit length.

        Raises:
            ValueError: if K < 2.
        """
        check_num_classes(num_classes)
        return cls(num_classes, math.sqrt(num_classes / (num_classes - 1)))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense matrix, (K - 1, K)."""
        return (self.num_classes - 1, self.num_classes)

    @property
    def dtype(self) -> None:
        """None: there is no array, and products have the dtype of their other factor."""
        return None

    @property
    def centred(self) -> bool:
        """True: the vectors of a simplex sum to zero."""
        return True

    def rotate(self, rotation: Float[Array, "dim rank"]) -> Float[Array, "dim classes"]:
        """Return U T."""
        sums = jnp.sum(rotation, axis=1, keepdims=True)
        root = math.sqrt(self.num_classes)
        return self.scale * jnp.concatenate([rotation - sums / (root * (root + 1)), -sums / root], axis=1)

    def correlate(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim rank"]:
        """Return H T^T."""
        first, last = means[:, :-1], means[:, -1:]
        root = math.sqrt(self.num_classes)
        return self.scale * (first - jnp.sum(first, axis=1, keepdims=True) / (root * (root + 1)) - last / root)

    def column_norms(self) -> Float[Array, " classes"]:
        """Return the lengths of the class vectors, all equal."""
        return jnp.full((self.num_classes,), abs(self.scale) * math.sqrt(1 - 1 / self.num_classes))

    def unit(self) -> tuple["SimplexTemplate", float]:
        """Return the template scaled to unit Frobenius norm, and the factor that takes it back."""
        root = math.sqrt(self.num_classes - 1)  # the norm of the template of scale 1
        return SimplexTemplate(self.num_classes, 1 / root), self.scale * root

    def astype(self, dtype: DTypeLike) -> "SimplexTemplate":
        """Return the template itself, which has no array."""
        del dtype
        return self


def simplex_etf(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    r"""Simplex equiangular tight frame: the K unit vectors that are as far apart as they can be.

    The columns satisfy :math:`w_i^\top w_j = -1/(K-1)` for :math:`i \ne j` and sum to zero.

    Args:
        num_classes: K >= 2.
        dim: feature dimension d >= K - 1.
        key: draws a Haar-random orientation; None gives the canonical one, whose rows from K on are zero.
        dtype: a floating dtype; the frame is exact to its rounding.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm.

    Raises:
        ValueError: if K < 2 or d < K - 1.

    Example:
        >>> gram = simplex_etf(4, 3).T @ simplex_etf(4, 3)
        >>> bool(jnp.allclose(gram[0, 1], -1 / 3, atol=1e-6))
        True

    Reference: Papyan, Han and Donoho (2020), definition of the simplex ETF; the rotation as in Markou et al. (2024).
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    check_room_for_simplex(num_classes, dim)
    template = simplex_template(num_classes, dtype=wide)
    manifold = Stiefel(dim, num_classes - 1)
    rotation = jnp.eye(*manifold.shape, dtype=wide) if key is None else manifold.random_point(key, wide)
    return (matmul(rotation, template) * math.sqrt(num_classes / (num_classes - 1))).astype(dtype)


def aligned_etf(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    """Simplex ETF that non-negative features can align with: K coordinates less their mean, in the first K dimensions.

    The direction of ones is orthogonal to all class vectors, so a feature may have any part along it.

    Args:
        num_classes: K >= 2.
        dim: d >= K.
        key: not looked at: there is one such frame.
        dtype: a floating dtype.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm.

    Raises:
        ValueError: if d < K.

    Reference: Zhu et al. (2021), released program.
    """
    del key
    if dim < num_classes:
        raise ValueError(f"a simplex ETF on {num_classes} coordinates needs dim >= {num_classes}; got dim={dim}")
    unit = math.sqrt(num_classes / (num_classes - 1)) * simplex_template(num_classes, reduced=False, dtype=dtype)
    return jnp.pad(unit, ((0, dim - num_classes), (0, 0)))


def check_room_for_simplex(num_classes: int, dim: int) -> None:
    """Raise a ValueError unless there are K >= 2 class vectors that fit into d dimensions."""
    check_num_classes(num_classes)
    if dim < num_classes - 1:
        raise ValueError(f"a simplex ETF of {num_classes} classes needs dim >= {num_classes - 1}; got dim={dim}")


def check_num_classes(num_classes: int) -> None:
    """Raise a ValueError unless K >= 2."""
    if num_classes < 2:
        raise ValueError(f"a simplex ETF needs num_classes >= 2; got {num_classes}")
