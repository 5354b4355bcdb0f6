"""Optimisers and schedules by name, as experiments choose them. All but AGD are optax's."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int

OptimizerName = Literal["sgd", "adam", "adamw", "agd", "lbfgs"]
ScheduleName = Literal["constant", "step", "multistep", "cosine", "one-cycle"]
Decayed = Literal["all", "kernels"]


@dataclass(frozen=True)
class OptimizerOptions:
    """Which optimiser, and how its learning rate changes.

    Attributes:
        name: optimiser: "sgd" (with momentum), "adam", "adamw", "agd" (automatic gradient descent, which needs no
            learning rate) or "lbfgs" (line search, for full batches).
        learning_rate: peak learning rate, > 0. "agd" multiplies its own step by this number; "lbfgs" ignores it.
        momentum: momentum of "sgd", in [0, 1). Other optimisers have none, and refuse other numbers than the default
            and 0.
        nesterov: use Nesterov momentum in "sgd". Other optimisers refuse it.
        weight_decay: number >= 0. "sgd" and "adam" add this number times the parameters to the gradient. "adamw"
            applies the decay separately from the gradient (decoupled). "agd" and "lbfgs" need 0.
        decayed: which parameters the weight decay acts on. "all": every parameter, biases and the scales of
            normalisations included. "kernels": matrices and convolutions only.
        schedule: how the learning rate changes after the warm-up. "constant": it stays. "step": it is
            multiplied by `factor` every `period` epochs. "multistep": it is multiplied by `factor` at each
            of the `milestones`. "cosine": it falls to zero along a cosine. "one-cycle": it rises over the
            first 30 % of the steps and then falls, both along cosines.
        warmup: number of epochs in which the learning rate rises linearly, before the schedule starts: in step t of w,
            t = 1..w, it is t / w times the peak. So no step has the rate zero, in which a nearest head would move while
            the parameters stay. The schedule "one-cycle" has its own warm-up and needs 0.
        period: epochs between two reductions of the learning rate in the schedule "step", > 0.
        milestones: ascending epochs at which the schedule "multistep" multiplies the learning rate by `factor`,
            counted from the start of training. Other schedules ignore them.
        factor: number > 0 by which the schedules "step" and "multistep" multiply the learning rate.
        clip_norm: longest gradient allowed (Euclidean norm over all parameters); longer ones are scaled down to it.
            None does not clip.

    Raises:
        ValueError: if a number is out of its range, or an option is set that this optimiser or schedule does not
            support.
    """

    name: OptimizerName = "sgd"
    learning_rate: float = 0.1  # He et al. (2016), section 4.2, for residual networks on CIFAR-10
    momentum: float = 0.9  # He et al. (2016), section 4.2
    nesterov: bool = False  # He et al. (2016) use plain momentum
    weight_decay: float = 0.0
    # He et al. (2016) and the released programs of Zhu et al. (2021) and Liang and Davis (2023): all parameters
    decayed: Decayed = "all"
    schedule: ScheduleName = "constant"
    warmup: float = 0.0  # its form is the gradual warm-up of Goyal et al. (2017), section 2.2
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
        default = type(self).momentum
        if self.name != "sgd" and (self.nesterov or self.momentum not in (0, default)):
            raise ValueError(
                f'momentum and nesterov are settings of "sgd"; got momentum={self.momentum} and '
                f'nesterov={self.nesterov} for "{self.name}"'
            )
        for name, choices in (("name", OptimizerName), ("schedule", ScheduleName), ("decayed", Decayed)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {getattr(self, name)!r}")
        if self.decayed != "all" and not self.weight_decay:
            raise ValueError(f'decayed="{self.decayed}" needs a weight_decay above 0; got 0')
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


def make_schedule(options: OptimizerOptions, *, epochs: int, epoch_steps: int | Sequence[int]) -> optax.Schedule:
    """Return the learning rate as a function of the optimiser step.

    Args:
        options: the schedule and its numbers.
        epochs: length of the whole training, in epochs; of each task, if there are several.
        epoch_steps: optimiser steps per epoch; of continual learning, steps per epoch of each task. The schedule begins
            anew with each task.

    Returns:
        A function: number of optimiser steps taken -> learning rate.

    Raises:
        ValueError: if the warm-up is not shorter than the training.
    """
    if not isinstance(epoch_steps, int):
        if options.schedule == "constant" and not options.warmup:
            return optax.constant_schedule(options.learning_rate)
        each = [make_schedule(options, epochs=epochs, epoch_steps=steps) for steps in epoch_steps]
        starts = list(itertools.accumulate(epochs * steps for steps in epoch_steps))[:-1]
        return optax.join_schedules(each, starts) if starts else each[0]
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
        steps: dict[int, float] = {}
        for mark in marks:
            at = max(round(mark * epoch_steps) - warmup, 0)
            steps[at] = steps.get(at, 1.0) * options.factor
        schedule = optax.piecewise_constant_schedule(peak, steps)
    if not warmup:
        return schedule
    rising = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rising, schedule], [warmup])


def make_optimizer(
    options: OptimizerOptions, *, epochs: int, epoch_steps: int | Sequence[int]
) -> optax.GradientTransformation:
    """Return the optimiser with its schedule.

    Args:
        options: the optimiser, its schedule and their numbers.
        epochs: length of the whole training, in epochs; of each task, if there are several.
        epoch_steps: optimiser steps per epoch; of continual learning, steps per epoch of each task.

    Raises:
        ValueError: if the warm-up is not shorter than the training.
    """
    rate = make_schedule(options, epochs=epochs, epoch_steps=epoch_steps)
    mask = _kernels if options.decayed == "kernels" else None
    if options.name == "sgd":
        core = optax.sgd(rate, options.momentum or None, options.nesterov)
    elif options.name == "adam":
        core = optax.adam(rate)
    elif options.name == "adamw":
        core = optax.adamw(rate, weight_decay=options.weight_decay, mask=mask)
    elif options.name == "agd":
        core = agd(options.learning_rate)
    else:
        core = optax.lbfgs()
    before = []
    if options.clip_norm is not None:
        before.append(optax.clip_by_global_norm(options.clip_norm))
    if options.weight_decay and options.name != "adamw":
        before.append(optax.add_decayed_weights(options.weight_decay, mask))
    return optax.chain(*before, core) if before else core


def _kernels(params: Any) -> Any:
    """Return True for matrices and convolutions, and False for biases, scales and other numbers per channel."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def scaled_rate(optimizer: optax.GradientTransformation, path: str, factor: float) -> optax.GradientTransformation:
    """Give a part of the model its own learning rate: a fixed multiple of the optimiser's.

    Args:
        optimizer: an optimiser whose updates are proportional to the learning rate. All optimisers of `make_optimizer`
            except "lbfgs" have this property.
        path: names the part: the common prefix of its parameters' names ("backbone", "backbone/stem").
        factor: number by which the learning rate of the part is multiplied.

    Raises:
        ValueError: when the optimiser's state is created, if no parameter has such a path.
    """
    return optax.chain(optimizer, optax.masked(optax.scale(factor), _below(path)))


