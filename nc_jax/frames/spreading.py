"""Spread unit vectors over the sphere: costs with their derivatives in blocks, and the trust region from random starts.

The cost of a Riesz energy is a monotone function of it that is of the order 1 for every exponent and never overflows,

    f_s = (1 / s) log mean_{i != j} ||w_i - w_j||^-s,        f_0 = -mean_{i != j} log ||w_i - w_j|| .

For s to infinity it is minus the logarithm of the least distance, so separations are found with it, too. With the
squared distances q_ij = 2 - 2 w_i^T w_j, the kernels' shares p_ij = q_ij^(-s/2) / sum, and a_ij = p_ij / q_ij, the
Euclidean gradient is 2 W A. For a tangent V, let r_ij be the derivative of log q_ij. Then

    Hess f[V] = 2 (V A + W A'),      a'_ij = a_ij (-(s / 2 + 1) r_ij - m),      m = -(s / 2) sum_ij p_ij r_ij .

Every block of columns is compared with all columns, so no array has K^2 entries for large K.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import matmul, transpose
from nc_jax.energies import log_gram_determinant
from nc_jax.manifolds import Oblique
from nc_jax.solvers import Solution, TrustRegionOptions, trust_region

_ONE_BLOCK = 1024  # up to this many columns all pairs are one block: 4 MiB in float32
_BLOCK = 256  # columns of a block beyond: 10 MiB in float32 for 10,000 columns
_BY_DIFFERENCES = 8  # up to this dimension points may be so close that 2 - 2 cos loses digits; differences are cheap


def cost(points: Float[Array, "dim classes"], s: Float[Array, ""]) -> Float[Array, ""]:
    """The cost f_s of unit columns."""
    largest, shares, logs = _over_blocks(points, lambda block: (block.largest, block.total, block.logs), s)
    number = points.shape[1] * (points.shape[1] - 1)
    top = jnp.max(largest)
    total = jnp.sum(shares * jnp.exp(largest - top))
    return jnp.where(s == 0, -jnp.sum(logs) / (2 * number), (top + jnp.log(total / number)) / jnp.where(s == 0, 1, s))


def gradient(points: Float[Array, "dim classes"], s: Float[Array, ""]) -> Float[Array, "dim classes"]:
    """Euclidean gradient of the cost."""

    def of_block(block: "_Block") -> Any:
        return block.largest, block.total, matmul(points, transpose(block.weights))

    largest, shares, parts = _over_blocks(points, of_block, s)
    factors, total = _common(largest, shares)
    return 2 * _columns(parts * factors[:, None, None], points) / total


def repulsion(points: Float[Array, "dim classes"], s: Float[Array, ""]) -> Float[Array, ""]:
    """Norm of the gradient if no two forces on a point cancelled each other: the scale of the gradient."""
    largest, shares, sums = _over_blocks(
        points, lambda block: (block.largest, block.total, jnp.sum(block.weights * jnp.sqrt(block.squared), axis=1)), s
    )
    factors, total = _common(largest, shares)
    return 2 * jnp.linalg.norm(sums * factors[:, None]) / total


def hessian_vector(
    points: Float[Array, "dim classes"], tangent: Float[Array, "dim classes"], s: Float[Array, ""]
) -> Float[Array, "dim classes"]:
    """Euclidean Hessian of the cost times a tangent vector."""

    def of_block(block: "_Block") -> Any:
        moved = _slice(tangent, block.start, block.own.shape[1])
        products = matmul(transpose(moved), points) + matmul(transpose(block.own), tangent)
        rates = -2 * products / block.squared
        straight = matmul(tangent, transpose(block.weights))
        turned = matmul(points, transpose(block.weights * rates))
        return (
            block.largest,
            block.total,
            jnp.sum(block.weights * block.squared * rates),
            matmul(points, transpose(block.weights)),
            straight - (s / 2 + 1) * turned,
        )

    largest, shares, rates, ambient, parts = _over_blocks(points, of_block, s)
    factors, total = _common(largest, shares)
    mean = -s / 2 * jnp.sum(rates * factors) / total
    return 2 * _columns((parts - mean * ambient) * factors[:, None, None], points) / total


class _Block:
    """A block of columns against all columns: kernels in units of exp(largest)."""

    def __init__(self, points: Array, start: Array, size: int, s: Array):
        self.start, self.own = start, _slice(points, start, size)
        if points.shape[0] <= _BY_DIFFERENCES:
            squared = jnp.sum((self.own[:, :, None] - points[:, None]) ** 2, axis=0)
        else:
            squared = 2 - 2 * matmul(transpose(self.own), points)
        rows = start + jnp.arange(size)[:, None]
        pairs = (rows != jnp.arange(points.shape[1])[None]) & (rows < points.shape[1])
        # Of equal points the cost is infinite; a random start or a step that meets them sees a very large one.
        self.squared = jnp.where(pairs, jnp.maximum(squared, jnp.finfo(points.dtype).eps ** 2), 1)
        logs = jnp.log(self.squared)
        kernels = jnp.where(pairs, -s / 2 * logs, -jnp.inf)
        self.logs, self.largest = jnp.sum(logs), jnp.max(kernels)
        shares = jnp.exp(kernels - self.largest)
        self.total, self.weights = jnp.sum(shares), shares / self.squared


def _over_blocks(points: Array, of_block: Any, s: Array) -> Any:
    """Apply a function to each block; its results get a leading axis of blocks."""
    num_classes = points.shape[1]
    if num_classes <= _ONE_BLOCK:
        return jax.tree.map(lambda part: part[None], of_block(_Block(points, jnp.zeros((), int), num_classes, s)))
    starts = jnp.arange(0, num_classes, _BLOCK)
    return jax.lax.map(lambda start: of_block(_Block(points, start, _BLOCK, s)), starts)


def _slice(points: Array, start: Array, size: int) -> Array:
    # The last block ends beyond the last column; `_Block` masks what lies there.
    missing = -points.shape[1] % size
    return jax.lax.dynamic_slice_in_dim(jnp.pad(points, ((0, 0), (0, missing))), start, size, axis=1)


def _common(largest: Array, shares: Array) -> tuple[Array, Array]:
    """Factors that bring all blocks to one unit, and the sum of all kernels in it."""
    factors = jnp.exp(largest - jnp.max(largest))
    return factors, jnp.sum(factors * shares)


def _columns(parts: Array, points: Array) -> Array:
    return jnp.moveaxis(parts, 0, 1).reshape(points.shape[0], -1)[:, : points.shape[1]]


def determinant_cost(points: Float[Array, "dim classes"], gamma: float) -> Float[Array, ""]:
    """Minus the log-determinant of the Gaussian kernel, per column."""
    return -log_gram_determinant(points, gamma) / points.shape[1]


@functools.partial(jax.jit, static_argnames=("num_classes", "dim", "starts", "dtype"))
def random_starts(key: PRNGKeyArray, *, num_classes: int, dim: int, starts: int, dtype: Any) -> Array:
    """Uniformly random unit columns, shape (starts, d, K). More starts begin with the same ones."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(starts))
    return jax.vmap(lambda one: Oblique(dim, num_classes).random_point(one, dtype))(keys)


