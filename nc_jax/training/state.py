"""The training state, and the only calls to Linen outside `nc_jax.models`."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from nc_jax.models import HeadOutput

# The rest of the package names models by this, so only this file depends on Linen.
Model = nn.Module


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes: what a checkpoint holds, and what a step maps to its successor.

    Attributes:
        step: number of optimiser steps taken, an int32 scalar.
        params: what the optimiser trains.
        variables: every other collection of the model, by name ("nearest", "frame", "batch_stats", ...).
        opt_state: of the optimiser.
    """

    # Not annotated further: tree maps also build states of shapes, shardings or options.
    step: Any
    params: Any
    variables: Any
    opt_state: Any


def create_state(
    model: Model, optimizer: optax.GradientTransformation, key: PRNGKeyArray, inputs: Float[ArrayLike, "batch ..."]
) -> TrainState:
    """Draw the initial parameters.

    Args:
        model: maps (inputs, labels, train=...) to a HeadOutput, as `nc_jax.models.Classifier` does.
        optimizer: an optax transformation.
        key: determines the initial state.
        inputs: any batch of the right shape and dtype.

    Raises:
        ValueError: if the head does not fit the features (d < K - 1, say).
    """
    variables = jax.jit(model.init)(key, inputs)
    params = variables.pop("params", {})
    return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))


def forward(
    model: Model, params: Any, variables: dict[str, Any], batch: dict[str, Any], *, train: bool
) -> tuple[HeadOutput, dict[str, Any]]:
    """Run the model on a batch with `features` (N, ...) and `labels` (N,).

    Returns:
        The head's output and the other collections after the call, which in evaluation are the ones passed in.
    """
    if not train:
        evaluated: Any = model.apply({"params": params, **variables}, batch["features"])
        return evaluated, variables
    result: Any = model.apply(
        {"params": params, **variables}, batch["features"], batch["labels"], train=True, mutable=list(variables)
    )
    output, updated = result
    return output, {**variables, **updated}
