"""A head as a pair of pure functions, so that Linen, NNX, Equinox and plain JAX can all call it."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nc_jax.checks import (
    PADDING_LABEL,
    Labels,
    Mask,
    Reals,
    Rows,
    as_array,
    check_key,
    check_label_shape,
    check_whole,
    checked_labels,
    checked_mask,
    real_array,
)
from nc_jax.collective import Axes
from nc_jax.heads.output import HeadOutput
from nc_jax.manifolds import Submanifold
from nc_jax.solvers import Solution

Arrays = dict[str, Any]  # parameters or state: name -> array, or name -> dictionary of arrays


class Initial(NamedTuple):
    """The initial value of one array of a head.

    Attributes:
        draw: function from a random key to the initial value.
        random: whether the initial value depends on the key.
        follows: name of an array, declared before this one, whose initial value `draw` takes instead of a key.
    """

    draw: Callable[[Any], Any]
    random: bool = True
    follows: str | None = None


class Declared(NamedTuple):
    """The initial values of a head's arrays, by name.

    Attributes:
        params: arrays that an optimiser trains.
        state: arrays that the head itself updates.
    """

    params: dict[str, Initial]
    state: dict[str, Initial]


@runtime_checkable
class Forward(Protocol):
    """Type of the function that a head computes; `Head.apply` describes its arguments and results."""

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
    """A classifier head as two pure functions; `learned`, `fixed`, `rotated` and `nearest` each make one.

    Attributes:
        name: kind of head, for printed output.
        num_classes: K.
        declare: function (d, dtype of the features) -> `Declared`, the initial values of the head's parameters and
            state. It raises a ValueError if the frame does not fit into d dimensions.
        forward: function that `apply` calls, with the same arguments.
        collection: name of the variable collection in which a Linen module keeps the head's state.
        manifolds: for every parameter that must stay on a manifold: its name -> function from d to that manifold.
            `nc_jax.optim.on_manifold` makes an optimiser that keeps such parameters there.
        subsampled: function (this head, n) -> the head that `nc_jax.heads.sampled` returns; None if there is none.
        pool: function (state, sums of the clients' changes of it) -> (next state, how its inner problem ended): what
            the server makes of its state after a round of federated learning; see `nc_jax.heads.pooled`. None: the
            server's state stays as it is.

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
    manifolds: Mapping[str, Callable[[int], Submanifold]] = field(default_factory=dict, repr=False)
    subsampled: "Callable[[Head, int], Head] | None" = field(default=None, repr=False)
    pool: "Callable[[Arrays, Arrays], tuple[Arrays, Solution]] | None" = field(default=None, repr=False)

    def __post_init__(self):
        check_whole("num_classes", self.num_classes)
        if self.num_classes < 2:
            raise ValueError(f"a head needs num_classes >= 2; got {self.num_classes}")

    def init(self, key: PRNGKeyArray, dim: int, dtype: DTypeLike = jnp.float32) -> tuple[Arrays, Arrays]:
        """Return the initial parameters and the initial state.

        Args:
            key: random key from which initial values are drawn.
            dim: feature dimension d.
            dtype: dtype of the features that `apply` will get.

        Returns:
            The parameters, which an optimiser trains, and the state, which every call of `apply` returns updated.

        Raises:
            ValueError: if d < 1, the head's frame does not fit into d dimensions, or the key is none.
        """
        check_whole("dim", dim)
        if dim < 1:
            raise ValueError(f"a head needs features of dim >= 1; got dim={dim}")
        check_key(key)
        if key is None:
            raise ValueError("a head needs a random key, as jax.random.key(0) makes one; got None")
        declared = self.declare(dim, dtype)
        keys = iter(jax.random.split(key, len(declared.params) + len(declared.state)))
        params, state = {}, {}
        for part, values in zip(declared, (params, state), strict=True):
            for name, one in part.items():
                own = next(keys)
                values[name] = one.draw(own if one.follows is None else values[one.follows])
        return params, state

    def apply(
        self,
        params: Arrays,
        state: Arrays,
        features: Reals,
        labels: Labels | None = None,
        *,
        train: bool = False,
        mask: Mask | None = None,
        axis_name: Axes = None,
    ) -> tuple[HeadOutput, Arrays]:
        """Classify a batch. In training, a nearest head first updates its frame with the batch's class means.

        Args:
            params: parameters from `init`, or as the optimiser has updated them.
            state: state from `init`, or from the previous call of `apply`.
            features: shape (N, d).
            labels: integer classes 0..K-1, shape (N,); -1 marks padding. Only nearest and sampled heads read them, and
                only if `train` is True: without it, labels are ignored and nothing is learned. A nearest head then
                warns.
            train: whether this is a training step, in which a nearest head updates its state.
            mask: True for rows that are examples, False for padding, shape (N,). A nearest head leaves padding out of
                the class means. None: every row whose label is not -1 is an example.
            axis_name: name of the axis of your own `pmap` or `shard_map` over which the batch is split. None: the axes
                that `nc_jax.collective.over` has bound, or no axis. `jax.jit` over sharded arrays needs no axis name.

        Returns:
            The output, and the state for the next call (the same object if the head did not update it).

        Raises:
            ValueError: if the features do not have shape (N, d) with the dim d of `init`, the labels are not integers
                of shape (N,) in -1..K-1, the mask is not boolean of shape (N,), or a nearest or sampled head gets no
                labels in training. Under `jax.jit` the range of labels is unknown; a label that is no class then counts
                as a NaN in the batch.
        """
        features = real_array(features, "features")
        if features.ndim != 2:
            raise ValueError(f"features must have shape (batch, dim); got shape {features.shape}")
        if mask is not None:
            mask = checked_mask(mask, features.shape[0])
        if labels is not None:
            labels = self._checked(labels, mask, features.shape[0])
            if self.collection == "nearest" and not train:
                message = f"a {self.name} head learns from labels only with train=True; got labels without it"
                warnings.warn(message, stacklevel=2)
        return self.forward(params, state, features, labels, train=train, mask=mask, axis_name=axis_name)

    def _checked(self, labels: Labels, mask: Array | None, rows: Rows) -> Int[Array, " batch"]:
        """Return the labels with `PADDING_LABEL` where the mask is False, once they are right elsewhere."""
        if mask is None:
            return checked_labels(labels, self.num_classes, rows=rows)
        labels = as_array(labels, "labels")
        check_label_shape(labels)
        if labels.shape[0] == rows:
            labels = jnp.where(mask, labels, PADDING_LABEL)
        return checked_labels(labels, self.num_classes, rows=rows)


def constant(value: Callable[[], Any]) -> Initial:
    """Declare an array whose initial value does not depend on the key."""
    return Initial(lambda key: value(), random=False)
