"""The training step: a pure function. It runs on one device as it is, and on several inside `data_parallel`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nc_jax import collective, losses
from nc_jax.checks import check_at_least, check_label_shape, checked_mask, without_class
from nc_jax.collective import all_sum
from nc_jax.data import Batch, ExampleSource
from nc_jax.heads import HeadOutput
from nc_jax.metrics import agreement
from nc_jax.solvers import Status
from nc_jax.streams import Stream
from nc_jax.training.extension import Chain, Context, Extension
from nc_jax.training.state import Model, TrainState, forward, random_key
from nc_jax.training.summary import StepMetrics

Preprocess = Callable[[Array], Array]  # inputs of a batch, stored or augmented -> what the model takes
Augment = Callable[[PRNGKeyArray, Array], Array]  # (key, stored inputs of one example) -> the same, changed
Loss = Callable[[HeadOutput, Batch, Context], Float[Array, " batch"]]  # a number for each example


@dataclass(frozen=True)
class PairLoss:
    """A loss that reads `batch.partner` itself.

    The loss of a mixed example is the weighted sum of the losses with its two classes. That is not so for a loss of the
    mixture of two class vectors, such as arc-mixup's. The step calls a `PairLoss` once, with both classes.

    Attributes:
        of: function (head output, batch, context) -> a number for each example, shape (batch,).
    """

    of: Loss

    def __call__(self, output: HeadOutput, batch: Batch, context: Context) -> Float[Array, " batch"]:
        """Return a number for each example."""
        return self.of(output, batch, context)


def cross_entropy(output: HeadOutput, batch: Batch, context: Context) -> Float[Array, " batch"]:
    """Cross-entropy of the logits with the labels, in nats, shape (batch,): the loss if a method names no other."""
    del context
    return losses.cross_entropy(output.logits, batch.labels)


@dataclass(frozen=True)
class StepOptions:
    """What a training step does besides gradient and optimiser.

    Attributes:
        accumulate: number of equal parts into which every batch is cut, to save memory. The step runs the parts one
            after another and adds their gradients, which gives the gradient of the whole batch. Batch statistics, the
            nearest head, and all hooks of extensions but `on_batch` see one part at a time. 1 does not cut.
        average_decay: weight, in (0, 1), of the old value in an exponential moving average of the parameters, updated
            at every step. Evaluation uses the average instead of the parameters. None keeps no average.
        augment: function (random key, stored input of one example) -> changed input, applied on the device in training
            only. The key depends on the run's key, the step and the example's place in the batch, but not on the
            number of devices. None changes nothing.
        preprocess: function of a batch of inputs, applied in training (after `augment`) and in evaluation. None changes
            nothing.
        loss: function (head output, batch, context) -> a number for each example, shape (batch,). The step ignores its
            values for padding. Of a mixed example, it takes the weighted sum of the losses with both classes, unless
            the loss is a `PairLoss`. Evaluation always reports the cross-entropy instead.
        extensions: further changes that the method makes to a step; see `nc_jax.training.Extension`.

    Raises:
        ValueError: if `accumulate` or `average_decay` is out of its range, or two extensions have the same name.
    """

    accumulate: int = 1
    average_decay: float | None = None
    augment: Augment | None = None
    preprocess: Preprocess | None = None
    loss: Loss = cross_entropy
    extensions: tuple[Extension, ...] = ()

    def __post_init__(self):
        check_at_least("accumulate", self.accumulate)
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay must lie in (0, 1), or be None; got {self.average_decay}")
        Chain(self.extensions)


Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


@runtime_checkable
class StepMaker(Protocol):
    """What makes steps of another kind than that of `make_train_step`, such as `nc_jax.federated.Rounds`."""

    def server(self) -> optax.GradientTransformation:
        """Return the optimiser whose state is in `TrainState.opt_state`."""
        ...

    def begin(self, state: TrainState, source: ExampleSource, optimizer: optax.GradientTransformation) -> TrainState:
        """Return the initial state, given that of the model, the training set and the trainer's optimiser."""
        ...

    def make_step(
        self, model: Model, optimizer: optax.GradientTransformation, *, axis_name: str, options: StepOptions
    ) -> Step:
        """Make the step, a pure function."""
        ...

    def make_pieces(self, model: Model, optimizer: optax.GradientTransformation, *, options: StepOptions) -> Step:
        """Make the step for one device as a function of the host, which has no compiled loop."""
        ...

    def check(self, devices: int) -> None:
        """Raise a ValueError unless so many devices can share a step."""
        ...

    def check_stream(self, stream: Stream, source: ExampleSource) -> None:
        """Raise a ValueError unless the steps can be those of this stream, on these training examples."""
        ...


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    options: StepOptions = StepOptions(),
) -> Step:
    """Make the step (state, batch) -> (state, metrics): loss, gradient, optimiser.

    If the loss, the gradient or the new state is not finite, or an example has a label that is no class, the step
    returns the old state with updated totals, so no finite state is lost. So do the steps after it, until
    `state.replace(totals=EpochTotals.zero())` says to go on: in a loop that is compiled, or does not wait for each
    step, the state stays the one before the trouble. Line-search optimisers (`optax.lbfgs`) receive the cost of the
    batch as a function.

    Weight decay on parameters belongs to the optimiser. Decay on features is an extension, see
    `nc_jax.training.FeatureDecay`.

    Args:
        model: maps (inputs, labels, train=..., mask=...) to a `HeadOutput`. Its head and its normalisations sum over
            `axis_name` by themselves.
        optimizer: an optax transformation.
        axis_name: name of the mapped axis over which the batch is split; None for one device.
        options: what the step does besides gradient and optimiser.

    Returns:
        The step, a pure function. When it is traced it raises ValueError if labels are not integers of shape (N,), the
        mask is not boolean of the same shape, or each device's share of a batch is not a multiple of
        `options.accumulate`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    chain = Chain(options.extensions)

    def evaluated(params: Any, variables: Any, batch: Batch) -> HeadOutput:
        return forward(model, params, variables, batch, train=False)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        check_label_shape(batch.labels)
        checked_mask(batch.mask, len(batch.labels))
        with collective.over(*([axis_name] if axis_name else [])):
            return summed_step(state, batch)

    def summed_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        count = _count(batch.mask)
        places = _places(len(batch.labels), options.accumulate)
        context = Context(state.step, train=True, count=count, places=places, client=state.client, apply=evaluated)
        if batch.replayed is not None:
            context = context._replace(new_count=_count(batch.mask & (batch.replayed == 0)))
        if options.augment is not None or chain.hooks:
            context = context._replace(key=random_key(state))
        batch = preprocessed(_augmented(batch, options.augment, context), options.preprocess)
        if chain.has("on_batch"):
            batch = chain.on_batch(context, state.extensions, batch)
        context = context._replace(whole=batch._replace(inputs=None))

        def cost_of(params: Any, variables: Any, states: Any, part: Batch, places: Any) -> tuple[Array, tuple]:
            # All parts of a batch see the extensions as they were before the step; `update` goes on from part to part.
            here, before = context._replace(places=places), state.extensions
            between = partial(chain.on_features, here, before) if chain.has("on_features") else None
            output, variables, part = forward(model, params, variables, part, train=True, between=between)
            output = chain.on_output(here, before, output, part)
            correct = jnp.sum(right_answers(output.logits, part), dtype=jnp.int32)
            lacking = jnp.sum(without_class(part.labels, output.logits.shape[-1], part.mask), dtype=jnp.int32)
            # This device's share of the batch's mean. Sum over devices only after differentiation: the transpose of
            # psum is psum, so differentiating through it would multiply each gradient by the number of devices.
            loss = jnp.sum(jnp.where(part.mask, _mixed(options.loss, output, part, here), 0)) / count
            cost = loss
            for penalty in chain.penalties(here, before, output, part).values():
                cost = cost + jnp.sum(jnp.where(part.mask, penalty, 0)) / count
            seen = _Seen(loss, correct, lacking)
            return cost, (seen, _solved(output), variables, chain.update(here, states, output, part))

        def gradient_of(params: Any) -> tuple[Array, Any, _Seen, _Solved, dict, Any]:
            """Return cost, gradient and what was seen, over all devices; then solver report and new variables."""
            params = collective.own(params)

            def add(carry: tuple, part: tuple[Batch, Any]) -> tuple[tuple, None]:
                sums, gradients, solved, variables, states = carry
                (cost, (seen, new_solved, variables, states)), new = jax.value_and_grad(cost_of, has_aux=True)(
                    params, variables, states, *part
                )
                gradients = jax.tree.map(jnp.add, gradients, new)
                worst = jax.tree.map(jnp.maximum, solved, new_solved)
                sums = jax.tree.map(jnp.add, sums, (cost, seen))
                return (sums, gradients, worst, variables, states), None

            none = jnp.zeros((), jnp.int32)
            sums = collective.own((jnp.zeros(()), _Seen(jnp.zeros(()), none, none)))
            zeros = jax.tree.map(jnp.zeros_like, params)
            start = (sums, zeros, _Solved.none(), state.variables, state.extensions)
            whole = batch, context.places
            if options.accumulate == 1:
                found, _ = add(start, whole)
            else:
                found, _ = jax.lax.scan(add, start, _parts(whole, options.accumulate))
            (cost, seen), gradients, solved, variables, states = found
            cost, gradients, seen = all_sum((cost, gradients, seen))
            return cost, gradients, seen, solved, variables, states

        @jax.custom_vjp
        def cost_at(params: Any) -> Array:  # for line searches: cost and derivative are sums over all devices
            return gradient_of(params)[0]

        cost_at.defvjp(
            lambda params: gradient_of(params)[:2],
            lambda gradients, cotangent: (jax.tree.map(lambda leaf: cotangent * leaf, gradients),),
        )

        cost, gradients, seen, solved, variables, states = gradient_of(state.params)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, value=cost, grad=gradients, value_fn=cost_at
        )
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - (options.average_decay or 0))
        new = state.replace(
            step=state.step + 1,
            params=params,
            variables=variables,
            opt_state=opt_state,
            average=average,
            extensions=states,
        )

        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(cost) & jnp.isfinite(grad_norm) & _all_finite(new.replace(totals=None, client=None))
        # After a step that was not finite, the batches do not follow the state any more: a compiled loop stands still.
        finite &= (seen.without_class == 0) & state.totals.finite
        metrics = StepMetrics(
            loss=seen.loss,
            accuracy=seen.correct.astype(count.dtype) / count,
            grad_norm=grad_norm,
            # Every device solves the same inner problem, so the status and the norm need no reduction.
            solve_status=solved.status,
            solve_grad_norm=solved.grad_norm,
            without_class=seen.without_class,
            finite=finite,
        )
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        return new.replace(totals=state.totals.add(metrics)), metrics

    return step


def preprocessed(batch: Batch, preprocess: Preprocess | None) -> Batch:
    """Return the batch with preprocessed inputs."""
    return batch if preprocess is None else batch._replace(inputs=preprocess(batch.inputs))


def right_answers(logits: Float[Array, "batch classes"], batch: Batch) -> Array:
    """Return which examples the logits classify correctly, shape (batch,); False for padding and for a NaN."""
    return agreement.right_answers(logits, batch.labels) & batch.mask


class _Seen(NamedTuple):
    """Sums over examples: of the losses, of right answers, and of labels that are no class."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    without_class: Int[Array, ""]


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