@functools.partial(jax.jit, static_argnames="options")
def spread(
    points: Float[Array, "starts dim classes"], s: Array, *, options: TrustRegionOptions
) -> tuple[Solution, Float[Array, " starts"]]:
    """Minimise the cost f_s from every start; also the final Riemannian gradients, relative to `repulsion`.

    The starts are solved one after another: side by side (`jax.vmap`) every start waits for the slowest one, which took
    twice as long (3.0 instead of 1.3 s for four starts of 100 points in 10 dimensions on two cores).

    One solver serves all sizes. L-BFGS compares costs, whose differences are soon below the rounding of float32: for
    1,000 points in 64 dimensions it ended at a relative gradient of 1e-2 and a higher energy. The trust region compares
    gradients there.
    """
    manifold = Oblique(*points.shape[1:])

    def solve(start: Array) -> tuple[Solution, Array]:
        found = trust_region(
            manifold, cost, start, s, gradient=gradient, hessian_vector=hessian_vector, options=options
        )
        return found, found.grad_norm / repulsion(found.point, s)

    return jax.lax.map(solve, points)


@functools.partial(jax.jit, static_argnames=("gamma", "options"))
def spread_determinant(
    points: Float[Array, "starts dim classes"], *, gamma: float, options: TrustRegionOptions
) -> tuple[Solution, Float[Array, " starts"]]:
    """Maximise the determinant of the Gaussian kernel from every start; also the final gradients, as `spread`."""
    manifold = Oblique(*points.shape[1:])
    of = functools.partial(determinant_cost, gamma=gamma)

    def solve(start: Array) -> tuple[Solution, Array]:
        found = trust_region(manifold, of, start, options=options)
        # The cost does not depend on the lengths of columns, so its gradient is tangent and is no scale of its own.
        return found, found.grad_norm / jnp.linalg.norm(jax.grad(of)(start))

    return jax.lax.map(solve, points)


def options_for(num_classes: int, dtype: Any, objective: str) -> TrustRegionOptions:
    """Settings by size, mainly the largest number of products with the Hessian.

    For s = 1 in float32, compilation included: 300 products take 14 s for 1,000 points in 64 dimensions and leave a
    relative gradient below 1e-3; 30 take 87 s of one core for 10,000 points in 128 dimensions and leave 1e-4.

    A stage of a separation ends early. From 400 products a stage, three of three starts found the roots of E8; a first
    stage that had converged, to one of the many local optima of a low exponent, found them no more.
    """
    limits = ((512, 3000), (2048, 300))
    products = next((products for most, products in limits if num_classes <= most), 30)
    products = min(products, 400) if objective == "separation" else products
    wide = jnp.finfo(dtype).bits == 64
    # The energy is off by the square of the relative gradient; below 1e-5 float32 meets its rounding.
    return TrustRegionOptions(max_inner_iterations=products, relative_tolerance=1e-8 if wide else 1e-5)


def default_starts(num_classes: int, objective: str) -> int:
    """Number of random starts by size.

    20 reach every minimum of Thomson's problem up to 24 classes. Separations have many more local optima: of 200 starts
    in four dimensions, 18 found the 24-cell. A start takes 15 ms there.
    """
    if num_classes <= 64:
        return 100 if objective == "separation" else 20
    return 4 if num_classes <= 512 else 1


def sharpnesses(num_classes: int) -> list[float]:
    """Exponents of the stages of a separation: 2, 8, 32, ..., until log(K^2 / 2) / s is below 2e-4."""
    last = math.log(num_classes**2 / 2) / 2e-4
    return [2.0 * 4**stage for stage in range(1 + math.ceil(math.log(last / 2, 4)))]
