"""The orthogonal polar factor: the matrix with orthonormal columns that is nearest to a given one.

There are four algorithms, because none is best for all matrices. B is n x p with condition number kappa; eps is the
rounding unit of the dtype:

================  =======================================================  ========================================
method            arithmetic                                               accuracy of the factor
================  =======================================================  ========================================
"svd"             singular value decomposition                             eps kappa; any B, also of deficient rank
"gram"            eigendecomposition of B^T B, then one Newton step for    eps kappa while eps kappa^2 << 1;
                  what its rounding has done                               otherwise it calls "svd"
"qdwh"            JAX's QR-based dynamically weighted Halley iteration     eps kappa; full rank
"newton_schulz"   scaled Newton-Schulz: matrix products only               eps kappa; full rank, otherwise "svd"
================  =======================================================  ========================================
"""

import itertools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, symmetric_part, transpose, unit_scale

PolarMethod = Literal["auto", "svd", "gram", "qdwh", "newton_schulz"]

# Milliseconds for a float32 polar factor of Gaussian matrices on two EPYC cores, median of 20. Nothing was measured on
# accelerators: "auto" assumes that products are cheap there and decompositions slow.
#   (n, p)          svd    gram   qdwh   newton_schulz
#   (512, 9)       0.10    0.10   0.17    0.25
#   (512, 32)      0.35    0.16   0.70    0.42
#   (512, 99)      3.0     1.1    5.9     2.8
#   (2048, 999)    332     190    597     479
_GRAM_FROM = 24  # columns from which "auto" takes "gram" on a CPU; below, "svd" is as quick and serves every matrix


class PolarDecomposition(NamedTuple):
    """Polar decomposition B = U S with S = V diag(s) V^T, in the form that the derivative needs.

    Attributes:
        factor: U, shape (n, p), orthonormal columns.
        values: singular values s of B in any order, shape (p,); None if the method does not compute them.
        vectors: right singular vectors V as columns, shape (p, p); None if the method does not compute them.
        left: left singular vectors U V as columns, shape (n, p), to the accuracy that a derivative needs; None if the
            method does not compute them.
        floor: singular values up to this are rounding and count as zero.
        unique: whether all singular values exceed the floor, so that U is the only solution.
        iterations: number of iterations of "newton_schulz", each with two products; 0 for other methods.
    """

    factor: Float[Array, "n p"]
    values: Float[Array, " p"] | None
    vectors: Float[Array, "p p"] | None
    left: Float[Array, "n p"] | None
    floor: Float[Array, ""]
    unique: Bool[Array, ""]
    iterations: Int[Array, ""] | int = 0


def polar_decomposition(
    matrix: Float[Array, "n p"],
    *,
    method: PolarMethod = "auto",
    init: Float[Array, "n p"] | None = None,
    rounding: Float[Array, ""] | float = 0.0,  # an exact B
) -> PolarDecomposition:
    """Polar factor U of a matrix B = U S, with the parts of the symmetric factor S that the method computes.

    Args:
        matrix: B, shape (n, p) with n >= p. Dtypes narrower than float32 are solved in float32.
        method: "svd", "gram", "qdwh", "newton_schulz" or "auto". On a CPU, "auto" takes "svd" for fewer than 24 columns
            and "gram" otherwise. On an accelerator it takes "newton_schulz", which needs products only.
        init: matrix with orthonormal columns near the factor, shape (n, p), such as the factor of the previous training
            step. It saves iterations of "newton_schulz"; other methods ignore it. It changes the factor only by
            rounding.
        rounding: how far rounding may have moved B from what was meant, as a singular value. Where terms cancel in the
            computation of B, this is more than the rounding of B.

    Returns:
        The decomposition; its factor is NaN if B is not finite.

    Raises:
        ValueError: if B is not a matrix with at least as many rows as columns, the init has another shape, or the
            method is unknown.
    """
    if init is not None and init.shape != matrix.shape:
        raise ValueError(f"init must have the matrix's shape {matrix.shape}; got {init.shape}")
    if matrix.ndim != 2 or matrix.shape[0] < matrix.shape[1]:
        raise ValueError(f"the polar factor needs a matrix of shape (n, p) with n >= p; got shape {matrix.shape}")
    if method not in get_args(PolarMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(PolarMethod))}; got {method!r}")
    if method == "auto":
        if jax.default_backend() == "cpu":
            method = "gram" if matrix.shape[1] >= _GRAM_FROM else "svd"
        else:
            method = "newton_schulz"
    matrix = at_least_float32(matrix)
    finite = jnp.all(jnp.isfinite(matrix))
    scale = unit_scale(matrix)
    # LAPACK prints a message to the terminal for a matrix that is not finite.
    unit = jnp.where(finite, matrix / scale, 0)
    found = _by_newton_schulz(unit, init) if method == "newton_schulz" else _METHODS[method](unit)
    scale = scale.reshape(())
    return judged(
        matrix,
        jnp.where(finite, found.factor, jnp.nan),
        None if found.values is None else found.values * scale,
        found.vectors,
        rounding,
        left=found.left,
        iterations=found.iterations,
    )


