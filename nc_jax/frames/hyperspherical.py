"""Hyperspherical frames: unit vectors that are spread over the sphere as evenly as possible, for any K and d."""

import math
import numbers
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import matmul, wider
from nc_jax.checks import check_at_least, check_floating, check_key, check_whole
from nc_jax.energies import checked_exponent, log_gram_determinant, riesz_energy, separation
from nc_jax.frames.configurations import closed_form, least_energy
from nc_jax.frames.spreading import (
    default_starts,
    options_for,
    random_starts,
    sharpnesses,
    spread,
    spread_determinant,
)
from nc_jax.frames.stored import stored
from nc_jax.manifolds import Stiefel
from nc_jax.solvers import Status

Objective = Literal["riesz", "separation", "determinant"]
OBJECTIVES = ("riesz", "separation", "determinant")
_VERSION = 2  # part of the names of stored frames: raise it when the same arguments give another frame
_ROUNDS = 10  # 2 to 4 are usual
_MOST_FOR_DETERMINANT = 4096  # its K x K kernel, the factor and their derivatives take about 1 GiB in float32


class HypersphericalSolution(NamedTuple):
    """How a hyperspherical frame was found.

    Attributes:
        points: the best configuration, unit vectors as columns, shape (r, K) with r = min(d, K - 1).
        value: its objective: the mean Riesz energy over ordered pairs, the separation, or the log-determinant.
        values: objective from every start, shape (starts,); one value for a closed form.
        statuses: a `nc_jax.solvers.Status` for every start. With NON_FINITE, the start has no solution.
        grad_norms: length of the Riemannian gradient for every start, relative to what it would be if no two forces on
            a point cancelled each other; for a determinant, relative to the gradient at the start.
        best: number of the start that the points come from.
        name: name of the closed form; None if the solver found the points.
    """

    points: np.ndarray
    value: float
    values: np.ndarray
    statuses: np.ndarray
    grad_norms: np.ndarray
    best: int
    name: str | None

    @property
    def status(self) -> Status:
        """Status of the start that the points come from."""
        return Status(int(self.statuses[self.best]))


def hyperspherical(
    num_classes: int,
    dim: int,
    *,
    key: PRNGKeyArray | None = None,
    objective: Objective = "riesz",
    s: float | int = 1.0,
    gamma: float | int = 1.0,
    seed: int = 0,
    starts: int | None = None,
    dtype: DTypeLike = jnp.float32,
    cache: str | Path | None = None,
) -> Float[Array, "dim classes"]:
    r"""Unit vectors that are spread as evenly as possible: a frame for any number of classes, also for K > d + 1.

    The configuration minimises a Riesz energy :math:`\sum_{i \ne j} \operatorname{sign}(s) \|w_i - w_j\|^{-s}`,
    maximises the separation :math:`\min_{i \ne j} \|w_i - w_j\|`, or maximises the log-determinant of the kernel
    :math:`\exp(-\gamma \|w_i - w_j\|^2)`. For K <= d + 1 all three give a simplex ETF.

    The configuration depends on the seed, and not on the key, which only turns (and reflects) it. So all runs of an
    experiment share one configuration, which is computed once and kept on disk (`cache`). The function also works while
    JAX traces a program; the configuration is then a constant of the program. Machines of different kinds may round
    into different local optima, so hosts that train one model together should share that folder.

    Args:
        num_classes: K >= 2.
        dim: feature dimension d >= 2, or 1 for two classes.
        key: random key of a Haar-random orthogonal map. None: the canonical orientation, in the first min(d, K - 1)
            dimensions.
        objective: "riesz", "separation" or "determinant".
        s: exponent above -2 of the Riesz energy; 0 is its logarithmic form. The other objectives ignore it.
        gamma: of the kernel of the determinant, in units of 1 / squared distance. The other objectives ignore it.
        seed: seed of the random starts.
        starts: number of random starts, of which the best is kept. None: 20 up to 64 classes (100 for a separation), 4
            up to 512, 1 beyond.
        dtype: a floating dtype. The frame is computed in it, or in float32 if it is narrower. float64 needs
            `jax_enable_x64`.
        cache: folder of stored configurations. None: $NC_JAX_CACHE, else nc_jax in the user's cache folder.

    Returns:
        Class vectors as columns, shape (d, K), each of unit Euclidean norm. `hyperspherical_solution` says how they
        were found. If no start has a finite objective (a determinant that is singular to rounding, say), they are NaN.

    Raises:
        ValueError: if K < 2, d < 2, s <= -2, or an option is out of its range.

    Example:
        >>> frame = hyperspherical(6, 3, key=jax.random.key(0))  # an octahedron
        >>> round(float(separation(frame)), 4)
        1.4142

    Reference: Liu et al., Generalizing and decoupling neural collapse via hyperspherical uniformity gap (2023); Cohn
    and Kumar (2007) for the closed forms.
    """
    check_key(key)
    options: Any = {"objective": objective, "s": s, "gamma": gamma, "seed": seed, "starts": starts, "cache": cache}
    solution = hyperspherical_solution(num_classes, dim, dtype=dtype, **options)
    points = jnp.asarray(solution.points)
    if key is None:
        frame = jnp.pad(points, ((0, dim - len(points)), (0, 0)))
    else:
        frame = matmul(Stiefel(dim, len(points)).random_point(key, points.dtype), points)
    return frame.astype(dtype)


