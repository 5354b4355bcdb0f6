"""The four properties of neural collapse (NC1 to NC4), measured from class statistics and class vectors.

At perfect collapse the examples of each class have the same features (NC1), the centred class means form a simplex
equiangular tight frame (NC2), the classifier equals these means up to scale (NC3), and the classifier decides for the
nearest class mean (NC4).

====================================  ===========  ==============  =========================================
function                              at collapse  scale           source of the default form
====================================  ===========  ==============  =========================================
`within_class_collapse`               0            ratio, >= 0     NC1: Papyan, Han and Donoho (2020)
`class_distance_normalized_variance`  0            ratio, >= 0     NC1 by pairs: Galanti et al. (2022)
`etf_distance`                        0            [0, sqrt(2)]    NC2: Zhu et al. (2021), of the classifier
`equinorm`                            0            ratio, >= 0     NC2: Papyan, Han and Donoho (2020)
`equiangle`                           0            cosine, [0, 1]  NC2: Papyan, Han and Donoho (2020)
`maximal_angle`                       0            cosine, [0, 2]  NC2: Papyan, Han and Donoho (2020)
`self_duality`                        0            [0, 2]          NC3: Zhu et al. (2021)
`nearest_centre_agreement`            1            share, [0, 1]   NC4: Papyan, Han and Donoho (2020)
`bias_collapse`                       0            unit of logits  Zhu et al. (2021)
`outlier_orthogonality`               0            cosine, [0, 1]  NC5, of outliers: Ammar et al. (2024)
====================================  ===========  ==============  =========================================

Classes without examples are left out (they never count as a class with mean zero), and K is then the number of classes
present. Values never raise an error: a metric that is 0 / 0 (fewer than two classes, equal means, zero vectors) is NaN,
so that the failure is visible in logs and averages. No metric depends on the scale of features and class vectors,
except `bias_collapse`.

If K > d + 1, no simplex fits into d dimensions, and `generalized_collapse_metrics` are the ones to use. The other
properties say nothing about the number of dimensions, but the metrics of NC2 change their meaning:

=============================  ====================================================================================
function                       least value for K > d + 1, with the proof in its docstring
=============================  ====================================================================================
`etf_distance`                 sqrt(2 - 2 sqrt(d / (K - 1))), the `etf_distance_floor`: 0.75 for K = 1000, d = 512
`self_duality`                 the same for the form "product"; 0 for the others
`equiangle`                    0 for equal vectors; sqrt(K (K - 1 - d) / d) / (K - 1) for unit vectors of sum zero
`maximal_angle`                more than (K - 1 - d) / (K - 1)^2, and not where vectors are spread evenly
all others                     as for K <= d + 1
=============================  ====================================================================================

Class vectors are *columns*, shape (d, K), everywhere. PyTorch keeps them as rows: transpose `torch.nn.Linear.weight`.

Other programs use other variants; each docstring names them. FNO is the fixed non-negative orthogonal classifier (ICLR
2024).
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose, unit_scale
from nc_jax.checks import Labels, Mask, Reals, checked_features, checked_labels, real_array
from nc_jax.metrics.agreement import Agreement, same_answers
from nc_jax.metrics.cdnv import class_distance_normalized_variance
from nc_jax.metrics.duality import self_duality
from nc_jax.metrics.simplex import checked_frame, checked_vectors, equiangle, equinorm, etf_distance
from nc_jax.metrics.statistics import Centre, ClassStatistics, check_statistics

Variability = Literal["pinv", "quotient", "cdnv"]


def within_class_collapse(
    stats: ClassStatistics,
    variant: Variability = "pinv",  # Papyan, Han and Donoho (2020); Zhu et al. (2021), released program
    centre: Centre = "balanced",  # matters for unequal class sizes: see ClassStatistics.centred_means
) -> Float[Array, ""]:
    r"""NC1: variability within classes, relative to the distances between class means. 0 means perfect collapse.

    .. math::
        \text{pinv} = \tfrac1K \operatorname{tr}(\Sigma_W \Sigma_B^+), \qquad
        \text{quotient} = \frac{\operatorname{tr} \Sigma_W}{\operatorname{tr} \Sigma_B}, \qquad
        \text{cdnv} = \operatorname*{mean}_{i < j} \frac{v_i + v_j}{2 \|\mu_i - \mu_j\|^2}

    :math:`\mu_k` is the mean of class k and :math:`\mu` the centre. :math:`\Sigma_W` is the within-class scatter
    divided by the number of examples, and :math:`\Sigma_B` the mean over classes of
    :math:`(\mu_k - \mu)(\mu_k - \mu)^\top`. :math:`v_k` is the mean squared distance of the examples of class k to
    their mean.

    Args:
        stats: statistics of the features.
        variant: "pinv" (Papyan, Han and Donoho 2020; Zhu et al. 2021) compares variances direction by direction, in the
            span of the centred class means; it alone needs the scatter. "quotient" (an option of the package
            rhubarbwu/neural-collapse) compares total variances. "cdnv" (Galanti, György and Hutter 2022) averages over
            pairs of classes; `class_distance_normalized_variance` has it with other exponents, too.
        centre: the point :math:`\mu`: "balanced", "sample" (released program of Zhu et al.) or "origin"; see
            `ClassStatistics.centred_means`. "cdnv" does not use a centre.

    Returns:
        A ratio >= 0 without unit, unchanged when the features are scaled. "pinv" and "quotient" are NaN if all class
        means equal the centre up to rounding, as with a single class. "cdnv" is NaN for a single class, and infinite if
        two classes of positive variance have the same mean.

    Raises:
        ValueError: if the variant or the centre is unknown, or "pinv" is asked of statistics without a scatter.

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
        return class_distance_normalized_variance(stats)
    check_statistics(stats)
    stats = stats.at_unit_scale()
    centred = stats.centred_means(centre)
    num_examples = jnp.sum(stats.counts.astype(centred.dtype))
    eps = jnp.finfo(centred.dtype).eps
    # Bound on the rounding error of the means: that of sums of features, relative to the origin.
    means = stats.means if centre == "origin" else stats.shifts
    spread_within = jnp.sum(stats.class_scatter) / num_examples * jnp.sum(stats.present.astype(centred.dtype))
    rounding = 4 * eps * jnp.sqrt(jnp.sum(means**2) + spread_within)
    if variant == "quotient":
        spread = jnp.sum(centred**2)
        between = jnp.where(spread > rounding**2, spread / jnp.sum(stats.present.astype(centred.dtype)), jnp.nan)
        return jnp.sum(stats.class_scatter) / num_examples / between

    # With centred = U diag(s) V^T, K Sigma_B = U diag(s^2) U^T: the K cancels. The eigenvalues of a Gram matrix would
    # square the condition number. Errors in float32 at condition number 1e4: 80 percent with eigh of the Gram matrix,
    # 100 percent with pinv of Sigma_B, 0.04 percent with this SVD.
    # For more classes than dimensions, an orthogonal factor that is not needed is taken off first: the SVD of what is
    # left has the same U and s, and takes about a sixth of the time (K = 1000, d = 512, on a CPU).
    wide = centred.shape[1] > centred.shape[0]
    square = transpose(jnp.linalg.qr(transpose(centred), mode="r")) if wide else centred
    left, singular, _ = jnp.linalg.svd(square, full_matrices=False)
    # The first bound is that of numpy.linalg.matrix_rank. It removes the direction that centring has made zero.
    kept = singular > jnp.maximum(max(centred.shape) * eps * singular[0], rounding)
    along = jnp.sum(left * matmul(stats.scatter, left), axis=0) / num_examples  # u^T Sigma_W u per direction
    ratios = jnp.where(kept, along / jnp.where(kept, singular, 1) ** 2, 0)
    return jnp.where(jnp.any(kept), jnp.sum(ratios), jnp.nan)


