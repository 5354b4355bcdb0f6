r"""Derivatives of minimisers on the Stiefel manifold, without differentiating the solver.

At a minimiser U of f(U, theta) the Riemannian gradient vanishes. The implicit function theorem needs a square system
with a regular Jacobian; the gradient alone has none, because it says nothing about the p (p + 1) / 2 directions normal
to the manifold. Each condition here is therefore completed: with N(U) = U (3 I - U^T U) / 2, which fixes the manifold
and whose derivative there is the projection on the tangent space,

.. math:: F(U, \theta) = \mathrm{grad} f(N(U), \theta) + U - N(U)

vanishes at the minimiser, and its Jacobian is the Riemannian Hessian on tangent vectors and the identity on normal
ones: symmetric, and positive definite at a strict minimum.

The rule itself is jaxopt's `root_jvp`. Each linear solve is a `lax.custom_linear_solve`, so JAX can transpose it: one
rule gives forward mode, reverse mode and higher derivatives.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import matmul, skew_part, symmetric_part, transpose
from nc_jax.manifolds import Stiefel
from nc_jax.solvers import PolarDecomposition, polar_decomposition

with warnings.catch_warnings():
    # jaxopt says at import that it is no longer developed. Its root rules are all that is used here, and they are done.
    warnings.filterwarnings("ignore", message="JAXopt is no longer maintained", category=DeprecationWarning)
    from jaxopt.implicit_diff import root_jvp

Solve = Callable[[Callable[[Array], Array], Array], Array]


def implicit_root(solver: Callable, stationarity: Callable, linear_solver: Callable[..., Solve]) -> Callable:
    r"""Give a solver the derivatives of the root that it finds.

    Args:
        solver: (init, *args) -> (point, aux), where the point solves `stationarity(point, *args) = 0`.
        stationarity: (point, *args) -> array of the point's shape, with a regular, symmetric Jacobian in the point.
        linear_solver: (point, aux, *args) -> solve, where solve(matvec, rhs) returns the x with matvec(x) = rhs and
            matvec multiplies by that Jacobian. What it prepares (a factorisation) is computed once, not every time.

    Returns:
        A function (init, *args) -> (point, aux). The point's derivatives in args are the implicit ones; the init and
        aux are constants.

    Reference: Blondel et al., Efficient and modular implicit differentiation (2022), section 2.1.
    """

    @jax.custom_jvp
    def root(init: Any, *args: Any) -> tuple[Array, Any]:
        return solver(init, *args)

    @root.defjvp
    def _derivative(primals, tangents):
        init, *args = primals
        point, aux = root(init, *args)
        # The prepared solver is exact whatever its own derivative would be: higher derivatives go through matvec.
        prepared = linear_solver(*jax.lax.stop_gradient((point, aux, *args)))

        def solve(matvec: Callable, rhs: Array) -> Array:
            return jax.lax.custom_linear_solve(matvec, rhs, prepared, symmetric=True)

        tangent = root_jvp(stationarity, point, tuple(args), tuple(tangents[1:]), solve=solve)
        return (point, aux), (tangent, jax.tree.map(jax.custom_derivatives.zero_from_primal, aux))

    return root


def stiefel_stationarity(euclidean_gradient: Callable[..., Array]) -> Callable[..., Array]:
    """Return the completed stationarity condition F of the module's docstring, for a cost given by its gradient.

    Args:
        euclidean_gradient: (point, *args) -> array of the point's shape (n, p).
    """

    def condition(point: Float[Array, "n p"], *args: Any) -> Float[Array, "n p"]:
        size = point.shape[-1]
        near = matmul(point, 3 * jnp.eye(size, dtype=point.dtype) - matmul(transpose(point), point)) / 2
        return Stiefel(*point.shape).gradient(near, euclidean_gradient(near, *args)) + point - near

    return condition


def conjugate_gradient_solver(point: Float[Array, "n p"], aux: Any, *args: Any) -> Solve:
    """Linear solver for any cost: conjugate gradients on the completed Jacobian, to the dtype's precision."""
    del aux, args
    manifold = Stiefel(*point.shape)
    tolerance = 10 * float(jnp.finfo(point.dtype).eps)  # what the trust region asks of the gradient itself

    def solve(matvec: Callable, rhs: Array) -> Array:
        # In exact arithmetic the dimension is enough; twice as many make up for lost conjugacy.
        return jax.scipy.sparse.linalg.cg(matvec, rhs, tol=tolerance, maxiter=2 * manifold.dimension + 2)[0]

    return solve