def hyperspherical_template(
    num_classes: int,
    rank: int,
    *,
    objective: Objective = "riesz",
    s: float | int = 1.0,
    gamma: float | int = 1.0,
    seed: int = 0,
    starts: int | None = None,
    dtype: DTypeLike = jnp.float32,
    cache: str | Path | None = None,
) -> Float[Array, "rank classes"]:
    """Template of a hyperspherical frame, for the rotated and the nearest placement: `hyperspherical` without rotation.

    Args:
        num_classes: K >= 2.
        rank: r, the dimension in which the vectors are spread, 2 <= r <= K - 1 (1 for two classes).
        objective: as in `hyperspherical`, and so are the arguments that follow.
        s: exponent of the Riesz energy.
        gamma: of the kernel of the determinant.
        seed: seed of the random starts.
        starts: number of random starts.
        dtype: a floating dtype.
        cache: folder of stored configurations.

    Returns:
        Unit vectors as columns, shape (r, K). `nc_jax.frames.as_template` makes a template of them.

    Raises:
        ValueError: if r > K - 1, whose last rows would be zeros, and as `hyperspherical`.

    Example:
        >>> hyperspherical_template(4, 3).shape
        (3, 4)
    """
    _check_sizes(num_classes, rank)
    if rank > num_classes - 1:
        raise ValueError(
            f"{num_classes} class vectors spread over {num_classes - 1} dimensions at most; got rank={rank}"
        )
    options: Any = {"objective": objective, "s": s, "gamma": gamma, "seed": seed, "starts": starts, "cache": cache}
    return hyperspherical(num_classes, rank, dtype=dtype, **options)


def hyperspherical_solution(
    num_classes: int,
    dim: int,
    *,
    objective: Objective = "riesz",
    s: float | int = 1.0,
    gamma: float | int = 1.0,
    seed: int = 0,
    starts: int | None = None,
    dtype: DTypeLike = jnp.float32,
    cache: str | Path | None = None,
    closed: bool = True,
) -> HypersphericalSolution:
    """Find the configuration of a hyperspherical frame, and say how well.

    A proven optimum in closed form is returned where there is one: the simplex for K <= d + 1 and every objective; for
    energies and the separation also the regular polygon (d = 2), the cross-polytope (K = 2 d), the icosahedron, the
    600-cell and the roots of E8. Otherwise the trust region solves the problem from random starts. It finds local
    optima; nothing but more starts tells whether a better one exists.

    A separation is found through energies of exponents 2, 8, 32, ..., each from the points of the last, until the soft
    minimum is within 2e-4 (relative) of the minimum. Its later stages are badly conditioned, so ITERATION_LIMIT is a
    usual status.

    Args:
        num_classes: K >= 2.
        dim: d >= 2, or 1 for two classes.
        objective: as in `hyperspherical`, and so are the arguments that follow.
        s: exponent of the Riesz energy.
        gamma: of the kernel of the determinant.
        seed: seed of the random starts.
        starts: number of random starts.
        dtype: a floating dtype.
        cache: folder of stored configurations.
        closed: return a closed form where there is one; False solves in every case.

    Raises:
        ValueError: if K < 2, d < 2, s <= -2, or an option is out of its range.

    Example:
        >>> solution = hyperspherical_solution(6, 3)
        >>> solution.name, solution.status.name
        ('cross-polytope', 'CONVERGED')
    """
    _check_sizes(num_classes, dim)
    s, starts = _checked_options(num_classes, objective, s, gamma, seed, starts)
    check_floating(dtype)
    dim = min(int(dim), num_classes - 1)  # more dimensions are of no use
    wide = jax.dtypes.canonicalize_dtype(wider(dtype))
    # The caller may be inside of a trace; nothing here depends on what it traces.
    with jax.ensure_compile_time_eval():
        known = closed_form(num_classes, dim, objective) if closed else None
        if known is not None:
            points = known.points.astype(wide)
            if objective == "riesz":
                value: Any = least_energy(num_classes, dim, s)
            elif objective == "separation":
                value = float(np.min(np.linalg.norm(known.points[:, 1:] - known.points[:, :1], axis=0)))
            else:
                value = _objective(points, objective, s, gamma)
            zeros = np.zeros(1, np.int32)
            return HypersphericalSolution(points, value, np.array([value]), zeros, zeros.astype(wide), 0, known.name)
        parameter = {"riesz": f"s={s!r}", "separation": "", "determinant": f"gamma={float(gamma)!r}"}[objective]
        description = (
            f"hyperspherical {_VERSION}: K={int(num_classes)} d={dim} {objective} {parameter} seed={int(seed)} "
            f"starts={starts} {wide}"
        )
        found = stored(
            description, lambda: _solve(int(num_classes), dim, objective, s, float(gamma), seed, starts, wide), cache
        )
    numbers_found: Any = {"value": float(found["value"]), "best": int(found["best"])}
    return HypersphericalSolution(**(found | numbers_found), name=None)