def nearest_centre_agreement(
    features: Reals,
    frame: Reals,
    bias: Reals | None,
    class_means: Reals,
    present: Mask | None = None,
    labels: Labels | None = None,
) -> Agreement:
    r"""NC4: on how many examples the classifier decides for the class whose mean is nearest to the feature.

    An example h counts as an agreement if

    .. math:: \operatorname*{argmax}_k \; w_k^\top h + b_k \;=\; \operatorname*{argmin}_k \; \|h - \mu_k\| .

    The true label plays no role. (The released program of FNO compares the nearest mean with the true label instead:
    `nc_jax.metrics.nearest_centre_accuracy`.)

    Args:
        features: h, shape (N, d).
        frame: class vectors :math:`w_k` of the classifier as columns, shape (d, K).
        bias: b, shape (K,), or None for a classifier without a bias.
        class_means: class means :math:`\mu_k` as columns, not centred, shape (d, K); usually from a first pass over the
            training set.
        present: True for the classes from which both rules choose, shape (K,); None: all classes.
        labels: integers of shape (N,). Only their sign is used: rows with labels < 0 are padding and are not counted.
            None: every row is an example.

    Returns:
        Counts of agreements and of examples, int32. Their quotient, `compute()`, is in [0, 1], and 1 means perfect
        collapse. At a tie the smaller class number wins. An example whose scores are not finite is a disagreement.

    Raises:
        ValueError: if the shapes do not fit, or K < 2.

    Example:
        >>> nearest_centre_agreement(jnp.eye(2), jnp.eye(2), jnp.array([0.0, 9.0]), jnp.eye(2)).compute().item()
        0.5

    Reference: Papyan, Han and Donoho (2020).
    """
    features, frame = checked_features(features), real_array(frame, "frame")
    class_means = real_array(class_means, "class_means")
    if class_means.shape != frame.shape or features.shape[1:] != frame.shape[:1]:
        turned = ": transpose the frame, class vectors are columns" if features.shape[1:] == frame.shape[1:] else ""
        raise ValueError(
            "features, frame and class_means must have shapes (batch, dim), (dim, classes) and (dim, classes); "
            f"got {features.shape}, {frame.shape} and {class_means.shape}{turned}"
        )
    if labels is not None:
        labels = checked_labels(labels, frame.shape[1], rows=len(features))
    means, present = checked_vectors(class_means, present)
    frame = at_least_float32(frame)
    nearness, size = nearness_to(means, present, features)
    length = unit_scale(frame).reshape(())
    logits = matmul(features / size, frame / length)
    if bias is not None:
        logits = logits * size * length + checked_bias(bias, frame)[None]
    agree = same_answers(logits, nearness, present)
    used = jnp.ones_like(agree) if labels is None else labels >= 0
    return Agreement(jnp.sum(used & agree, dtype=jnp.int32), jnp.sum(used, dtype=jnp.int32))


