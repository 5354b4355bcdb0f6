"""Continual learning: strategies against forgetting, each with several heads.

Every strategy fixes which examples a step sees (the stream), how their losses are summed, and what is remembered. The
head is one of the table's, so a method of your own is `dataclasses.replace(METHODS["er"], head=...)`.

=============  =========================================================================================================
finetune       the new examples only: what happens if nothing is done
joint          all tasks at once: what could be had
er             experience replay: mean loss of the new examples plus mean loss of the examples of one draw
er-ace         the same with the softmax of new examples over the classes of their batch
der            mean loss of the new examples plus alpha times the squared differences from stored logits
derpp          the same plus beta times the mean loss of a second draw
gdumb          as many steps on a class-balanced random memory alone
=============  =========================================================================================================

With `ContinualOptions.mask`, the softmax of new examples is over the classes of their task in all of them but joint,
er-ace and gdumb.
"""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np

from nc_jax import heads, losses
from nc_jax.data import LabelledArrays
from nc_jax.frames import nonnegative_orthogonal
from nc_jax.heads import Head
from nc_jax.methods.method import Method, Setting
from nc_jax.streams import BalancedSubset, Replay, Stream, Tasks
from nc_jax.training import BatchSoftmax, Extension, LogitMemory, Loss, TaskSoftmax

# --- Losses. ---


def replay_loss(beta: float, *, draws: int = 1) -> Loss:
    r"""Mean cross-entropy of the new examples plus beta times that of the examples of the last draw from the memory.

    .. math:: \frac1n \sum_{i \text{ new}} \ell_i + \beta \, \frac1m \sum_{i \text{ drawn}} \ell_i

    (In the released program of FNO, experience replay without a mask takes one mean over all of them, which is half of
    this sum.)

    Args:
        beta: weight >= 0.
        draws: number of draws in each step.
    """

    def loss(output, batch, context):
        each = losses.cross_entropy(output.logits, batch.labels)
        if batch.replayed is None:
            return each
        drawn = jnp.where(batch.replayed == draws, beta * context.mean_over_draw(draws), 0)
        return jnp.where(batch.replayed == 0, context.mean_over_new(), drawn) * each

    return loss


# --- Streams. ---


def replayed(setting: Setting, stream: Stream, *, draws: int = 1) -> Stream:
    """Add draws from a replay memory to every step.

    Raises:
        ValueError: if the memory is larger than the training set.
    """
    return Replay(stream, _capacity(setting), setting.continual.draw_size, draws)


def at_once(setting: Setting, stream: Stream) -> Stream:
    """Visit the examples of all tasks together, as often as the stream does."""
    del setting
    return dataclasses.replace(stream, tasks=np.minimum(stream.tasks, 0)) if isinstance(stream, Tasks) else stream


def on_memory(setting: Setting, stream: Stream) -> Stream:
    """Train on a class-balanced memory alone, for as many steps.

    Raises:
        ValueError: if the training set is not in memory, or the replay memory is larger than it.
    """
    source = getattr(stream, "source", None)
    if not isinstance(source, LabelledArrays):
        raise ValueError(f"a class-balanced memory needs a training set in memory; got {source!r}")
    return BalancedSubset(stream, source, _capacity(setting), setting.epochs)


def _capacity(setting: Setting) -> int:
    wanted = setting.continual.memory
    if wanted > setting.num_examples:
        raise ValueError(
            f"a replay memory must hold 1 to all {setting.num_examples} training examples; got {wanted} "
            "(method joint trains on all of them)"
        )
    return wanted


# --- Extensions. ---


def told(setting: Setting) -> tuple[Extension, ...]:
    """In the scenario "task", every example has a softmax over the classes of its task."""
    if setting.task_of_class is None or setting.continual.scenario != "task":
        return ()
    return (TaskSoftmax(setting.task_of_class, replayed=True),)


def masked(setting: Setting) -> tuple[Extension, ...]:
    """With the setting `mask`, new examples have a softmax over the classes of their task."""
    if setting.task_of_class is None or setting.continual.scenario == "task" or not setting.continual.mask:
        return told(setting)
    return (TaskSoftmax(setting.task_of_class),)


def batch_masked(setting: Setting) -> tuple[Extension, ...]:
    """New examples have a softmax over the classes of the new examples in their batch."""
    return BatchSoftmax(), *told(setting)


def remembered(setting: Setting, *, draws: int = 1) -> tuple[Extension, ...]:
    """Replayed examples are pulled to stored logits, and new ones masked."""
    options = setting.continual
    return LogitMemory(options.memory, options.alpha, draws), *masked(setting)


# --- Heads. Each has a place for every class from the start, also for classes that are still to come. ---


def _linear(setting: Setting) -> Head:
    return heads.learned(setting.num_classes)


def _fno(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, frame=nonnegative_orthogonal, learn_scale=True)


def _etf(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, learn_scale=True)


def _scaled(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=setting.head.radius)


def _nearest(setting: Setting) -> Head:
    return heads.nearest(setting.num_classes, options=setting.head)


# --- The table. ---

STRATEGIES = {
    "finetune": Method("finetune", _linear, extensions=masked),
    "joint": Method("joint", _linear, extensions=told, stream=at_once),
    "er": Method(
        "ER",
        _linear,
        lambda setting: replay_loss(1.0),
        masked,
        replayed,
        "Chaudhry et al. (2019); with the mask, Kim and Kim (2024), algorithm 1",
    ),
    "er-ace": Method(
        "ER-ACE", _linear, lambda setting: replay_loss(1.0), batch_masked, replayed, "Caccia et al. (2022)"
    ),
    "der": Method(
        "DER", _linear, lambda setting: replay_loss(0.0), remembered, replayed, "Buzzega et al. (2020), section 3"
    ),
    "derpp": Method(
        "DER++",
        _linear,
        lambda setting: replay_loss(setting.continual.beta, draws=2),
        partial(remembered, draws=2),
        partial(replayed, draws=2),
        "Buzzega et al. (2020), section 3",
    ),
    "gdumb": Method("GDumb", _linear, extensions=told, stream=on_memory, reference="Prabhu et al. (2020), section 3"),
}
HEADS = {
    "fno": ("FNO", _fno),
    # With the same learned scale as FNO: it shows what a frozen classifier does without FNO's zeros.
    "etf": ("fixed ETF", _etf),
    # With features of one length, as the nearest ETF has them: it shows what the scaling does without the rotation.
    "scaled": ("fixed ETF, scaled features", _scaled),
    "nearest": ("nearest ETF", _nearest),
}
ROWS = {"fno": tuple(STRATEGIES), "etf": ("er", "derpp"), "scaled": ("er",), "nearest": ("er", "derpp")}
METHODS = STRATEGIES | {
    f"{name}-{suffix}": dataclasses.replace(
        STRATEGIES[name], title=f"{STRATEGIES[name].title}, {HEADS[suffix][0]}", head=HEADS[suffix][1]
    )
    for suffix, names in ROWS.items()
    for name in names
}