def judged(
    matrix: Float[Array, "n p"],
    factor: Float[Array, "n p"],
    values: Float[Array, " p"] | None,
    vectors: Float[Array, "p p"] | None,
    rounding: Float[Array, ""] | float,
    *,
    left: Float[Array, "n p"] | None = None,
    iterations: Int[Array, ""] | int = 0,
) -> PolarDecomposition:
    """Return a decomposition with its floor, and whether its factor is the only one.

    The floor is the rounding, but at least max(n, p) eps times the largest singular value: the rule of
    numpy.linalg.matrix_rank. Without singular values, all exceed the floor if sym(U^T B) - floor I has a Cholesky
    factor.

    Args:
        matrix: B, shape (n, p).
        factor: U, shape (n, p).
        values: singular values of B in any order, shape (p,), or None.
        vectors: right singular vectors of B, shape (p, p), or None.
        rounding: how far rounding may have moved B, as a singular value.
        left: left singular vectors of B, shape (n, p), or None.
        iterations: number of iterations that led to the factor.
    """
    eps = float(jnp.finfo(matrix.dtype).eps)

    def floor_for(largest: Array) -> Array:
        return jnp.maximum(jnp.asarray(rounding, matrix.dtype), max(matrix.shape) * eps * largest)

    if values is not None:
        floor = floor_for(jnp.max(jnp.abs(values)))
        return PolarDecomposition(factor, values, vectors, left, floor, jnp.min(values) > floor, iterations)
    stretch = symmetric_part(matmul(transpose(factor), matrix))
    largest = _largest_singular_value(stretch)
    floor, unit = floor_for(largest), jnp.where(largest > 0, largest, 1)
    eye = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    positive = jnp.all(jnp.isfinite(jnp.linalg.cholesky(stretch / unit - floor / unit * eye)))
    return PolarDecomposition(factor, None, vectors, None, floor, positive, iterations)


def _largest_singular_value(matrix: Array) -> Array:
    """Upper bound of the largest singular value, ||(A^T A)^2||_F^(1/4): too large by a factor of at most p^(1/8)."""
    scale = unit_scale(matrix)
    unit = matrix / scale
    gram = matmul(transpose(unit), unit)
    return (jnp.sqrt(jnp.sqrt(jnp.linalg.norm(matmul(gram, gram)))) * scale).reshape(())


@jax.custom_jvp
def _without_derivative(factor: Array) -> Array:
    return factor


@_without_derivative.defjvp
def _no_derivative(primals, tangents):
    # Autodiff of the SVD divides by differences of squared singular values, so it is wrong if two of them are close.
    raise TypeError("solvers.polar has no derivative; use nc_jax.implicit.polar_factor, which has the exact one")


def polar(
    matrix: Float[Array, "n p"], *, method: PolarMethod = "auto", init: Float[Array, "n p"] | None = None
) -> Float[Array, "n p"]:
    r"""Orthogonal polar factor U of B = U S, with S symmetric positive semidefinite.

    U maximises <U, B> over matrices with orthonormal columns, so it solves the orthogonal Procrustes problem. U is
    unique if B has full column rank; otherwise one of the solutions is returned.

    This function cannot be differentiated; `nc_jax.implicit.polar_factor` can.

    Args:
        matrix: B, shape (n, p) with n >= p. Dtypes narrower than float32 are solved in float32.
        method: "auto", "svd", "gram", "qdwh" or "newton_schulz"; see `polar_decomposition`.
        init: matrix with orthonormal columns near the factor, shape (n, p), or None; see `polar_decomposition`.

    Returns:
        U, shape (n, p), in float32 or float64; NaN if B is not finite.

    Raises:
        ValueError: if B is not a matrix with at least as many rows as columns, the init has another shape, or the
            method is unknown.
        TypeError: if it is differentiated.

    Example:
        >>> bool(jnp.allclose(polar(jnp.array([[3.0, 0.0], [0.0, -2.0]])), jnp.array([[1.0, 0.0], [0.0, -1.0]])))
        True

    Reference: Higham, Functions of Matrices (2008), theorems 8.1 and 8.4.
    """
    return polar_decomposition(_without_derivative(matrix), method=method, init=init).factor