def nearness_to(
    means: Array, present: Array, features: Array
) -> tuple[Float[Array, "batch classes"], Float[Array, ""]]:
    r"""Return scores that are largest for the nearest class mean, and the power of two by which features were divided.

    The scores are :math:`-\|h - \mu_k\|^2 / 2` up to a constant for each example, and up to scale.

    Args:
        means: class means as columns, from `checked_vectors`, shape (d, K).
        present: which classes count, shape (K,).
        features: shape (N, d).
    """
    # Without ||h||^2, which is the same for all classes. Features and means are shifted by the mean of the class means,
    # so that large common offsets do not cause cancellation. Powers of two keep all products in range.
    middle = jnp.mean(means, axis=1, where=present)
    means = jnp.where(present[None], means - middle[:, None], 0)
    size = unit_scale(means).reshape(())
    means, relative = means / size, (features - middle[None]) / size
    return matmul(relative, means) - jnp.sum(means**2, axis=0)[None] / 2, size


def bias_collapse(frame: Reals, bias: Reals | None, global_mean: Reals) -> Float[Array, ""]:
    r"""How far the bias b is from cancelling the logits of the mean feature: :math:`\|W^\top \mu_G + b\|_2`.

    If the value is 0, the logits equal those of centred features without a bias, :math:`W^\top (h - \mu_G)`. This is
    not NC4 as Papyan, Han and Donoho define it; for that, see `nearest_centre_agreement`.

    Args:
        frame: class vectors of the classifier as columns, W, shape (d, K).
        bias: shape (K,), or None for a classifier without a bias.
        global_mean: mean of the features of all examples, shape (d,).

    Returns:
        A number >= 0 in the unit of the logits. It grows with the scale of the features, so compare it only between
        networks whose logits have similar size.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: Zhu et al. (2021), released program (Wh_b_relation).
    """
    frame, global_mean = real_array(frame, "frame"), real_array(global_mean, "global_mean")
    if frame.ndim != 2:
        raise ValueError(f"frame must have shape (dim, classes); got {frame.shape}")
    if global_mean.shape != frame.shape[:1]:
        raise ValueError(f"global_mean must have shape {frame.shape[:1]} like the frame; got {global_mean.shape}")
    global_mean, vectors = at_least_float32(global_mean), at_least_float32(frame)
    size, length = (unit_scale(array).reshape(()) for array in (global_mean, vectors))
    logits = matmul(global_mean / size, vectors / length) * size * length + checked_bias(bias, frame)
    # The sum of products is finite, but the logits may be too large for their dtype: infinite, and not inf - inf.
    return jnp.where(jnp.any(jnp.isinf(logits)), jnp.inf, safe_norm(logits)[0])