# --- The orthogonal Procrustes problem: maximise <U, B>. Its linear system has a closed form. ---

procrustes_stationarity = stiefel_stationarity(lambda point, matrix: -matrix)


def procrustes_solver(
    point: Float[Array, "n p"], decomposition: PolarDecomposition | None, matrix: Float[Array, "n p"]
) -> Solve:
    r"""Closed-form linear solver for the Procrustes problem, O(n p^2 + p^3) time and O(n p + p^2) memory.

    With S = sym(U^T B) = V diag(s) V^T the Hessian sends a tangent vector xi to the tangent part of xi S. Splitting
    xi = U X + Z, X skew and U^T Z = 0, and the right-hand side b likewise, leaves

    .. math:: S X + X S = 2\, \mathrm{skew}(U^\top b), \qquad Z S = (I - U U^\top) b

    and the first is a division by s_i + s_j in the basis V.

    Args:
        point: U, the solution.
        decomposition: of B, if the solver that found U has it; None computes the eigendecomposition of S.
        matrix: B.

    Reference: design of this library; the Sylvester equation for the polar factor's derivative is in Kenney and Laub,
    Polar decomposition and matrix sign function condition estimates (1991).
    """
    if decomposition is None:
        values, vectors = jnp.linalg.eigh(symmetric_part(matmul(transpose(point), matrix)))
    else:
        values, vectors = decomposition.values, decomposition.vectors
    # Directions in which U is not determined (two zero singular values, say) have no derivative; they get zero.
    floor = jnp.max(jnp.abs(values)) * values.shape[-1] * float(jnp.finfo(values.dtype).eps)
    divide = partial(_divide_above, floor=floor)
    pairs = values[:, None] + values[None, :]

    def solve(matvec: Callable, rhs: Array) -> Array:
        del matvec
        aligned = matmul(transpose(point), rhs)
        in_basis = matmul(matmul(transpose(vectors), skew_part(aligned)), vectors)
        rotation = matmul(matmul(vectors, divide(2 * in_basis, pairs)), transpose(vectors))
        outside = rhs - matmul(point, aligned)
        stretch = matmul(divide(matmul(outside, vectors), values), transpose(vectors))
        return matmul(point, rotation + symmetric_part(aligned)) + stretch

    return solve


def _divide_above(numerator: Array, denominator: Array, *, floor: Array) -> Array:
    large = denominator > floor
    return jnp.where(large, numerator / jnp.where(large, denominator, 1), 0)


def _polar_with_decomposition(init: None, matrix: Array) -> tuple[Array, PolarDecomposition]:
    del init
    decomposition = polar_decomposition(matrix)
    return decomposition.factor, decomposition


polar_root = implicit_root(_polar_with_decomposition, procrustes_stationarity, procrustes_solver)


def polar_factor(matrix: Float[Array, "n p"]) -> Float[Array, "n p"]:
    r"""Orthogonal polar factor with exact derivatives in both modes and of any order.

    Args:
        matrix: B, shape (n, p) with n >= p.

    Returns:
        U, shape (n, p), the maximiser of <U, B> over matrices with orthonormal columns. For B = U S and a cotangent G,
        the gradient is U X + (I - U U^T) G S^{-1} with S X + X S = U^T G - G^T U. Directions in which U is not
        determined (s_i + s_j = 0) contribute nothing to it.

    Raises:
        ValueError: if n < p.

    Example:
        >>> slope = jax.grad(lambda angle: polar_factor(jnp.array([[jnp.cos(angle)], [jnp.sin(angle)]]))[1, 0])(0.0)
        >>> round(float(slope), 6)
        1.0
    """
    return polar_root(None, matrix)[0]