def _mixed(loss: Loss, output: HeadOutput, batch: Batch, context: Context) -> Array:
    """Return the loss of each example. A mixed example gets the weighted sum of the losses with its two labels."""
    if batch.partner is None or isinstance(loss, PairLoss):
        return loss(output, batch, context)
    own, other = (
        loss(output, batch._replace(labels=labels), context) for labels in (batch.labels, batch.partner.labels)
    )
    weight, other_weight = batch.partner.weights()
    return weight * own + other_weight * other


def _parts(tree: Any, number: int) -> Any:
    """Cut every array into equal parts along a new first axis."""

    def cut(array: Array) -> Array:
        size = len(array)
        if size % number:
            raise ValueError(f"each device's share of a batch must be a multiple of accumulate={number}; got {size}")
        return array.reshape(number, size // number, *array.shape[1:])

    return jax.tree.map(cut, tree)


def _count(rows: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Return the number of rows of all devices that are True, at least 1."""
    return jnp.maximum(all_sum(jnp.sum(rows.astype(jnp.float32))), 1)


def _places(size: int, parts: int) -> Int[Array, " batch"]:
    """Return the row numbers that this device's rows have in the whole batch."""
    # `data_parallel` gives every device an equal and contiguous share of each part of the batch.
    share = size // parts
    device, devices = collective.device()
    part, place = jnp.divmod(jnp.arange(size), share)
    return (part * devices + device) * share + place


def _augmented(batch: Batch, augment: Augment | None, context: Context) -> Batch:
    if augment is None:
        return batch
    assert context.key is not None and context.places is not None, "the step has drawn them"  # noqa: PT018
    keys = jax.vmap(partial(jax.random.fold_in, context.key))(context.places)
    return batch._replace(inputs=jax.vmap(augment)(keys, batch.inputs))


def _all_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
