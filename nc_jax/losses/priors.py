r"""Losses that know how many training examples each class has: shifted logits, margins and smoothing by class.

Numbers of examples come as `counts`, shape (K,). They may be traced; then zeros and negative counts cannot be refused.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.checks import Labels, Reals, checked_logits, checked_per_class, checked_scores, nan_without_class
from nc_jax.losses.alignment import cross_entropy

SmoothingForm = Literal["concave", "linear", "convex"]


def adjusted_logits(
    logits: Reals,
    counts: Reals,
    tau: float = 1.0,  # for which the loss is consistent for the balanced error, Menon et al. (2021)
) -> Float[Array, "batch classes"]:
    r"""Logits plus the logarithm of the class priors, :math:`z_k + \tau \log(n_k / \sum_j n_j)`.

    In training, the cross-entropy of these logits asks for larger margins of rare classes over frequent ones. The
    trained logits are then used without the adjustment. For a model that was trained by plain cross-entropy, subtract
    instead: a negative tau (-1) gives the post-hoc adjustment of its logits.

    Args:
        logits: z, shape (N, K).
        counts: numbers of training examples n_k, all above 0, shape (K,). Under `jax.jit` a class with the count 0 gets
            the logit minus infinity, for tau > 0.
        tau: strength of the adjustment.

    Returns:
        Shape (N, K), in at least float32.

    Raises:
        ValueError: if the logits do not have shape (N, K), the counts are not one positive number for each class, or
            tau is not finite.

    Example:
        >>> [round(float(logit), 4) for logit in adjusted_logits(jnp.zeros((1, 2)), [300, 100])[0]]
        [-0.2877, -1.3863]

    Reference: Menon et al., Long-tail learning via logit adjustment (2021), the logit-adjusted loss.
    """
    logits = checked_logits(logits)
    counts = _checked_counts(counts, logits.shape[1])
    if not math.isfinite(tau):
        raise ValueError(f"tau must be finite; got {tau}")
    shifts = tau * (jnp.log(counts) - jnp.log(jnp.sum(counts)))
    return logits + shifts.astype(logits.dtype)[None]


def balanced_softmax(logits: Reals, labels: Labels, counts: Reals) -> Float[Array, " batch"]:
    r"""Cross-entropy of a softmax whose terms are weighted by the numbers of examples, per example.

    .. math:: \ell(z, y) = -\log \frac{n_y e^{z_y}}{\sum_k n_k e^{z_k}}

    This is the cross-entropy of `adjusted_logits` for tau = 1, and is computed so.

    Args:
        logits: z, shape (N, K).
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a finite number that the
            caller must mask.
        counts: numbers of training examples n_k, all above 0, shape (K,).

    Returns:
        Numbers >= 0, shape (N,). NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1, or the
            counts are not one positive number for each class.

    Example:
        >>> [round(float(loss), 4) for loss in balanced_softmax(jnp.zeros((2, 2)), [0, 1], [300, 100])]
        [0.2877, 1.3863]

    Reference: Ren et al., Balanced meta-softmax for long-tailed visual recognition (2020).
    """
    return cross_entropy(adjusted_logits(logits, counts), labels)


def ldam_margins(
    counts: Reals,
    largest: float = 0.5,  # Cao et al. (2019), released program
) -> Float[Array, " classes"]:
    r"""Margins of the classes for `ldam`, :math:`\Delta_k = C n_k^{-1/4}`, the largest of which is given.

    Args:
        counts: numbers of training examples n_k, all above 0, shape (K,).
        largest: margin of the rarest class.

    Returns:
        Numbers > 0, shape (K,).

    Raises:
        ValueError: if the counts are not one positive number for each class, or the margin is not positive and finite.

    Example:
        >>> ldam_margins([160, 10]).tolist()
        [0.25, 0.5]

    Reference: Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss (2019).
    """
    counts = _checked_counts(counts)
    _check_positive(largest, "largest")
    return largest * (jnp.min(counts) / counts) ** 0.25


def ldam(
    logits: Reals,
    labels: Labels,
    margins: Reals,
    scale: float = 30.0,  # s; Cao et al. (2019), released program
    weights: Reals | None = None,
) -> Float[Array, " batch"]:
    r"""Cross-entropy of scaled cosines, of which the one with the own class is lowered by a margin (LDAM), per example.

    .. math:: \ell(z, y) = a_y \operatorname{CE}\big(s (z - \Delta_y e_y), y\big)

    Args:
        logits: cosines z of features with class vectors, not scaled yet, shape (N, K).
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a finite number that the
            caller must mask.
        margins: :math:`\Delta`, shape (K,), from `ldam_margins`.
        scale: s > 0.
        weights: weights a of the classes, shape (K,), from `effective_number_weights`; deferred reweighting (DRW) sets
            them in the last epochs. None: all are 1. (PyTorch's weighted mean divides by the sum of the weights in the
            batch; a mean of these losses divides by the number of examples.)

    Returns:
        Numbers >= 0, shape (N,). NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1,
            margins or weights are not one number >= 0 for each class, or the scale is not positive and finite.

    Example:
        >>> cosines = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> [round(float(loss), 4) for loss in ldam(cosines, [0, 1], ldam_margins([160, 10]), scale=2.0)]
        [0.2014, 0.3133]

    Reference: Cao et al. (2019), and its released program.
    """
    logits, labels = checked_scores(logits, labels)
    num_classes = logits.shape[1]
    margins = checked_per_class(margins, "margins", num_classes).astype(logits.dtype)
    _check_positive(scale, "scale")
    factors = None if weights is None else checked_per_class(weights, "weights", num_classes).astype(logits.dtype)
    own = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    each = cross_entropy(scale * (logits - own * margins[None]), labels)
    return each if factors is None else each * factors[jnp.clip(labels, 0, num_classes - 1)]


def label_aware_smoothing(
    counts: Reals,
    head: float = 0.3,  # this and the two below: the defaults of the released program of Kim and Kim (2024)
    tail: float = 0.0,
    form: SmoothingForm = "concave",
) -> Float[Array, " classes"]:
    r"""Label smoothing of each class: most for frequent classes, of which a model is too sure.

    With the share :math:`x_k = (n_k - n_{min}) / (n_{max} - n_{min})`, the smoothing is
    :math:`\epsilon_k = \text{tail} + (\text{head} - \text{tail}) f(x_k)`:

    - "concave": :math:`f(x) = \sin(\pi x / 2)`;
    - "linear": :math:`f(x) = x`;
    - "convex": :math:`f(x) = 1 - \cos(\pi x / 2)`.

    Args:
        counts: numbers of training examples n_k, shape (K,). If they are all equal, every class counts as frequent.
        head: smoothing of the most frequent class.
        tail: smoothing of the rarest class.
        form: shape of the curve in between.

    Returns:
        Numbers between tail and head, shape (K,), for `smoothed_cross_entropy`.

    Raises:
        ValueError: if the counts are not one number >= 0 for each class, not 0 <= tail <= head <= 1, or the form is
            unknown.

    Example:
        >>> [round(float(smoothing), 4) for smoothing in label_aware_smoothing([100, 55, 10], form="linear")]
        [0.3, 0.15, 0.0]

    Reference: Zhong et al., Improving calibration for long-tailed recognition (2021), and its released program.
    """
    counts = checked_per_class(counts, "counts")
    if not 0 <= tail <= head <= 1:
        raise ValueError(f"smoothing must satisfy 0 <= tail <= head <= 1; got tail={tail} and head={head}")
    if form not in get_args(SmoothingForm):
        raise ValueError(f"form must be one of {', '.join(get_args(SmoothingForm))}; got {form!r}")
    span = jnp.max(counts) - jnp.min(counts)
    share = jnp.where(span == 0, 1, (counts - jnp.min(counts)) / jnp.where(span == 0, 1, span))
    if form == "concave":
        share = jnp.sin(jnp.pi / 2 * share)
    elif form == "convex":
        share = 2 * jnp.sin(jnp.pi / 4 * share) ** 2  # 1 - cos(pi x / 2) without cancellation
    return tail + (head - tail) * share


def smoothed_cross_entropy(logits: Reals, labels: Labels, smoothing: Reals) -> Float[Array, " batch"]:
    r"""Cross-entropy with labels that are smoothed as much as their class says, per example.

    .. math:: \ell(z, y) = -(1 - \epsilon_y) \log p_y - \frac{\epsilon_y}{K} \sum_k \log p_k, \qquad
        p = \operatorname{softmax}(z)

    As in the released program, the part :math:`\epsilon_y` is spread over all classes, the own one included.

    Args:
        logits: z, shape (N, K).
        labels: y, integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a finite number that the
            caller must mask.
        smoothing: :math:`\epsilon` of each class, in [0, 1], shape (K,), from `label_aware_smoothing`.

    Returns:
        Numbers >= 0, shape (N,). NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1, or the
            smoothing is not one number in [0, 1] for each class.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
        >>> [round(float(loss), 4) for loss in smoothed_cross_entropy(logits, [0, 1], [0.3, 0.0])]
        [0.4269, 0.1269]

    Reference: Zhong et al. (2021), and its released program.
    """
    logits, labels = checked_scores(logits, labels)
    num_classes = logits.shape[1]
    smoothing = checked_per_class(smoothing, "smoothing", num_classes, at_most=1.0).astype(logits.dtype)
    own = smoothing[jnp.clip(labels, 0, num_classes - 1)]
    spread = jax.nn.logsumexp(logits, axis=1) - jnp.mean(logits, axis=1)
    return nan_without_class((1 - own) * cross_entropy(logits, labels) + own * spread, labels, num_classes)


def _checked_counts(counts: Reals, num_classes: int | None = None) -> Float[Array, " classes"]:
    """Return the counts, once every class has an example."""
    return checked_per_class(counts, "counts", num_classes, positive=True)


def _check_positive(value: float, name: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}")
