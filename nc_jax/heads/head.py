"""A head as a pair of pure functions, which Linen, NNX, Equinox and plain JAX call alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nc_jax.collective import Axes
from nc_jax.heads.output import HeadOutput
from nc_jax.manifolds import Stiefel

Arrays = dict[str, Any]  # parameters, or state: arrays (or dictionaries of them) by name


class Initial(NamedTuple):
    """How an array of a head begins.

    Attributes:
        draw: key -> the initial value.
        random: whether it looks at the key.
    """

    draw: Callable[[Any], Any]
    random: bool = True


class Declared(NamedTuple):
    """The arrays of a head, by name: what an optimiser trains, and what the head itself keeps."""

    params: dict[str, Initial]
    state: dict[str, Initial]


@runtime_checkable
class Forward(Protocol):
    """What a head computes; see `Head.apply`."""

    def __call__(  # noqa: D102
        self,
        params: Arrays,
        state: Arrays,
        features: Float[Array, "batch dim"],
        labels: Int[Array, " batch"] | None,
        *,
        train: bool,
        mask: Bool[Array, " batch"] | None,
        axis_name: Axes,
    ) -> tuple[HeadOutput, Arrays]: ...


@dataclass(frozen=True, eq=False)
class Head:
    """A classifier head: who decides where the class vectors are. Made by `learned`, `fixed`, `rotated` or `nearest`.

    Attributes:
        name: of its kind, for people.
        num_classes: K.
        declare: (d, dtype of the features) -> the arrays of the head and how they begin; raises a ValueError if the
            frame does not fit into d dimensions.
        forward: see `apply`.
        collection: the name under which a Linen module keeps the head's state.
        manifolds: of parameters that must stay on one, by name: d -> manifold. `nc_jax.optim.on_manifold` makes an
            optimiser for them.

    Example:
        >>> from nc_jax import heads
        >>> head = heads.nearest(num_classes=4)
        >>> params, state = head.init(jax.random.key(0), dim=8)
        >>> features, labels = jax.random.normal(jax.random.key(1), (12, 8)), jnp.arange(12) % 4
        >>> output, state = head.apply(params, state, features, labels, train=True)
        >>> output.logits.shape, int(state["steps"])
        ((12, 4), 1)
    """

    name: str
    num_classes: int
    declare: Callable[[int, DTypeLike], Declared] = field(repr=False)
    forward: Forward = field(repr=False)
    collection: str = field(default="state", repr=False)
    manifolds: Mapping[str, Callable[[int], Stiefel]] = field(default_factory=dict, repr=False)

    def init(self, key: PRNGKeyArray, dim: int, dtype: DTypeLike = jnp.float32) -> tuple[Arrays, Arrays]:
        """Return the initial parameters, which an optimiser trains, and the state, which `apply` returns anew.

        Args:
            key: determines what is drawn.
            dim: feature dimension d.
            dtype: of the features.

        Raises:
            ValueError: if the head's frame does not fit into d dimensions.
        """
        declared = self.declare(dim, dtype)
        keys = iter(jax.random.split(key, len(declared.params) + len(declared.state)))
        params, state = ({name: one.draw(next(keys)) for name, one in part.items()} for part in declared)
        return params, state

    def apply(
        self,
        params: Arrays,
        state: Arrays,
        features: Float[Array, "batch dim"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
        axis_name: Axes = None,
    ) -> tuple[HeadOutput, Arrays]:
        """Classify a batch; in training, a nearest head first moves its frame to it.

        Args:
            params: of `init`, trained.
            state: of `init`, or of the call before.
            features: shape (N, d).
            labels: integer classes 0..K-1, shape (N,); heads that learn from them need them in training. Without
                `train` they are ignored.
            train: whether this is a training step.
            mask: which rows are examples, shape (N,); the others are padding and count for nothing. None: all whose
                label is not negative.
            axis_name: of the axis of your own `pmap` or `shard_map` over which the batch is split; None is what
                `nc_jax.collective.over` has bound, or one device. Under `jax.jit` over sharded arrays none is needed.

        Returns:
            The output, and the state for the next call: the same object if nothing changed.

        Raises:
            ValueError: if the features have another shape, or labels are missing in training.
        """
        return self.forward(params, state, features, labels, train=train, mask=mask, axis_name=axis_name)


def constant(value: Callable[[], Any]) -> Initial:
    """An array that begins the same under every key."""
    return Initial(lambda key: value(), random=False)
