"""Variables of networks without compiling `init`, which would take longer than most tests."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def shapes_of(model: nn.Module, shape: tuple[int, ...]) -> dict:
    """Shapes and dtypes of the variables of a model for inputs of a shape (without the batch)."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def drawn_variables(model: nn.Module, shape: tuple[int, ...]) -> dict:
    """Variables with the shapes of `init`, drawn by NumPy."""
    generator = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1] in ("scale", "var"):
            return np.ones(shape, np.float32)
        size = math.prod(shape[:-1]) if path[-1] == "kernel" else 100
        return generator.normal(scale=math.sqrt(2 / size), size=shape).astype(np.float32)

    found = flatten_dict(shapes_of(model, shape))
    return unflatten_dict({path: draw(path, leaf.shape) for path, leaf in found.items()})
