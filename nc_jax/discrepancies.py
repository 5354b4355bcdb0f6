"""How far the class means are from a frame: what `nearest_frame` minimises over the frame's rotations.

A discrepancy takes (aligned, means), both of shape (d, K): the rotated template U T and the class means H.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def squared_frobenius(aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]) -> Float[Array, ""]:
    """Squared Frobenius distance ||H - U T||_F^2: the cost of the orthogonal Procrustes problem."""
    return jnp.sum((means - aligned) ** 2)


def huber(aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]) -> Float[Array, ""]:
    r"""Sum over classes of the Huber function of ||h_k - U t_k||: an outlying class pulls linearly, not squarely.

    .. math:: \sum_k \rho(\|h_k - U t_k\|), \qquad
        \rho(x) = x^2 \text{ for } x \le c, \; 2 c x - c^2 \text{ beyond}

    with c half the root mean square length of the template's columns, so the cost does not depend on scale.

    Reference: Huber, Robust estimation of a location parameter (1964).
    """
    threshold = 0.5 * jnp.sqrt(jnp.mean(jnp.sum(aligned**2, axis=0)))  # half a class vector: a clear misplacement
    squares = jnp.sum((means - aligned) ** 2, axis=0)
    outlying = squares > threshold**2
    distances = jnp.sqrt(jnp.where(outlying, squares, 1))  # away from zero, where the root has no derivative
    return jnp.sum(jnp.where(outlying, 2 * threshold * distances - threshold**2, squares))