def frozen(
    optimizer: optax.GradientTransformation, path: str, *, before: int | None = None, after: int | None = None
) -> optax.GradientTransformation:
    """Freeze a part of the model in some steps: its updates are exactly zero, whatever momentum and weight decay say.

    The optimiser goes on as if the part were not frozen, so the part's gradient counts in a clipping norm and in the
    momentum with which it thaws. Batch statistics are not parameters: they move on.

    Args:
        optimizer: any optimiser.
        path: names the part: the common prefix of its parameters' names ("backbone", "head/first/kernel").
        before: number of the step, counted from 0, that is the first in which the part moves; None: it moves from the
            first one on.
        after: number of the step that is the first in which it stays; None: it stays in none.

    Raises:
        ValueError: if there is no step in which the part is frozen, or none in which it moves; when the optimiser's
            state is created, if no parameter has such a path.

    Example:
        >>> optimizer = frozen(optax.sgd(1.0), "backbone", after=1)
        >>> params = {"backbone": jnp.ones(()), "head": jnp.ones(())}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> later, _ = optimizer.update(params, state, params)
        >>> [bool(step["backbone"] == 0) for step in (updates, later)]
        [False, True]

    Reference: Kang et al., Decoupling representation and classifier for long-tailed recognition (2020), section 4: a
    backbone is frozen in the second stage.
    """
    begin, end = (0 if before is None else before), (math.inf if after is None else after)
    if (before is None and after is None) or not 0 <= begin < end:
        raise ValueError(
            f"a part must be frozen before a step, from a later one on, or both; got before={before} and after={after}"
        )

    def moves(count: ArrayLike) -> Array:
        count = jnp.asarray(count)
        return jnp.where((begin <= count) & (count < end), 1.0, 0.0)

    return optax.chain(optimizer, optax.masked(optax.scale_by_schedule(moves), _below(path)))


