"""Extensions: what a method adds to a training step besides its head and its loss."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.collective import all_rows, all_sum
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput


class Client(NamedTuple):
    """What a step knows of the client of federated learning that makes it.

    Attributes:
        number: number of the client, int32.
        counts: number of its training examples of each class, shape (K,), int32.
        received: parameters, and other variables, as the server sent them at the begin of the round; None unless the
            method asks for them (`nc_jax.federated.Federation.remembers`).
        previous: those with which the client ended its last round; at first, those of the initial model. None unless
            the method asks for them.
    """

    number: Int[Array, ""]
    counts: Int[Array, " classes"]
    received: tuple[Any, Any] | None = None
    previous: tuple[Any, Any] | None = None


class Context(NamedTuple):
    """What losses and extensions know about the step, besides its batch.

    Attributes:
        step: number of optimiser steps taken before this step, int32.
        train: True in a training step, False in evaluation.
        key: random key of the step, different for each extension; None in evaluation.
        places: row numbers that the rows of this device have in the batch of all devices, shape (N,); None in
            evaluation.
        count: number of examples, without padding, in the batch of all devices; None in evaluation.
        new_count: the same without replayed examples; None in evaluation, and if there is no replay memory.
        whole: the batch that this device has in this step, without inputs, before it is cut into parts, and after
            `on_batch` of all extensions; None in evaluation. Weights that depend on the batch are taken from it, so
            that they depend neither on the number of devices nor on `StepOptions.accumulate`.
        client: the client whose step or whose model this is; None for the server's model, and without clients.
        apply: function (parameters, other variables, batch) -> output of the same model in evaluation, for methods that
            look at another state of it; None in evaluation.
    """

    step: Int[Array, ""]
    train: bool
    key: PRNGKeyArray | None = None
    places: Int[Array, " batch"] | None = None
    count: Array | None = None
    new_count: Array | None = None
    whole: Batch | None = None
    client: Client | None = None
    apply: Callable[[Any, Any, Batch], HeadOutput] | None = None

    def everyone(self, array: Array) -> Array:
        """Return the rows of all devices, in the order of the whole batch. Use it to mix examples across devices."""
        assert self.places is not None, "evaluation looks at one example at a time"
        return all_rows(array, self.places)

    def class_counts(self, num_classes: int) -> Int[Array, " classes"]:
        """Return how many examples of each class the batch of all devices has, shape (K,), int32.

        Args:
            num_classes: K.
        """
        assert self.whole is not None, "evaluation looks at one example at a time"
        labels = jnp.where(self.whole.mask, self.whole.labels, num_classes)  # padding is out of range, and dropped
        return all_sum(jnp.zeros(num_classes, jnp.int32).at[labels].add(1, mode="drop"))

    def mean_over_new(self) -> Float[Array, ""]:
        """Return the factor on the losses of new examples whose mean over the batch is then that over new examples."""
        assert self.count is not None, "evaluation has no cost"
        return jnp.ones(()) if self.new_count is None else self.count / jnp.maximum(self.new_count, 1)

    def mean_over_draw(self, draws: int) -> Float[Array, ""]:
        """Return the same factor for the examples of one of the draws from the replay memory.

        Args:
            draws: number of draws in each step; all are equally large.

        Raises:
            ValueError: if the stream has no replay memory.
        """
        if self.new_count is None or self.count is None:
            raise ValueError("replayed examples need a stream with a memory (nc_jax.streams.Replay); got one without")
        return self.count / jnp.maximum((self.count - self.new_count) / draws, 1)


class Extension:
    """A part of a method that changes a step. Derive from this class and override the methods (hooks) that you need.

    Each hook is a pure function, traced once. A hook that is not overridden is not traced at all, so a step without
    extensions is the plain step. Hooks run in the order of the extensions.

    A mixed example keeps its own class in `batch.labels`, and its second class goes to `batch.partner`. The step then
    takes the weighted sum of the losses with both classes (see `nc_jax.training.PairLoss`).

    An extension may have a state, which is part of the checkpoint and must be equal on all devices. Before a value that
    differs between devices enters the state, sum it by `nc_jax.collective.all_sum`. The hooks get the state as it was
    before the step. If a batch comes in parts, `on_batch` sees it whole, and `update` goes on from part to part.
    """

    @property
    def name(self) -> str:
        """Name under which the step keeps the state and the penalties; the extensions of a step need unique names."""
        return type(self).__name__

    def init(self, key: PRNGKeyArray, output: HeadOutput) -> Any:
        """Return the initial state: a tree of arrays, or None.

        Args:
            key: random key.
            output: what the head gives for a batch, as shapes and dtypes (`jax.ShapeDtypeStruct`).
        """
        del key, output

    def on_batch(self, context: Context, state: Any, batch: Batch) -> Batch:
        """Change the batch before the network sees it (mixup, for instance), and before it is cut into parts.

        Called in training only. The number of examples on each device must stay.
        """
        del context, state
        return batch

    def on_features(
        self, context: Context, state: Any, features: Float[Array, "batch dim"], batch: Batch
    ) -> tuple[Float[Array, "batch dim"], Batch]:
        """Change features, and batch, between backbone and head (arc-mixup, for instance). Called in training only."""
        del context, state
        return features, batch

    def on_output(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Change the head's output (mask the logits of unseen classes, say). Called in training and in evaluation."""
        del context, state, batch
        return output

    def penalties(
        self, context: Context, state: Any, output: HeadOutput, batch: Batch
    ) -> dict[str, Float[Array, " batch"]]:
        """Return penalties by name, each of shape (batch,). The step adds their means over the batch to the cost."""
        del context, state, output, batch
        return {}

    def update(self, context: Context, state: Any, output: HeadOutput, batch: Batch) -> Any:
        """Return the next state, given the head's output. No gradient flows into it. Called in training only."""
        del context, output, batch
        return state


