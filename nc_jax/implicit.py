r"""Derivatives of minimisers on the Stiefel manifold, without differentiating the solver.

At a minimiser U (n x p) of a cost f(U, theta), the Riemannian gradient is zero. The implicit function theorem needs a
square system with a regular Jacobian. The gradient alone does not give one, because it says nothing about the
p (p + 1) / 2 directions normal to the manifold. So a term for these directions is added. With N(U) the point of the
manifold nearest to U, the condition

.. math:: F(U, \theta) = \mathrm{grad} f(N(U), \theta) + c\, (U - N(U)) = 0

holds at the minimiser. On the manifold, N is the identity and its derivative is the projection on the tangent space. So
the Jacobian of F is the Riemannian Hessian on tangent vectors, and c times the identity on normal vectors. It is
symmetric, and positive definite at a strict minimum. The factor c is the norm of the Euclidean gradient, so that
neither part of the Jacobian is lost in the rounding error of the other part.

The closed form, the orthogonal Procrustes problem, has a simpler system of its own; see `procrustes_stationarity`.

The derivative rule is jaxopt's `root_jvp` (see `nc_jax.root_rules`). Each linear solve is a `lax.custom_linear_solve`,
which JAX can transpose. So one rule gives forward mode, reverse mode and higher derivatives.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import matmul, safe_norm, skew_part, symmetric_part, transpose
from nc_jax.manifolds import Stiefel
from nc_jax.root_rules import Solve, root_jvp
from nc_jax.solvers import PolarDecomposition, PolarMethod, polar_decomposition
from nc_jax.solvers.conjugate_gradients import Solved, conjugate_gradients
from nc_jax.solvers.polar import judged


def implicit_root(solver: Callable, stationarity: Callable, linear_solver: Callable[..., Solve]) -> Callable:
    r"""Make a solver differentiable: give it the derivatives of the root that it finds.

    Args:
        solver: function (init, *args) -> (point, aux), where the point (an array, or a tree of arrays) solves
            `stationarity(point, *args) = 0`.
        stationarity: function (point, *args) -> arrays of the shapes of the point, whose Jacobian in the point is
            regular and symmetric.
        linear_solver: function (point, aux, *args) -> solve. Here solve(matvec, rhs) returns the x with
            matvec(x) = rhs, and matvec multiplies by the Jacobian of `stationarity`. Work that `linear_solver` does
            itself, such as a factorisation, is done once for all calls of solve.

    Returns:
        A function (init, *args) -> (point, aux). The derivatives of the point in args follow from the implicit function
        theorem; init and aux count as constants.

    Reference: Blondel et al., Efficient and modular implicit differentiation (2022), section 2.1.
    """

    @jax.custom_jvp
    def root(init: Any, *args: Any) -> tuple[Any, Any]:
        return solver(init, *args)

    @root.defjvp
    def _derivative(primals, tangents):
        init, *args = primals
        point, aux = root(init, *args)
        # The prepared solver may be constant: higher derivatives go through matvec.
        prepared = linear_solver(*jax.lax.stop_gradient((point, aux, *args)))

        def solve(matvec: Callable, rhs: Any) -> Any:
            return jax.lax.custom_linear_solve(matvec, rhs, prepared, symmetric=True)

        tangent = root_jvp(stationarity, point, tuple(args), tuple(tangents[1:]), solve=solve)
        return (point, aux), (tangent, jax.tree.map(jax.custom_derivatives.zero_from_primal, aux))

    return root


def stiefel_stationarity(euclidean_gradient: Callable[..., Array]) -> Callable[..., Array]:
    """Return the stationarity condition F of the module's docstring, for a cost that is given by its gradient.

    Args:
        euclidean_gradient: function (point, *args) -> Euclidean gradient of the cost, shape (n, p).

    Returns:
        The function F: (point, *args) -> array of shape (n, p).
    """

    def condition(point: Float[Array, "n p"], *args: Any) -> Float[Array, "n p"]:
        near = _nearest_point(point)
        ambient = euclidean_gradient(near, *args)
        return Stiefel(*point.shape).gradient(near, ambient) + _normal_scale(ambient) * (point - near)

    return condition


def _normal_scale(euclidean_gradient: Array) -> Array:
    """Return c of the module's docstring. The root does not depend on c, so c is treated as a constant."""
    norm = jax.lax.stop_gradient(safe_norm(euclidean_gradient))
    return jnp.where(norm > 0, norm, 1)


@jax.custom_jvp
def _nearest_point(point: Array) -> Array:
    """Return N of the module's docstring. It is evaluated on the manifold only, where it is the identity."""
    return point


@_nearest_point.defjvp
def _project_tangent(primals, tangents):
    (point,), (tangent,) = primals, tangents
    return point, Stiefel(*point.shape).project(point, tangent)


