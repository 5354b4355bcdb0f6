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

The derivative rule is jaxopt's `root_jvp` (see `nc_jax.root_rules`). Each linear solve is a `lax.custom_linear_solve`,
which JAX can transpose. So one rule gives forward mode, reverse mode and higher derivatives.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nc_jax.arrays import matmul, safe_norm, skew_part, symmetric_part, transpose
from nc_jax.manifolds import Stiefel
from nc_jax.root_rules import Solve, root_jvp
from nc_jax.solvers import PolarDecomposition, PolarMethod, polar_decomposition
from nc_jax.solvers.polar import judged


def implicit_root(solver: Callable, stationarity: Callable, linear_solver: Callable[..., Solve]) -> Callable:
    r"""Make a solver differentiable: give it the derivatives of the root that it finds.

    Args:
        solver: function (init, *args) -> (point, aux), where the point solves `stationarity(point, *args) = 0`.
        stationarity: function (point, *args) -> array of the shape of the point, whose Jacobian in the point is regular
            and symmetric.
        linear_solver: function (point, aux, *args) -> solve. Here solve(matvec, rhs) returns the x with
            matvec(x) = rhs, and matvec multiplies by the Jacobian of `stationarity`. Work that `linear_solver` does
            itself, such as a factorisation, is done once for all calls of solve.

    Returns:
        A function (init, *args) -> (point, aux). The derivatives of the point in args follow from the implicit function
        theorem; init and aux count as constants.

    Reference: Blondel et al., Efficient and modular implicit differentiation (2022), section 2.1.
    """

    @jax.custom_jvp
    def root(init: Any, *args: Any) -> tuple[Array, Any]:
        return solver(init, *args)

    @root.defjvp
    def _derivative(primals, tangents):
        init, *args = primals
        point, aux = root(init, *args)
        # The prepared solver may be constant: higher derivatives go through matvec.
        prepared = linear_solver(*jax.lax.stop_gradient((point, aux, *args)))

        def solve(matvec: Callable, rhs: Array) -> Array:
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
    squares solution of least norm, which is zero in directions that are not determined.

    Args:
        euclidean_gradient: function (point, *args) -> Euclidean gradient of the cost, shape (n, p).
    """

    def prepare(point: Float[Array, "n p"], strict: Bool[Array, ""], *args: Any) -> Solve:
        manifold = Stiefel(*point.shape)
        scale = _normal_scale(euclidean_gradient(point, *args))
        # In exact arithmetic, as many iterations as dimensions are enough; twice as many make up for lost conjugacy.
        limit = 2 * manifold.dimension + 2

        def solve(matvec: Callable, rhs: Array) -> Array:
            tangent = manifold.project(point, rhs)
            found = jax.lax.cond(
                strict,
                lambda: conjugate_gradients(matvec, tangent, limit)[0],
                lambda: conjugate_gradients(lambda x: matvec(matvec(x)), matvec(tangent), limit)[0],
            )
            return found + (rhs - tangent) / scale

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
    return ~conjugate_gradients(hessian, force, 2 * manifold.dimension + 2, terms)[1]


# --- The orthogonal Procrustes problem: maximise <U, B>. Its linear system has a closed form. ---

procrustes_stationarity = stiefel_stationarity(lambda point, matrix: -matrix)

SylvesterMethod = Literal["auto", "eigh", "products"]


def procrustes_solver(
    point: Float[Array, "n p"],
    decomposition: PolarDecomposition,
    matrix: Float[Array, "n p"],
    *,
    method: SylvesterMethod = "auto",
) -> Solve:
    r"""Linear solver for the Procrustes problem, O(n p + p^2) memory.

    Let S = sym(U^T B). The Hessian maps a tangent vector xi to the tangent part of xi S. Write xi = U X + Z with skew X
    and U^T Z = 0, and let b be the right-hand side. Then X and Z solve

    .. math:: S X + X S = 2\, \mathrm{skew}(U^\top b), \qquad Z S = (I - U U^\top) b .

    Args:
        point: solution U, shape (n, p).
        decomposition: polar decomposition of B. If it lacks the eigenvalues s of S, they are computed when needed.
            Where s_i + s_j or s_j is at most its floor, U is not determined, and the solution is zero.
        matrix: B, shape (n, p).
        method: "eigh" divides by s_i + s_j and s_j in the eigenbasis of S, in O(n p^2 + p^3) time. "products" solves
            both equations by conjugate gradients, with matrix products only, in about sqrt(kappa) iterations (kappa is
            the condition number). "auto" takes "eigh" on a CPU or if the eigenvectors are known, otherwise "products".

    Raises:
        ValueError: if the method is unknown.

    Reference: Kenney and Laub, Polar decomposition and matrix sign function condition estimates (1991).
    """
    if method not in get_args(SylvesterMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(SylvesterMethod))}; got {method!r}")
    values, vectors = decomposition.values, decomposition.vectors
    if method == "auto":
        on_cpu = jax.default_backend() == "cpu"
        method = "eigh" if on_cpu or vectors is not None else "products"
    if method == "products":
        symmetric = symmetric_part(matmul(transpose(point), matrix))
        solve_skew, solve_outside = _sylvester_by_products(symmetric, decomposition.unique)
    else:
        if values is None or vectors is None:
            values, vectors = jnp.linalg.eigh(symmetric_part(matmul(transpose(point), matrix)))
        solve_skew, solve_outside = _sylvester_by_eigh(values, vectors, decomposition.floor)

    scale = _normal_scale(matrix)

    def solve(matvec: Callable, rhs: Array) -> Array:
        del matvec
        aligned = matmul(transpose(point), rhs)
        turn = solve_skew(2 * skew_part(aligned))
        # On the normal part of the right-hand side, the Jacobian is a number, the scale c.
        inside = turn + symmetric_part(aligned) / scale
        if point.shape[0] == point.shape[1]:
            return matmul(point, inside)
        return matmul(point, inside) + solve_outside(rhs - matmul(point, aligned))

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


def _sylvester_by_eigh(values: Array, vectors: Array, floor: Array) -> tuple[Callable, Callable]:
    # Directions in which U is not determined (for instance because of two zero singular values) get derivative zero.
    divide = partial(_divide_above, floor=floor)

    def solve_skew(rhs: Array) -> Array:
        in_basis = matmul(matmul(transpose(vectors), rhs), vectors)
        return matmul(matmul(vectors, divide(in_basis, values[:, None] + values[None])), transpose(vectors))

    def solve_outside(rhs: Array) -> Array:
        return matmul(divide(matmul(rhs, vectors), values[None]), transpose(vectors))

    return solve_skew, solve_outside


def _sylvester_by_products(matrix: Array, unique: Array) -> tuple[Callable, Callable]:
    # Conjugate gradients cannot tell which directions are not determined. If there are any, all directions get zero.
    def solve_skew(rhs: Array) -> Array:
        return conjugate_gradients(lambda x: matmul(matrix, x) + matmul(x, matrix), jnp.where(unique, rhs, 0))[0]

    def solve_outside(rhs: Array) -> Array:
        return conjugate_gradients(lambda x: matmul(x, matrix), jnp.where(unique, rhs, 0))[0]

    return solve_skew, solve_outside


def conjugate_gradients(
    operator: Callable[[Array], Array],
    rhs: Float[Array, "n p"],
    max_iterations: int | None = None,
    size: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, "n p"], Bool[Array, ""]]:
    """Solve operator(x) = rhs for a symmetric, positive semidefinite operator.

    Args:
        operator: linear function from arrays of shape (n, p) to arrays of the same shape.
        rhs: right-hand side of any scale, shape (n, p).
        max_iterations: largest number of products with the operator. None: 500 in float32 and 50,000 in float64. This
            is about eight times sqrt(kappa) at the condition numbers kappa beyond which the dtype gives no useful
            gradient, 4e3 and 4e7.
        size: norm of the terms from which the operator is computed, if they cancel and are larger than the operator.

    Returns:
        x, and whether the iteration met a direction in which the operator is zero or negative up to rounding. If so,
        the iteration ends before it divides by that curvature.
    """
    # The conjugate gradients of JAX and SciPy do not stop at such directions, and then return arbitrary results.
    eps = float(jnp.finfo(rhs.dtype).eps)
    tolerance = 10 * eps  # the relative tolerance of the trust region for the gradient
    limit = (500 if eps > 1e-10 else 50_000) if max_iterations is None else max_iterations
    floor = max(rhs.shape) * eps  # relative size below which curvature counts as zero, as in numpy.linalg.matrix_rank
    # At unit scale, squares neither overflow nor underflow, for every scale of the cotangent.
    norm = safe_norm(rhs).reshape(())
    scale = jnp.where(norm > 0, norm, 1)

    def inner(u: Array, v: Array) -> Array:
        return jnp.vdot(u, v, precision="highest")

    def advance(state: _Krylov) -> _Krylov:
        product = operator(state.direction)
        length = inner(state.direction, state.direction)
        curvature = inner(state.direction, product) / length
        steepest = jnp.maximum(state.steepest, safe_norm(product).reshape(()) / jnp.sqrt(length))
        flat = ~(curvature > floor * steepest)
        alpha = jnp.where(flat, 0, state.squared / jnp.where(flat, 1, curvature * length))
        residual = state.residual - alpha * product
        squared = inner(residual, residual)
        return _Krylov(
            solution=state.solution + alpha * state.direction,
            residual=residual,
            direction=residual + squared / state.squared * state.direction,
            squared=squared,
            steepest=steepest,
            flat=flat,
            iteration=state.iteration + 1,
        )

    def unfinished(state: _Krylov) -> Array:
        return (state.squared > tolerance**2) & ~state.flat & (state.iteration < limit)

    unit = rhs / scale
    steepest = jnp.asarray(size, rhs.dtype)
    iteration = jnp.zeros((), jnp.int32)
    start = _Krylov(jnp.zeros_like(rhs), unit, unit, inner(unit, unit), steepest, jnp.zeros((), bool), iteration)
    end = jax.lax.while_loop(unfinished, advance, start)
    return scale * end.solution, end.flat


class _Krylov(NamedTuple):
    solution: Array
    residual: Array
    direction: Array
    squared: Array  # squared norm of the residual
    steepest: Array  # lower bound of the norm of the operator
    flat: Array
    iteration: Array


def _divide_above(numerator: Array, denominator: Array, *, floor: Array) -> Array:
    large = denominator > floor
    return jnp.where(large, numerator / jnp.where(large, denominator, 1), 0)


@cache
def polar_root(method: PolarMethod = "auto", derivative: SylvesterMethod = "auto") -> Callable:
    """Return the function ((init, rounding), matrix) -> (factor, decomposition), differentiable in the matrix.

    Its argument init is a rotation near the factor, or None, and rounding how far rounding may have moved the matrix.

    Args:
        method: method of the decomposition; see `nc_jax.solvers.polar_decomposition`.
        derivative: method of the linear solves for derivatives; see `procrustes_solver`.
    """

    def solve(known: tuple[Array | None, Array | float], matrix: Array) -> tuple[Array, PolarDecomposition]:
        init, rounding = known
        decomposition = polar_decomposition(matrix, method=method, init=init, rounding=rounding)
        return decomposition.factor, decomposition

    return implicit_root(solve, procrustes_stationarity, partial(procrustes_solver, method=derivative))


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
