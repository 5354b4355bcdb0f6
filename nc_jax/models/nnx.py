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
        # Every array is a variable; a parameter or a state is one array, or a dictionary of arrays.
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.state = nnx.data(jax.tree.map(HeadState, state))

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
        params, state = (_values(variables) for variables in (self.params, self.state))
        output, new = self.head.apply(params, state, features, labels, train=train, mask=mask, axis_name=axis_name)
        if new is not state:
            for variable, value in zip(_variables(self.state), jax.tree.leaves(new), strict=True):
                variable[...] = value
        return output


def _values(variables: Any) -> Any:
    return jax.tree.map(lambda variable: variable[...], variables, is_leaf=_is_variable)


def _variables(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_is_variable)


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)
