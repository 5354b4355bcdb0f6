"""Long-tailed learning: what is done so that a classifier knows its rare classes.

The rows change one thing at a time: the head, how examples are mixed, how classes are weighted or drawn, and whether
the class sizes enter the logits. A name lists the parts, as in "etf-mixup-adjusted"; without a head, class vectors and
biases are learned. A combination of your own is `dataclasses.replace(METHODS["mixup-adjusted"], head=...)`.

Parts of names
    mixup, balanced     mixtures of two examples; with pairs of two classes, drawn class by class
    adjusted            the class sizes are added to the logits in training; "after": subtracted in evaluation
    dr                  dot regression, which pulls to the own class vector and pushes from no other
    arc                 arc-mixup, and its log loss
    slerp, project      class vectors are turned towards the running class means; "regularised": by a penalty
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from nc_jax import heads, losses
from nc_jax.heads import Head
from nc_jax.methods import orthogonal, simplex
from nc_jax.methods.method import Method, Setting
from nc_jax.streams import Epochs, Staged, Stream, Weighted
from nc_jax.training import (
    AlignmentPenalty,
    AlignmentProjection,
    AlignmentSlerp,
    Extension,
    LogitAdjustment,
    Loss,
    Mixup,
    cross_entropy,
    frozen,
)

Extensions = Callable[[Setting], tuple[Extension, ...]]

# --- Extensions. ---


def mixed(setting: Setting, **kind: Any) -> tuple[Extension, ...]:
    """Mix examples; `kind` are the settings `curve` and `pairs` of `nc_jax.training.Mixup`."""
    return (Mixup(setting.tail.mixup, **kind),)


def adjusted(setting: Setting) -> tuple[Extension, ...]:
    """Add the logarithms of the class sizes to the logits in training."""
    return (LogitAdjustment(setting.known_counts(), setting.tail.tau),)


def adjusted_after(setting: Setting) -> tuple[Extension, ...]:
    """Subtract the logarithms of the class sizes from the logits in evaluation."""
    return (LogitAdjustment(setting.known_counts(), setting.tail.tau, after=True),)


def balanced_softmax(setting: Setting) -> tuple[Extension, ...]:
    """Adjust the logits in training with tau = 1, whatever the settings say."""
    return (LogitAdjustment(setting.known_counts()),)


def regularised(setting: Setting) -> tuple[Extension, ...]:
    """Penalise the angles between class vectors and running class means."""
    return (AlignmentPenalty(setting.tail.strength),)


def corrected(setting: Setting, *, kind: type[AlignmentSlerp] | type[AlignmentProjection]) -> tuple[Extension, ...]:
    """Turn class vectors towards the running class means, or project them onto the space of these."""
    tail = setting.tail
    start, every = setting.step_at(tail.align_from), round(tail.align_every * setting.epoch_steps)
    return (kind(tail.strength, start=max(start, 1), every=max(every, 1)),)


@functools.cache
def together(*parts: Extensions) -> Extensions:
    """Return the extensions of several parts, one after another."""
    return lambda setting: tuple(extension for part in parts for extension in part(setting))


_mixed_balanced = functools.partial(mixed, pairs="balanced")
_arc = functools.partial(mixed, curve="arc")
_arc_balanced = functools.partial(mixed, curve="arc", pairs="balanced")
_slerp = functools.partial(corrected, kind=AlignmentSlerp)
_project = functools.partial(corrected, kind=AlignmentProjection)

# --- Heads. ---

_linear, _nearest = simplex.METHODS["linear"].head, simplex.METHODS["nearest"].head
_fno, _scaled = orthogonal.METHODS["fno"].head, simplex.METHODS["fixed"].head


def _cosine(setting: Setting) -> Head:
    return heads.learned(setting.num_classes, radius=LDAM_SCALE, normalize_columns=True, use_bias=False)


def _etf(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes)


def _unit_etf(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=1.0)


def _nearest_by_counts(setting: Setting) -> Head:
    return heads.nearest(setting.num_classes, options=setting.head, weights=jnp.asarray(setting.known_counts()))


def _nearest_by_effective_number(setting: Setting) -> Head:
    weights = losses.effective_number_weights(jnp.asarray(setting.known_counts()), setting.tail.beta)
    return heads.nearest(setting.num_classes, options=setting.head, weights=weights)


def _nearest_centred(setting: Setting) -> Head:
    # What docs/findings/minority_collapse.md recommends for classes of unequal sizes.
    return heads.nearest(setting.num_classes, options=setting.head, centre="classes", stop_gradient=True)


def _retrained(setting: Setting) -> Head:
    first, second = (heads.learned(setting.num_classes) for _ in range(2))
    return heads.staged(first, second, setting.step_at(setting.tail.second_stage))


def _rescaled(setting: Setting) -> Head:
    return heads.learned(setting.num_classes, class_scales=True)


# --- Losses. ---

LDAM_SCALE = 30.0  # Cao et al. (2019), released program


def ldam(setting: Setting) -> Loss:
    """Margins that are larger for rare classes, and in the second stage a larger weight, too (LDAM-DRW).

    Reference: Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss (2019), sections 3.2
    and 3.3.
    """
    counts, start = jnp.asarray(setting.known_counts()), setting.step_at(setting.tail.second_stage)
    margins, weights = losses.ldam_margins(counts), losses.effective_number_weights(counts, setting.tail.beta)

    def loss(output, batch, context):
        now = jnp.where(context.step >= start, weights, 1)
        return losses.ldam(output.logits / LDAM_SCALE, batch.labels, margins, LDAM_SCALE, weights=now)

    return loss


def class_balanced(setting: Setting) -> Loss:
    """Cross-entropy, weighted by one over the effective number of examples of the class.

    Reference: Cui et al., Class-balanced loss based on effective number of samples (2019), section 4.
    """
    weights = losses.effective_number_weights(jnp.asarray(setting.known_counts()), setting.tail.beta)
    return lambda output, batch, context: weights[batch.labels] * cross_entropy(output, batch, context)


def focal(setting: Setting) -> Loss:
    """Focal loss: examples that are classified well count less."""
    del setting
    return lambda output, batch, context: losses.focal(output.logits, batch.labels)


def label_aware(setting: Setting) -> Loss:
    """Cross-entropy with labels that are smoothed more for frequent classes."""
    smoothing = losses.label_aware_smoothing(jnp.asarray(setting.known_counts()))
    return lambda output, batch, context: losses.smoothed_cross_entropy(output.logits, batch.labels, smoothing)


def dot_regression(setting: Setting) -> Loss:
    """Dot regression with class vectors that are longer the fewer examples the class has in the whole batch.

    Mixed examples count for the class that they were before.
    """
    num_classes = setting.num_classes

    def loss(output, batch, context):
        lengths = losses.class_lengths(context.class_counts(num_classes))
        return losses.dot_regression(output.features, batch.labels, output.frame, lengths=lengths)

    return loss


def dot_regression_by_counts(setting: Setting) -> Loss:
    """Dot regression with class vectors that are longer the fewer training examples the class has."""
    lengths = losses.class_lengths(jnp.asarray(setting.known_counts()))
    return lambda output, batch, context: losses.dot_regression(
        output.features, batch.labels, output.frame, lengths=lengths
    )


def plain_dot_regression(setting: Setting) -> Loss:
    """Dot regression with class vectors of one length."""
    del setting
    return lambda output, batch, context: losses.dot_regression(output.features, batch.labels, output.frame)


# --- Streams and optimisers. ---


def drawn(setting: Setting, stream: Stream, *, power: float) -> Stream:
    """Draw classes in proportion to a power of their sizes.

    Raises:
        ValueError: if examples come in another order than that of epochs, such as that of tasks.
    """
    if not isinstance(stream, Epochs):
        raise ValueError(f"a sampler of classes needs epochs over the whole training set; got {type(stream).__name__}")
    return Weighted(stream.source, stream.batch_size, setting.epochs, power)


def drawn_later(setting: Setting, stream: Stream) -> Stream:
    """Draw all classes alike in the second stage."""
    return Staged(stream, drawn(setting, stream, power=0.0), round(setting.tail.second_stage * setting.epochs))


_alike, _by_root = functools.partial(drawn, power=0.0), functools.partial(drawn, power=0.5)


def only_second_later(setting: Setting, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Freeze the second classifier in the first stage, and everything else in the second."""
    start = setting.step_at(setting.tail.second_stage)
    for path in ("backbone", "head/first"):
        optimizer = frozen(optimizer, path, after=start)
    return frozen(optimizer, "head/second", before=start)


