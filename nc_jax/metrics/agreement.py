"""How often two rules agree, such as a classifier and the nearest class mean."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class Agreement(NamedTuple):
    """How often two rules agreed. Add two with `merge`, read the share with `compute`.

    Attributes:
        agree: number of examples on which the rules agreed.
        count: number of examples.
    """

    agree: Int[Array, ""]
    count: Int[Array, ""]

    def merge(self, other: "Agreement") -> "Agreement":
        """Join two disjoint sets of examples."""
        return Agreement(self.agree + other.agree, self.count + other.count)

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "Agreement":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the counts of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        return Agreement(*jax.lax.psum(tuple(self), axis_name))

    def compute(self) -> Float[Array, ""]:
        """Return the share of examples on which the rules agree, in [0, 1]; NaN without any example."""
        return self.agree / self.count