def conjugate_gradient_solver(euclidean_gradient: Callable[..., Array]) -> Callable[..., Solve]:
    """Return a `linear_solver` for `implicit_root` that serves every cost: conjugate gradients, to dtype precision.

    Its argument aux says whether the point is a strict minimum (see `is_strict_minimum`). If not, it returns the least
    squares solution of least norm, which is zero in directions that are not determined. It returns NaN rather than a
    wrong derivative where the iteration ends with a residual above the square root of the rounding unit.

    Args:
        euclidean_gradient: function (point, *args) -> Euclidean gradient of the cost, shape (n, p).
    """

    def prepare(point: Float[Array, "n p"], strict: Bool[Array, ""], *args: Any) -> Solve:
        manifold = Stiefel(*point.shape)
        scale = _normal_scale(euclidean_gradient(point, *args))
        # In exact arithmetic, as many iterations as dimensions are enough; twice as many make up for lost conjugacy.
        limit = max(2 * manifold.dimension + 2, _MOST_ITERATIONS)
        loose = float(jnp.finfo(point.dtype).eps) ** 0.5

        def solve(matvec: Callable, rhs: Array) -> Array:
            tangent = manifold.project(point, rhs)
            found = jax.lax.cond(
                strict,
                lambda: conjugate_gradients(matvec, tangent, limit),
                lambda: conjugate_gradients(lambda x: matvec(matvec(x)), matvec(tangent), limit),
            )
            solved = found.flat | (found.residual <= loose)
            return jnp.where(solved, found.solution, jnp.nan) + (rhs - tangent) / scale

        return solve

    return prepare


def is_strict_minimum(
    euclidean_gradient: Callable[..., Array], point: Float[Array, "n p"], *args: Any
) -> Bool[Array, ""]:
    """Whether the Riemannian Hessian of a cost is positive definite at a critical point, up to rounding.

    The test runs conjugate gradients from a random right-hand side, which meet every eigenvalue. A curvature counts as
    zero if it is rounding of the two terms that cancel in the Hessian, which have the size of the Euclidean gradient.

    Args:
        euclidean_gradient: function (point, *args) -> Euclidean gradient of the cost, shape (n, p).
        point: critical point U, shape (n, p).
        *args: arguments of the gradient after the point.
    """
    manifold = Stiefel(*point.shape)
    force = manifold.random_tangent(jax.random.key(0), point)
    condition = stiefel_stationarity(euclidean_gradient)

    def hessian(tangent: Array) -> Array:
        return jax.jvp(lambda at: condition(at, *args), (point,), (tangent,))[1]

    # sqrt(p) is the norm of U, so this is the size of the gradient as a factor on U.
    terms = _normal_scale(euclidean_gradient(point, *args)).reshape(()) / manifold.diameter
    return ~conjugate_gradients(hessian, force, 2 * manifold.dimension + 2, terms).flat


# --- The orthogonal Procrustes problem: maximise <U, B>. Its linear system has a closed form. ---


def procrustes_stationarity(
    root: tuple[Float[Array, "n p"], Float[Array, "p p"]], matrix: Float[Array, "n p"]
) -> tuple[Float[Array, "n p"], Float[Array, "p p"]]:
    """Return what is zero at the polar decomposition B = U S: U S - B, and U^T U - I (halved).

    S is the multiplier of the constraint U^T U = I, and an unknown of its own. So B enters as it is, and neither a
    tangent nor a cotangent of B has to be projected. The system is symmetric, and regular if S is.

    Args:
        root: U, shape (n, p), and S, shape (p, p), of which the symmetric part is meant.
        matrix: B, shape (n, p).
    """
    point, stretch = root
    eye = jnp.eye(point.shape[1], dtype=point.dtype)
    # The skew part of S is not determined by B = U S, so it must be zero.
    constraint = symmetric_part(matmul(transpose(point), point) - eye) / 2 + skew_part(stretch)
    # JAX transposes a linear solve only if all of its right-hand side depends on the tangent: on none of its entries.
    constraint += jnp.sum(matrix[:0])
    return matmul(point, symmetric_part(stretch)) - matrix, constraint


SylvesterMethod = Literal["auto", "eigh", "products"]