class _Found(NamedTuple):
    factor: Array
    values: Array | None
    vectors: Array | None
    left: Array | None = None
    iterations: Array | int = 0


def _by_svd(matrix: Array) -> _Found:
    # LAPACK's SVD also reduces a tall matrix to a triangle first, but takes a third longer for 512 x 9.
    tall = matrix.shape[0] >= 4 * matrix.shape[1]
    basis, square = jnp.linalg.qr(matrix) if tall else (None, matrix)
    left, values, right = jnp.linalg.svd(square, full_matrices=False)
    if basis is not None:
        left = matmul(basis, left)
    return _Found(matmul(left, right), values, transpose(right), left)


def _by_gram(matrix: Array) -> _Found:
    r"""Polar factor by the eigendecomposition B^T B = V diag(s^2) V^T: U = L V^T with L = B V diag(1/s).

    The rounding of B^T B is relative to its largest eigenvalue. It leaves errors of size eps kappa^2 in L, whose
    columns are then not orthonormal: R = I - L^T L. Those of V are not quite either: E = I - V^T V. Both are formed
    from L and V themselves, so they are accurate. To first order, U = L (I + C + E / 2) V^T has orthonormal columns and
    a symmetric U^T B for

    .. math:: C_{ij} = s_i D_{ij} + \frac{s_i}{2 s_j} E_{ij}, \qquad
        D_{ij} = \frac{R_{ij} - (s_i / s_j + s_j / s_i) E_{ij} / 2}{s_i + s_j} .
    """
    eps = float(jnp.finfo(matrix.dtype).eps)
    # LAPACK reads one triangle, so the rounding by which a Gram matrix is not symmetric does not matter.
    eigenvalues, vectors = jnp.linalg.eigh(_gram(matrix), symmetrize_input=False)

    def refine(_: None) -> _Found:
        values = jnp.sqrt(eigenvalues)
        left = matmul(matrix, vectors) / values[None]
        eye = jnp.eye(len(values), dtype=matrix.dtype)
        bent, skewed = eye - _gram(left), eye - _gram(vectors)
        ratio = values[:, None] / values[None]
        step = values[:, None] * (bent - (ratio + 1 / ratio) * skewed / 2) / (values[:, None] + values[None])
        turn = eye + step + (ratio + 1) * skewed / 2
        values *= 1 - (jnp.diagonal(bent) - jnp.diagonal(skewed)) / 2  # as B^T B = V diag(s) (I - R) diag(s) V^T
        return _Found(matmul(left, matmul(turn, transpose(vectors))), values, vectors, left)

    # The test is kappa <= eps^(-1/4), 54 in float32. Then what the step leaves, (eps kappa^2)^2, is of the order of
    # eps, and with these singular vectors the derivative has an error of sqrt(eps).
    well_conditioned = eigenvalues[0] > eps**0.5 * eigenvalues[-1]
    return jax.lax.cond(well_conditioned, refine, lambda _: _by_svd(matrix), None)


