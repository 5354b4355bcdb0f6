"""Extensions: what a method adds to a training step beside its head and its loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.collective import all_rows
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput


class Context(NamedTuple):
    """What losses and extensions know of the step besides its batch.

    Attributes:
        step: number of optimiser steps taken before, int32.
        train: whether this is a training step; evaluation has no randomness and learns nothing.
        key: random key of the step, another one for each extension; None in evaluation.
        places: where the rows of this device stand in the batch of all devices, shape (N,); None in evaluation.
        count: number of examples in the batch on all devices; None in evaluation.
    """

    step: Int[Array, ""]
    train: bool
    key: PRNGKeyArray | None = None
    places: Int[Array, " batch"] | None = None
    count: Array | None = None

    def everyone(self, array: Array) -> Array:
        """Return the rows of all devices, in the order of the whole batch: what mixing across examples draws from."""
        assert self.places is not None, "evaluation looks at one example at a time"
        return all_rows(array, self.places)


class Extension:
    """A part of a method that changes a step. Derive from it and override what is needed.

    Each hook is a pure function, traced once; a hook that is not overridden is not traced at all, so a step without
    extensions is the plain step. Hooks run in the order of the extensions. Examples mixed by `on_batch` keep their own
    class in `batch.labels` and get `batch.partner`; the step then weighs the loss of both classes.

    What differs between devices must be summed by `nc_jax.collective.all_sum` before it enters the state, which is the
    same on all devices. The state is part of the checkpoint.
    """

    @property
    def name(self) -> str:
        """Of its state and its penalties; two extensions of a step need different ones."""
        return type(self).__name__

    def init(self, key: PRNGKeyArray) -> Any:
        """Return the initial state: a tree of arrays, or None."""
        del key

    def on_batch(self, context: Context, state: Any, batch: Batch) -> Batch:
        """Change the batch before the network sees it: mixup, for instance. In training only."""
        del context, state
        return batch

    def on_features(
        self, context: Context, state: Any, features: Float[Array, "batch dim"], batch: Batch
    ) -> tuple[Float[Array, "batch dim"], Batch]:
        """Change the features between backbone and head: arc-mixup, for instance. In training only."""
        del context, state
        return features, batch

    def on_output(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Change the logits: a softmax over the classes seen so far, for instance. In training and in evaluation."""
        del context, state, batch
        return output

    def penalties(
        self, context: Context, state: Any, output: HeadOutput, batch: Batch
    ) -> dict[str, Float[Array, " batch"]]:
        """Return numbers for each example, by name, whose mean over the examples is added to the cost."""
        del context, state, output, batch
        return {}

    def update(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> Any:
        """Return the next state, from the output of the step; no gradient flows into it. In training only."""
        del context, output, batch
        return state


class Chain:
    """The extensions of a step, as the step calls them.

    Args:
        extensions: in their order.

    Raises:
        ValueError: if two have the same name.
    """

    def __init__(self, extensions: Sequence[Extension]):
        self.extensions = tuple(extensions)
        names = [extension.name for extension in self.extensions]
        if len(set(names)) < len(names):
            raise ValueError(f"the extensions of a step need different names; got {', '.join(names)}")
        hooks = ("on_batch", "on_features", "on_output", "penalties", "update")
        self.hooks = frozenset(hook for hook in hooks if any(_overrides(one, hook) for one in self.extensions))

    def init(self, key: PRNGKeyArray) -> dict[str, Any] | None:
        """Return the initial states by name; None if no extension has one."""
        having = [(number, one) for number, one in enumerate(self.extensions) if _overrides(one, "init")]
        states = {one.name: one.init(jax.random.fold_in(key, number)) for number, one in having}
        return {name: state for name, state in states.items() if state is not None} or None

    def has(self, hook: str) -> bool:
        """Whether some extension overrides a hook."""
        return hook in self.hooks

    def on_batch(self, context: Context, states: Any, batch: Batch) -> Batch:
        """Apply the hook of every extension that has it."""
        for here, one, state in self._with("on_batch", context, states):
            batch = one.on_batch(here, state, batch)
        return batch

    def on_features(self, context: Context, states: Any, features: Array, batch: Batch) -> tuple[Array, Batch]:
        """Apply the hook of every extension that has it."""
        for here, one, state in self._with("on_features", context, states):
            features, batch = one.on_features(here, state, features, batch)
        return features, batch

    def on_output(self, context: Context, states: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Apply the hook of every extension that has it."""
        for here, one, state in self._with("on_output", context, states):
            output = one.on_output(here, state, output, batch)
        return output

    def penalties(self, context: Context, states: Any, output: HeadOutput, batch: Batch) -> dict[str, Array]:
        """Return the penalties of all extensions, named "extension/penalty"."""
        return {
            f"{one.name}/{name}": value
            for here, one, state in self._with("penalties", context, states)
            for name, value in one.penalties(here, state, output, batch).items()
        }

    def update(self, context: Context, states: Any, output: HeadOutput, batch: Batch) -> Any:
        """Return the next states."""
        new = dict(states or {})
        for here, one, state in self._with("update", context, states):
            found = jax.lax.stop_gradient(one.update(here, state, output, batch))
            new[one.name] = jax.tree.map(lambda value, old: value.astype(old.dtype), found, state)
        return new or None

    def _with(self, hook: str, context: Context, states: Any) -> list[tuple[Context, Extension, Any]]:
        chosen = []
        for number, one in enumerate(self.extensions):
            if _overrides(one, hook):
                key = None if context.key is None else jax.random.fold_in(context.key, number)
                chosen.append((context._replace(key=key), one, (states or {}).get(one.name)))
        return chosen


def _overrides(extension: Extension, hook: str) -> bool:
    return getattr(type(extension), hook) is not getattr(Extension, hook)
