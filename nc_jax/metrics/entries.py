"""What a report has: for each number its group, its variant, the paper it is from, its function, and a sentence."""

import math
from typing import NamedTuple


class Entry(NamedTuple):
    """A number of a `nc_jax.metrics.Report`, with what a reader needs to know about it.

    Attributes:
        value: the number; NaN where it is not defined.
        at_collapse: its value at (generalized) neural collapse, or a bound of it; None if neither is known.
        bound: what `at_collapse` is: "" for the value itself, "at least" or "at most" for a bound of it.
        group: "NC1", "NC2", "NC3", "NC4", "generalized", "geometry", "margins" or "zero mean".
        variant: the formula, in short, where papers differ.
        source: the paper that it comes from.
        function: the function of `nc_jax.metrics` that computes it.
        sentence: what it says.
    """

    value: float
    at_collapse: float | None
    bound: str
    group: str
    variant: str
    source: str
    function: str
    sentence: str

    def to_json(self) -> dict[str, float | str | None]:
        """Return what JSON can hold: NaN becomes null, and infinities become the strings "inf" and "-inf"."""
        return {name: plain(value) if isinstance(value, float) else value for name, value in self._asdict().items()}


class Kind(NamedTuple):
    """What is said about an entry, whatever its value."""

    group: str
    variant: str
    source: str
    function: str
    sentence: str


def plain(value: float | int) -> float | int | str | None:
    """Return a number as JSON can hold it.

    Example:
        >>> plain(0.5), plain(float("nan")), plain(float("-inf"))
        (0.5, None, '-inf')
    """
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


_PAPYAN = "Papyan, Han and Donoho (2020)"
_ZHU = "Zhu et al. (2021), released program"
_PACKAGE = "rhubarbwu/neural-collapse (package)"
_HUG = "Liu et al. (2023)"
_MARKOU = "Markou, Ajanthan and Gould (2024), released program"
_KIM = "Kim and Kim (2024)"


def _of_both(name: str, group: str, variant: str, source: str, function: str, sentence: str) -> dict[str, Kind]:
    """Return the kinds of a metric of class vectors, for the centred class means and for the classifier's."""
    of = {"means": "centred class means", "classifier": "class vectors of the classifier"}
    return {
        f"{name}_{which}": Kind(group, f"{variant}, of the {vectors}", source, function, sentence.format(vectors))
        for which, vectors in of.items()
    }


