"""Optimisers and schedules by name, as experiments choose them; the arithmetic is optax's, but for AGD."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

OptimizerName = Literal["sgd", "adam", "adamw", "agd", "lbfgs"]
ScheduleName = Literal["constant", "step", "multistep", "cosine", "one-cycle"]


@dataclass(frozen=True)
class OptimizerOptions:
    """Which optimiser, and how its learning rate changes.

    Attributes:
        name: "sgd" (with momentum), "adam", "adamw", "agd" (no learning rate, see `agd`) or "lbfgs" (line search, for
            full batches).
        learning_rate: the highest one; of "agd" the gain.
        momentum: of "sgd".
        nesterov: of "sgd".
        weight_decay: added to the gradient for "sgd" and "adam", decoupled for "adamw".
        schedule: "constant"; "step", a factor every `period` of the epochs; "multistep", a factor at each of the
            milestones; "cosine" to zero; "one-cycle", up over the first 30 % of the steps and down, by cosines.
        warmup: epochs of linear warm-up from zero, before the schedule ("one-cycle" has its own).
        period: of "step", in epochs.
        milestones: of "multistep", in epochs.
        factor: of "step" and "multistep".
        clip_norm: gradients longer than this are scaled to it; None leaves them.

    Raises:
        ValueError: if a number is out of its range, or an option is set that the optimiser has not.
    """

    name: OptimizerName = "sgd"
    learning_rate: float = 0.1  # He et al. (2016), section 4.2, for residual networks on CIFAR-10
    momentum: float = 0.9  # as there
    nesterov: bool = False  # as there
    weight_decay: float = 0.0
    schedule: ScheduleName = "constant"
    warmup: float = 0.0
    period: float = 30.0  # He et al. (2016) on ImageNet, as in torchvision's reference training
    milestones: tuple[float, ...] = ()
    factor: float = 0.1  # He et al. (2016): divided by ten
    clip_norm: float | None = None

    def __post_init__(self):
        for name in ("learning_rate", "period", "factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or None; got {self.clip_norm}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1); got {self.momentum}")
        for name in ("weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if self.schedule == "multistep" and (
            not self.milestones or list(self.milestones) != sorted(set(self.milestones)) or self.milestones[0] <= 0
        ):
            raise ValueError(f"milestones must be positive and ascending epochs; got {self.milestones}")
        if self.schedule == "one-cycle" and self.warmup:
            raise ValueError(f'"one-cycle" has its own warm-up; got warmup={self.warmup}')
        if self.name in ("agd", "lbfgs") and (self.schedule != "constant" or self.warmup or self.weight_decay):
            raise ValueError(f'"{self.name}" sets its own step, without schedule, warm-up or weight decay')


def make_schedule(options: OptimizerOptions, *, epochs: int, epoch_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the optimiser step.

    Args:
        options: see there.
        epochs: of the whole training.
        epoch_steps: optimiser steps per epoch.

    Raises:
        ValueError: if the warm-up leaves nothing of the training.
    """
    total, warmup = epochs * epoch_steps, round(options.warmup * epoch_steps)
    if warmup >= total:
        raise ValueError(f"the warm-up must be shorter than the training of {epochs} epochs; got {options.warmup}")
    peak = options.learning_rate
    if options.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(total, peak)
    if options.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, total - warmup)
    elif options.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    else:
        period = options.period
        marks = options.milestones
        if options.schedule == "step":
            marks = tuple(period * count for count in range(1, math.ceil(epochs / period)))
        # Milestones count from the start of training, the warm-up included.
        steps = {max(round(mark * epoch_steps) - warmup, 0): options.factor for mark in marks}
        schedule = optax.piecewise_constant_schedule(peak, steps)
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def make_optimizer(options: OptimizerOptions, *, epochs: int, epoch_steps: int) -> optax.GradientTransformation:
    """Return the optimiser with its schedule; arguments as of `make_schedule`."""
    rate = make_schedule(options, epochs=epochs, epoch_steps=epoch_steps)
    if options.name == "sgd":
        core = optax.sgd(rate, options.momentum or None, options.nesterov)
    elif options.name == "adam":
        core = optax.adam(rate)
    elif options.name == "adamw":
        core = optax.adamw(rate, weight_decay=options.weight_decay)
    elif options.name == "agd":
        core = agd(options.learning_rate)
    else:
        core = optax.lbfgs()
    before = []
    if options.clip_norm is not None:
        before.append(optax.clip_by_global_norm(options.clip_norm))
    if options.weight_decay and options.name != "adamw":
        before.append(optax.add_decayed_weights(options.weight_decay))
    return optax.chain(*before, core) if before else core


