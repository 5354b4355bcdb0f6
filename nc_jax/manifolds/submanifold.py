"""What all manifolds of matrices share that have the metric of the surrounding space."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Submanifold:
    """A manifold of matrices with the metric of the surrounding space; `Stiefel` and `Oblique` are of this kind."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a point."""
        raise NotImplementedError

    @property
    def dimension(self) -> int:
        """Number of degrees of freedom."""
        raise NotImplementedError

    def project(self, point: Float[Array, "n p"], vector: Float[Array, "n p"]) -> Float[Array, "n p"]:
        """Orthogonal projection on the tangent space at the point."""
        raise NotImplementedError

    def inner(self, point: Float[Array, "n p"], u: Float[Array, "n p"], v: Float[Array, "n p"]) -> Float[Array, ""]:
        """Inner product <u, v> = trace(u^T v) of two tangent vectors; in this metric it is the same at every point."""
        del point
        return jnp.vdot(u, v, precision="highest")

    def norm(self, point: Float[Array, "n p"], tangent: Float[Array, "n p"]) -> Float[Array, ""]:
        """Length of a tangent vector."""
        return jnp.sqrt(self.inner(point, tangent, tangent))

    def gradient(self, point: Float[Array, "n p"], euclidean_gradient: Float[Array, "n p"]) -> Float[Array, "n p"]:
        """Riemannian gradient of a cost, from its Euclidean gradient (that of the cost as a function of any matrix)."""
        return self.project(point, euclidean_gradient)

    def random_tangent(self, key: PRNGKeyArray, point: Float[Array, "n p"]) -> Float[Array, "n p"]:
        """Draw a Gaussian tangent vector at the point and scale it to unit length (zero if the dimension is 0)."""
        if self.dimension == 0:
            return jnp.zeros_like(point)
        tangent = self.project(point, jax.random.normal(key, self.shape, point.dtype))
        norm = self.norm(point, tangent)
        return tangent / jnp.where(norm > 0, norm, 1)