def _solve(
    num_classes: int, dim: int, objective: str, s: float, gamma: float, seed: int, starts: int, dtype: Any
) -> dict[str, np.ndarray]:
    options = options_for(num_classes, dtype, objective)
    points = random_starts(jax.random.key(seed), num_classes=num_classes, dim=dim, starts=starts, dtype=str(dtype))
    if objective == "determinant":
        solution, relative = spread_determinant(points, gamma=gamma, options=options)
    else:
        first, *later = [s] if objective == "riesz" else sharpnesses(num_classes)
        solution, relative = spread(points, jnp.asarray(first, dtype), options=options)
        for exponent in later:
            solution, relative = spread(solution.point, jnp.asarray(exponent, dtype), options=options)
        # Converged is relative to the largest gradient met, and that of a start whose points nearly coincide is huge.
        # So a start goes on from where it ended, relative to the forces there, until it has nothing more to do.
        for _ in range(_ROUNDS if objective == "riesz" else 0):
            if not np.any((solution.status == Status.CONVERGED) & (solution.iterations > 0)):
                break
            solution, relative = spread(solution.point, jnp.asarray(first, dtype), options=options)
    found, grad_norms = jax.device_get((solution, relative))
    failed = found.status == Status.NON_FINITE
    values = np.array([_objective(points, objective, s, gamma) for points in found.point])
    # The cost of a Riesz energy is finite where the energy itself over- or underflows.
    costs = np.where(failed, np.inf, -values if objective == "separation" else found.value)
    best = int(np.argmin(costs))
    values = np.where(failed, np.nan, values)
    return {
        "points": found.point[best] if not failed[best] else np.full_like(found.point[best], np.nan),
        "value": values[best],
        "values": values,
        "statuses": found.status,
        "grad_norms": grad_norms,
        "best": np.array(best),
    }


def _objective(points: np.ndarray, objective: str, s: float, gamma: float) -> float:
    if objective == "separation":
        return float(separation(points))
    return float(riesz_energy(points, s) if objective == "riesz" else log_gram_determinant(points, gamma))


def _check_sizes(num_classes: Any, dim: Any) -> None:
    check_whole("num_classes", num_classes)
    check_whole("dim", dim)
    if num_classes < 2 or dim < 2 - (num_classes == 2):
        raise ValueError(
            "class vectors spread over a sphere need num_classes >= 2 and dim >= 2 (1 for two classes); "
            f"got {num_classes} and {dim}"
        )


def _checked_options(num_classes: int, objective: Any, s: Any, gamma: Any, seed: Any, starts: Any) -> tuple[float, int]:
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    s = checked_exponent(s)
    if not (isinstance(gamma, numbers.Real) and 0 < float(gamma) < math.inf):
        raise ValueError(f"gamma must be a finite number above 0; got {gamma!r}")
    check_whole("seed", seed)
    starts = default_starts(num_classes, objective) if starts is None else starts
    check_at_least("starts", starts)
    if objective == "determinant" and num_classes > _MOST_FOR_DETERMINANT:
        raise ValueError(
            f"the determinant of a kernel must have at most {_MOST_FOR_DETERMINANT} rows; got num_classes={num_classes}"
        )
    return s, int(starts)
