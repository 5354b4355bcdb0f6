"""Two views of the landscape of unconstrained features: a plane through a saddle and two minima; minority collapse."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nc_jax.arrays import matmul, transpose
from nc_jax.frames.properties import cosines
from nc_jax.solvers import polar
from nc_jax.study.descent import gradient_descent, lbfgs, random_trees, stable_rate
from nc_jax.theory import (
    Point,
    UnconstrainedFeatures,
    duality_gap,
    escape_direction,
    logits,
    objective,
    optimal_point,
    optimal_value,
)

VANISHED = 1e-4  # class vectors shorter than this, relative to the majority's, are zero up to the minimiser's rounding


def slice_through(problem: UnconstrainedFeatures, scale: float, size: int = 81) -> dict[str, Any]:
    """Evaluate the objective on the plane through a saddle and two minima, mirror images of each other.

    The saddle is the best point of one rank less than the minimum's. The minimum is turned so that it is as near to the
    saddle as it can be, after a step along the saddle's escape direction: what it then has in the dimensions that the
    saddle uses is one axis of the plane (0 at the saddle, 1 at the minima), the rest the other (+1 and -1).

    Args:
        problem: with equal counts.
        scale: standard deviation of the random starts from which the saddle is sought.
        size: number of grid points along each axis.

    Returns:
        "along" and "across", the grid's coordinates, and "gaps", values above the least one: (across, along).
    """
    rank = problem.num_classes - 1 - (problem.loss == "cross_entropy")
    low = UnconstrainedFeatures(
        problem.counts, rank, problem.weight_decay, problem.feature_decay, problem.bias_decay, problem.loss
    )
    starts = random_trees(low.origin(), 16, scale=scale, seed=0)
    cost = partial(objective, low)
    ends = gradient_descent(
        cost, starts, rate=stable_rate(cost, starts), steps=40_000, tolerance=1e-6 * problem.threshold
    )
    lowest = jax.tree.map(lambda leaf: leaf[jnp.argmin(ends.value)], ends.point)
    saddle, along, across = jax.jit(_plane, static_argnums=0)(problem, lowest)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @partial(jax.vmap, in_axes=(0, None))
    def value(first: Array, second: Array) -> Array:
        here = jax.tree.map(lambda at, one, two: at + first * one + second * two, saddle, along, across)
        return objective(problem, here)

    coordinates = np.linspace(-0.6, 1.6, size), np.linspace(-1.6, 1.6, size)
    gaps = value(*coordinates) - optimal_value(problem)
    return {"along": coordinates[0].tolist(), "across": coordinates[1].tolist(), "gaps": np.asarray(gaps).tolist()}


def _plane(problem: UnconstrainedFeatures, lowest: Point) -> tuple[Point, Point, Point]:
    """Put a minimum of fewer dimensions into all of them; return that saddle and the two axes to the minima."""
    rank = lowest.frame.shape[0]
    room = problem.dim - rank
    saddle = Point(
        jnp.pad(lowest.frame, ((0, room), (0, 0))), jnp.pad(lowest.features, ((0, 0), (0, room))), lowest.bias
    )
    beside = jax.tree.map(jnp.add, saddle, escape_direction(problem, saddle).direction)
    minimum = optimal_point(problem)
    turn = polar(matmul(_stacked(beside), transpose(_stacked(minimum))))
    minimum = minimum._replace(frame=matmul(turn, minimum.frame), features=matmul(minimum.features, transpose(turn)))
    used = jnp.arange(problem.dim) < rank
    inside = minimum._replace(
        frame=jnp.where(used[:, None], minimum.frame, 0), features=jnp.where(used, minimum.features, 0)
    )
    along = jax.tree.map(jnp.subtract, inside, saddle)
    return saddle, along, jax.tree.map(jnp.subtract, minimum, inside)


@dataclasses.dataclass(frozen=True)
class MinorityOptions:
    """Two classes of many examples and two of few, over a range of decays.

    Attributes:
        minority: numbers of examples of each of the two minority classes; every number is a problem of its own.
        majority: number of examples of each of the two majority classes.
        decays: number of weight decays between the least and the greatest one; every decay is a problem of its own.
        least_decay: least weight decay of class vectors and features.
        greatest_decay: greatest weight decay of class vectors and features.
        bias_decay: weight decay of the bias, the same in all problems.

    Raises:
        ValueError: if a number is out of its range.
    """

    minority: tuple[int, ...] = (20, 10, 4, 2, 1)
    majority: int = 20  # of these counts the thresholds are known
    decays: int = 30
    least_decay: float = 1e-3
    greatest_decay: float = 0.1  # with equal counts everything is zero from 1 / (K sqrt(n)) = 0.056 on
    bias_decay: float = 0.02

    def __post_init__(self):
        if not self.minority or min((*self.minority, self.majority, self.decays)) < 1:
            raise ValueError(
                "every class needs at least one example, and there must be a decay; "
                f"got minority={self.minority}, majority={self.majority}, decays={self.decays}"
            )
        if not 0 < self.least_decay < self.greatest_decay or not self.bias_decay > 0:
            raise ValueError(
                "decays must be positive and least_decay below greatest_decay; "
                f"got {self.least_decay}, {self.greatest_decay} and bias_decay={self.bias_decay}"
            )


def minority_collapse(config: MinorityOptions) -> dict[str, Any]:
    """Minimise with two classes of many examples and two of few, over a range of decays.

    Returns:
        "decays"; by number of minority examples, "angles" between the minority's class vectors in degrees and "norms"
        of these relative to the majority's, at every decay (null where they vanish); "vanishes", the least decay at
        which they do; "duality_gaps", the largest distance that a value can have from the least one.
    """
    decays = np.geomspace(config.least_decay, config.greatest_decay, config.decays)
    found: dict[str, Any] = {"decays": decays.tolist(), "angles": {}, "norms": {}, "vanishes": {}, "duality_gaps": {}}
    every = [(config.majority, config.majority, count, count) for count in config.minority]
    points = _minimised(np.repeat(every, len(decays), axis=0), np.tile(decays, len(every)), config.bias_decay)
    norms = np.linalg.norm(points.frame, axis=1)
    relative = (norms[:, 2] / np.maximum(norms[:, 0], VANISHED)).reshape(len(every), -1)
    angles = np.degrees(np.arccos(np.clip(jax.vmap(cosines)(points.frame)[:, 2, 3], -1, 1))).reshape(len(every), -1)
    for row, counts in enumerate(every):
        vanished, name = relative[row] < VANISHED, str(counts[-1])
        found["angles"][name] = [None if gone else float(at) for gone, at in zip(vanished, angles[row], strict=True)]
        found["norms"][name] = np.where(vanished, 0, relative[row]).tolist()
        found["vanishes"][name] = float(decays[np.argmax(vanished)]) if vanished.any() else None
        gaps = []
        for column, decay in enumerate(decays.tolist()):
            problem = UnconstrainedFeatures(counts, 4, decay, decay, config.bias_decay)
            place = row * len(decays) + column
            point = jax.tree.map(lambda leaf, place=place: leaf[place], points)
            gaps.append(float(duality_gap(problem, point)))
        found["duality_gaps"][name] = max(gaps)
    return found


def _minimised(counts: np.ndarray, decays: np.ndarray, bias_decay: float, starts: int = 4) -> Point:
    """Return the best minimisers of a few starts, one per row of counts and decay of class vectors and features."""
    number, num_classes = counts.shape
    problem = UnconstrainedFeatures((1,) * num_classes, num_classes, 1.0, 1.0, bias_decay)

    def cost(tree: tuple[Point, Array, Array]) -> Array:
        # Decays and counts are leaves of the tree, so that one program minimises for all of them; they have no
        # gradient, and so stay. `duality_gap` checks this objective against the theory's.
        point, (decay, sizes) = tree[0], jax.lax.stop_gradient(tree[1:])
        assert point.bias is not None, "the problem has one"
        losses = -jnp.diagonal(jax.nn.log_softmax(logits(problem, point)))
        squares = jnp.sum(point.frame**2) + jnp.sum(sizes[:, None] * point.features**2)
        return sizes @ losses / jnp.sum(sizes) + decay / 2 * squares + bias_decay / 2 * jnp.sum(point.bias**2)

    points = random_trees(problem.origin(), starts, scale=0.3, seed=0)
    points = jax.tree.map(lambda leaf: jnp.repeat(leaf, number, axis=0), points)
    trees = points, jnp.tile(jnp.asarray(decays), starts), jnp.tile(jnp.asarray(counts, float), (starts, 1))
    ends = lbfgs(cost, trees, steps=2000, tolerance=1e-10)
    best = jnp.argmin(ends.value.reshape(starts, number), axis=0)
    return jax.tree.map(
        lambda leaf: leaf.reshape(starts, number, *leaf.shape[1:])[best, jnp.arange(number)], ends.point[0]
    )


def _stacked(point: Point) -> Array:
    return jnp.concatenate([point.frame, transpose(point.features)], axis=1)
