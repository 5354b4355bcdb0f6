"""The training loss around a finished run, along two random directions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from nc_jax.arrays import safe_norm
from nc_jax.data import Batch, LabelledArrays
from nc_jax.training import Trainer
from nc_jax.training.extension import Context
from nc_jax.training.state import TrainState, forward
from nc_jax.training.step import preprocessed

EXAMPLES = 512  # of the training set, spread evenly over it: the loss of so many examples is smooth to the eye
SEED = 0  # of the directions, the same for all runs


def random_direction(params: Any, key: PRNGKeyArray) -> Any:
    """Draw a direction in which every output of every layer changes in proportion to its own weights.

    Each column of a parameter (its part along the last axis, which belongs to one output) is Gaussian, scaled to the
    norm of the parameter's column. So directions of networks with weights of different sizes can be compared.
    Parameters with fewer than two axes, such as biases, have direction zero.

    Args:
        params: tree of parameters.
        key: random key.

    Reference: Li et al., Visualizing the loss landscape of neural nets (2018), section 4 (filter normalisation).
    """
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure, [_scaled(leaf, key) for leaf, key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)]
    )


def _scaled(leaf: Array, key: PRNGKeyArray) -> Array:
    if leaf.ndim < 2:
        return jnp.zeros_like(leaf)
    axes = tuple(range(leaf.ndim - 1))
    drawn = jax.random.normal(key, leaf.shape, leaf.dtype)
    return drawn * (safe_norm(leaf, axis=axes) / safe_norm(drawn, axis=axes))


def loss_surface(
    trainer: Trainer, state: TrainState, examples: LabelledArrays, *, size: int, span: float = 1.0
) -> dict[str, Any]:
    """Evaluate the training loss around a trained state, on a square along two random directions.

    The loss is that of the method on training examples without augmentation, for the network as evaluation runs it.
    Losses of the whole batch see the evaluated examples as their batch.

    Args:
        trainer: the compiled steps of the run.
        state: its final state. Batch statistics and class means in it stay as they are.
        examples: the training set; up to `EXAMPLES` of them are used.
        size: number of grid points along each direction; an odd number has the state in the middle.
        span: largest step along a direction; with 1, every weight vector moves by up to its own length.

    Returns:
        "alpha" and "beta", the steps along the directions (size,), and "values", the losses (size, size), with a row
        for each beta.
    """
    state = jax.tree.map(jnp.asarray, jax.device_get(state))  # from all devices to one
    chosen = examples.take(np.unique(np.linspace(0, len(examples) - 1, EXAMPLES).astype(np.int64)))
    batch = preprocessed(Batch.of(chosen.inputs, chosen.labels), trainer.step_options.preprocess)
    batch = jax.tree.map(jnp.asarray, batch)
    first, second = (random_direction(state.evaluated_params, key) for key in jax.random.split(jax.random.key(SEED)))
    steps = jnp.linspace(-span, span, size)
    values = jax.jit(partial(_values, trainer))(state, batch, first, second, steps)
    return {"alpha": steps.tolist(), "beta": steps.tolist(), "values": np.asarray(values, float).tolist()}


def _values(trainer: Trainer, state: TrainState, batch: Batch, first: Any, second: Any, steps: Array) -> Array:
    model, loss = trainer.model, trainer.step_options.loss
    number = len(batch.labels)
    context = Context(
        state.step,
        train=True,
        places=jnp.arange(number),
        count=jnp.asarray(number, jnp.float32),
        whole=batch._replace(inputs=None),
    )

    def value(beta: Array, alpha: Array) -> Array:
        params = jax.tree.map(
            lambda at, one, other: at + (alpha * one + beta * other).astype(at.dtype),
            state.evaluated_params,
            first,
            second,
        )
        output, _, _ = forward(model, params, state.variables, batch, train=False)
        return jnp.mean(loss(output, batch, context))

    # One point after another: all at once would hold the features of all of them.
    return jax.lax.map(lambda beta: jax.lax.map(partial(value, beta), steps), steps)