def procrustes_solver(
    point: Float[Array, "n p"],
    decomposition: PolarDecomposition,
    matrix: Float[Array, "n p"],
    *,
    method: SylvesterMethod = "auto",
) -> Solve:
    r"""Linear solver for `procrustes_stationarity`, O(n p + p^2) memory.

    The system for (Y, T), with right-hand side (G, E), is Y S + U sym(T) = G and sym(U^T Y) + skew(T) = E. Write
    Y = U (X + sym(E)) + Z with skew X and U^T Z = 0. Then

    .. math:: S X + X S = 2\, \mathrm{skew}(U^\top G - \mathrm{sym}(E) S), \qquad Z S = (I - U U^\top) G .

    Args:
        point: solution U, shape (n, p).
        decomposition: polar decomposition of B. If it lacks the eigenvalues s of S, they are computed when needed.
            Where s_i + s_j or s_j is at most its floor, U is not determined, and the solution is zero.
        matrix: B, shape (n, p).
        method: "eigh" divides by s_i + s_j and s_j in the eigenbasis of S, in O(n p^2 + p^3) time. "products" solves
            both equations by conjugate gradients, with matrix products only, in about sqrt(kappa) iterations (kappa is
            the condition number); if 500 are not enough, or U is not determined, it does the same as "eigh". "auto"
            takes "eigh" on a CPU or if the eigenvectors are known, otherwise "products".

    Raises:
        ValueError: if the method is unknown.

    Reference: Kenney and Laub, Polar decomposition and matrix sign function condition estimates (1991).
    """
    if method not in get_args(SylvesterMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(SylvesterMethod))}; got {method!r}")
    if method == "auto":
        on_cpu = jax.default_backend() == "cpu"
        method = "eigh" if on_cpu or decomposition.vectors is not None else "products"
    prepare = _by_products if method == "products" else _by_eigh
    solve_system = prepare(point, decomposition, matrix)
    return lambda matvec, rhs: solve_system(*rhs)


def _by_eigh(point: Array, decomposition: PolarDecomposition, matrix: Array) -> Callable[[Array, Array], tuple]:
    values, vectors, left = decomposition.values, decomposition.vectors, decomposition.left
    if values is None or vectors is None:
        values, vectors = jnp.linalg.eigh(symmetric_part(matmul(transpose(point), matrix)))
    if left is None:
        left = matmul(point, vectors)
    # Directions in which U is not determined (for instance because of two zero singular values) get derivative zero.
    divide = partial(_divide_above, floor=decomposition.floor)

    def to_basis(square: Array) -> Array:
        return matmul(matmul(transpose(vectors), square), vectors)

    def from_basis(square: Array) -> Array:
        return matmul(matmul(vectors, square), transpose(vectors))

    def solve(rhs: Array, constraint: Array) -> tuple[Array, Array]:
        # First derivatives have no residual E of the constraint, and need none of its products.
        given = jax.lax.cond(
            jnp.any(constraint != 0), lambda e: to_basis(symmetric_part(e)), jnp.zeros_like, constraint
        )
        turned = matmul(rhs, vectors)
        inside = matmul(transpose(left), turned) - given * values[None]
        turn = divide(inside - transpose(inside), values[:, None] + values[None])
        if point.shape[0] == point.shape[1]:
            moved = matmul(left, turn + given)
        else:
            # U sym(E) is part of G S^-1 - U (U^T G - sym(E) S) S^-1, which is Z + U sym(E).
            moved = matmul(left, turn - divide(inside, values[None])) + divide(turned, values[None])
        multiplier = from_basis(symmetric_part(inside - turn * values[None])) + skew_part(constraint)
        return matmul(moved, transpose(vectors)), multiplier

    return solve


# Conjugate gradients do not give up before. About 8 sqrt(kappa) iterations reach the rounding of the dtype, so 500
# serve condition numbers kappa up to 4e3.
_MOST_ITERATIONS = 500


def _by_products(point: Array, decomposition: PolarDecomposition, matrix: Array) -> Callable[[Array, Array], tuple]:
    stretch = symmetric_part(matmul(transpose(point), matrix))

    def iterate(operator: Callable[[Array], Array], rhs: Array) -> Solved:
        # Conjugate gradients cannot tell which directions are not determined. If there are any, there is nothing to do.
        return conjugate_gradients(operator, jnp.where(decomposition.unique, rhs, 0), _MOST_ITERATIONS)

    def solve(rhs: Array, constraint: Array) -> tuple[Array, Array]:
        given = symmetric_part(constraint)
        aligned = matmul(transpose(point), rhs)
        inside = aligned - matmul(given, stretch)
        turn = iterate(lambda x: matmul(stretch, x) + matmul(x, stretch), 2 * skew_part(inside))
        moved = matmul(point, turn.solution + given)
        solved = decomposition.unique & turn.converged
        if point.shape[0] != point.shape[1]:
            outside = iterate(lambda x: matmul(x, stretch), rhs - matmul(point, aligned))
            moved += outside.solution
            solved &= outside.converged
        multiplier = symmetric_part(inside - matmul(turn.solution, stretch)) + skew_part(constraint)
        return jax.lax.cond(
            solved,
            lambda: (moved, multiplier),
            lambda: _by_eigh(point, decomposition, matrix)(rhs, constraint),
        )

    return solve


