"""How backbones and necks are called, whether or not they tell training from evaluation."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool


def call_layer(layer: Callable[..., Array], inputs: Array, *, train: bool, mask: Bool[Array, " batch"] | None) -> Array:
    """Call a backbone or a neck with the keywords `train` and `mask`, or with neither if it does not have them.

    Args:
        layer: module or function (inputs, train=..., mask=...) -> outputs, or inputs -> outputs.
        inputs: shape (N, ...).
        train: whether this is a training step.
        mask: True for examples, False for padding, shape (N,); None: all are examples.

    Raises:
        ValueError: if the layer has only one of the two keywords. Without `mask` it would count padding in its batch
            statistics; without `train` it would not know when to take them.
    """
    known = _keywords(layer)
    if len(known) == 1:
        (one,) = known
        raise ValueError(
            f"a layer must take the keywords train and mask, or neither; {type(layer).__name__} takes only {one}"
        )
    return layer(inputs, train=train, mask=mask) if known else layer(inputs)


def _keywords(layer: Any) -> set[str]:
    if isinstance(layer, nn.Sequential):
        return _keywords(layer.layers[0])  # which gets the arguments of the whole
    if isinstance(layer, nn.Module):
        layer = getattr(layer, "nnx_class", type(layer)).__call__  # flax.nnx.bridge.to_linen hides that of its module
    parameters = inspect.signature(layer).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return {"train", "mask"}
    return {"train", "mask"} & set(parameters)