def collapse_metrics(
    stats: ClassStatistics,
    frame: Reals | None = None,
    bias: Reals | None = None,
    centre: Centre = "balanced",  # the default of within_class_collapse
    *,
    rows: bool = False,
) -> dict[str, Array]:
    """Compute all collapse metrics that need only one pass over the data.

    NC4 needs a second pass, with the class means of the first: see `nearest_centre_agreement`.

    Args:
        stats: statistics of the features.
        frame: class vectors of the classifier as columns, shape (d, K); None for features without a classifier.
        bias: shape (K,), or None for a classifier without a bias.
        centre: point that is subtracted from the class means; see `ClassStatistics.centred_means`.
        rows: take the class vectors from the rows of `frame`, shape (K, d), as in `torch.nn.Linear.weight`. For K = d
            the shape does not tell the two apart.

    Returns:
        Scalars by name. Each is 0 at perfect collapse, except the last two. Without a frame, the metrics of the
        classifier are left out: "nc2_classifier", "nc3", "nc4_bias", "equinorm_classifier" and "equiangle_classifier".

        - "nc1": `within_class_collapse`, variant "pinv".
        - "nc2_classifier", "nc2_means": `etf_distance` of the frame and of the centred class means.
        - "nc3": `self_duality`, form "product".
        - "nc4_bias": `bias_collapse`, in the unit of the logits. It is not Papyan's NC4.
        - "equinorm_classifier", "equinorm_means": `equinorm` of the frame and of the centred class means.
        - "equiangle_classifier", "equiangle_means": `equiangle` of the frame and of the centred class means.
        - "num_present": number of classes with examples.
        - "without_class": number of examples that were left out because their label is no class; 0 if all is well.

        The metrics of the means and "nc3" leave out classes without examples. The metrics of the classifier use all K
        vectors, because some vectors of a simplex do not form a smaller simplex. NaN where the functions give NaN.

    Raises:
        ValueError: if the frame does not have shape (d, K) like the class means, K < 2, the shapes of bias and frame do
            not fit, there is a bias without a frame, the centre is unknown, or the statistics have no scatter.
    """
    if frame is None and bias is not None:
        raise ValueError("a bias needs the frame of its classifier; got bias without frame")
    check_statistics(stats)
    means = stats.centred_means(centre)
    metrics = {
        "nc1": within_class_collapse(stats, centre=centre),
        "nc2_means": etf_distance(means, stats.present),
        "equinorm_means": equinorm(means, stats.present),
        "equiangle_means": equiangle(means, stats.present),
        "num_present": jnp.sum(stats.present),
        "without_class": stats.without_class,
    }
    if frame is None:
        return metrics
    frame = checked_frame(frame, stats, rows=rows)
    return metrics | {
        "nc2_classifier": etf_distance(frame),
        "nc3": self_duality(frame, stats, centre=centre),
        "nc4_bias": bias_collapse(frame, bias, stats.global_mean),
        "equinorm_classifier": equinorm(frame),
        "equiangle_classifier": equiangle(frame),
    }


def checked_bias(bias: Reals | None, frame: Array) -> Array:
    """Return the bias in at least float32, once it has one entry per class; 0 for None."""
    if bias is None:
        return jnp.zeros((), at_least_float32(frame).dtype)
    bias = at_least_float32(real_array(bias, "bias"))
    if bias.shape != frame.shape[1:]:
        raise ValueError(f"bias must have shape {frame.shape[1:]}, one entry per class; got {bias.shape}")
    return bias