def decompose_at(
    point: Float[Array, "n p"], matrix: Float[Array, "n p"], rounding: Float[Array, ""] | float
) -> PolarDecomposition:
    """Return the polar decomposition of B at a solution U that an iteration has found.

    Its parts are those of sym(U^T B), which speed up the derivative. On accelerators, where an eigendecomposition is
    slow, they are left out for more than 128 columns.

    Args:
        point: solution U, shape (n, p).
        matrix: B, shape (n, p).
        rounding: how far rounding may have moved B; see `nc_jax.solvers.polar_decomposition`.
    """
    if jax.default_backend() != "cpu" and point.shape[1] > _EIGH_ON_ACCELERATORS:
        return judged(matrix, point, None, None, rounding)
    values, vectors = jnp.linalg.eigh(symmetric_part(matmul(transpose(point), matrix)))
    return judged(matrix, point, values, vectors, rounding)


_EIGH_ON_ACCELERATORS = 128  # largest number of columns for eigh on an accelerator; a guess, not measured


def _divide_above(numerator: Array, denominator: Array, *, floor: Array) -> Array:
    large = denominator > floor
    return jnp.where(large, numerator / jnp.where(large, denominator, 1), 0)


def procrustes_root(solver: Callable, derivative: SylvesterMethod = "auto") -> Callable:
    """Make a solver of the Procrustes problem differentiable.

    Args:
        solver: function (known, B) -> (U, the polar decomposition of B at U, anything else).
        derivative: method of the linear solves for derivatives; see `procrustes_solver`.

    Returns:
        A function of the same arguments and results. U has exact derivatives in B; all else counts as constant.
    """

    def solve(known: Any, matrix: Array) -> tuple[tuple[Array, Array], tuple[PolarDecomposition, Any]]:
        point, decomposition, rest = solver(known, matrix)
        # Only higher derivatives need S; where they are not asked for, the compiler drops it.
        return (point, symmetric_part(matmul(transpose(point), matrix))), (decomposition, rest)

    def linear_solver(root: tuple[Array, Array], aux: tuple[PolarDecomposition, Any], matrix: Array) -> Solve:
        return procrustes_solver(root[0], aux[0], matrix, method=derivative)

    with_multiplier = implicit_root(solve, procrustes_stationarity, linear_solver)

    def root(known: Any, matrix: Array) -> tuple[Array, PolarDecomposition, Any]:
        (point, _), (decomposition, rest) = with_multiplier(known, matrix)
        return point, decomposition, rest

    return root


@cache
def polar_root(method: PolarMethod = "auto", derivative: SylvesterMethod = "auto") -> Callable:
    """Return the function ((init, rounding), matrix) -> (factor, decomposition, None), differentiable in the matrix.

    Its argument init is a rotation near the factor, or None, and rounding how far rounding may have moved the matrix.

    Args:
        method: method of the decomposition; see `nc_jax.solvers.polar_decomposition`.
        derivative: method of the linear solves for derivatives; see `procrustes_solver`.
    """

    def solve(known: tuple[Array | None, Array | float], matrix: Array) -> tuple[Array, PolarDecomposition, None]:
        init, rounding = known
        decomposition = polar_decomposition(matrix, method=method, init=init, rounding=rounding)
        return decomposition.factor, decomposition, None

    return procrustes_root(solve, derivative)


def polar_factor(
    matrix: Float[Array, "n p"], *, method: PolarMethod = "auto", derivative: SylvesterMethod = "auto"
) -> Float[Array, "n p"]:
    r"""Orthogonal polar factor with exact derivatives in both modes and of any order.

    Args:
        matrix: B, shape (n, p) with n >= p.
        method: method of the decomposition; see `nc_jax.solvers.polar_decomposition`.
        derivative: method of the linear solves for derivatives; see `procrustes_solver`.

    Returns:
        U, shape (n, p), the maximiser of <U, B> over matrices with orthonormal columns. For B = U S and a cotangent G,
        the gradient is U X + (I - U U^T) G S^{-1} with S X + X S = U^T G - G^T U. Directions in which U is not
        determined (singular values with s_i + s_j = 0) contribute nothing to the gradient.

    Raises:
        ValueError: if n < p, or a method is unknown.

    Example:
        >>> slope = jax.grad(lambda angle: polar_factor(jnp.array([[jnp.cos(angle)], [jnp.sin(angle)]]))[1, 0])(0.0)
        >>> round(float(slope), 6)
        1.0
    """
    return polar_root(method, derivative)((None, 0.0), matrix)[0]
