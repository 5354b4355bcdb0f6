"""Few-shot class-incremental learning: many classes at first, then a few at a time with a few examples each.

The first task, the base session, has many classes with many examples. Every class has its class vector from the start,
also those that come later. A few examples of each earlier class come back in every step. All rows have the same
examples, so they differ in one thing at a time.

===============  =======================================================================================================
few-shot         fixed simplex ETF, features of length 1, dot regression; only the neck is trained later
few-shot-free    the same, and nothing is ever frozen
few-shot-etf     fixed simplex ETF, features of one length, cross-entropy; only the neck is trained later
few-shot-linear  learned class vectors and biases, cross-entropy; only neck and classifier are trained later
===============  =======================================================================================================

Reference: Yang et al., Neural collapse inspired feature-classifier alignment for few-shot class-incremental learning
(2023). They replay one mean feature of each old class, and the classes are in the order of the data set.
"""

import jax.numpy as jnp
import optax

from nc_jax import heads, losses
from nc_jax.heads import Head
from nc_jax.methods.method import Method, Setting
from nc_jax.streams import Exemplars, Stream, Tasks
from nc_jax.training import Loss, frozen

WEIGHT = 10.0  # Yang et al. (2023), released program
BACKBONE = "backbone/backbone"  # the parameters of a network before its neck

# --- Losses. ---


def reserved_dot_regression(setting: Setting) -> Loss:
    r"""Ten times the dot regression of unit features; after the base session with lengths by the whole batch.

    .. math:: 10 \cdot \tfrac12 (\tilde m_y^\top \hat h - \|\tilde m_y\|)^2, \qquad \tilde m_y = a_y m_y

    In the base session all lengths :math:`a_k` are 1. Later they are those of `nc_jax.losses.class_lengths` for the
    class counts of the batch of all devices, replayed examples included. A batch belongs to a later session if it has
    an example of a class of a later task, so the loss needs no step number.

    Reference: Yang et al. (2023), and its released program (with the counts of one device, so that its results depend
    on the number of devices).
    """
    num_classes = setting.num_classes
    later = jnp.asarray(setting.task_of_class or (0,) * num_classes) > 0

    def loss(output, batch, context):
        counts = context.class_counts(num_classes)
        in_base = jnp.sum(jnp.where(later, counts, 0)) == 0
        lengths = jnp.where(in_base, 1, losses.class_lengths(counts))
        return WEIGHT * losses.dot_regression(output.features, batch.labels, output.frame, lengths=lengths)

    return loss


# --- Streams and optimisers. ---


def with_exemplars(setting: Setting, stream: Stream) -> Stream:
    """Add examples of earlier tasks to every step, from a memory with `memory` div K examples of each class.

    Raises:
        ValueError: if the memory has no place for an example of each class.
    """
    options = setting.continual
    if not isinstance(stream, Tasks):
        return stream
    if options.memory < setting.num_classes:
        raise ValueError(
            f"a memory of exemplars must have a place for each of the {setting.num_classes} classes; "
            f"got --continual.memory {options.memory}"
        )
    return Exemplars(stream, options.memory // setting.num_classes, options.draw_size)


def with_known_base(setting: Setting, stream: Stream) -> Stream:
    """Add examples of earlier tasks to every step, if every seed ends the first task at the same step.

    Raises:
        ValueError: if the step depends on the seed, or the memory has no place for an example of each class.
    """
    _base_steps(setting)
    return with_exemplars(setting, stream)


def only_neck_later(setting: Setting, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Freeze the network before the neck when the first task has ended.

    Batch statistics of the frozen network move on, since they are no parameters.

    Raises:
        ValueError: if the number of steps of the first task depends on the seed; when the optimiser's state is created,
            if the network has no neck (`--backbone.neck mlp` is the nearest to the paper's).
    """
    steps = _base_steps(setting)
    return optimizer if steps is None else frozen(optimizer, BACKBONE, after=steps)


def _base_steps(setting: Setting) -> int | None:
    """Return the number of steps of the first task; None if it is the only one."""
    if setting.continual.tasks == 1:
        return None
    if setting.task_steps is None:
        raise ValueError(
            "a backbone is frozen after the first task only if that has equally many steps for every seed; "
            "got classes of unequal size in an order drawn by the seed (--continual.order given keeps one order)"
        )
    return setting.task_steps[0]


# --- Heads. ---


def _unit(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=1.0)


def _scaled(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=setting.head.radius)


def _linear(setting: Setting) -> Head:
    return heads.learned(setting.num_classes)


# --- The table. ---

METHODS = {
    "few-shot": Method(
        "few-shot, ETF + DR",
        _unit,
        reserved_dot_regression,
        stream=with_known_base,
        optimizer=only_neck_later,
        reference="Yang et al. (2023), section 3",
    ),
    "few-shot-free": Method(
        "few-shot, ETF + DR, nothing frozen", _unit, reserved_dot_regression, stream=with_exemplars
    ),
    "few-shot-etf": Method("few-shot, fixed ETF", _scaled, stream=with_known_base, optimizer=only_neck_later),
    "few-shot-linear": Method("few-shot, linear", _linear, stream=with_known_base, optimizer=only_neck_later),
}
