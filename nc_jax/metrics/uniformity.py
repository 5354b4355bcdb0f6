r"""How evenly class vectors are spread over the sphere: energy gaps, spread of a kernel, hyperspherical uniformity.

For K > d + 1 classes in d dimensions no simplex fits. In generalized neural collapse, the directions of the centred
class means have the least energy instead, which depends on the kernel. `nc_jax.energies` has the energies themselves
and the least distance of two directions.

Class vectors are columns, shape (d, K), and only their directions count. A vector that counts and is zero or not finite
makes a metric NaN. Memory grows with K, and not with K^2: 50,000 class vectors need no matrix of pairs.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nc_jax.checks import Mask, Reals, real_array
from nc_jax.energies import checked_exponent, riesz_energy
from nc_jax.frames import least_energy
from nc_jax.metrics.simplex import checked_vectors
from nc_jax.metrics.statistics import Centre, ClassStatistics, check_statistics
from nc_jax.pairs import Pairs, checked_tile, fold_pairs, pairs_of


class EnergyGap(NamedTuple):
    """An energy and the least one, from `energy_gap`. Both are means over pairs.

    Attributes:
        energy: Riesz energy of the vectors.
        least: the least energy that so many vectors can have in these dimensions; NaN if it is not known.
        absolute: energy minus least energy.
        relative: the same, divided by the absolute value of the least energy.
    """

    energy: Float[Array, ""]
    least: Float[Array, ""]
    absolute: Float[Array, ""]
    relative: Float[Array, ""]


class KernelMoments(NamedTuple):
    """Mean and variance of a kernel over all pairs of directions, from `kernel_moments`."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]


class UniformityGap(NamedTuple):
    """Hyperspherical uniformity between and within classes, from `uniformity_gap`.

    Attributes:
        between: uniformity of the directions of the class means; large where classes are apart.
        within: mean uniformity of the examples of a class; 0 at collapse.
        gap: between minus within.
    """

    between: Float[Array, ""]
    within: Float[Array, ""]
    gap: Float[Array, ""]


def energy_gap(
    vectors: Reals,
    s: float | int = 2.0,  # the kernel of minimum hyperspherical energy in HUG: Liu et al. (2023), released program
    *,
    present: Mask | None = None,
    least: Reals | None = None,
) -> EnergyGap:
    r"""How far the Riesz energy of directions is above the least one; 0 at generalized neural collapse.

    .. math:: E_s - E_s^\star, \qquad E_s = \frac{1}{K (K - 1)} \sum_{i \ne j} K_s(\hat w_i, \hat w_j)

    Args:
        vectors: class vectors as columns, shape (d, K), of any length: the frame of a classifier, or
            `stats.centred_means()`.
        s: exponent of the kernel, above -2; 0 is the logarithmic kernel. See `nc_jax.energies.riesz_energy`.
        present: True for columns that count, shape (K,); None: all columns count. K is then their number.
        least: the energy to compare with, a mean over pairs, such as the `riesz_energy` of a reference frame. None: the
            least energy of K vectors in d dimensions that is known (`nc_jax.frames.least_energy`).

    Returns:
        Energy, least energy and gaps. A gap slightly below zero is rounding, unless `least` is of a frame that is not
        optimal. Gaps are NaN where the least energy is not known. For s >= 0 the energy of equal directions is
        infinite. NaN if fewer than two columns count.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, `present` is not boolean of shape (K,), or s
            is not a finite number above -2.

    Example:
        >>> gap = energy_gap(jnp.array([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]]))
        >>> round(float(gap.energy), 5), abs(float(gap.relative)) < 1e-6
        (0.33333, True)

    Reference: Liu et al., Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap (2023).
    """
    s = checked_exponent(s)
    vectors, counted = checked_vectors(vectors, present)
    energy = riesz_energy(vectors, s, present=counted)
    dim, num_classes = vectors.shape
    if least is not None:
        lowest = real_array(least, "least").astype(energy.dtype)
    elif present is None:
        lowest = jnp.asarray(_least(num_classes, dim, s), energy.dtype)
    else:  # the number of classes that count may be known at run time only
        lowest = jnp.asarray(_table_of_least(num_classes, dim, s), energy.dtype)[jnp.sum(counted)]
    return EnergyGap(energy, lowest, energy - lowest, (energy - lowest) / jnp.abs(lowest))


def kernel_moments(
    vectors: Reals,
    s: float | int = 0.0,  # the logarithmic kernel: metric "nc2g_log" of the package rhubarbwu/neural-collapse
    *,
    present: Mask | None = None,
) -> KernelMoments:
    r"""Mean and variance of the kernel over all pairs of directions.

    The variance is zero if all pairs have the same distance, as in a simplex. For K > d + 1 it cannot be zero unless
    all vectors are equal (see `equiangle`), and it is not least where the energy is: use it to compare networks, and
    `energy_gap` to recognise collapse.

    Args:
        vectors: class vectors as columns, shape (d, K), of any length.
        s: exponent of the Riesz kernel, above -2; 0 is the logarithmic kernel. See `nc_jax.energies.riesz_energy`.
        present: True for columns that count, shape (K,); None: all columns count.

    Returns:
        Mean, which is the Riesz energy, and variance over the pairs, divided by their number. For s >= 0 both are
        infinite if two directions are equal. NaN if fewer than two columns count.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, `present` is not boolean of shape (K,), or s
            is not a finite number above -2.

    Example:
        >>> kernel_moments(jnp.eye(3), 2)
        KernelMoments(mean=Array(0.5, dtype=float32), variance=Array(0., dtype=float32))

    Reference: Liu et al. (2023) for the kernels; the package rhubarbwu/neural-collapse for the variance (its Riesz
    kernel has s = d - 2).
    """
    s = checked_exponent(s)
    vectors, counted = checked_vectors(vectors, present)
    mean = riesz_energy(vectors, s, present=counted)
    pairs = pairs_of(vectors, counted)
    return KernelMoments(mean, _variance(pairs, mean, s=s, tile=checked_tile(None, pairs)))


