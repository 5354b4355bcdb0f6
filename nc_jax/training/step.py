"""Pure training and evaluation steps. They run on one device as they are, and under `parallel` on many."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.metrics import Agreement, ClassStatistics, MarginSums, cosine_margins, nearest_centre_agreement
from nc_jax.models import HeadOutput
from nc_jax.solvers import Status
from nc_jax.training.feature_decay import FeatureDecay, feature_penalty
from nc_jax.training.state import Model, TrainState, forward, random_key
from nc_jax.training.summary import StepMetrics

Batch = dict[str, Any]  # arrays: features (N, ...) and labels (N,), negative ones being padding


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


class CentredSums(NamedTuple):
    """Sums over examples that need the centres of the training features: evaluation's second pass.

    Attributes:
        agreement: of the classifier with the nearest class centre (NC4).
        margins: cosine margins of the features less the global mean, under the class vectors less theirs.
    """

    agreement: Agreement
    margins: MarginSums

    @classmethod
    def init(cls) -> "CentredSums":
        """Make the sums of no examples."""
        none = jnp.zeros((), jnp.int32)
        return cls(Agreement(none, none), MarginSums.init())

    def merge(self, other: "CentredSums") -> "CentredSums":
        """Join the sums of two disjoint sets of examples."""
        return CentredSums(self.agreement.merge(other.agreement), self.margins.merge(other.margins))


Preprocess = Callable[[Array], Array]  # a batch's features, stored or augmented -> what the model takes
Augment = Callable[[PRNGKeyArray, Array], Array]  # (key, stored features of one example) -> the same, changed


# (the head's output, labels, number of the step) -> a loss for each example, shape (N,)
Loss = Callable[[HeadOutput, Array, Array], Array]


@dataclass(frozen=True)
class StepOptions:
    """What a training step does besides loss, gradient, optimiser.

    Attributes:
        accumulate: cut the batch into so many parts, one after the other, and add their gradients. The sum is that of
            the whole batch; batch statistics and the nearest head see the parts.
        average_decay: keep a moving average of the parameters, with this weight of the old value per step, to be
            evaluated in their place; None keeps none.
        augment: applied to every example on the device, in training only, with a key that depends on the state's key,
            the step and the example's place in the batch: not on the number of devices.
        preprocess: applied to the features after that, in training and in evaluation.
        loss: (output of the head, labels, number of the step) -> one number per example, to be trained on; what it
            gives for padding is thrown away. None is the cross-entropy. Evaluation reports the latter in any case.
        feature_decay: penalty on the raw features, added to what is differentiated, not to the loss that is reported;
            None is none.

    Raises:
        ValueError: if `accumulate` or `average_decay` is out of its range.
    """

    accumulate: int = 1
    average_decay: float | None = None
    augment: Augment | None = None
    preprocess: Preprocess | None = None
    loss: Loss | None = None
    feature_decay: FeatureDecay | None = None

    def __post_init__(self):
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1; got {self.accumulate}")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay must lie in (0, 1), or be None; got {self.average_decay}")


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    options: StepOptions = StepOptions(),
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Make the step (state, batch) -> (state, metrics): cross-entropy, gradient, optimiser.

    A step whose numbers are not all finite returns the state as it was, but for its totals, so that nothing good is
    overwritten. Optimisers that search along a line (`optax.lbfgs`) are given the batch's cost as a function.

    Weight decay is the optimiser's, but for that on features, which is the step's.

    Args:
        model: as in `create_state`; built with the same `axis_name` where its head or normalisation takes one.
        optimizer: an optax transformation.
        axis_name: of the mapped axis over which the batch is split; None on one device.
        options: see `StepOptions`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def total(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        count = jnp.maximum(total(jnp.sum(batch["labels"] >= 0)), 1)
        batch = _prepared(batch, options, random_key(state), axis_name)

        def cost_of(params: Any, variables: Any, part: Batch) -> tuple[Array, tuple[Array, Array, _Solved, dict]]:
            output, variables = forward(model, params, variables, part, train=True)
            correct = jnp.sum(_correct(output.logits, part["labels"]))
            # This device's part of the batch's mean: the parts are summed after differentiation. Had they been summed
            # here, the psum's transpose, a psum again, would count every part once per device.
            if options.loss is None:
                losses = _losses(output.logits, part["labels"])
            else:
                losses = jnp.where(part["labels"] >= 0, options.loss(output, part["labels"], state.step), 0)
            loss = jnp.sum(losses) / count
            cost = loss
            if options.feature_decay is not None:
                cost = loss + feature_penalty(options.feature_decay, output, part["labels"], count)
            return cost, (loss, correct, _solved(output), variables)

        def gradient_of(params: Any) -> tuple[Array, Any, Array, Array, _Solved, dict]:
            """Return the batch's cost, gradient, loss and right answers on all devices, and what its parts left."""

            def add(carry: tuple, part: Batch) -> tuple[tuple, None]:
                sums, gradients, solved, variables = carry
                (cost, (loss, correct, new_solved, variables)), new = jax.value_and_grad(cost_of, has_aux=True)(
                    params, variables, part
                )
                gradients = jax.tree.map(jnp.add, gradients, new)
                worst = jax.tree.map(jnp.maximum, solved, new_solved)
                sums = jax.tree.map(jnp.add, sums, (cost, loss, correct))
                return (sums, gradients, worst, variables), None

            sums = jnp.zeros(()), jnp.zeros(()), jnp.zeros((), int)
            start = (sums, jax.tree.map(jnp.zeros_like, params), _Solved.none(), state.variables)
            if options.accumulate == 1:
                found, _ = add(start, batch)
            else:
                found, _ = jax.lax.scan(add, start, _parts(batch, options.accumulate))
            (cost, loss, correct), gradients, solved, variables = found
            return *total((cost, gradients, loss, correct)), solved, variables

        @jax.custom_vjp
        def cost_at(params: Any) -> Array:  # for line searches: its derivative, too, is that on all devices
            return gradient_of(params)[0]

        cost_at.defvjp(
            lambda params: gradient_of(params)[:2],
            lambda gradients, cotangent: (jax.tree.map(lambda leaf: cotangent * leaf, gradients),),
        )

        cost, gradients, loss, correct, solved, variables = gradient_of(state.params)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, value=cost, grad=gradients, value_fn=cost_at
        )
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - (options.average_decay or 0))
        new = state.replace(
            step=state.step + 1, params=params, variables=variables, opt_state=opt_state, average=average
        )

        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(cost) & jnp.isfinite(grad_norm) & _all_finite(new.replace(totals=None))
        metrics = StepMetrics(
            loss=loss,
            accuracy=correct / count,
            grad_norm=grad_norm,
            # The inner problem is the same on every device, and so is how its solve ended.
            solve_status=solved.status,
            solve_grad_norm=solved.grad_norm,
            finite=finite,
        )
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        return new.replace(totals=state.totals.add(metrics)), metrics

    return step


