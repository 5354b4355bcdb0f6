"""Lengths of class vectors: a frame fixes the angles, and a client of federated learning may set lengths of its own."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.checks import Reals, checked_per_class


def local_lengths(counts: Reals) -> Float[Array, " classes"]:
    r"""Lengths of FedGELA: how long the class vectors of one client are, by how its training examples are distributed.

    .. math:: \Phi_k = K \, n_k / \sum_j n_j

    The client classifies by :math:`W \operatorname{diag}(\Phi)`, for the frame W of unit vectors that all clients and
    the server share. Angles are those of W for the classes that exist at the client. A missing class has the length 0,
    so its logit is 0: it stays in the softmax, and it wins wherever all existing classes have negative logits. With
    equally many examples of every class all lengths are 1. Their mean is always 1.

    Args:
        counts: numbers of training examples of each class at the client, shape (K,). They may be traced; for several
            clients, `jax.vmap` maps over them.

    Returns:
        Shape (K,), in at least float32. All ones for a client without any example: nothing is known of its classes.

    Raises:
        ValueError: if the counts are not one number for each class or, for values that are known, one of them is
            negative or not finite.

    Example:
        >>> local_lengths([3, 1, 0, 0]).tolist()
        [3.0, 1.0, 0.0, 0.0]

    Reference: Fan et al., Federated learning with bilateral curation for partially class-disjoint data (2023). The
    released program multiplies by K as well, which makes the lengths of a balanced client 1.
    """
    counts = checked_per_class(counts, "counts")
    even = jnp.all(counts == counts[0])  # also without any example; exactly 1, where XLA's division is off by an eps
    return jnp.where(even, 1, len(counts) * counts / jnp.where(even, 1, jnp.sum(counts)))