def _below(path: str) -> Callable[[Any], Any]:
    """Return a function from parameters to a tree: which of them have a path that begins with this one."""

    def mask(params: Any) -> Any:
        inside = jax.tree_util.tree_map_with_path(
            lambda keys, _: (jax.tree_util.keystr(keys, simple=True, separator="/") + "/").startswith(f"{path}/"),
            params,
        )
        if not any(jax.tree.leaves(inside)):
            raise ValueError(f"no parameter has a path that begins with {path!r}")
        return inside

    return mask


class AgdState(NamedTuple):
    """State of AGD: only a count of the steps, because AGD has no momentum or other averages."""

    count: Int[Array, ""]


def agd(gain: float = 1.0) -> optax.GradientTransformation:
    r"""Automatic gradient descent (AGD): the step size follows from the architecture, without a learning rate.

    With L weight matrices :math:`W_l` (:math:`d_l \times d_{l-1}`) and the gradient summary

    .. math:: G = \frac1L \sum_l \sqrt{d_l / d_{l-1}} \, \|\nabla_l\|_F, \qquad
        \eta = \log \tfrac12 \big(1 + \sqrt{1 + 4 G}\big),

    layer l moves by :math:`-\frac{\eta}{L} \sqrt{d_l / d_{l-1}} \, \nabla_l / \|\nabla_l\|_F`. A convolution counts as
    one such matrix per tap (kernel position); the factor :math:`\sqrt{d_l / d_{l-1}}` of each is divided by the square
    root of the number of taps. Draw the initial parameters by `agd_init`.

    Args:
        gain: number above 0 by which the step is multiplied.

    Raises:
        ValueError: if the gain is not positive and finite; when the state is created, if a parameter is neither a
            matrix nor a convolution (a bias or a scale, for instance). AGD has no rule for such parameters.

    Reference: Bernstein, Mingard, Huang, Azizan and Yue, Automatic gradient descent: deep learning without
    hyperparameters (2023), algorithm 1. The rule for convolutions is that of their released program.
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"the gain must be positive and finite; got {gain}")

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
    r"""Return initial parameters for `agd`: random semi-orthogonal matrices, each times the factor of its layer.

    The factor is :math:`\sqrt{d_l / d_{l-1}}`, divided by the square root of the number of taps for convolutions.

    Args:
        params: a tree of matrices (inputs, outputs) and convolutions (height, width, inputs, outputs). Only their
            shapes and dtypes matter.
        key: random key.

    Returns:
        A tree of the same structure, shapes and dtypes.

    Raises:
        ValueError: if a parameter is neither a matrix nor a convolution.
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
    """Return sqrt(outputs / inputs), divided by the square root of the number of taps."""
    return math.sqrt(shape[-1] / shape[-2] / math.prod(shape[:-2]))


def _check_matrices(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if leaf.ndim < 2:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"AGD needs matrices and convolutions only; got {name} of shape {leaf.shape}")
