r"""Parametrisations: matrices with orthonormal columns as smooth functions of free numbers.

Any optimiser may train the free numbers: the point is always in the Stiefel manifold St(d, r), the d x r matrices with
orthonormal columns (r <= d).

==============  ==========  ===============================================  ========  =================================
name            free shape  point                                            cost      reaches
==============  ==========  ===============================================  ========  =================================
"cayley"        (r, d)      first r columns of (I + A) (I - A)^-1            O(d r^2)  almost all; for r = d almost all
                                                                                       of determinant 1
"exponential"   (d, d)      first r columns of exp(A)                        O(d^3)    all; for r = d all of
                                                                                       determinant 1
"householder"   (d, r)      product of the r Householder reflections of a    O(d r^2)  all
                            QR decomposition
"polar"         (d, r)      nearest matrix with orthonormal columns          O(d r^2)  all
==============  ==========  ===============================================  ========  =================================

A is the skew-symmetric matrix whose strict upper triangle is that of the free matrix (with zeros for rows that the free
matrix does not have). "cayley" and "exponential" are smooth everywhere and take zero to the first r columns of the
identity. "householder" and "polar" are smooth where the free matrix has full column rank, and take a matrix with
orthonormal columns to itself. For r = d, the determinants of their point and of the free matrix have the same sign.

Reference: Lezcano-Casado and Martínez-Rubio, Cheap orthogonal constraints in neural networks: a simple parametrization
of the orthogonal and unitary group (2019), for the exponential; Liu, Lin, Liu, Rehg, Paull, Xiong, Song and Weller,
Orthogonal over-parameterized training (2021), for the other three.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import at_least_float32, matmul, skew_part, symmetric_part, transpose, wider
from nc_jax.manifolds.stiefel import Stiefel, orthogonal_factor


def cayley(free: Float[Array, "rank dim"]) -> Float[Array, "dim rank"]:
    r"""Cayley transform: the first r columns of :math:`(I + A)(I - A)^{-1}`, with A skew-symmetric.

    Let :math:`A = \begin{pmatrix} \Omega & B \\ -B^\top & 0 \end{pmatrix}`, and let
    :math:`\begin{pmatrix} Q_1 \\ Q_2 \end{pmatrix}` have orthonormal columns with the same span as those of
    :math:`\begin{pmatrix} I \\ B^\top \end{pmatrix}`. Then the first r columns are

    .. math:: \begin{pmatrix} 2 Q_1 S Q_1^\top - I \\ -2 Q_2 S Q_1^\top \end{pmatrix}, \qquad
        S = (I - Q_1^\top \Omega Q_1)^{-1} .

    A skew-symmetric matrix has imaginary eigenvalues, so the inverse always exists. The transform reaches a matrix if
    and only if the block of its first r rows does not have the eigenvalue -1.

    Args:
        free: matrix whose strict upper triangle is that of A, shape (r, d) with r <= d. Entries on and below the
            diagonal have no effect. Dtypes narrower than float32 are computed in float32.

    Returns:
        The point, shape (d, r), in float32 or float64. For r = d its determinant is 1.

    Raises:
        ValueError: if the free matrix does not have shape (r, d) with 1 <= r <= d.

    Example:
        >>> quarter_turn = cayley(jnp.array([[0.0, -1.0], [0.0, 0.0]]))
        >>> bool(jnp.allclose(quarter_turn, jnp.array([[0.0, -1.0], [1.0, 0.0]])))
        True

    Reference: Wen and Yin, A feasible method for optimization with orthogonality constraints (2013); the
    form that inverts an r x r matrix is derived here.
    """
    if free.ndim != 2 or not 1 <= free.shape[0] <= free.shape[1]:
        raise ValueError(
            f"the Cayley transform needs a free matrix of shape (r, d), 1 <= r <= d; got shape {free.shape}"
        )
    rank = free.shape[0]
    free = at_least_float32(free)
    upper, right = jnp.triu(free[:, :rank], 1), free[:, rank:]
    eye = jnp.eye(rank, dtype=free.dtype)
    # The formula with the inverse of I - Omega + B B^T would square B: with entries of 1000, no float32 digit is right.
    basis = _orthonormal_basis(jnp.concatenate([eye, transpose(right)]))
    top, bottom = basis[:rank], basis[rank:]
    inner = eye - matmul(matmul(transpose(top), upper - transpose(upper)), top)
    solved = 2 * jnp.linalg.solve(inner, transpose(top))
    return _without_rounding(jnp.concatenate([matmul(top, solved) - eye, -matmul(bottom, solved)]))


def exponential(free: Float[Array, "dim dim"], rank: int | None = None) -> Float[Array, "dim rank"]:
    r"""Matrix exponential: the first r columns of :math:`e^A`, with A skew-symmetric.

    Args:
        free: matrix whose strict upper triangle is that of A, shape (d, d). Entries on and below the diagonal have no
            effect. Dtypes narrower than float32 are computed in float32.
        rank: number of columns r of the point; None for all d columns.

    Returns:
        The point, shape (d, r), in float32 or float64. For r = d its determinant is 1.

    Raises:
        ValueError: if the free matrix is not square, or r is not in 1..d.

    Example:
        >>> quarter_turn = exponential(jnp.array([[0.0, -jnp.pi / 2], [0.0, 0.0]]))
        >>> bool(jnp.allclose(quarter_turn, jnp.array([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6))
        True

    Reference: Lezcano-Casado and Martínez-Rubio (2019).
    """
    if free.ndim != 2 or free.shape[0] != free.shape[1]:
        raise ValueError(f"the exponential needs a free matrix of shape (d, d); got shape {free.shape}")
    rank = len(free) if rank is None else rank
    if not 1 <= rank <= len(free):
        raise ValueError(f"the exponential of a {len(free)} x {len(free)} matrix has 1 <= r <= {len(free)}; got {rank}")
    upper = jnp.triu(at_least_float32(free), 1)
    return _without_rounding(jax.scipy.linalg.expm(upper - transpose(upper))[:, :rank])


def householder(free: Float[Array, "dim rank"]) -> Float[Array, "dim rank"]:
    """Orthogonal factor of the QR decomposition of the free matrix, by Householder reflections.

    The point holds the first r columns of the product of the reflections. They equal the result of the Gram-Schmidt
    process, without its loss of orthogonality: column i of the free matrix has a positive component along column i of
    the point.

    Args:
        free: free matrix, shape (d, r) with r <= d. Dtypes narrower than float32 are computed in float32.

    Returns:
        The point, shape (d, r), in float32 or float64. For r = d its determinant has the sign of that of the free
        matrix. The derivative exists if the free matrix has full column rank; otherwise it is not finite.

    Raises:
        ValueError: if the free matrix does not have shape (d, r) with 1 <= r <= d.

    Example:
        >>> bool(jnp.allclose(householder(jnp.array([[3.0, 1.0], [4.0, 1.0]]))[:, 0], jnp.array([0.6, 0.8])))
        True

    Reference: Golub and Van Loan, Matrix Computations (2013), section 5.2.
    """
    _check_tall(free, "Householder reflections need")
    return _orthonormal_basis(at_least_float32(free))


def polar(free: Float[Array, "dim rank"]) -> Float[Array, "dim rank"]:
    r"""Orthogonal polar factor U of the free matrix F = U S: the nearest matrix with orthonormal columns.

    With the singular value decomposition :math:`F = V \Sigma W^\top`, it is :math:`U = V W^\top`.

    Args:
        free: free matrix F, shape (d, r) with r <= d. Dtypes narrower than float32 are computed in float32.

    Returns:
        The point U, shape (d, r), in float32 or float64. For r = d its determinant has the sign of that of the free
        matrix. The derivative exists if the free matrix has full column rank; it is exact, also for repeated singular
        values.

    Raises:
        ValueError: if the free matrix does not have shape (d, r) with 1 <= r <= d.

    Example:
        >>> bool(jnp.allclose(polar(jnp.array([[3.0, 0.0], [0.0, -2.0]])), jnp.array([[1.0, 0.0], [0.0, -1.0]])))
        True

    Reference: Higham, Functions of Matrices (2008), theorem 8.4. `nc_jax.implicit.polar_factor` has other algorithms.
    """
    _check_tall(free, "the polar factor needs")
    return _polar(at_least_float32(free))


@jax.custom_jvp
def _polar(free: Array) -> Array:
    left, _, right = jnp.linalg.svd(free, full_matrices=False)
    return matmul(left, right)


@_polar.defjvp
def _differentiate_polar(primals, tangents):
    # F = U S gives U^T dF - dF^T U = S X + X S with X = U^T dU, and (I - U U^T) dF = (I - U U^T) dU S. Autodiff of the
    # singular value decomposition would divide by differences of singular values, which vanish at the identity.
    (free,), (tangent,) = primals, tangents
    factor = _polar(free)
    stretch = symmetric_part(matmul(transpose(factor), free))
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(stretch))

    def divide(_, rhs: Array) -> Array:
        rotated = matmul(matmul(transpose(vectors), rhs), vectors)
        return matmul(matmul(vectors, rotated / (values[:, None] + values[None])), transpose(vectors))

    inner = matmul(transpose(factor), tangent)
    # JAX differentiates a custom_linear_solve through its equation, so higher derivatives are exact, too.
    turn = jax.lax.custom_linear_solve(
        lambda x: matmul(stretch, x) + matmul(x, stretch), 2 * skew_part(inner), divide, symmetric=True
    )
    outward = transpose(jnp.linalg.solve(stretch, transpose(tangent - matmul(factor, inner))))
    return factor, matmul(factor, turn) + outward


def _orthonormal_basis(matrix: Array) -> Array:
    # In JAX's derivative rule for the QR decomposition, the precision of matrix products follows this setting.
    with jax.default_matmul_precision("highest"):
        return orthogonal_factor(matrix)


def _without_rounding(point: Array) -> Array:
    """Take one Newton-Schulz step, which squares the orthogonality error (before the step, eps |A|).

    On the manifold, the step is the identity and its derivative the projection on the tangent space. So it changes
    neither the exact point nor its exact derivative.
    """
    missing = jnp.eye(point.shape[1], dtype=point.dtype) - matmul(transpose(point), point)
    return point + matmul(point, missing) / 2


@dataclass(frozen=True)
class Parametrisation:
    """A parametrisation of St(d, r): a map from free matrices to points, with the shape and a start of the free matrix.

    Attributes:
        name: key of this parametrisation in `PARAMETRISATIONS`.
        free_shape: function (d, r) -> shape of the free matrix.
        draw: function (key, d, r, dtype) -> random free matrix, in float32 or float64.
        apply: function (free, r) -> point.

    Example:
        >>> chosen = PARAMETRISATIONS["cayley"]
        >>> free = chosen.init(jax.random.key(0), dim=5, rank=3)
        >>> free.shape, chosen.point(free, dim=5, rank=3).shape
        ((3, 5), (5, 3))
    """

    name: str
    free_shape: Callable[[int, int], tuple[int, int]] = field(repr=False)
    draw: Callable[[PRNGKeyArray, int, int, DTypeLike], Array] = field(repr=False)
    apply: Callable[[Array, int], Array] = field(repr=False)

    def shape(self, dim: int, rank: int) -> tuple[int, int]:
        """Return the shape of the free matrix for points of St(d, r).

        Args:
            dim: number of rows d of a point.
            rank: number of columns r of a point.

        Raises:
            ValueError: if r is not in 1..d.
        """
        if not 1 <= rank <= dim:
            raise ValueError(f"a rotation has 1 <= rank <= dim; got rank={rank} and dim={dim}")
        return self.free_shape(dim, rank)

    def init(self, key: PRNGKeyArray, dim: int, rank: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "_ _"]:
        """Draw a free matrix whose point is uniformly (Haar) distributed over the points that can be reached.

        Args:
            key: random key.
            dim: number of rows d of the point.
            rank: number of columns r of the point.
            dtype: a floating dtype.

        Returns:
            The free matrix; `shape(dim, rank)` is its shape.

        Raises:
            ValueError: if r is not in 1..d.
        """
        self.shape(dim, rank)
        return self.draw(key, dim, rank, wider(dtype)).astype(dtype)

    def point(self, free: Float[Array, "_ _"], dim: int, rank: int) -> Float[Array, "dim rank"]:
        """Return the point of a free matrix, shape (d, r).

        Args:
            free: free matrix of shape `shape(dim, rank)`.
            dim: number of rows d of the point.
            rank: number of columns r of the point.

        Raises:
            ValueError: if r is not in 1..d, or the free matrix has another shape.
        """
        if free.shape != self.shape(dim, rank):
            raise ValueError(f'"{self.name}" needs a free matrix of shape {self.shape(dim, rank)}; got {free.shape}')
        return self.apply(free, rank)


def _draw_gaussian(key: PRNGKeyArray, dim: int, rank: int, dtype: DTypeLike) -> Array:
    """Draw a Gaussian matrix: it is invariant under rotations from the left, so its orthogonal factors are uniform."""
    return jax.random.normal(key, (dim, rank), dtype)


def _draw_cayley(key: PRNGKeyArray, dim: int, rank: int, dtype: DTypeLike) -> Array:
    """Solve `cayley` for A at a random X: its first r rows satisfy 2 (X_1 + I)^-1 = I - Omega + B B^T."""
    rotation = _draw_rotation(key, dim, rank, dtype)
    stretch = 2 * jnp.linalg.inv(rotation[:rank] + jnp.eye(rank, dtype=dtype))
    right = -transpose(matmul(rotation[rank:], stretch)) / 2
    return jnp.concatenate([jnp.triu(-skew_part(stretch), 1), right], axis=1)


def _draw_exponential(key: PRNGKeyArray, dim: int, rank: int, dtype: DTypeLike) -> Array:
    """Take the logarithm of a random rotation of all d dimensions; its first r columns are uniform in St(d, r)."""
    del rank
    upper = _draw_cayley(key, dim, dim, dtype)
    # Q = (I + A) (I - A)^-1 has eigenvalues (1 - i t) / (1 + i t) = exp(-2 i arctan t), where i A has the real t.
    tangents, vectors = jnp.linalg.eigh(jax.lax.complex(jnp.zeros_like(upper), upper - transpose(upper)))
    half = matmul(2 * jnp.arctan(tangents)[None] * jnp.imag(vectors), transpose(jnp.real(vectors)))
    return jnp.triu(half - transpose(half), 1)


def _draw_rotation(key: PRNGKeyArray, dim: int, rank: int, dtype: DTypeLike) -> Array:
    """Draw from the uniform distribution on St(d, r); for r = d, on the matrices of determinant 1."""
    rotation = Stiefel(dim, rank).random_point(key, dtype)
    if rank < dim:
        return rotation
    # Negating a column maps determinant -1 to determinant 1 and preserves volumes.
    return rotation.at[:, 0].multiply(jnp.where(jnp.linalg.det(rotation) < 0, -1, 1).astype(dtype))


def _check_tall(free: Array, needs: str) -> None:
    if free.ndim != 2 or not 1 <= free.shape[1] <= free.shape[0]:
        raise ValueError(f"{needs} a free matrix of shape (d, r), 1 <= r <= d; got shape {free.shape}")


PARAMETRISATIONS: dict[str, Parametrisation] = {
    found.name: found
    for found in (
        Parametrisation("cayley", lambda dim, rank: (rank, dim), _draw_cayley, lambda free, rank: cayley(free)),
        Parametrisation("exponential", lambda dim, rank: (dim, dim), _draw_exponential, exponential),
        Parametrisation(
            "householder", lambda dim, rank: (dim, rank), _draw_gaussian, lambda free, rank: householder(free)
        ),
        Parametrisation("polar", lambda dim, rank: (dim, rank), _draw_gaussian, lambda free, rank: polar(free)),
    )
}
