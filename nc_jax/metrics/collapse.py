"""The four marks of neural collapse, as functions of class statistics and class vectors.

All are zero at perfect collapse, except the agreement of NC4, which is one. A class without examples is masked out, and
K is then the number of classes present; it never counts as a class with mean zero. Numbers never raise: where a metric
is 0 / 0 (fewer than two classes, equal means, zero vectors) it is NaN, which a log shows and an average does not hide.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.metrics.statistics import Agreement, Centre, ClassStatistics

Variability = Literal["pinv", "quotient", "cdnv"]
Duality = Literal["product", "difference"]


def within_class_collapse(
    stats: ClassStatistics,
    variant: Variability = "pinv",  # the form of Papyan, Han and Donoho (2020) and of the released UFM program
    centre: Centre = "balanced",  # matters for unequal class sizes: see ClassStatistics.centred_means
) -> Float[Array, ""]:
    r"""NC1: how wide the classes are next to the distances between them.

    .. math::
        \text{pinv} = \tfrac1K \operatorname{tr}(\Sigma_W \Sigma_B^+), \qquad
        \text{quotient} = \frac{\operatorname{tr} \Sigma_W}{\operatorname{tr} \Sigma_B}, \qquad
        \text{cdnv} = \operatorname*{mean}_{i < j} \frac{v_i + v_j}{2 \|\mu_i - \mu_j\|^2}

    with :math:`\Sigma_W` the scatter over the number of examples, :math:`\Sigma_B` the mean over classes of
    :math:`(\mu_k - \mu)(\mu_k - \mu)^\top`, and :math:`v_k` the mean squared distance of class k to its mean.

    Args:
        stats: statistics of the features.
        variant: which of the three.
        centre: which :math:`\mu` (cdnv needs none).

    Returns:
        A number >= 0 without unit, unchanged when the features are scaled. NaN if all means of the present classes are
        at the centre up to rounding, as a single one is; cdnv is infinite if two classes of positive width share one.

    Raises:
        ValueError: if the variant or the centre is unknown.

    Example:
        >>> features, labels = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 2.0], [-1.0, -2.0]]), jnp.array([0, 0, 1, 1])
        >>> stats = ClassStatistics.from_batch(features, labels, num_classes=2)
        >>> [float(within_class_collapse(stats, variant)) for variant in ("pinv", "quotient", "cdnv")]
        [0.0, 2.5, 0.625]

    Reference: Papyan, Han and Donoho (2020); Galanti, György and Hutter (2022) for cdnv, the class-distance normalised
    variance.
    """
    if variant not in get_args(Variability):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variability))}; got {variant!r}")
    if variant == "cdnv":
        return _pairwise_variance_ratio(stats)
    centred = stats.centred_means(centre)
    num_examples = jnp.sum(stats.counts.astype(centred.dtype))
    eps = jnp.finfo(centred.dtype).eps
    rounding = 4 * eps * jnp.linalg.norm(stats.means)  # of the means before they were centred, with room for their sums
    if variant == "quotient":
        spread = jnp.sum(centred**2)
        between = jnp.where(spread > rounding**2, spread / jnp.sum(stats.present), jnp.nan)
        return jnp.sum(stats.class_scatter) / num_examples / between

    # With centred = U diag(s) V^T, K Sigma_B = U diag(s^2) U^T: the K cancels. Not eigh of a Gram matrix, which squares
    # the condition number (measured at 1e4 in float32: off by 80 percent, pinv of Sigma_B by 100, this by 0.04).
    left, singular, _ = jnp.linalg.svd(centred, full_matrices=False)
    # The first bound is numpy.linalg.matrix_rank's. It takes out the direction that centring has emptied.
    kept = singular > jnp.maximum(max(centred.shape) * eps * singular[0], rounding)
    along = jnp.sum(left * matmul(stats.scatter, left), axis=0) / num_examples  # u^T Sigma_W u per direction
    ratios = jnp.where(kept, along / jnp.where(kept, singular, 1) ** 2, 0)
    return jnp.where(jnp.any(kept), jnp.sum(ratios), jnp.nan)


def etf_distance(
    vectors: Float[Array, "dim classes"], present: Bool[Array, " classes"] | None = None
) -> Float[Array, ""]:
    r"""NC2: how far class vectors are from a simplex equiangular tight frame of any size and orientation.

    .. math:: \left\| \frac{W^\top W}{\|W^\top W\|_F} - \frac{I - 1 1^\top / K}{\sqrt{K - 1}} \right\|_F

    Args:
        vectors: class vectors as columns, shape (d, K): a classifier's frame, or `stats.centred_means()`.
        present: which columns count, shape (K,); None: all.

    Returns:
        A number in [0, sqrt(2)] without unit. NaN if fewer than two columns count or if all are zero.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> float(etf_distance(jnp.array([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]]))) < 1e-6
        True

    Reference: Zhu et al. (2021), released program (ETF_metric); on centred means, the NC2 of rhubarbwu/neural-collapse.
    """
    vectors, present = _checked(vectors, present)
    return _distance_to_simplex(matmul(transpose(vectors), vectors), present)


def self_duality(
    frame: Float[Array, "dim classes"],
    stats: ClassStatistics,
    form: Duality = "product",  # Zhu et al. (2021), released program
    centre: Centre = "balanced",  # as in within_class_collapse
) -> Float[Array, ""]:
    r"""NC3: how far the classifier is from being the centred class means :math:`M`, up to scale.

    .. math::
        \text{product} = \left\| \frac{W^\top M}{\|W^\top M\|_F} - \frac{I - 1 1^\top / K}{\sqrt{K - 1}} \right\|_F,
        \qquad \text{difference} = \left\| \frac{W}{\|W\|_F} - \frac{M}{\|M\|_F} \right\|_F

    The product is zero only if the two also form a simplex; the difference compares them whatever their geometry, so it
    is the one for other frames (with centre="origin" where the frame is not centred either).

    Args:
        frame: classifier, shape (d, K).
        stats: statistics of the features; classes without examples are left out on both sides.
        form: which of the two.
        centre: what is subtracted from the means.

    Returns:
        A number in [0, 2] without unit. NaN if either side is zero; the product, if fewer than two classes are present.

    Raises:
        ValueError: if the frame does not have the statistics' shape, or the form or the centre is unknown.

    Reference: Papyan, Han and Donoho (2020) for the difference; for the product Zhu et al. (2021), released program
    (WH_relation).
    """
    if form not in get_args(Duality):
        raise ValueError(f"form must be one of {', '.join(get_args(Duality))}; got {form!r}")
    _check_frame(frame, stats)
    frame, present = _checked(frame, stats.present)
    centred = stats.centred_means(centre)
    if form == "product":
        return _distance_to_simplex(matmul(transpose(frame), centred), present)
    return jnp.linalg.norm(frame / jnp.linalg.norm(frame) - centred / jnp.linalg.norm(centred))


def nearest_centre_agreement(
    features: Float[Array, "batch dim"],
    frame: Float[Array, "dim classes"],
    bias: Float[Array, " classes"] | None,
    class_means: Float[Array, "dim classes"],
    present: Bool[Array, " classes"] | None = None,
    labels: Int[Array, " batch"] | None = None,
) -> Agreement:
    r"""NC4: on how many examples the classifier decides as the nearest class centre does.

    .. math:: \operatorname*{argmax}_k \; w_k^\top h + b_k \;=\; \operatorname*{argmin}_k \; \|h - \mu_k\|

    Args:
        features: shape (N, d).
        frame: classifier, shape (d, K).
        bias: shape (K,), or None for a classifier without.
        class_means: not centred, shape (d, K), usually of a first pass over the training set.
        present: which classes both rules choose from, shape (K,); None: all.
        labels: shape (N,), used only to tell padding (labels < 0), which is not counted; None: there is none.

    Returns:
        Counts of agreements and of examples, int32; `compute` gives the share. A tie goes to the smaller index; an
        example whose scores are not finite is a disagreement.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> nearest_centre_agreement(jnp.eye(2), jnp.eye(2), jnp.array([0.0, 9.0]), jnp.eye(2)).compute().item()
        0.5

    Reference: Papyan, Han and Donoho (2020).
    """
    if class_means.shape != frame.shape or features.ndim != 2 or features.shape[1:] != frame.shape[:1]:
        raise ValueError(
            "features, frame and class_means must have shapes (batch, dim), (dim, classes) and (dim, classes); "
            f"got {features.shape}, {frame.shape} and {class_means.shape}"
        )
    if labels is not None and labels.shape != features.shape[:1]:
        raise ValueError(f"labels must have shape {features.shape[:1]} like the features; got {labels.shape}")
    means, present = _checked(class_means, present)
    features = at_least_float32(features)
    logits = matmul(features, at_least_float32(frame)) + _checked_bias(bias, frame)
    # ||h - mu||^2 without the ||h||^2 that all classes share; about the centres' middle, so that nothing cancels.
    middle = jnp.mean(means, axis=1, where=present)
    means = means - middle[:, None]
    nearness = matmul(features - middle, means) - jnp.sum(means**2, axis=0) / 2
    chosen, nearest = (jnp.argmax(jnp.where(present, scores, -jnp.inf), axis=1) for scores in (logits, nearness))
    used = jnp.ones_like(chosen, bool) if labels is None else labels >= 0
    # argmax takes the first NaN for the largest score, so a diverged network would seem to agree everywhere.
    agree = (chosen == nearest) & jnp.isfinite(jnp.max(jnp.where(present, logits + nearness, -jnp.inf), axis=1))
    return Agreement(jnp.sum(used & agree, dtype=jnp.int32), jnp.sum(used, dtype=jnp.int32))


def bias_collapse(
    frame: Float[Array, "dim classes"], bias: Float[Array, " classes"] | None, global_mean: Float[Array, " dim"]
) -> Float[Array, ""]:
    r"""How far the bias is from cancelling the mean feature: :math:`\|W^\top \mu_G + b\|_2`.

    Where it is zero, the logits are those of centred features without a bias. Not Papyan's NC4.

    Args:
        frame: classifier, shape (d, K).
        bias: shape (K,), or None for zero.
        global_mean: mean of all examples' features, shape (d,).

    Returns:
        A number >= 0 in the logits' unit.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: Zhu et al. (2021), released program (Wh_b_relation).
    """
    if global_mean.shape != frame.shape[:1]:
        raise ValueError(f"global_mean must have shape {frame.shape[:1]} like the frame; got {global_mean.shape}")
    return jnp.linalg.norm(matmul(global_mean, at_least_float32(frame)) + _checked_bias(bias, frame))


def equinorm(
    vectors: Float[Array, "dim classes"],
    present: Bool[Array, " classes"] | None = None,
    ddof: int = 0,  # the classes are all there are, not a sample of more; the FNO authors' program has 1 (torch.std)
) -> Float[Array, ""]:
    """NC2: standard deviation of the vectors' norms over their mean; 0 if all are equally long.

    Args:
        vectors: as in etf_distance.
        present: as in etf_distance.
        ddof: subtracted from the number of columns in the variance.

    Returns:
        A number >= 0 without unit. NaN if all vectors are zero, or if no more than ddof count.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: Papyan, Han and Donoho (2020).
    """
    vectors, present = _checked(vectors, present)
    norms = safe_norm(vectors, axis=0)[0]
    return _masked_std(norms, present, ddof) / jnp.mean(norms, where=present)


def equiangle(
    vectors: Float[Array, "dim classes"],
    present: Bool[Array, " classes"] | None = None,
    ddof: int = 0,  # as in equinorm
) -> Float[Array, ""]:
    """NC2: standard deviation of the cosines of all pairs of class vectors; 0 if all pairs have the same angle.

    Args:
        vectors: as in etf_distance.
        present: as in etf_distance.
        ddof: subtracted from the number of pairs in the variance.

    Returns:
        A number in [0, 1] (for ddof=0). NaN if a vector is zero, or if no more than ddof pairs count.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: Papyan, Han and Donoho (2020).
    """
    cosines, pairs = _pair_cosines(*_checked(vectors, present))
    return _masked_std(cosines, pairs, ddof)


def maximal_angle(
    vectors: Float[Array, "dim classes"],
    present: Bool[Array, " classes"] | None = None,
    target: float | None = None,  # None: -1/(K-1), the cosine of the widest common angle that K vectors can have
    signed: bool = False,  # Papyan, Han and Donoho (2020); the FNO authors' program has the signed mean
) -> Float[Array, ""]:
    r"""NC2: mean over pairs of class vectors of :math:`|\cos(w_i, w_j) - \text{target}|`.

    Args:
        vectors: as in etf_distance.
        present: as in etf_distance.
        target: cosine wanted of every pair; None for a simplex, 0.0 for an orthogonal frame.
        signed: average without the absolute value: the error of the mean cosine, where deviations of two signs cancel.

    Returns:
        A number in [0, 2] ([-2, 2] if signed). NaN if a vector is zero or if fewer than two count.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: Papyan, Han and Donoho (2020).
    """
    vectors, present = _checked(vectors, present)
    cosines, pairs = _pair_cosines(vectors, present)
    gaps = cosines - (-1 / (jnp.sum(present.astype(cosines.dtype)) - 1) if target is None else target)
    return jnp.mean(gaps if signed else jnp.abs(gaps), where=pairs)


def collapse_metrics(
    stats: ClassStatistics,
    frame: Float[Array, "dim classes"],
    bias: Float[Array, " classes"] | None = None,
    centre: Centre = "balanced",  # as in within_class_collapse
) -> dict[str, Array]:
    """Return every metric that needs no second pass over the data; NC4's agreement does (`nearest_centre_agreement`).

    The means' metrics and nc3 are of the present classes. The classifier's are of all its K vectors: a part of a
    simplex is not a simplex of fewer classes, so a perfect classifier would look bad whenever a class has no example.

    Args:
        stats: statistics of the features.
        frame: classifier, shape (d, K).
        bias: shape (K,), or None for a classifier without.
        centre: what is subtracted from the class means.

    Returns:
        Scalars by name: nc1, nc2_classifier, nc2_means, nc3, nc4_bias, equinorm_classifier, equinorm_means,
        equiangle_classifier, equiangle_means, num_present. NaN as their functions say.

    Raises:
        ValueError: if the frame does not have the statistics' shape, or the centre is unknown.
    """
    _check_frame(frame, stats)
    means = stats.centred_means(centre)
    return {
        "nc1": within_class_collapse(stats, centre=centre),
        "nc2_classifier": etf_distance(frame),
        "nc2_means": etf_distance(means, stats.present),
        "nc3": self_duality(frame, stats, centre=centre),
        "nc4_bias": bias_collapse(frame, bias, stats.compute().global_mean),
        "equinorm_classifier": equinorm(frame),
        "equinorm_means": equinorm(means, stats.present),
        "equiangle_classifier": equiangle(frame),
        "equiangle_means": equiangle(means, stats.present),
        "num_present": jnp.sum(stats.present),
    }


def _checked(vectors: Array, present: Array | None) -> tuple[Array, Array]:
    """Return the vectors, at least float32 and zero where they do not count, and a mask."""
    if vectors.ndim != 2 or vectors.shape[1] < 2:
        raise ValueError(f"class vectors must have shape (dim, classes) with classes >= 2; got {vectors.shape}")
    if present is None:
        return at_least_float32(vectors), jnp.ones(vectors.shape[1], bool)
    if present.shape != vectors.shape[1:]:
        raise ValueError(f"present must have shape {vectors.shape[1:]}, one entry per class; got {present.shape}")
    return jnp.where(present, at_least_float32(vectors), 0), present


def _check_frame(frame: Array, stats: ClassStatistics) -> None:
    if frame.shape != stats.means.shape:
        raise ValueError(f"frame must have shape {stats.means.shape} like the class means; got {frame.shape}")


def _checked_bias(bias: Array | None, frame: Array) -> Array | float:
    if bias is None:
        return 0.0
    if bias.shape != frame.shape[1:]:
        raise ValueError(f"bias must have shape {frame.shape[1:]}, one entry per class; got {bias.shape}")
    return bias


def _distance_to_simplex(product: Array, present: Array) -> Array:
    """Frobenius distance of a K x K product to the present classes' simplex Gram matrix, both normalised."""
    mask = present.astype(product.dtype)
    num_present = jnp.sum(mask)
    simplex = (jnp.diag(mask) - jnp.outer(mask, mask) / num_present) / jnp.sqrt(num_present - 1)
    return jnp.linalg.norm(product / jnp.linalg.norm(product) - simplex)


