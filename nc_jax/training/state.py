"""The training state, and the only calls to Linen outside `nc_jax.models`."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Num, PRNGKeyArray

from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training.extension import Chain, Extension
from nc_jax.training.summary import EpochTotals

# The rest of the package names models by this, so only this file depends on Linen.
Model = nn.Module


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes: what a checkpoint holds, and what a step maps to its successor.

    Attributes:
        step: number of optimiser steps taken, an int32 scalar.
        params: what the optimiser trains.
        variables: every other collection of the model, by name ("nearest", "frame", "batch_stats", ...).
        opt_state: of the optimiser.
        key: data of the random key that augmentation draws from, two uint32 (a plain array, for checkpoints).
        totals: of the current epoch's steps.
        average: exponential moving average of the parameters; None where none is kept.
        extensions: state of the step's extensions, by their names; None if none has a state.
    """

    # Not annotated further: tree maps also build states of shapes, shardings or options.
    step: Any
    params: Any
    variables: Any
    opt_state: Any
    key: Any
    totals: Any
    average: Any = None
    extensions: Any = None

    @property
    def evaluated_params(self) -> Any:
        """The parameters to evaluate: their average if there is one."""
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
    """Draw the initial parameters.

    Args:
        model: maps (inputs, labels, train=...) to a HeadOutput, as `nc_jax.models.Classifier` does.
        optimizer: an optax transformation.
        key: determines the initial state.
        inputs: any batch of the right shape and dtype.
        average: keep a moving average of the parameters.
        initialise: (params, key) -> params, in place of the modules' own initial values (`nc_jax.training.agd_init`).
        init: the model's `init`, compiled; None compiles it here. Several states of a model then share it.
        extensions: of the step that will train the state.

    Raises:
        ValueError: if the head does not fit the features (d < K - 1, say).
    """
    variables = (init or jax.jit(model.init))(key, inputs)
    params = variables.pop("params", {})
    if initialise is not None:
        params = initialise(params, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        variables=variables,
        # Copies, here and below: steps donate their state, and no buffer can be donated twice (L-BFGS's state holds the
        # parameters).
        opt_state=jax.tree.map(jnp.copy, optimizer.init(params)),
        key=jax.random.bits(key, (2,), jnp.uint32),
        totals=EpochTotals.zero(),
        average=jax.tree.map(jnp.copy, params) if average else None,
        extensions=Chain(extensions).init(key),
    )


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
        model: as in `create_state`.
        params: of the state.
        variables: of the state.
        batch: in evaluation only its inputs matter.
        train: whether this is a training step.
        between: (features, batch) -> the same, changed, before the head sees them; needs a model with the methods
            `features` and `classify`, as `nc_jax.models.Classifier`. In training only.

    Returns:
        The head's output, the other collections after the call, which in evaluation are the ones passed in, and the
        batch as the head saw it.
    """
    everything = {"params": params, **variables}
    if not train:
        evaluated: Any = model.apply(everything, batch.inputs)
        return evaluated, variables, batch
    options: Any = {"train": True, "mask": batch.mask, "mutable": list(variables)}
    if between is None:
        result: Any = model.apply(everything, batch.inputs, batch.labels, **options)
        output, updated = result
        return output, {**variables, **updated}, batch
    result = model.apply(everything, batch.inputs, method="features", **options)
    features, updated = result
    features, batch = between(features, batch)
    result = model.apply({**everything, **updated}, features, batch.labels, method="classify", **options)
    output, updated_last = result
    return output, {**variables, **updated, **updated_last}, batch
