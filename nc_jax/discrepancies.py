"""How far the class means are from a frame: what `nearest_frame` minimises over the frame's rotations.

A discrepancy takes (aligned, means), both of shape (d, K): the rotated template U T and the class means H. It returns
one number per class, shape (K,), which `nearest_frame` weights and adds; or a scalar, where classes do not separate.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import safe_norm


def squared_frobenius(
    aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]
) -> Float[Array, " classes"]:
    """Squared distances ||h_k - U t_k||^2, which add up to ||H - U T||_F^2: the orthogonal Procrustes problem."""
    return jnp.sum((means - aligned) ** 2, axis=0)


def huber(aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]) -> Float[Array, " classes"]:
    r"""Huber function of the distance ||h_k - U t_k||: an outlying class pulls linearly, not squarely.

    .. math:: \rho(x) = x^2 \text{ for } x \le c, \; 2 c x - c^2 \text{ beyond}

    with c half the root mean square length of the template's columns, so the cost does not depend on scale. For d close
    to K the sum can have several local minima; the trust region finds the one in whose basin it starts.

    Reference: Huber, Robust estimation of a location parameter (1964).
    """
    threshold = 0.5 * jnp.sqrt(jnp.mean(jnp.sum(aligned**2, axis=0)))  # half a class vector: a clear misplacement
    squares = jnp.sum((means - aligned) ** 2, axis=0)
    outlying = squares > threshold**2
    distances = jnp.sqrt(jnp.where(outlying, squares, 1))  # away from zero, where the root has no derivative
    return jnp.where(outlying, 2 * threshold * distances - threshold**2, squares)


def cosine(aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]) -> Float[Array, " classes"]:
    r"""One minus the cosine between h_k and U t_k: directions count, lengths do not.

    A zero vector has cosine 0 and gets no gradient. With unit-length template columns this is the Procrustes problem of
    the normalised means; the derivatives differ.
    """
    lengths = [safe_norm(vectors, axis=0) for vectors in (aligned, means)]
    units = [
        vectors / jnp.where(length > 0, length, 1) for vectors, length in zip((aligned, means), lengths, strict=True)
    ]
    # Half the squared distance of unit vectors is exact where the cosine is close to 1.
    distances = jnp.sum((units[0] - units[1]) ** 2, axis=0) / 2
    return jnp.where((lengths[0] > 0) & (lengths[1] > 0), distances, 1)[0]