def _pair_cosines(vectors: Array, present: Array) -> tuple[Array, Array]:
    """Return all cosines, shape (K, K), and the mask of the pairs i < j that count."""
    directions = vectors / jnp.where(present, safe_norm(vectors, axis=0), 1)
    return matmul(transpose(directions), directions), jnp.triu(jnp.outer(present, present), 1)


def _masked_std(values: Array, mask: Array, ddof: int) -> Array:
    squares = jnp.sum(jnp.where(mask, values - jnp.mean(values, where=mask), 0) ** 2)
    return jnp.sqrt(squares / jnp.maximum(jnp.sum(mask) - ddof, 0))


def _pairwise_variance_ratio(stats: ClassStatistics) -> Array:
    sizes = jnp.maximum(stats.counts, 1).astype(stats.means.dtype)
    variances = stats.class_scatter / sizes
    classes = jnp.arange(sizes.size)

    def ratios_of(index: Array) -> Array:
        # Differences, not the expanded square: means that have all but merged are what this metric must show.
        squares = jnp.sum((stats.means - stats.means[:, index, None]) ** 2, axis=0)
        counted = stats.present & stats.present[index] & (classes > index)
        return jnp.where(counted, (variances + variances[index]) / jnp.where(counted, 2 * squares, 1), 0)

    pairs = jnp.sum(stats.present) * (jnp.sum(stats.present) - 1) // 2
    return jnp.sum(jax.lax.map(ratios_of, classes)) / pairs