def scaled_rate(optimizer: optax.GradientTransformation, path: str, factor: float) -> optax.GradientTransformation:
    """Give a part of the model a learning rate of its own, a fixed share of the others'.

    Args:
        optimizer: whose updates are proportional to the learning rate, as all of `make_optimizer` but "lbfgs" are.
        path: of the part, as prefix of the parameters' names ("backbone", "backbone/stem").
        factor: of its learning rate.

    Raises:
        ValueError: on the first update, if no parameter has such a path.
    """

    def mask(params: Any) -> Any:
        inside = jax.tree_util.tree_map_with_path(
            lambda keys, _: (jax.tree_util.keystr(keys, simple=True, separator="/") + "/").startswith(f"{path}/"),
            params,
        )
        if not any(jax.tree.leaves(inside)):
            raise ValueError(f"no parameter has a path that begins with {path!r}")
        return inside

    return optax.chain(optimizer, optax.masked(optax.scale(factor), mask))


class AgdState(NamedTuple):
    """Nothing but a count of the steps: AGD has no memory."""

    count: Int[Array, ""]


def agd(gain: float = 1.0) -> optax.GradientTransformation:
    r"""Automatic gradient descent: the step follows from the architecture, without a learning rate.

    With L weight matrices :math:`W_l` (:math:`d_l \times d_{l-1}`) and the gradient summary

    .. math:: G = \frac1L \sum_l \sqrt{d_l / d_{l-1}} \, \|\nabla_l\|_F, \qquad
        \eta = \log \tfrac12 \big(1 + \sqrt{1 + 4 G}\big),

    layer l moves by :math:`-\frac{\eta}{L} \sqrt{d_l / d_{l-1}} \, \nabla_l / \|\nabla_l\|_F`. A convolution is one
    such matrix per tap, each with the factor divided by the root of the number of taps. Start from `agd_init`.

    Args:
        gain: factor on the step.

    Raises:
        ValueError: when called with a parameter that is neither a matrix nor a convolution (a bias, a scale): AGD has
            no rule for those.

    Reference: Bernstein, Mingard, Huang, Azizan and Yue, Automatic gradient descent: deep learning without
    hyperparameters (2023), algorithm 1; the convolutions as in its released program.
    """

    def init(params: Any) -> AgdState:
        _check_matrices(params)
        return AgdState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AgdState]:
        del params
        leaves, structure = jax.tree.flatten(updates)
        norms = [jnp.sqrt(jnp.sum(leaf**2, axis=(-2, -1), keepdims=True)) for leaf in leaves]
        factors = [_factor(leaf.shape) for leaf in leaves]
        summary = sum(factor * jnp.sum(norm) for factor, norm in zip(factors, norms, strict=True)) / len(leaves)
        step = gain * jnp.log((1 + jnp.sqrt(1 + 4 * summary)) / 2) / len(leaves)
        moved = [
            -step * factor * leaf / jnp.where(norm > 0, norm, 1)
            for leaf, norm, factor in zip(leaves, norms, factors, strict=True)
        ]
        return jax.tree.unflatten(structure, moved), AgdState(state.count + 1)

    return optax.GradientTransformation(init, update)


def agd_init(params: Any, key: Array) -> Any:
    """Return parameters of the same shapes from which AGD starts: semi-orthogonal, times the layer's factor.

    Args:
        params: a tree of matrices (inputs, outputs) and convolutions (height, width, inputs, outputs).
        key: of the random draw.

    Raises:
        ValueError: as `agd`.
    """
    _check_matrices(params)
    leaves, structure = jax.tree.flatten(params)
    drawn = []
    for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        taps = math.prod(leaf.shape[:-2])
        draw = jax.vmap(lambda tap_key, shape=leaf.shape[-2:]: jax.nn.initializers.orthogonal()(tap_key, shape))
        matrices = draw(jax.random.split(leaf_key, taps))
        drawn.append((_factor(leaf.shape) * matrices).reshape(leaf.shape).astype(leaf.dtype))
    return jax.tree.unflatten(structure, drawn)


def _factor(shape: tuple[int, ...]) -> float:
    """Root of outputs over inputs, over the root of the number of taps."""
    return math.sqrt(shape[-1] / shape[-2] / math.prod(shape[:-2]))


def _check_matrices(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if leaf.ndim < 2:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"AGD needs matrices and convolutions only; got {name} of shape {leaf.shape}")
