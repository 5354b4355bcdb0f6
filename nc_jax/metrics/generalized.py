r"""The properties of generalized neural collapse (GNC), for any number of classes and dimensions.

At generalized collapse the examples of each class have the same features (GNC1), the directions of the centred class
means have the least energy and the means have equal lengths (GNC2), the class vectors have the directions of the means
(GNC3), and the classifier decides for the nearest class mean (GNC4). For K <= d + 1 classes this is neural collapse,
because the simplex has the least energy of every kernel that falls with the distance. For K > d + 1 no simplex fits,
and the metrics of `nc_jax.metrics.collapse` cannot all reach zero.
"""

import jax.numpy as jnp
from jaxtyping import Array

from nc_jax.checks import Reals
from nc_jax.energies import separation
from nc_jax.metrics.collapse import bias_collapse, within_class_collapse
from nc_jax.metrics.duality import self_duality, uniform_duality
from nc_jax.metrics.simplex import checked_frame, equinorm, etf_distance, etf_distance_floor
from nc_jax.metrics.statistics import Centre, ClassStatistics
from nc_jax.metrics.uniformity import energy_gap, kernel_moments


def generalized_collapse_metrics(
    stats: ClassStatistics,
    frame: Reals | None = None,
    bias: Reals | None = None,
    centre: Centre = "balanced",  # the default of within_class_collapse
    *,
    s: float | int = 2.0,  # the default of energy_gap
    rows: bool = False,
) -> dict[str, Array]:
    """Compute all metrics of generalized neural collapse that need only one pass over the data.

    Statistics without a scatter are enough. GNC4 needs a second pass: see `nearest_centre_agreement`. The one-vs-rest
    margin of the class vectors is computed on the host: see `one_vs_rest_margin`.

    Args:
        stats: statistics of the features.
        frame: class vectors of the classifier as columns, shape (d, K); None for features without a classifier.
        bias: shape (K,), or None for a classifier without a bias.
        centre: point that is subtracted from the class means; see `ClassStatistics.centred_means`.
        s: exponent of the kernel of the energy, above -2; see `energy_gap`.
        rows: take the class vectors from the rows of `frame`, shape (K, d), as in `torch.nn.Linear.weight`.

    Returns:
        Scalars by name. "..._means" is of the centred means of classes with examples, and "..._classifier" of all K
        class vectors. Without a frame, the metrics of the classifier are left out: those, "nc4_bias" and all that begin
        with "gnc3".

        - "gnc1_cdnv", "gnc1_quotient": `within_class_collapse`, 0 at collapse.
        - "energy_means", "energy_classifier": Riesz energy, a mean over pairs.
        - "energy_gap_means", "energy_gap_classifier": relative `energy_gap`, 0 at collapse; NaN if the least energy of
          so many vectors is not known.
        - "separation_means", "separation_classifier": `nc_jax.energies.separation`, the least distance of directions.
        - "log_variance_means", "log_variance_classifier": variance of `kernel_moments`, logarithmic kernel.
        - "equinorm_means", "equinorm_classifier": `equinorm`, the relative spread of the lengths, 0 at collapse.
        - "nc2_gap_means", "nc2_gap_classifier": `etf_distance` minus `etf_distance_floor`. 0 for every tight frame of
          vectors that sum to zero, which is less than GNC2 asks for.
        - "gnc3_directions", "gnc3_cosine": `self_duality`, 0 at collapse.
        - "gnc3_uniform": `uniform_duality`, in the squared unit of the logits, 0 at collapse.
        - "nc4_bias", "num_present", "without_class": as in `collapse_metrics`.

        NaN where these functions give NaN.

    Raises:
        ValueError: if the frame does not have shape (d, K) like the class means, K < 2, the shapes of bias and frame do
            not fit, there is a bias without a frame, the centre is unknown, or s is not a finite number above -2.

    Example:
        >>> stats = ClassStatistics.from_batch(jnp.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), jnp.arange(4), 4)
        >>> metrics = generalized_collapse_metrics(stats, stats.means)
        >>> [round(float(metrics[name]), 5) + 0 for name in ("energy_gap_means", "separation_means", "gnc3_cosine")]
        [0.0, 1.41421, 0.0]

    Reference: Liu et al., Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap (2023).
    """
    if frame is None and bias is not None:
        raise ValueError("a bias needs the frame of its classifier; got bias without frame")
    metrics = {
        "gnc1_cdnv": within_class_collapse(stats, "cdnv"),
        "gnc1_quotient": within_class_collapse(stats, "quotient", centre),
        "num_present": jnp.sum(stats.present),
        "without_class": stats.without_class,
    } | _geometry("means", stats.centred_means(centre), stats.present, s)
    if frame is None:
        return metrics
    frame = checked_frame(frame, stats, rows=rows)
    return (
        metrics
        | _geometry("classifier", frame, None, s)
        | {
            "gnc3_directions": self_duality(frame, stats, "directions", centre),
            "gnc3_cosine": self_duality(frame, stats, "cosine", centre),
            "gnc3_uniform": uniform_duality(frame, stats, centre),
            "nc4_bias": bias_collapse(frame, bias, stats.global_mean),
        }
    )


def _geometry(of: str, vectors: Array, present: Array | None, s: float | int) -> dict[str, Array]:
    dim, num_classes = vectors.shape
    energy = energy_gap(vectors, s, present=present)
    floor = etf_distance_floor(num_classes if present is None else jnp.sum(present), dim)
    return {
        f"energy_{of}": energy.energy,
        f"energy_gap_{of}": energy.relative,
        f"separation_{of}": separation(vectors, present=present),
        f"log_variance_{of}": kernel_moments(vectors, present=present).variance,
        f"equinorm_{of}": equinorm(vectors, present),
        f"nc2_gap_{of}": etf_distance(vectors, present) - floor.astype(energy.energy.dtype),
    }