def uniformity_gap(
    stats: ClassStatistics,
    s: float | int = 2.0,  # as energy_gap
    centre: Centre = "origin",  # the directions of HUG are about the origin
) -> UniformityGap:
    r"""Hyperspherical uniformity gap, which stands for the mutual information of features and labels.

    With Z the direction of a feature and Y its class, I(Z; Y) = H(Z) - H(Z | Y). Entropy on a sphere is large where
    points are spread evenly, so uniformity takes the place of both entropies,

    .. math:: I(Z; Y) \approx HU_s(\{\hat\mu_k\}) - \frac1K \sum_k HU_{-2}(\{z_i\}_{y_i = k}), \qquad
        HU_s(V) = - \operatorname*{mean}_{i \ne j} K_s(v_i, v_j) .

    This is what HUG maximises, with an energy as the uniformity. The class means stand for all features. Within a
    class, the kernel with s = -2 is the negative squared distance. Its mean over the pairs of n_k examples is, up to
    sign, :math:`2 s_k / (n_k - 1)` with the scatter :math:`s_k` of the class. So the statistics of one pass are enough,
    while any other exponent would need all pairs. (HUG's loss takes the distance to the class vector there.) The gap is
    no estimate of the mutual information in nats: compare it only between networks, and for one s.

    Args:
        stats: statistics of the *directions* of features, features divided by their norms; `scatter=False` is enough.
        s: exponent of the kernel between classes, above -2; 0 is the logarithmic kernel.
        centre: point that is subtracted from the class means before their directions are taken; see
            `ClassStatistics.centred_means`.

    Returns:
        The two terms and the gap. At collapse, within is 0 and the gap is minus the least energy of K directions. All
        are NaN if the statistics are not those of unit vectors (up to 1 percent of their squared norm), if fewer than
        two classes have examples, or if no class has two.

    Raises:
        ValueError: if K < 2, the centre is unknown, or s is not a finite number above -2.

    Example:
        >>> features, labels = jnp.array([[2.0, 0.0], [5.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]]), jnp.array([0, 0, 1, 1])
        >>> units = features / jnp.linalg.norm(features, axis=1, keepdims=True)
        >>> gap = uniformity_gap(ClassStatistics.from_batch(units, labels, num_classes=2, scatter=False))
        >>> float(gap.between), float(gap.within), float(gap.gap)
        (-0.25, 0.0, -0.25)

    Reference: Liu et al., Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap (2023).
    """
    check_statistics(stats)
    energy = riesz_energy(stats.centred_means(centre), checked_exponent(s), present=stats.present)
    counts, scatter = stats.counts.astype(energy.dtype), stats.class_scatter
    several = stats.counts >= 2
    within = jnp.mean(2 * scatter / jnp.maximum(counts - 1, 1), where=several)
    # The squared norms of unit vectors sum to their number.
    squares = scatter + counts * jnp.sum(stats.means**2, axis=0)
    are_units = jnp.all(jnp.abs(squares - counts) <= _UNIT_TOLERANCE * counts)
    sound = are_units & jnp.any(several) & (jnp.sum(stats.present) >= 2)
    between, within = (jnp.where(sound, value, jnp.nan) for value in (-energy, within))
    return UniformityGap(between, within, between - within)


_UNIT_TOLERANCE = 1e-2  # features divided by their norms in bfloat16 have squared norms of 1 to within 2^-7


@functools.partial(jax.jit, static_argnames=("s", "tile"))  # JAX would compile a loop anew at each call
def _variance(pairs: Pairs, mean: Float[Array, ""], *, s: float, tile: int) -> Float[Array, ""]:
    """Mean squared deviation of the kernel from its mean."""
    centre = jnp.where(jnp.isfinite(mean), mean, 0)

    def add(total: Array, squared: Array, mask: Array) -> Array:
        logs = jnp.log(squared) / 2
        kernel = -logs if s == 0 else math.copysign(1, s) * jnp.exp(-s * logs)
        return total + jnp.sum(jnp.where(mask, (kernel - centre) ** 2, 0))

    total = fold_pairs(pairs, tile, add, jnp.zeros((), pairs.directions.dtype))
    return jnp.where(jnp.isfinite(mean), total / pairs.number, mean)


def _least(num_classes: int, dim: int, s: float) -> float:
    """Least energy as a mean over pairs; NaN where it is not known, and for fewer than two classes."""
    found = least_energy(num_classes, dim, s) if num_classes > 1 else None
    return math.nan if found is None else found


@functools.lru_cache(maxsize=64)
def _table_of_least(num_classes: int, dim: int, s: float) -> np.ndarray:
    """Least energies of 0..K vectors."""
    return np.array([_least(number, dim, s) for number in range(num_classes + 1)])