def only_scales_later(setting: Setting, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Freeze the scales of the classes in the first stage, and everything else in the second."""
    start = setting.step_at(setting.tail.second_stage)
    for path in ("backbone", "head/kernel", "head/bias"):
        optimizer = frozen(optimizer, path, after=start)
    return frozen(optimizer, "head/scales", before=start)


# --- The table. ---

_KIM, _YANG = "Kim and Kim (2024), Fixed non-negative orthogonal classifier", "Yang et al. (2022), section 3"
_KANG = "Kang et al. (2020), Decoupling representation and classifier"
_OURS = "derived here (docs/space_alignment.md)"
_mixup_adjusted = together(mixed, adjusted)
MIXUP_ADJUSTED = Method("mixup, adjusted", _linear, extensions=_mixup_adjusted)
BASELINES = {
    "mixup": Method("mixup", _linear, extensions=mixed, reference="Zhang et al. (2018)"),
    "mixup-balanced": Method("mixup, balanced pairs", _linear, extensions=_mixed_balanced),
    "adjusted": Method("logit adjustment", _linear, extensions=adjusted, reference="Menon et al. (2021), section 4"),
    "adjusted-after": Method(
        "adjusted after training", _linear, extensions=adjusted_after, reference="Menon et al. (2021), section 4"
    ),
    "balanced-softmax": Method("balanced softmax", _linear, extensions=balanced_softmax, reference="Ren et al. (2020)"),
    "mixup-adjusted": MIXUP_ADJUSTED,
    "mixup-adjusted-after": Method(
        "mixup, adjusted after training", _linear, extensions=together(mixed, adjusted_after)
    ),
    "focal": Method("focal loss", _linear, focal, reference="Lin et al. (2017), section 3"),
    "class-balanced": Method("class-balanced loss", _linear, class_balanced, reference="Cui et al. (2019), section 4"),
    "ldam": Method("LDAM-DRW", _cosine, ldam, reference="Cao et al. (2019), section 3"),
    "label-aware": Method("label-aware smoothing", _linear, label_aware, reference="Zhong et al. (2021), section 3"),
    "balanced-sampler": Method("balanced sampler", _linear, stream=_alike, reference=f"{_KANG}, section 3"),
    "root-sampler": Method("square-root sampler", _linear, stream=_by_root, reference=f"{_KANG}, section 3"),
    "crt": Method("cRT", _retrained, stream=drawn_later, optimizer=only_second_later, reference=f"{_KANG}, section 4"),
    "lws": Method("LWS", _rescaled, stream=drawn_later, optimizer=only_scales_later, reference=f"{_KANG}, section 4"),
}
ORTHOGONAL = {
    "fno-mixup": Method("FNO, mixup", _fno, extensions=mixed),
    "fno-mixup-balanced": Method("FNO, mixup, balanced pairs", _fno, extensions=_mixed_balanced),
    "fno-arc-shuffled": Method(
        "FNO, arc-mixup, shuffled pairs",
        _fno,
        orthogonal.arc_log,
        extensions=_arc,
        caution="without pairs that are balanced over classes, the log loss of arc-mixup makes rare classes worse: on "
        "digits it fell below cross-entropy (docs/findings/long_tail.md)",
    ),
    "fno-arc-unmasked": Method(
        "FNO, arc-mixup, no mask", _fno, functools.partial(orthogonal.arc_log, mask=False), extensions=_arc_balanced
    ),
    "fno-arc-softmax": Method("FNO, arc-mixup, softmax", _fno, extensions=_arc_balanced),
    "fno-mixup-adjusted": Method("FNO, mixup, adjusted", _fno, extensions=_mixup_adjusted),
}
SIMPLEX = {
    "etf-mixup": Method("fixed ETF, mixup", _etf, extensions=mixed),
    "etf-mixup-balanced": Method("fixed ETF, mixup, balanced pairs", _etf, extensions=_mixed_balanced),
    "etf-mixup-adjusted": Method("fixed ETF, mixup, adjusted", _etf, extensions=_mixup_adjusted),
    # With features of one length, as the nearest ETF has them: it shows what the scaling does without the rotation.
    "scaled-mixup-adjusted": Method("fixed ETF, scaled features, mixup, adjusted", _scaled, extensions=_mixup_adjusted),
    "etf-dr": Method("ETF + DR, mixup", _unit_etf, dot_regression, extensions=mixed, reference=_YANG),
    "etf-dr-counts": Method("ETF + DR by counts, mixup", _unit_etf, dot_regression_by_counts, extensions=mixed),
    "etf-dr-plain": Method("ETF + DR, plain", _unit_etf, plain_dot_regression, reference=_YANG),
    "nearest-mixup": Method("nearest ETF, mixup", _nearest, extensions=mixed),
    "nearest-mixup-adjusted": Method("nearest ETF, mixup, adjusted", _nearest, extensions=_mixup_adjusted),
    "nearest-counts": Method("nearest ETF by counts, mixup, adjusted", _nearest_by_counts, extensions=_mixup_adjusted),
    "nearest-effective": Method(
        "nearest ETF by effective number, mixup, adjusted", _nearest_by_effective_number, extensions=_mixup_adjusted
    ),
    "nearest-centred": Method(
        "nearest ETF, centre of classes, mixup, adjusted", _nearest_centred, extensions=_mixup_adjusted
    ),
}
ALIGNED = {
    f"{name}-{suffix}": dataclasses.replace(
        row, title=f"{row.title}, {suffix}", extensions=together(row.extensions, part), reference=_OURS
    )
    for name, row in (("mixup", BASELINES["mixup"]), ("mixup-adjusted", MIXUP_ADJUSTED))
    for suffix, part in (("slerp", _slerp), ("project", _project), ("regularised", regularised))
}
METHODS = BASELINES | ORTHOGONAL | SIMPLEX | ALIGNED
