"""Softmax over a part of the classes, in training only: what keeps new classes from pushing down the old ones."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from nc_jax.checks import check_at_least
from nc_jax.collective import all_sum
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.losses import mask_logits, same_task
from nc_jax.training.extension import Context, Extension


@dataclass(frozen=True)
class TaskSoftmax(Extension):
    """Softmax over the classes of each example's own task. Evaluation sees all classes.

    Attributes:
        task_of_class: number of the task of each class, K whole numbers.
        replayed: mask replayed examples, too. By default they keep the softmax over all classes, which is what tells
            tasks apart.

    Raises:
        ValueError: if the task of a class is not a whole number of at least 0.

    Reference: Kim and Kim (2024), Fixed non-negative orthogonal classifier, section 4 and algorithm 1.
    """

    task_of_class: tuple[int, ...]
    replayed: bool = False

    def __post_init__(self):
        for task in self.task_of_class:
            check_at_least("the task of a class", task, 0)

    def on_output(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Fill the logits of the classes of other tasks."""
        del state
        if not context.train:
            return output
        allowed = same_task(batch.labels, jnp.asarray(self.task_of_class))
        if not self.replayed:
            allowed |= ~_new(batch)[:, None]
        return output._replace(logits=mask_logits(output.logits, allowed))


@dataclass(frozen=True)
class BatchSoftmax(Extension):
    """Softmax of new examples over the classes of the new examples in the batch; all classes for replayed ones.

    Evaluation sees all classes.

    Reference: Caccia et al., New insights on reducing abrupt representation change in online continual learning (2022):
    ER-ACE.
    """

    def on_output(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Fill the logits of the classes that no new example has."""
        del state
        if not context.train:
            return output
        assert context.whole is not None, "the step has set it"
        num_classes = output.logits.shape[1]
        members = jax.nn.one_hot(jnp.where(_new(context.whole), context.whole.labels, -1), num_classes)
        present = all_sum(jnp.sum(members, axis=0)) > 0
        return output._replace(logits=mask_logits(output.logits, present[None] | ~_new(batch)[:, None]))


def _new(batch: Batch) -> Bool[Array, " batch"]:
    """Return which rows are new examples."""
    return batch.mask if batch.replayed is None else batch.mask & (batch.replayed == 0)
