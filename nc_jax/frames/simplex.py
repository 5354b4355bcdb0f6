"""The simplex equiangular tight frame (ETF), and the template from which it is rotated into feature space."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import wider
from nc_jax.checks import check_floating, check_key, check_whole
from nc_jax.manifolds import Stiefel


def simplex_template(
    num_classes: int, *, reduced: bool = True, dtype: DTypeLike = jnp.float32
) -> Float[Array, "rank classes"]:
    r"""Template of the simplex ETF, its class vectors in their own coordinates: T with T^T T = I - 11^T / K.

    The reduced template has orthonormal rows that span the space orthogonal to the vector of ones:

    .. math:: T = \big[\, I - c\,\mathbf 1 \mathbf 1^\top \;\big|\; -\mathbf 1/\sqrt K \,\big],
        \qquad c = \frac{1}{\sqrt K (\sqrt K + 1)} .

    (These are the rows of a Householder reflection that takes the vector of entries 1/sqrt(K) to the negative last
    coordinate vector, without the last row.)

    Args:
        num_classes: K >= 2.
        reduced: True gives shape (K - 1, K) and full rank, so that the nearest frame is unique. False gives the
            projection I - 11^T / K itself, shape (K, K) and rank K - 1, which Markou et al. use.
        dtype: a floating dtype.

    Returns:
        The template. Its columns have length sqrt((K - 1) / K) and pairwise cosines -1 / (K - 1).

    Raises:
        ValueError: if K is not a whole number of at least 2, or the dtype is not floating.

    Example:
        >>> simplex_template(3).shape, simplex_template(3, reduced=False).shape
        ((2, 3), (3, 3))

    Reference: Markou, Ajanthan and Gould (2024), section 3, for the full template. The reduced one is derived here.
    """
    check_num_classes(num_classes)
    check_floating(dtype)
    wide = wider(dtype)
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
    """The reduced template of the simplex ETF times a scale, without storing the matrix.

    It is a `nc_jax.frames.Template` and stands for `scale * simplex_template(num_classes)`. Its products cost O(d K);
    those of a dense matrix cost O(d K^2).

    Attributes:
        num_classes: K >= 2.
        scale: factor on all entries of the matrix.

    Raises:
        ValueError: if K is not a whole number of at least 2.
    """

    num_classes: int
    scale: float = 1.0

    def __post_init__(self):
        check_num_classes(self.num_classes)

    @classmethod
    def of_unit_columns(cls, num_classes: int) -> "SimplexTemplate":
        """Return the template of the simplex ETF, scaled so that its class vectors have unit length.

        Args:
            num_classes: K >= 2.

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
        """None: the template has no array, and its products have the dtype of the array that it multiplies."""
        return None

    @property
    def centred(self) -> bool:
        """True: the vectors of a simplex sum to zero."""
        return True

    def rotate(self, rotation: Float[Array, "dim rank"]) -> Float[Array, "dim classes"]:
        """Return U T for a rotation U, shape (d, K)."""
        sums = jnp.sum(rotation, axis=1, keepdims=True)
        root = math.sqrt(self.num_classes)
        return self.scale * jnp.concatenate([rotation - sums / (root * (root + 1)), -sums / root], axis=1)

    def correlate(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim rank"]:
        """Return H T^T for class means H, shape (d, K - 1)."""
        first, last = means[:, :-1], means[:, -1:]
        root = math.sqrt(self.num_classes)
        return self.scale * (first - jnp.sum(first, axis=1, keepdims=True) / (root * (root + 1)) - last / root)

    def column_norms(self) -> Float[Array, " classes"]:
        """Return the lengths of the class vectors, all equal."""
        return jnp.full((self.num_classes,), abs(self.scale) * math.sqrt(1 - 1 / self.num_classes))

    def unit(self) -> tuple["SimplexTemplate", float]:
        """Return the template scaled to unit Frobenius norm, and the factor that undoes the scaling."""
        root = math.sqrt(self.num_classes - 1)  # the norm of the template of scale 1
        return SimplexTemplate(self.num_classes, 1 / root), self.scale * root

    def astype(self, dtype: DTypeLike) -> "SimplexTemplate":
        """Return the template itself: it has no array that could change its dtype."""
        del dtype
        return self


def simplex_etf(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    r"""Simplex equiangular tight frame (ETF): K unit vectors that are as far apart as possible.

    The columns satisfy :math:`w_i^\top w_j = -1/(K-1)` for :math:`i \ne j` and sum to zero.

    Args:
        num_classes: K >= 2.
        dim: feature dimension d >= K - 1.
        key: random key from which a Haar-random orientation is drawn. None: the reduced template in the first K - 1
            dimensions, and zeros in the others.
        dtype: a floating dtype; entries are exact up to its rounding.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm.

    Raises:
        ValueError: if K < 2 or d < K - 1, a size is not a whole number, the dtype is not floating, or the key is none.

    Example:
        >>> gram = simplex_etf(4, 3).T @ simplex_etf(4, 3)
        >>> bool(jnp.allclose(gram[0, 1], -1 / 3, atol=1e-6))
        True

    Reference: Papyan, Han and Donoho (2020) for the simplex ETF; Markou et al. (2024) for the rotation.
    """
    check_room_for_simplex(num_classes, dim)
    check_floating(dtype)
    check_key(key)
    wide = wider(dtype)
    manifold = Stiefel(dim, num_classes - 1)
    rotation = jnp.eye(*manifold.shape, dtype=wide) if key is None else manifold.random_point(key, wide)
    return SimplexTemplate.of_unit_columns(num_classes).rotate(rotation).astype(dtype)


def aligned_etf(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    """Simplex ETF with which non-negative features (after a ReLU) can align: each class has a coordinate of its own.

    The class vectors are I - 11^T / K times a scale, in the first K dimensions. The vector of ones is orthogonal to all
    of them. So a feature may have any component along the vector of ones, which makes its entries non-negative.

    Args:
        num_classes: K >= 2.
        dim: feature dimension d >= K.
        key: has no effect, because the frame has a fixed orientation.
        dtype: a floating dtype.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm.

    Raises:
        ValueError: if K < 2 or d < K, a size is not a whole number, or the dtype is not floating.

    Reference: Zhu et al. (2021), released program.
    """
    del key
    check_num_classes(num_classes)
    check_whole("dim", dim)
    if dim < num_classes:
        raise ValueError(f"a simplex ETF on {num_classes} coordinates needs dim >= {num_classes}; got dim={dim}")
    unit = math.sqrt(num_classes / (num_classes - 1)) * simplex_template(num_classes, reduced=False, dtype=dtype)
    return jnp.pad(unit, ((0, dim - num_classes), (0, 0)))


def check_room_for_simplex(num_classes: int, dim: int) -> None:
    """Raise a ValueError unless there are K >= 2 class vectors that fit into d dimensions."""
    check_num_classes(num_classes)
    check_whole("dim", dim)
    if dim < num_classes - 1:
        raise ValueError(f"a simplex ETF of {num_classes} classes needs dim >= {num_classes - 1}; got dim={dim}")


def check_num_classes(num_classes: int) -> None:
    """Raise a ValueError unless K is a whole number of at least 2."""
    check_whole("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"a simplex ETF needs num_classes >= 2; got {num_classes}")
