"""How often two rules agree, such as a classifier and the nearest class mean, or a rule and the labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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


def right_answers(scores: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Bool[Array, " batch"]:
    """Return for which examples the largest score is that of the label; never where it is not a finite number.

    Args:
        scores: shape (N, K). At a tie the smaller class number is the answer.
        labels: class numbers, shape (N,). A label that is no class is never answered.
    """
    # argmax treats the first NaN as the largest score, so without the second test a diverged network might be right.
    return (jnp.argmax(scores, axis=1) == labels) & jnp.isfinite(jnp.max(scores, axis=1))


def same_answers(
    scores: Float[Array, "batch classes"], others: Float[Array, "batch classes"], among: Bool[Array, " classes"]
) -> Bool[Array, " batch"]:
    """Return for which examples two scores have their largest value at the same class; never where one is not finite.

    Args:
        scores: shape (N, K). At a tie the smaller class number is the answer.
        others: shape (N, K).
        among: True for the classes from which both choose, shape (K,).
    """

    def answers(each: Array) -> tuple[Array, Array]:
        chosen = jnp.where(among[None], each, -jnp.inf)
        answer = jnp.argmax(chosen, axis=1)  # a NaN counts as the largest, so the score of the answer tells
        return answer, jnp.isfinite(jnp.take_along_axis(chosen, answer[:, None], axis=1)[:, 0])

    # Each by itself, so that a program need not hold both scores at once.
    (first, sound), (second, also) = answers(scores), answers(others)
    return (first == second) & sound & also
