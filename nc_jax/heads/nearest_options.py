"""Settings of a nearest head, and what they mean for the running averages and the proximal term."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from nc_jax.heads.output import check_radius
from nc_jax.solvers import TrustRegionOptions

# Proximal weight of a first step whose batch lacks a class: the paper's delta. It is far above float32 rounding, and
# too small to change much in directions that the class means determine.
_TIE_BREAK = 1e-3


@dataclass(frozen=True)
class NearestOptions:
    """Settings of a nearest head.

    Attributes:
        radius: length tau to which every feature vector is scaled; None leaves the features as they are.
        averaging: how class means are averaged over training steps. "ema": exponentially; the mean of the newest batch
            has weight alpha_t = max(2 / (t + 1), min_alpha). "cma": all batches count alike, alpha_t = 1 / t. Here t is
            the number of steps so far whose batch held the class.
        min_alpha: smallest weight, in [0, 1], of the newest batch if class means are averaged exponentially ("ema").
        centre: what is subtracted from the class means before they are compared with a frame whose vectors sum to zero.
            "batch": from those of each batch, the mean of its examples. "classes": from the running class means, their
            own mean, in which all classes seen so far count alike, however many examples they have.
        prox_weight: proximal weight delta >= 0, how strongly the rotation is pulled towards the proximal point.
        initial: proximal point of the first step. "unregularised": none; that step minimises the distance alone.
            "canonical": the first columns of the identity. "random": a Haar-random rotation.
        prox_point: proximal point of all steps after the first. "previous": the rotation that the previous step found.
            "initial": the proximal point of the first step or, if that step had none, the rotation that it found.
        solver: "polar" (closed form) or "trust_region" (iteration). Both reach the same rotation; "polar" is quicker.
        reduced: whether the simplex template has K - 1 rows, which makes its rotation unique. False: the paper's K x K
            template. No effect if another template is given.
        stop_gradient: whether the class means are constants in the backward pass, so that no gradient reaches the
            features through the inner problem. True or False for all steps; a pair (start, stop) means True in steps
            start to stop - 1, counted from 0.
        trust_region: settings of the solver "trust_region"; "polar" ignores them.

    Raises:
        ValueError: if `averaging`, `centre`, `initial`, `prox_point` or `solver` is not one of the names above, the
            radius is not positive, min_alpha is outside [0, 1], prox_weight < 0, or `stop_gradient` is neither True,
            False nor a pair of steps 0 <= start <= stop.

    Reference: Markou, Ajanthan and Gould (2024), section 3; the defaults are those of its released program.
    """

    radius: float | None = 5.0  # tau, Markou et al. (2024)
    averaging: Literal["ema", "cma"] = "ema"  # Markou et al. (2024)
    min_alpha: float = 1e-4  # Markou et al. (2024)
    centre: Literal["batch", "classes"] = "batch"  # Markou et al. (2024)
    prox_weight: float = 1e-3  # delta, Markou et al. (2024)
    initial: Literal["unregularised", "canonical", "random"] = "unregularised"  # Markou et al. (2024)
    prox_point: Literal["previous", "initial"] = "previous"  # Markou et al. (2024)
    solver: Literal["trust_region", "polar"] = "polar"  # reaches the trust region's point in less time
    reduced: bool = True  # the full template's frame up to O(delta), and never degenerate (docs/architecture.md)
    stop_gradient: bool | tuple[int, int] = False  # Markou et al. (2024): differentiate through the solve
    trust_region: TrustRegionOptions = field(default_factory=TrustRegionOptions)

    def __post_init__(self):
        check_radius(self.radius)
        if self.averaging not in ("ema", "cma"):
            raise ValueError(f'averaging must be "ema" or "cma"; got {self.averaging!r}')
        if self.centre not in ("batch", "classes"):
            raise ValueError(f'centre must be "batch" or "classes"; got {self.centre!r}')
        if self.initial not in ("unregularised", "canonical", "random"):
            raise ValueError(f'initial must be "unregularised", "canonical" or "random"; got {self.initial!r}')
        if self.prox_point not in ("previous", "initial"):
            raise ValueError(f'prox_point must be "previous" or "initial"; got {self.prox_point!r}')
        if self.solver not in ("trust_region", "polar"):
            raise ValueError(f'solver must be "trust_region" or "polar"; got {self.solver!r}')
        if not self.prox_weight >= 0:
            raise ValueError(f"prox_weight must be at least 0; got {self.prox_weight}")
        if not 0 <= self.min_alpha <= 1:
            raise ValueError(f"min_alpha must lie in [0, 1]; got {self.min_alpha}")
        if not _says_when(self.stop_gradient):
            raise ValueError(
                f"stop_gradient must be True, False or a pair of steps 0 <= start <= stop; got {self.stop_gradient!r}"
            )


def _says_when(steps: Any) -> bool:
    if isinstance(steps, bool):
        return True
    pair = isinstance(steps, tuple | list) and len(steps) == 2 and all(type(step) is int for step in steps)
    return pair and 0 <= steps[0] <= steps[1]


def cut_gradient(options: NearestOptions, values: tuple[Array, Array], step: Array) -> tuple[Array, Array]:
    """Stop the gradient through the values if `options.stop_gradient` says so for this step."""
    constants = jax.lax.stop_gradient(values)
    if isinstance(options.stop_gradient, bool):
        return constants if options.stop_gradient else values
    start, stop = options.stop_gradient
    now = (start <= step) & (step < stop)
    return jax.tree.map(lambda fixed, value: jnp.where(now, fixed, value), constants, values)


def newest_weight(options: NearestOptions, count: Array) -> Array:
    """Return the weight that the newest value gets in a running average of `count` values."""
    count = jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.maximum(2 / (count + 1), options.min_alpha) if options.averaging == "ema" else 1 / count


def prox_weight(options: NearestOptions, first: Array, all_seen: Bool[Array, ""]) -> Array | float:
    """Return the weight of the proximal term; zero in an unregularised first step whose batch holds every class."""
    if options.initial != "unregularised":
        return options.prox_weight
    # If the first batch lacks a class, its means do not determine the rotation. Rounding would then choose one, and the
    # choice would depend on the number of devices. A small pull towards the initial rotation removes this ambiguity.
    return jnp.where(first, jnp.where(all_seen, 0.0, _TIE_BREAK), options.prox_weight)


def average(old: Array, new: Array, alpha: Array) -> Array:
    """Return a running average in which the new value has the weight alpha."""
    return old + alpha * (new - old)


def proximal_point(state: dict[str, Any]) -> Array:
    """Return the proximal point of a step, from the state of a nearest head before it."""
    if "anchor" not in state:
        return state["rotation"]
    return jnp.where(state["steps"] == 0, state["rotation"], state["anchor"])


def anchor_after(options: NearestOptions, state: dict[str, Any], rotation: Array) -> dict[str, Array]:
    """Return the next "anchor", if the state has one: the proximal point of the first step, for all steps.

    If the first step had no proximal point, the rotation that it found takes its place.
    """
    if "anchor" not in state:
        return {}
    point = rotation if options.initial == "unregularised" else state["rotation"]
    return {"anchor": jnp.where(state["steps"] == 0, point, state["anchor"])}
