"""Discrepancies: functions that say how far the class means are from a frame, for `nearest_frame` to minimise.

A discrepancy takes (aligned, means), both of shape (d, K): the rotated template U T and the class means H. It returns
one number per class, shape (K,), which `nearest_frame` weights and adds. A discrepancy that is not a sum over classes
returns a scalar. Below, h_k is the mean of class k, and U t_k is its class vector.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import normalized


def squared_frobenius(
    aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]
) -> Float[Array, " classes"]:
    """Squared distances ||h_k - U t_k||^2. Their sum is ||H - U T||_F^2, the cost of the Procrustes problem."""
    return jnp.sum((means - aligned) ** 2, axis=0)


def huber(aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]) -> Float[Array, " classes"]:
    r"""Huber function of the distance ||h_k - U t_k||: a class mean far from its class vector costs linearly.

    .. math:: \rho(x) = x^2 \text{ for } x \le c, \qquad \rho(x) = 2 c x - c^2 \text{ for } x > c

    c is half the root mean square length of the class vectors, so the threshold has the scale of the frame. For d close
    to K the sum over classes can have several local minima; which one the trust region finds depends on its start.

    Reference: Huber, Robust estimation of a location parameter (1964).
    """
    threshold = 0.5 * jnp.sqrt(jnp.mean(jnp.sum(aligned**2, axis=0)))  # half the length of a class vector
    squares = jnp.sum((means - aligned) ** 2, axis=0)
    outlying = squares > threshold**2
    distances = jnp.sqrt(jnp.where(outlying, squares, 1))  # never at zero, where the root has no derivative
    return jnp.where(outlying, 2 * threshold * distances - threshold**2, squares)


def cosine(aligned: Float[Array, "dim classes"], means: Float[Array, "dim classes"]) -> Float[Array, " classes"]:
    r"""One minus the cosine between h_k and U t_k, which depends on directions and not on lengths.

    A zero vector has cosine 0 and gets no gradient. If the template has unit columns, the minimiser is that of the
    Procrustes problem for means scaled to unit length; its derivatives in the means differ.
    """
    (aligned, aligned_lengths), (means, mean_lengths) = (normalized(vectors, axis=0) for vectors in (aligned, means))
    # Half the squared distance of unit vectors is accurate even if the cosine is close to 1.
    distances = jnp.sum((aligned - means) ** 2, axis=0) / 2
    return jnp.where((aligned_lengths > 0) & (mean_lengths > 0), distances, 1)[0]
