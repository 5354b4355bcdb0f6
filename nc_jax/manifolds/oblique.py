"""The oblique manifold: d x K matrices with unit columns, a product of K spheres."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import normalized
from nc_jax.checks import check_at_least, check_key
from nc_jax.manifolds.submanifold import Submanifold


@dataclass(frozen=True)
class Oblique(Submanifold):
    r"""OB(d, K) = {W in R^{d x K} : every column has length 1}, with the metric of the surrounding space.

    `jax.vmap` works for all methods.

    Args:
        dim: d >= 1, number of rows. For d = 1 the manifold consists of points.
        num_columns: K >= 1, number of columns.

    Raises:
        ValueError: if d and K are not whole numbers of at least 1.

    Example:
        >>> manifold = Oblique(3, 5)
        >>> point = manifold.random_point(jax.random.key(0))
        >>> bool(manifold.distance_from(point) < 1e-5)
        True

    Reference: Absil and Gallivan, Joint diagonalization on the oblique manifold for independent component analysis
    (2006).
    """

    dim: int
    num_columns: int

    def __post_init__(self):
        check_at_least("dim", self.dim)
        check_at_least("num_columns", self.num_columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a point, (d, K)."""
        return (self.dim, self.num_columns)

    @property
    def dimension(self) -> int:
        """Number of degrees of freedom, (d - 1) K."""
        return (self.dim - 1) * self.num_columns

    @property
    def diameter(self) -> float:
        """Scale of the manifold, sqrt(K): all points lie on the sphere of this radius."""
        return self.num_columns**0.5

    def project(
        self, point: Float[Array, "dim columns"], vector: Float[Array, "dim columns"]
    ) -> Float[Array, "dim columns"]:
        """Orthogonal projection on the tangent space at the point: z - w (w^T z) for every column."""
        return vector - point * _column_products(point, vector)

    def retract(
        self, point: Float[Array, "dim columns"], tangent: Float[Array, "dim columns"]
    ) -> Float[Array, "dim columns"]:
        """Move from the point along the tangent vector, then divide every column by its length; second order.

        The columns of W + Z are at least as long as those of W, so none can vanish.
        """
        return normalized(point + tangent, axis=0)[0]

    def hessian(
        self, point: Float[Array, "dim columns"], euclidean_gradient: Float[Array, "dim columns"]
    ) -> Callable[[Float[Array, "dim columns"], Float[Array, "dim columns"]], Float[Array, "dim columns"]]:
        """Return the Riemannian Hessian at a point, as a function of (tangent, Euclidean Hessian times tangent).

        The curvature terms w^T g, one for each column, do not depend on the tangent, so they are computed once.
        """
        curvature = _column_products(point, euclidean_gradient)

        def apply(tangent: Array, euclidean_product: Array) -> Array:
            return self.project(point, euclidean_product - tangent * curvature)

        return apply

    def random_point(self, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> Float[Array, "dim columns"]:
        """Draw columns independently and uniformly from the sphere: Gaussian vectors, divided by their lengths.

        Reference: Muller, A note on a method for generating points uniformly on n-dimensional spheres (1959).
        """
        check_key(key)
        return normalized(jax.random.normal(key, self.shape, dtype), axis=0)[0]

    def distance_from(self, matrix: Float[Array, "dim columns"]) -> Float[Array, ""]:
        """How far a matrix is from having unit columns: the Euclidean norm of their squared lengths minus 1."""
        return jnp.linalg.norm(jnp.sum(matrix**2, axis=0) - 1)


def _column_products(left: Float[Array, "dim columns"], right: Float[Array, "dim columns"]) -> Array:
    """Inner products of the columns of two matrices, shape (1, K)."""
    return jnp.sum(left * right, axis=0, keepdims=True)