KINDS: dict[str, Kind] = {
    "nc1_pinv": Kind(
        "NC1",
        "tr(Σ_W Σ_B⁺) / K, balanced centre",
        f"{_PAPYAN}; {_PACKAGE}",
        "within_class_collapse",
        "Spread within classes over spread of class means, direction by direction in the span of the class means.",
    ),
    "nc1_pinv_sample": Kind(
        "NC1",
        "tr(Σ_W Σ_B⁺) / K, centre: mean of all examples",
        _ZHU,
        "within_class_collapse",
        "The same about the mean of all examples, which differs from the mean of the classes if they differ in size.",
    ),
    "nc1_quotient": Kind(
        "NC1",
        "tr Σ_W / tr Σ_B, balanced centre",
        _PACKAGE,
        "within_class_collapse",
        "Total variance within classes over total variance of class means.",
    ),
    "nc1_quotient_sample": Kind(
        "NC1",
        "tr Σ_W / tr Σ_B, centre: mean of all examples",
        _PACKAGE,
        "within_class_collapse",
        "The same about the mean of all examples.",
    ),
    "nc1_cdnv": Kind(
        "NC1",
        "mean over pairs of (v_i + v_j) / (2 ‖μ_i − μ_j‖²)",
        "Galanti, György and Hutter (2022)",
        "within_class_collapse",
        "Class-distance normalised variance: variances of two classes over the squared distance of their means.",
    ),
    "vci": Kind(
        "NC1",
        "1 − tr(Σ_T⁺ Σ_B) / rank Σ_B",
        "Xu and Liu (2023)",
        "variability_collapse_index",
        "Share of the variability in the directions of the class means that is within classes; "
        "says nothing for N <= d examples.",
    ),
    "nearest_centre_accuracy": Kind(
        "NC1",
        "argmin ‖h − μ_k‖ = y",
        f"{_KIM}, released program; Mensink et al. (2013)",
        "nearest_centre_accuracy",
        "Share of the examples whose nearest class mean is that of their own class.",
    ),
    **_of_both(
        "nc2_equinorm",
        "NC2",
        "sd of the lengths / their mean",
        _PAPYAN,
        "equinorm",
        "Relative spread of the lengths of the {}.",
    ),
    **_of_both(
        "nc2_equiangle",
        "NC2",
        "sd of the cosines of all pairs",
        _PAPYAN,
        "equiangle",
        "Spread of the cosines between the {}.",
    ),
    **_of_both(
        "nc2_maximal_angle",
        "NC2",
        "mean of |cos + 1/(K − 1)|",
        _PAPYAN,
        "maximal_angle",
        "How far the cosines between the {} are from that of a simplex, −1/(K − 1), on average.",
    ),
    **_of_both(
        "nc2_etf",
        "NC2",
        "Gram matrices of unit norm",
        f"{_ZHU}; {_PACKAGE}",
        "etf_distance",
        "Distance of the Gram matrix of the {} from that of a simplex ETF.",
    ),
    **_of_both(
        "nc2_nearest_etf",
        "NC2",
        "nearest rotation of a simplex ETF",
        _MARKOU,
        "nearest_etf_distance",
        "Distance of the {} from the nearest simplex ETF, both scaled to norm 1.",
    ),
    "nc3_difference": Kind(
        "NC3",
        "‖W/‖W‖ − M/‖M‖‖",
        _PAPYAN,
        "self_duality",
        "Distance of the class vectors from the centred class means, both scaled to norm 1.",
    ),
    "nc3_product": Kind(
        "NC3",
        "‖WᵀM/‖WᵀM‖ − simplex‖",
        _ZHU,
        "self_duality",
        "Distance of the products of class vectors and class means from those of a simplex ETF.",
    ),
    "nc3_directions": Kind(
        "NC3",
        "mean of ‖ŵ_k − m̂_k‖",
        _HUG,
        "self_duality",
        "Mean distance of class vector and class mean, both scaled to length 1 class by class.",
    ),
    "nc3_cosine": Kind(
        "NC3",
        "1 − mean of cos(w_k, m_k)",
        _PACKAGE,
        "self_duality",
        "One minus the mean cosine of class vector and centred class mean.",
    ),
    "nc3_angle": Kind(
        "NC3",
        "mean of ∠(w_k, m_k), degrees",
        f"{_PAPYAN}, the property; this unit here",
        "class_angles",
        "Mean angle of class vector and centred class mean, in degrees.",
    ),
    "nc3_uniform": Kind(
        "NC3",
        "variance of w_kᵀ m_k",
        f"Wu and Papyan (2024), the property; {_PACKAGE}, the formula (ddof 1)",
        "uniform_duality",
        "Variance over classes of the product of class vector and class mean, in the squared unit of the logits.",
    ),
    "nc4": Kind(
        "NC4",
        "argmax (w_kᵀh + b_k) = argmin ‖h − μ_k‖",
        _PAPYAN,
        "nearest_centre_agreement",
        "Share of the examples for which the classifier decides for the class with the nearest mean.",
    ),
    "accuracy": Kind(
        "NC4",
        "argmax (w_kᵀh + b_k) = y",
        "",
        "logit_margins",
        "Share of the examples that the classifier assigns to their class.",
    ),
    "bias_collapse": Kind(
        "NC4",
        "‖Wᵀμ_G + b‖",
        f"{_ZHU} (Wh_b_relation)",
        "bias_collapse",
        "Size of the logits of the mean feature, in the unit of the logits; not the NC4 of Papyan et al.",
    ),
    "error_exponent_ratio": Kind(
        "NC4",
        "smallest error exponent / the largest possible",
        f"{_PAPYAN}, the exponent; the ratio here",
        "error_exponent_ratio",
        "Robustness of the classifier to noise around the class means, relative to the best for means of this size.",
    ),
    "margin_cosine_mean": Kind(
        "margins",
        "cos(h, w_y) − max cos(h, w_j), both centred",
        _MARKOU,
        "cosine_margins",
        "Mean margin in cosines of centred features with centred class vectors (without a classifier: class means).",
    ),
    "margin_cosine_sd": Kind(
        "margins",
        "standard deviation of the same",
        _MARKOU,
        "MarginSums",
        "Standard deviation of the cosine margin over the examples.",
    ),
    "margin_cosine_min": Kind(
        "margins",
        "minimum of the same",
        _MARKOU,
        "MarginSums",
        "Cosine margin of the worst example; negative if an example is nearer, in angle, to another class.",
    ),
    "margin_logit_mean": Kind(
        "margins",
        "z_y − max z_j",
        "",
        "logit_margins",
        "Mean of the logit of the true class less the largest other logit.",
    ),
    "margin_logit_sd": Kind(
        "margins", "standard deviation of the same", "", "MarginSums", "Standard deviation of the logit margin."
    ),
    "margin_logit_min": Kind(
        "margins", "minimum of the same", "", "MarginSums", "Logit margin of the worst example; negative: a mistake."
    ),
    **_of_both(
        "energy_gap",
        "generalized",
        "(E − E*) / |E*|, Riesz energy s = 2",
        _HUG,
        "energy_gap",
        "Energy of the directions of the {} above the least possible one; NaN if that is not known.",
    ),
    **_of_both(
        "separation",
        "generalized",
        "least ‖ŵ_i − ŵ_j‖",
        f"{_HUG}, maximum separation",
        "nc_jax.energies.separation",
        "Least distance between directions of the {}.",
    ),
    **_of_both(
        "log_variance",
        "generalized",
        "variance of log ‖ŵ_i − ŵ_j‖ over pairs",
        f"{_PACKAGE} (nc2g_log)",
        "kernel_moments",
        "Spread of the distances between the directions of the {}, on a logarithmic scale.",
    ),
    **_of_both(
        "nc2_gap",
        "generalized",
        "NC2 of Gram matrices less its least value",
        "derived here",
        "etf_distance_floor",
        "How far the {} are above the least distance from a simplex ETF that d dimensions allow.",
    ),
    **_of_both(
        "one_vs_rest",
        "generalized",
        "least distance of ŵ_k from the hull of the others",
        "Jiang et al. (2024)",
        "one_vs_rest_margin",
        "How well each of the {} can be told from all others by one hyperplane.",
    ),
    **_of_both(
        "rank",
        "geometry",
        "singular values above rounding",
        "numpy.linalg.matrix_rank",
        "numerical_rank",
        "Number of dimensions that the {} span, up to rounding.",
    ),
    **_of_both(
        "effective_rank",
        "geometry",
        "exp of the entropy of the singular values",
        "Roy and Vetterli (2007)",
        "effective_rank",
        "Number of dimensions that the {} use; weak directions count in part.",
    ),
    **_of_both(
        "stable_rank",
        "geometry",
        "‖A‖_F² / ‖A‖₂²",
        "Rudelson and Vershynin (2007)",
        "stable_rank",
        "Squared lengths of the {} over the square of their largest singular value.",
    ),
    **_of_both(
        "nuclear_rank",
        "geometry",
        "(‖A‖_* / ‖A‖_F)²",
        _MARKOU,
        "nuclear_rank",
        "Number of dimensions of the {} by the sum of their singular values.",
    ),
    "zero_mean_angle_means": Kind(
        "zero mean",
        "mean of |cos(μ_i, μ_j)|",
        _KIM,
        "zero_mean_collapse",
        "Mean absolute cosine between class means that are not centred; 0 for an orthogonal frame.",
    ),
    "zero_mean_angle_classifier": Kind(
        "zero mean",
        "mean of |cos(w_i, w_j)|",
        _KIM,
        "zero_mean_collapse",
        "Mean absolute cosine between class vectors; 0 for an orthogonal frame.",
    ),
    "zero_mean_convergence": Kind(
        "zero mean",
        "‖W/‖W‖ − M/‖M‖‖, about the origin",
        _KIM,
        "zero_mean_collapse",
        "Distance of the class vectors from the class means, not centred, both scaled to norm 1; 0 if parallel.",
    ),
    "zero_mean_variation": Kind(
        "zero mean",
        "tr(Σ_W Σ_B⁺) / K, about the origin",
        _KIM,
        "zero_mean_collapse",
        "Spread within classes over second moment of the class means.",
    ),
}