class Chain:
    """Calls the hooks of several extensions in their order, each with its own state and random key.

    Args:
        extensions: the extensions of a step.

    Raises:
        ValueError: if two extensions have the same name.
    """

    def __init__(self, extensions: Sequence[Extension]):
        self.extensions = tuple(extensions)
        names = [extension.name for extension in self.extensions]
        if len(set(names)) < len(names):
            raise ValueError(f"the extensions of a step need different names; got {', '.join(names)}")
        hooks = ("on_batch", "on_features", "on_output", "penalties", "update")
        self.hooks = frozenset(hook for hook in hooks if any(_overrides(one, hook) for one in self.extensions))

    def init(self, key: PRNGKeyArray, output_of: Callable[[], HeadOutput]) -> dict[str, Any] | None:
        """Return the initial states by name of extension; None if no extension has a state.

        Args:
            key: random key.
            output_of: () -> what the head gives for a batch, as shapes and dtypes.
        """
        having = [(number, one) for number, one in enumerate(self.extensions) if _overrides(one, "init")]
        output: Any = output_of() if having else None
        states = {one.name: one.init(jax.random.fold_in(key, number), output) for number, one in having}
        return {name: state for name, state in states.items() if state is not None} or None

    def has(self, hook: str) -> bool:
        """Return whether any extension overrides the hook of this name."""
        return hook in self.hooks

    def on_batch(self, context: Context, states: Any, batch: Batch) -> Batch:
        """Apply `on_batch` of every extension that overrides it."""
        for here, one, state in self._with("on_batch", context, states):
            batch = one.on_batch(here, state, batch)
        return batch

    def on_features(self, context: Context, states: Any, features: Array, batch: Batch) -> tuple[Array, Batch]:
        """Apply `on_features` of every extension that overrides it."""
        for here, one, state in self._with("on_features", context, states):
            features, batch = one.on_features(here, state, features, batch)
        return features, batch

    def on_output(self, context: Context, states: Any, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Apply `on_output` of every extension that overrides it."""
        for here, one, state in self._with("on_output", context, states):
            output = one.on_output(here, state, output, batch)
        return output

    def penalties(self, context: Context, states: Any, output: HeadOutput, batch: Batch) -> dict[str, Array]:
        """Return the penalties of all extensions, each of shape (batch,), under the names "extension/penalty"."""
        return {
            f"{one.name}/{name}": value
            for here, one, state in self._with("penalties", context, states)
            for name, value in one.penalties(here, state, output, batch).items()
        }

    def update(self, context: Context, states: Any, output: HeadOutput, batch: Batch) -> Any:
        """Return the next states by name of extension; None if no extension has a state."""
        new = dict(states or {})
        for here, one, state in self._with("update", context, states):
            found = jax.lax.stop_gradient(one.update(here, state, output, batch))
            new[one.name] = jax.tree.map(lambda value, old: value.astype(old.dtype), found, state)
        return new or None

    def states_of(self, hook: str, states: Any) -> dict[str, Any] | None:
        """Return the states of the extensions that override a hook; None if none of them has a state."""
        names = [one.name for one in self.extensions if _overrides(one, hook)]
        return {name: state for name, state in (states or {}).items() if name in names} or None

    def _with(self, hook: str, context: Context, states: Any) -> list[tuple[Context, Extension, Any]]:
        chosen = []
        for number, one in enumerate(self.extensions):
            if _overrides(one, hook):
                key = None if context.key is None else jax.random.fold_in(context.key, number)
                chosen.append((context._replace(key=key), one, (states or {}).get(one.name)))
        return chosen


def _overrides(extension: Extension, hook: str) -> bool:
    return getattr(type(extension), hook) is not getattr(Extension, hook)
