"""Pure training and evaluation steps. They run on one device as they are, and under `parallel` on many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from nc_jax.metrics import Agreement, ClassStatistics, nearest_centre_agreement
from nc_jax.models import HeadOutput
from nc_jax.solvers import Status
from nc_jax.training.state import Model, TrainState, forward

Batch = dict[str, Any]  # arrays: features (N, ...) and labels (N,), negative ones being padding


class StepMetrics(NamedTuple):
    """What one training step reports, over the whole batch on all devices.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: share of right answers before the update.
        grad_norm: length of the parameters' gradient.
        solve_status: worst `nc_jax.solvers.Status` of the inner solve; CONVERGED for heads without one.
        solve_grad_norm: Riemannian gradient norm at its end; 0 for heads without one.
        finite: whether the loss, the gradient and the new state are finite. If not, the step was not taken.
    """

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    solve_status: Int[Array, "..."]
    solve_grad_norm: Float[Array, "..."]
    finite: Bool[Array, "..."]


class EvalSums(NamedTuple):
    """Sums over examples, to be added batch by batch and read by `nc_jax.training.evaluate`.

    Attributes:
        loss: sum of the cross-entropies.
        correct: number of right answers.
        count: number of examples.
        statistics: of the features, as the classifier sees them.
    """

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    count: Int[Array, ""]
    statistics: ClassStatistics


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, *, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Make the step (state, batch) -> (state, metrics): cross-entropy, gradient, optimiser.

    A step whose numbers are not all finite returns the state as it was, so that nothing good is overwritten.

    Args:
        model: as in `create_state`; built with the same `axis_name` where its head or normalisation takes one.
        optimizer: an optax transformation.
        axis_name: of the mapped axis over which the batch is split; None on one device.
    """

    def total(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        valid = batch["labels"] >= 0
        count = jnp.maximum(total(jnp.sum(valid)), 1)

        def loss_of(params: Any) -> tuple[Array, tuple[HeadOutput, dict]]:
            output, variables = forward(model, params, state.variables, batch, train=True)
            # This device's part of the batch's mean: the parts are summed after differentiation. Had they been summed
            # here, the psum's transpose, a psum again, would count every part once per device.
            return jnp.sum(_losses(output.logits, batch["labels"])) / count, (output, variables)

        (loss, (output, variables)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        loss, gradients = total((loss, gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), variables, opt_state)

        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & _all_finite(new)
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        solution = output.solution
        return new, StepMetrics(
            loss=loss,
            accuracy=total(jnp.sum(_correct(output.logits, batch["labels"]))) / count,
            grad_norm=grad_norm,
            # The inner problem is the same on every device, and so is how its solve ended.
            solve_status=jnp.asarray(Status.CONVERGED, jnp.int32) if solution is None else solution.status,
            solve_grad_norm=jnp.zeros(()) if solution is None else solution.grad_norm,
            finite=finite,
        )

    return step


def make_eval_step(
    model: Model, *, axis_name: str | None = None
) -> Callable[[tuple[TrainState, EvalSums], Batch], EvalSums]:
    """Make the step ((state, sums), batch) -> sums that adds a batch to the sums."""

    def step(carry: tuple[TrainState, EvalSums], batch: Batch) -> EvalSums:
        state, sums = carry
        output, _ = forward(model, state.params, state.variables, batch, train=False)
        labels = batch["labels"]
        num_classes = output.logits.shape[-1]
        statistics = ClassStatistics.from_batch(output.features, labels, num_classes)
        parts = (
            jnp.sum(_losses(output.logits, labels)),
            jnp.sum(_correct(output.logits, labels), dtype=jnp.int32),
            jnp.sum(labels >= 0, dtype=jnp.int32),
        )
        if axis_name is not None:
            parts, statistics = jax.lax.psum(parts, axis_name), statistics.all_reduce(axis_name)
        loss, correct, count = parts
        return EvalSums(sums.loss + loss, sums.correct + correct, sums.count + count, sums.statistics.merge(statistics))

    return step


def make_agreement_step(
    model: Model, *, axis_name: str | None = None
) -> Callable[[tuple[TrainState, ClassStatistics], Batch], Agreement]:
    """Make the step ((state, training statistics), batch) -> agreement of NC4's second pass."""

    def step(carry: tuple[TrainState, ClassStatistics], batch: Batch) -> Agreement:
        state, statistics = carry
        output, _ = forward(model, state.params, state.variables, batch, train=False)
        agreement = nearest_centre_agreement(
            output.features, output.frame, output.bias, statistics.means, statistics.present, batch["labels"]
        )
        return agreement if axis_name is None else agreement.all_reduce(axis_name)

    return step


def _losses(logits: Array, labels: Array) -> Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, losses, 0)


def _correct(logits: Array, labels: Array) -> Array:
    return jnp.argmax(logits, axis=-1) == labels


def _all_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
