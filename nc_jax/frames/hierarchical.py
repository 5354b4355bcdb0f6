"""Frames with prescribed cosines: the hierarchy-aware frame, and its template."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Real

from nc_jax.arrays import matmul, transpose, wider
from nc_jax.checks import check_floating, check_key, check_whole, is_traced
from nc_jax.manifolds import Stiefel

# Constructor (num_classes, dim, *, key, dtype) -> (d, K), the argument `frame` of `nc_jax.models.FixedHead`.
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
        similarity: matrix S of cosines, symmetric, positive semidefinite, with ones on the diagonal, shape (K, K). For
            a label tree, `nc_jax.hierarchy.similarity` makes it.
        dim: feature dimension d >= rank(S); None takes d = K. At the maximal separation the rank is K - 1.
        key: random key from which a Haar-random U is drawn; None takes the first columns of the identity.
        dtype: a floating dtype.

    Returns:
        Class vectors as columns, shape (d, K).

    Raises:
        ValueError: if S is not symmetric, does not have ones on the diagonal or is not positive semidefinite (the
            message names the smallest eigenvalue), d < rank(S), d is not a whole number, the dtype is not floating, or
            the key is none.

    Example:
        >>> similarity = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> frame = hierarchical(similarity, 5, key=jax.random.key(0))
        >>> bool(jnp.allclose(frame.T @ frame, similarity, atol=1e-6))
        True

    Reference: Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 3.2.
    """
    check_floating(dtype)
    check_key(key)
    template = hierarchical_template(similarity)
    rank = len(template)
    dim = len(template[0]) if dim is None else dim
    check_whole("dim", dim)
    if dim < rank:
        raise ValueError(f"class vectors with these cosines span {rank} dimensions, so dim >= {rank}; got dim={dim}")
    wide = wider(dtype)
    manifold = Stiefel(dim, rank)
    rotation = jnp.eye(*manifold.shape, dtype=wide) if key is None else manifold.random_point(key, wide)
    return matmul(rotation, jnp.asarray(template, wide)).astype(dtype)


def hierarchical_template(similarity: Real[np.ndarray, "classes classes"]) -> Float[np.ndarray, "rank classes"]:
    """Return the template T with T^T T = S, in float64.

    Args:
        similarity: matrix S of cosines, symmetric, positive semidefinite, with ones on the diagonal, shape (K, K).

    Returns:
        T, shape (r, K), where r is the rank of S. Its rows are scaled eigenvectors of S, the largest eigenvalue first.

    Raises:
        ValueError: if S is not symmetric, does not have ones on the diagonal or is not positive semidefinite.
    """
    similarity = np.asarray(similarity, float)
    _check(similarity)
    values, vectors = scipy.linalg.eigh(similarity)
    tolerance = 1e-9 * len(values)  # well above the float64 rounding of eigenvalues, if entries are at most 1
    if values[0] < -tolerance:
        raise ValueError(
            f"cosines form a positive semidefinite matrix; the smallest eigenvalue of this one is {values[0]:.3g}"
        )
    kept = values > tolerance
    # The sign of an eigenvector is arbitrary; a fixed choice makes the template the same on every machine.
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))] < 0, -1, 1)
    return (np.sqrt(values[kept]) * vectors[:, kept]).T[::-1]


def hierarchical_constructor(similarity: Real[np.ndarray, "classes classes"]) -> FrameConstructor:
    """Return a constructor of the frame, which heads take as an argument: `FixedHead(K, frame=...)`.

    Args:
        similarity: matrix S of cosines, symmetric, positive semidefinite, with ones on the diagonal, shape (K, K).

    Returns:
        Function (num_classes, dim, *, key, dtype) -> (d, K). It raises a ValueError if num_classes is not K, or if
        `hierarchical` raises one.
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
    r"""Template of the most separated hierarchy-aware frame with exponential similarities, differentiable in gamma.

    The similarities are :math:`E = e^{-\gamma d / d_{max}}`. The columns of the Cholesky factor C, with
    :math:`C^\top C = E`, represent the classes. All columns have the inner product 1 with
    :math:`e = C^{-\top} \mathbf 1`, and :math:`\|e\|^2 = q = \mathbf 1^\top E^{-1} \mathbf 1`. Subtracting this common
    part gives

    .. math:: T = \sqrt{\tfrac{q}{q - 1}}\, \big(C - \tfrac1q\, e \mathbf 1^\top\big), \qquad
        T^\top T = \frac{q E - \mathbf 1 \mathbf 1^\top}{q - 1} .

    These are the cosines at the maximal separation s* (`nc_jax.hierarchy.max_separation`). A Householder reflection
    takes e to the last coordinate; the last row of T is then zero and is left out. For E = I the result is the template
    of the simplex. The eigenvectors that `hierarchical_template` uses cannot be differentiated, because the similarity
    of a tree has repeated eigenvalues.

    Args:
        distances: distances between classes, shape (K, K), K >= 2, such that E is positive definite. This holds for
            distances in a tree.
        gamma: rate of decay, > 0.

    Returns:
        T, shape (K - 1, K), with unit columns, in at least float32.

    Raises:
        ValueError: if the distances are not a square matrix, K < 2, or gamma is not positive.

    Reference: derived here.
    """
    distances = jnp.asarray(distances)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or distances.shape[0] < 2:
        raise ValueError(f"distances must have shape (classes, classes), two at least; got {distances.shape}")
    gamma = jnp.asarray(gamma)
    if not is_traced(gamma) and not np.asarray(gamma) > 0:  # in NumPy: inside jit, JAX would trace the comparison
        raise ValueError(f"gamma must be positive; got {gamma}")
    dtype = wider(gamma.dtype)
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
