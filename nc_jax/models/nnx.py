"""The heads of `nc_jax.heads` as Flax NNX modules."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nc_jax.checks import Labels, Mask, Reals
from nc_jax.collective import Axes
from nc_jax.heads import Head, HeadOutput


class HeadState(nnx.Variable):
    """State of a head, which no optimiser trains: a fixed frame, or running class means."""


class NNXHead(nnx.Module):
    """A head of `nc_jax.heads` as an NNX module: its parameters are `nnx.Param`, its state is `HeadState`.

    Args:
        head: a head from `nc_jax.heads`.
        dim: feature dimension d.
        rngs: random streams; "params" draws the initial values.
        dtype: dtype of the features.

    Raises:
        ValueError: if the head's frame does not fit into d dimensions.

    Example:
        >>> from nc_jax import heads
        >>> head = NNXHead(heads.nearest(num_classes=4), dim=8, rngs=nnx.Rngs(0))
        >>> features, labels = jax.random.normal(jax.random.key(1), (12, 8)), jnp.arange(12) % 4
        >>> head(features, labels, train=True).logits.shape, int(head.state["steps"][...])
        ((12, 4), 1)
    """

    def __init__(self, head: Head, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        params, state = head.init(rngs.params(), dim, dtype)
        self.head = head
        self.params = nnx.data({name: _wrapped(nnx.Param, value) for name, value in params.items()})
        self.state = nnx.data({name: HeadState(value) for name, value in state.items()})

    def __call__(
        self,
        features: Reals,
        labels: Labels | None = None,
        *,
        train: bool = False,
        mask: Mask | None = None,
        axis_name: Axes = None,
    ) -> HeadOutput:
        """Classify a batch and store the new state; see `nc_jax.heads.Head.apply` for the arguments."""
        params = jax.tree.map(lambda leaf: leaf[...], self.params, is_leaf=_is_variable)
        state = {name: variable[...] for name, variable in self.state.items()}
        output, new = self.head.apply(params, state, features, labels, train=train, mask=mask, axis_name=axis_name)
        if new is not state:
            for name, variable in self.state.items():
                variable[...] = new[name]
        return output


def _wrapped(kind: type[nnx.Variable], value: Any) -> Any:
    """Wrap every array of a parameter in a variable; the parameter is one array or a dictionary of arrays."""
    return jax.tree.map(kind, value)


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)
