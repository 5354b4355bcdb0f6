"""The numbers of a report that need one pass over the data, each from the function that its entry names."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import safe_norm
from nc_jax.energies import separation
from nc_jax.metrics.alignment import class_angles, error_exponent_ratio
from nc_jax.metrics.collapse import bias_collapse, within_class_collapse
from nc_jax.metrics.duality import self_duality, uniform_duality
from nc_jax.metrics.geometry import (
    effective_rank,
    nearest_etf_distance,
    nuclear_rank,
    numerical_rank,
    stable_rank,
    variability_collapse_index,
)
from nc_jax.metrics.one_vs_rest import one_vs_rest_margin
from nc_jax.metrics.simplex import equiangle, equinorm, etf_distance, etf_distance_floor, maximal_angle
from nc_jax.metrics.statistics import ClassStatistics
from nc_jax.metrics.uniformity import energy_gap, kernel_moments
from nc_jax.metrics.zero_mean import zero_mean_collapse

MOST_FOR_HULLS = 200  # classes up to which the one-vs-rest margin takes no more than a second or two


@jax.jit
def variability_values(stats: ClassStatistics) -> dict[str, Array]:
    """Return the entries of NC1 that are functions of class statistics; some of them need a scatter."""
    found = {
        "nc1_quotient": within_class_collapse(stats, "quotient"),
        "nc1_quotient_sample": within_class_collapse(stats, "quotient", "sample"),
        "nc1_cdnv": within_class_collapse(stats, "cdnv"),
    }
    if stats.scaled_scatter is None:
        return found
    return found | {
        "nc1_pinv": within_class_collapse(stats, "pinv"),
        "nc1_pinv_sample": within_class_collapse(stats, "pinv", "sample"),
        "vci": variability_collapse_index(stats),
    }


def geometry_values(
    stats: ClassStatistics, frame: Float[Array, "dim classes"] | None, bias: Float[Array, " classes"] | None
) -> dict[str, Array]:
    """Return the entries of class means, of the classifier, and of both together; those of classifiers need a frame.

    Args:
        stats: statistics of the features.
        frame: class vectors as columns, shape (d, K).
        bias: shape (K,).
    """
    vectors = {"means": (stats.centred_means(), stats.present)}
    if frame is not None:
        vectors["classifier"] = (frame, jnp.ones_like(stats.present))
    # One program for both, because compilation takes longer than the numbers of a small report.
    found = {f"{name}_{of}": value for of, these in vectors.items() for name, value in _of_vectors(*these).items()}
    return found if frame is None else found | _of_both(stats, frame, bias)


@jax.jit
def _of_both(
    stats: ClassStatistics, frame: Float[Array, "dim classes"], bias: Float[Array, " classes"] | None
) -> dict[str, Array]:
    angles = class_angles(stats.means, frame, stats.present)
    found = {
        "nc3_product": self_duality(frame, stats, "product"),
        "nc3_difference": self_duality(frame, stats, "difference"),
        "nc3_directions": self_duality(frame, stats, "directions"),
        "nc3_cosine": self_duality(frame, stats, "cosine"),
        "nc3_angle": jnp.degrees(jnp.mean(angles, where=stats.present)),
        "nc3_uniform": uniform_duality(frame, stats),
        "bias_collapse": bias_collapse(frame, bias, stats.global_mean),
        "error_exponent_ratio": error_exponent_ratio(stats.means, frame, bias, stats.present),
    }
    return found if stats.scaled_scatter is None else found | zero_mean_collapse(stats, frame)


def hull_margins(stats: ClassStatistics, frame: Float[Array, "dim classes"] | None) -> dict[str, Array]:
    """Return the one-vs-rest margins, computed on the host; nothing for more than `MOST_FOR_HULLS` classes."""
    if len(stats.counts) > MOST_FOR_HULLS:
        return {}
    found = {"one_vs_rest_means": one_vs_rest_margin(stats.centred_means(), stats.present).margin}
    return found if frame is None else found | {"one_vs_rest_classifier": one_vs_rest_margin(frame).margin}


@jax.jit
def class_values(
    stats: ClassStatistics,
) -> tuple[Float[Array, " classes"], Float[Array, " classes"], Int[Array, " classes"], Float[Array, " classes"]]:
    """Return length of the centred class mean, variance, nearest other class and its distance, for each class.

    Classes without examples have NaN and, as their nearest class, -1.
    """
    present, centred = stats.present, stats.centred_means()
    classes = jnp.arange(present.size)

    def nearest_to(index: Array) -> tuple[Array, Array]:
        # Differences, because an expanded square would cancel for class means that are nearly equal.
        distances = safe_norm(centred - centred[:, index, None], axis=0)[0]
        distances = jnp.where(present & (classes != index), distances, jnp.inf)
        nearest = jnp.argmin(distances)
        return nearest, distances[nearest]

    nearest, distances = jax.lax.map(nearest_to, classes)
    alone = ~present | (jnp.sum(present) < 2)
    lengths = safe_norm(centred, axis=0)[0]
    variances = stats.class_scatter / jnp.maximum(stats.counts, 1).astype(lengths.dtype)
    nan = jnp.asarray(jnp.nan, lengths.dtype)
    return (
        jnp.where(present, lengths, nan),
        jnp.where(present, variances, nan),
        jnp.where(alone, -1, nearest),
        jnp.where(alone, nan, distances),
    )


@jax.jit
def _of_vectors(vectors: Float[Array, "dim classes"], present: Bool[Array, " classes"]) -> dict[str, Array]:
    dim, num_classes = vectors.shape
    from_simplex = etf_distance(vectors, present)
    floor = etf_distance_floor(jnp.sum(present), dim).astype(from_simplex.dtype)
    found = {
        "nc2_equinorm": equinorm(vectors, present),
        "nc2_equiangle": equiangle(vectors, present),
        "nc2_maximal_angle": maximal_angle(vectors, present),
        "nc2_etf": from_simplex,
        "nc2_gap": from_simplex - floor,
        "energy_gap": energy_gap(vectors, present=present).relative,
        "separation": separation(vectors, present=present),
        "log_variance": kernel_moments(vectors, present=present).variance,
        "rank": numerical_rank(vectors),
        "effective_rank": effective_rank(vectors),
        "stable_rank": stable_rank(vectors),
        "nuclear_rank": nuclear_rank(vectors),
    }
    if num_classes <= dim + 1:
        found["nc2_nearest_etf"] = nearest_etf_distance(vectors, present)
    return found
