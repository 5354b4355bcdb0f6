"""Frames with prescribed cosines: the hierarchy-aware frame, and its template."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Real

from nc_jax.arrays import matmul, transpose
from nc_jax.manifolds import Stiefel

# Constructor (num_classes, dim, *, key, dtype) -> (d, K), as `nc_jax.models.FixedHead` takes one.
FrameConstructor = Callable[..., Float[Array, "dim classes"]]


def hierarchical(
    similarity: Real[np.ndarray, "classes classes"],
    dim: int | None = None,
    *,
    key: PRNGKeyArray | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "dim classes"]:
    r"""Hierarchy-aware frame: unit vectors whose cosines are a given matrix, in a random orientation.

    With the eigendecomposition :math:`S = V \Lambda V^\top` and a rotation U with orthonormal columns,

    .. math:: W = U \Lambda^{1/2} V^\top, \qquad W^\top W = S .

    Args:
        similarity: S, symmetric, positive semidefinite, with ones on the diagonal, shape (K, K); of
            `nc_jax.hierarchy.similarity`, for a hierarchy.
        dim: feature dimension d >= rank(S); None takes K. At the maximal separation the rank is K - 1.
        key: draws a Haar-random U; None takes the first columns of the identity.
        dtype: a floating dtype.

    Returns:
        Class vectors as columns, shape (d, K).

    Raises:
        ValueError: if S is not as above (the smallest eigenvalue is named), or d < rank(S).

    Example:
        >>> similarity = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> frame = hierarchical(similarity, 5, key=jax.random.key(0))
        >>> bool(jnp.allclose(frame.T @ frame, similarity, atol=1e-6))
        True

    Reference: Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 3.2.
    """
    template = hierarchical_template(similarity)
    rank = len(template)
    dim = len(similarity) if dim is None else dim
    if dim < rank:
        raise ValueError(f"class vectors with these cosines span {rank} dimensions, so dim >= {rank}; got dim={dim}")
    wide = jnp.promote_types(dtype, jnp.float32)
    manifold = Stiefel(dim, rank)
    rotation = jnp.eye(*manifold.shape, dtype=wide) if key is None else manifold.random_point(key, wide)
    return matmul(rotation, jnp.asarray(template, wide)).astype(dtype)


def hierarchical_template(similarity: Real[np.ndarray, "classes classes"]) -> Float[np.ndarray, "rank classes"]:
    """Return T with T^T T = S and as many rows as S has rank, largest eigenvalues first, in float64.

    Args:
        similarity: as of `hierarchical`.

    Raises:
        ValueError: as there.
    """
    similarity = np.asarray(similarity, float)
    _check(similarity)
    values, vectors = scipy.linalg.eigh(similarity)
    tolerance = 1e-9 * len(values)  # rounding of eigenvalues of matrices with entries up to 1, in float64, with room
    if values[0] < -tolerance:
        raise ValueError(
            f"cosines form a positive semidefinite matrix; the smallest eigenvalue of this one is {values[0]:.3g}"
        )
    kept = values > tolerance
    # An eigenvector's sign is arbitrary; one choice makes the template a function of S on every machine.
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))] < 0, -1, 1)
    return (np.sqrt(values[kept]) * vectors[:, kept]).T[::-1]


def hierarchical_constructor(similarity: Real[np.ndarray, "classes classes"]) -> FrameConstructor:
    """Return the frame as a constructor of frames, what heads take: `FixedHead(K, frame=...)`.

    Raises:
        ValueError: when called with another number of classes, and as `hierarchical`.
    """

    def construct(
        num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "dim classes"]:
        if num_classes != len(similarity):
            raise ValueError(f"the similarity is of {len(similarity)} classes; got num_classes={num_classes}")
        return hierarchical(similarity, dim, key=key, dtype=dtype)

    return construct


def separated_template(
    distances: Real[Array | np.ndarray, "classes classes"], gamma: Float[Array, ""] | float
) -> Float[Array, "rank classes"]:
    r"""Template of the most separated frame of the exponential map, differentiable in gamma: T(gamma), (K - 1, K).

    Let the columns of the Cholesky factor C stand for the classes, :math:`C^\top C = E = e^{-\gamma d / d_{max}}`. All
    have the same product, 1, with :math:`e = C^{-\top} \mathbf 1`, and :math:`\|e\|^2 = q = \mathbf 1^\top E^{-1}
    \mathbf 1`. Taking that common part away leaves

    .. math:: T = \sqrt{\tfrac{q}{q - 1}}\, \big(C - \tfrac1q\, e \mathbf 1^\top\big), \qquad
        T^\top T = \frac{q E - \mathbf 1 \mathbf 1^\top}{q - 1},

    the cosines at s* (`nc_jax.hierarchy.max_separation`). A Householder reflection takes e to the last coordinate,
    whose row is then zero and is left out. With E = I this is the simplex's template. Eigenvectors, of which
    `hierarchical_template` is made, would have no derivative: trees repeat eigenvalues.

    Args:
        distances: such that E is positive definite, as those of trees are; shape (K, K), K >= 2.
        gamma: positive.

    Raises:
        ValueError: if the distances are not a square matrix.

    Reference: derived here.
    """
    distances = jnp.asarray(distances)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or distances.shape[0] < 2:
        raise ValueError(f"distances must have shape (classes, classes), two at least; got {distances.shape}")
    gamma = jnp.asarray(gamma)
    dtype = jnp.promote_types(gamma.dtype, jnp.float32)
    scaled = (distances / jnp.max(distances)).astype(dtype)
    lower = jnp.linalg.cholesky(jnp.exp(-gamma.astype(dtype) * scaled))
    common = jax.scipy.linalg.solve_triangular(lower, jnp.ones(len(lower), dtype), lower=True)
    total = jnp.sum(common**2)
    vectors = jnp.sqrt(total / (total - 1)) * (transpose(lower) - common[:, None] / total)
    normal = common / jnp.sqrt(total)
    normal = normal.at[-1].add(jnp.where(normal[-1] < 0, -1, 1))
    reflected = vectors - 2 * jnp.outer(normal, matmul(normal, vectors)) / jnp.sum(normal**2)
    return reflected[:-1]


def _check(similarity: np.ndarray) -> None:
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or len(similarity) < 2:
        raise ValueError(f"a similarity has shape (classes, classes), two at least; got {similarity.shape}")
    if not np.allclose(similarity, similarity.T, rtol=0, atol=1e-9):
        raise ValueError("a similarity must be symmetric; this one differs from its transpose")
    if not np.allclose(np.diagonal(similarity), 1, rtol=0, atol=1e-6):
        worst = int(np.argmax(np.abs(np.diagonal(similarity) - 1)))
        raise ValueError(f"a class has similarity 1 to itself; class {worst} has {similarity[worst, worst]:.6g}")
