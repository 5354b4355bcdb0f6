"""The training state, how it is created, and how a model is run. Only this file and `nc_jax.models` use Linen."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Num, PRNGKeyArray

from nc_jax.checks import checked_seed
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput, places_among
from nc_jax.training.extension import Chain, Extension
from nc_jax.training.summary import EpochTotals

# The rest of `nc_jax.training` uses this name, so that only this file depends on Linen.
Model = nn.Module


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes. A checkpoint holds this state, and a step maps it to the next state.

    Attributes:
        step: number of optimiser steps taken, an int32 scalar.
        params: parameters, which the optimiser trains.
        variables: all other collections of the model, by name ("nearest", "frame", "batch_stats", ...).
        opt_state: state of the optimiser.
        key: data of the random key that augmentation and extensions draw from: two uint32, stored as a plain array so
            that a checkpoint can hold them.
        totals: totals over the steps of the current epoch.
        average: exponential moving average of the parameters; None if none is kept.
        extensions: states of the extensions, by name of extension; None if no extension has a state.
        client: a `nc_jax.training.Client`, in the state of a client of federated learning; else None.
        clients: what the server of a simulated federation keeps for its clients, a `nc_jax.federated.ClientStates`;
            else None.
    """

    # All Any: tree maps also build states that hold shapes, shardings or options instead of arrays.
    step: Any
    params: Any
    variables: Any
    opt_state: Any
    key: Any
    totals: Any
    average: Any = None
    extensions: Any = None
    client: Any = None
    clients: Any = None

    @property
    def evaluated_params(self) -> Any:
        """The parameters that evaluation uses, which are the average if there is one."""
        return self.params if self.average is None else self.average


def create_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    inputs: Num[ArrayLike, "batch ..."],
    *,
    average: bool = False,
    initialise: Callable[[Any, PRNGKeyArray], Any] | None = None,
    init: Callable[..., Any] | None = None,
    extensions: Sequence[Extension] = (),
) -> TrainState:
    """Create the initial training state: draw the parameters and initialise everything else.

    Args:
        model: maps (inputs, labels, train=..., mask=...) to a `HeadOutput`, as `nc_jax.models.Classifier` does.
        optimizer: an optax transformation.
        key: random key, which determines the whole initial state.
        inputs: a batch of the right shape and dtype; its values do not matter.
        average: keep an exponential moving average of the parameters.
        initialise: (params, key) -> params, replaces the initial values that the modules have drawn
            (`nc_jax.training.agd_init`, for instance); None keeps them.
        init: `model.init`, compiled. Pass it to compile once for several states of a model; None compiles it here.
        extensions: the extensions of the step that will train the state.

    Raises:
        ValueError: if the head does not fit the features (for instance, if their dimension d is below K - 1 for a
            simplex ETF of K classes).
    """
    variables = (init or jax.jit(model.init))(key, inputs)

    def output_of() -> HeadOutput:
        return jax.eval_shape(model.apply, {**variables, "params": params}, inputs)

    params = variables.pop("params", {})
    if initialise is not None:
        params = initialise(params, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        variables=variables,
        # Copies, here and below: steps donate their state, and a buffer cannot be donated twice. (The state of L-BFGS
        # holds the parameters themselves.)
        opt_state=jax.tree.map(jnp.copy, optimizer.init(params)),
        key=jax.random.bits(key, (2,), jnp.uint32),
        totals=EpochTotals.zero(),
        average=jax.tree.map(jnp.copy, params) if average else None,
        extensions=Chain(extensions).init(key, output_of),
    )


def key_of(seed: int) -> PRNGKeyArray:
    """Return the random key of a seed in 0..2^64-1."""
    seed = checked_seed(seed)
    # Without x64, `jax.random.key` drops all but the last 32 bits.
    key, rest = jax.random.key(seed % 2**32), seed >> 32
    return jax.random.fold_in(key, rest) if rest else key


def random_key(state: TrainState) -> PRNGKeyArray:
    """Return the key of the state's next step."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key, impl="threefry2x32"), state.step)


def forward(
    model: Model,
    params: Any,
    variables: dict[str, Any],
    batch: Batch,
    *,
    train: bool,
    between: Callable[[Array, Batch], tuple[Array, Batch]] | None = None,
) -> tuple[HeadOutput, dict[str, Any], Batch]:
    """Run the model on a batch.

    Args:
        model: maps (inputs, labels, train=..., mask=...) to a `HeadOutput`.
        params: parameters of the model.
        variables: all other collections of the model, by name.
        batch: the examples. Evaluation uses only their inputs.
        train: whether this is a training step.
        between: (features, batch) -> (features, batch), applied between backbone and head; None changes nothing. It
            needs a model with the methods `features` and `classify`, such as `nc_jax.models.Classifier`. Evaluation
            ignores it.

    Returns:
        A triple: the head's output; the other collections after the call (in evaluation, those passed in); and the
        batch that the head saw, with labels that count the columns of the output if they are not all classes
        (`nc_jax.heads.sampled`).
    """
    everything = {"params": params, **variables}
    if not train:
        evaluated: Any = model.apply(everything, batch.inputs)
        return evaluated, variables, batch
    options: Any = {"train": True, "mask": batch.mask, "mutable": list(variables)}
    if between is None:
        result: Any = model.apply(everything, batch.inputs, batch.labels, **options)
        output, updated = result
        return output, {**variables, **updated}, _among_columns(output, batch)
    result = model.apply(everything, batch.inputs, method="features", **options)
    features, updated = result
    features, batch = between(features, batch)
    result = model.apply({**everything, **updated}, features, batch.labels, method="classify", **options)
    output, updated_last = result
    return output, {**variables, **updated, **updated_last}, _among_columns(output, batch)


def _among_columns(output: HeadOutput, batch: Batch) -> Batch:
    """Return the batch with labels that count the columns of the output."""
    if output.classes is None:
        return batch
    partner = batch.partner
    if partner is not None:
        partner = partner._replace(labels=places_among(output.classes, partner.labels))
    return batch._replace(labels=places_among(output.classes, batch.labels), partner=partner)