def _gram(matrix: Array) -> Array:
    """B^T B in full precision. Large ones are formed by blocks of columns, each pair once: the result is symmetric."""
    rows, columns = matrix.shape
    # 16.7 instead of 22.2 ms for 2048 x 999 on two EPYC cores, 0.63 instead of 0.93 of a product.
    if jax.default_backend() != "cpu" or min(rows, columns) < _BLOCKS_FROM:
        return matmul(transpose(matrix), matrix)
    cuts = [columns * part // _BLOCKS for part in range(_BLOCKS + 1)]
    parts = [matrix[:, start:end] for start, end in itertools.pairwise(cuts)]
    found = {(i, j): matmul(transpose(parts[i]), parts[j]) for j in range(_BLOCKS) for i in range(j + 1)}
    return jnp.block(
        [[found[i, j] if i <= j else transpose(found[j, i]) for j in range(_BLOCKS)] for i in range(_BLOCKS)]
    )


_BLOCKS, _BLOCKS_FROM = 4, 512


def _by_qdwh(matrix: Array) -> _Found:
    factor, symmetric, *_ = jax.lax.linalg.qdwh(matrix, is_hermitian=False)
    values, vectors = jnp.linalg.eigh(symmetric)
    return _Found(factor, values, vectors)


class _NewtonSchulzState(NamedTuple):
    factor: Array
    lower: Float[Array, ""]  # estimated lower bound of the singular values
    error: Float[Array, ""]
    iteration: Int[Array, ""]


# With the default proximal weight, the smallest singular value is about 1e-3. From 1e-3, scaled Newton-Schulz takes 7
# steps to 0.9 and 4 more to rounding. From 1e-7, below which the rank is deficient in float32, 40 steps are enough.
_LOWER = 1e-3
_MAX_NEWTON_SCHULZ = 40


def _by_newton_schulz(matrix: Array, init: Array | None = None) -> _Found:
    r"""Scaled Newton-Schulz iteration, X <- a/2 X (3 I - a^2 X^T X) with a^2 = 3 / (1 + l + l^2).

    For singular values in [l, 1] this a is optimal: it maps both ends of the interval to the same value, the next l. A
    wrong l does no harm, because the iteration maps [0, 1] into itself for every l in [0, 1].

    Reference: Chen and Chow, A stable scaling of Newton-Schulz for improving the sign function computation (2014).
    """
    eye = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    bound = _largest_singular_value(matrix)
    tolerance = jnp.finfo(matrix.dtype).eps ** 0.5  # one more step squares the error

    def iterate(state: _NewtonSchulzState) -> _NewtonSchulzState:
        product = matmul(transpose(state.factor), state.factor)
        error = jnp.linalg.norm(product - eye)
        # The last step is unscaled, which squares the error; a scaled step would move singular values of 1.
        lower = jnp.where(error <= tolerance, 1, state.lower)
        squared = 3 / (1 + lower + lower**2)
        factor = jnp.sqrt(squared) / 2 * matmul(state.factor, 3 * eye - squared * product)
        lower = jnp.sqrt(squared) / 2 * lower * (3 - squared * lower**2)
        return _NewtonSchulzState(factor, lower, error, state.iteration + 1)

    def unfinished(state: _NewtonSchulzState) -> Array:
        # `error` belongs to the iterate before the last step; that step has squared it.
        return (state.error > tolerance) & (state.iteration < _MAX_NEWTON_SCHULZ)

    start = matrix / jnp.where(bound > 0, bound, 1)
    infinite = jnp.asarray(jnp.inf, matrix.dtype)
    lower = jnp.asarray(_LOWER, matrix.dtype)
    if init is not None:
        lower = jnp.maximum(lower, _SAFETY * _least_singular_value(start, init.astype(matrix.dtype)))
    state = _NewtonSchulzState(start, lower, infinite, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(unfinished, iterate, state)
    # If the rank is deficient, the iteration may not raise the least singular values to 1; then use an SVD.
    factor = jax.lax.cond(end.error <= tolerance, lambda: end.factor, lambda: _by_svd(matrix).factor)
    return _Found(factor, None, None, iterations=end.iteration)


# Power iteration approaches the largest eigenvalue from below, so 16 steps (products with a vector) give a least
# singular value that is too large by a few tens of percent. The factor 0.5 makes up for that. A bound that is too large
# by a factor of two costs one iteration less than a bound that is too small by this factor.
_POWER_STEPS = 16
_SAFETY = 0.5


def _least_singular_value(matrix: Array, init: Array) -> Array:
    """Estimate the least singular value of B (with largest at most 1) from a rotation U near its polar factor.

    No singular value is below the least eigenvalue of sym(U^T B) (Fan and Hoffman, 1955), and near the polar factor the
    least singular value is close to that eigenvalue. The eigenvalue is 1 minus the largest eigenvalue of
    I - sym(U^T B).
    """
    gap = jnp.eye(matrix.shape[1], dtype=matrix.dtype) - symmetric_part(matmul(transpose(init), matrix))
    vector = jax.random.normal(jax.random.key(0), (matrix.shape[1],), matrix.dtype)

    def step(_: Array, vector: Array) -> Array:
        vector = matmul(gap, vector)
        norm = jnp.linalg.norm(vector)
        return vector / jnp.where(norm > 0, norm, 1)

    vector = jax.lax.fori_loop(0, _POWER_STEPS, step, vector)
    return 1 - jnp.vdot(vector, matmul(gap, vector), precision="highest")


_METHODS = {"svd": _by_svd, "gram": _by_gram, "qdwh": _by_qdwh}
