"""The heads of `nc_jax.heads` as Linen modules."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.errors import ScopeParamShapeError

from nc_jax import heads
from nc_jax.checks import Labels, Mask, Reals, real_array
from nc_jax.heads import Head, HeadOutput, Initial


class HeadModule(nn.Module):
    """A head as a Linen module: its parameters are in "params", its state is in a collection of its own.

    This collection is "frame" for a fixed head, "nearest" for a nearest head and "staged" for a head in stages. It must
    be mutable in training.

    Attributes:
        head: a head from `nc_jax.heads`.
    """

    head: Head

    @nn.compact
    def __call__(
        self,
        features: Reals,
        labels: Labels | None = None,
        *,
        train: bool = False,
        mask: Mask | None = None,
    ) -> HeadOutput:
        """Classify a batch; see `nc_jax.heads.Head.apply`.

        Without `train`, labels are ignored and the state stays: a nearest head then learns nothing, and warns.

        If several devices share the batch, call this inside `nc_jax.collective.over`, as the training step does.

        Args:
            features: shape (N, d).
            labels: shape (N,); a nearest head needs them in training.
            train: whether this is a training step.
            mask: True for examples, False for padding, shape (N,); None: rows with a negative label are padding.

        Raises:
            ValueError: if the features are not a matrix or do not fit the head, the labels are not integers of shape
                (N,) in -1..K-1, or a nearest head gets no labels in training.
        """
        features = real_array(features, "features")
        if features.ndim != 2:
            raise ValueError(f"features must have shape (batch, dim); got shape {features.shape}")
        if train and labels is None and self.head.collection == "nearest":
            raise ValueError(f"a {self.head.name} head needs labels in training; got None")
        declared = self.head.declare(features.shape[-1], features.dtype)
        variables: dict[str, Any] = {}
        for name, one in declared.state.items():
            variables[name] = self.variable(self.head.collection, name, self._drawn, one, variables)
        try:
            params = {name: self.param(name, one.draw) for name, one in declared.params.items()}
        except ScopeParamShapeError as error:
            raise ValueError(
                f"features must have the dim for which the head was initialised; got shape {features.shape}"
            ) from error
        state = {name: variable.value for name, variable in variables.items()}
        if self.is_initializing():  # not a step: it must not update the state
            train, labels = False, None
        output, new = self.head.apply(params, state, features, labels, train=train, mask=mask)
        if new is not state:
            for name, variable in variables.items():
                variable.value = new[name]
        return output

    def _drawn(self, one: Initial, earlier: dict[str, Any]) -> Any:
        if one.follows is not None:
            return one.draw(earlier[one.follows].value)
        return one.draw(self.make_rng("params") if one.random else None)


def _module(name: str, constructor: Callable[..., Head]) -> Callable[..., HeadModule]:
    """Return a constructor of Linen modules with the arguments of the head's constructor, plus Linen's `name`."""
    kind: Any = type(name, (HeadModule,), {"__doc__": HeadModule.__doc__, "__module__": __name__})

    @functools.wraps(constructor)
    def build(*args: Any, name: str | None = None, **keywords: Any) -> HeadModule:
        return kind(constructor(*args, **keywords), name=name)

    build.__name__ = build.__qualname__ = name
    return build


LearnedHead = _module("LearnedHead", heads.learned)
FixedHead = _module("FixedHead", heads.fixed)
NearestHead = _module("NearestHead", heads.nearest)
RotatedHead = _module("RotatedHead", heads.rotated)
TreeSoftmaxHead = _module("TreeSoftmaxHead", heads.tree_softmax)
LevelsHead = _module("LevelsHead", heads.levels)
SampledHead = _module("SampledHead", heads.sampled)
StagedHead = _module("StagedHead", heads.staged)