class _Solved(NamedTuple):
    """How inner solves ended."""

    status: Int[Array, ""]
    grad_norm: Float[Array, ""]

    @classmethod
    def none(cls) -> "_Solved":
        return cls(jnp.asarray(Status.CONVERGED, jnp.int32), jnp.zeros(()))


def _solved(output: HeadOutput) -> _Solved:
    solution = output.solution
    return _Solved.none() if solution is None else _Solved(solution.status, solution.grad_norm)


def _parts(batch: Batch, number: int) -> Batch:
    """Cut every array into equal parts along a new first axis."""
    size = len(batch["labels"])
    if size % number:
        raise ValueError(f"each device's share of a batch must be a multiple of accumulate={number}; got {size}")
    return {name: array.reshape(number, size // number, *array.shape[1:]) for name, array in batch.items()}


def _prepared(batch: Batch, options: StepOptions, key: PRNGKeyArray, axis_name: str | None) -> Batch:
    """Augment and preprocess the features of this device's part of a batch."""
    if options.augment is not None:
        size = len(batch["labels"])
        # `parallel` gives every device, of each of the batch's parts, an equal and contiguous share.
        share, device, devices = size // options.accumulate, 0, 1
        if axis_name is not None:
            device, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
        part, place = jnp.divmod(jnp.arange(size), share)
        places = (part * devices + device) * share + place
        keys = jax.vmap(partial(jax.random.fold_in, key))(places)
        batch = {**batch, "features": jax.vmap(options.augment)(keys, batch["features"])}
    return _preprocessed(batch, options.preprocess)


def _preprocessed(batch: Batch, preprocess: Preprocess | None) -> Batch:
    return batch if preprocess is None else {**batch, "features": preprocess(batch["features"])}


def make_eval_step(
    model: Model, *, axis_name: str | None = None, preprocess: Preprocess | None = None
) -> Callable[[tuple[TrainState, EvalSums], Batch], EvalSums]:
    """Make the step ((state, sums), batch) -> sums that adds a batch to the sums."""

    def step(carry: tuple[TrainState, EvalSums], batch: Batch) -> EvalSums:
        state, sums = carry
        batch = _preprocessed(batch, preprocess)
        output, _ = forward(model, state.evaluated_params, state.variables, batch, train=False)
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


def make_centred_step(
    model: Model, *, axis_name: str | None = None, preprocess: Preprocess | None = None
) -> Callable[[tuple[TrainState, ClassStatistics], Batch], CentredSums]:
    """Make the step ((state, training statistics), batch) -> sums of a second pass, once the centres are known."""

    def step(carry: tuple[TrainState, ClassStatistics], batch: Batch) -> CentredSums:
        state, statistics = carry
        batch = _preprocessed(batch, preprocess)
        output, _ = forward(model, state.evaluated_params, state.variables, batch, train=False)
        labels = batch["labels"]
        agreement = nearest_centre_agreement(
            output.features, output.frame, output.bias, statistics.means, statistics.present, labels
        )
        sums = CentredSums(agreement, MarginSums.from_batch(centred_margins(output, statistics, labels), labels))
        if axis_name is not None:
            sums = CentredSums(sums.agreement.all_reduce(axis_name), sums.margins.all_reduce(axis_name))
        return sums

    return step


def centred_margins(
    output: HeadOutput, statistics: ClassStatistics, labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Cosine margins of the features less the global mean of `statistics`, under the class vectors less theirs.

    Centred as Markou et al. (2024) do: rectified features share a large part, which tells no classes apart.
    """
    frame = output.frame - jnp.mean(output.frame, axis=1, keepdims=True)
    return cosine_margins(output.features - statistics.compute().global_mean, frame, labels)


def _losses(logits: Array, labels: Array) -> Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, losses, 0)


def _correct(logits: Array, labels: Array) -> Array:
    return jnp.argmax(logits, axis=-1) == labels


def _all_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
