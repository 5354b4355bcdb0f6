"""Class vectors that are, at every training step, the rotation of a frame nearest to the running class means."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, transpose
from nc_jax.collective import Axes, all_sum
from nc_jax.frames import SimplexTemplate, Template, as_template, simplex_template
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.frames.template import DenseTemplate, LearnedTemplate
from nc_jax.heads.head import Arrays, Declared, Head, Initial, constant
from nc_jax.heads.output import HeadOutput, scale_features
from nc_jax.manifolds import Stiefel
from nc_jax.nearest import nearest_at_unit_norm
from nc_jax.solvers import TrustRegionOptions

_TIE_BREAK = 1e-3  # the paper's proximal weight: far above float32's rounding, far below what determined means weigh


@dataclass(frozen=True)
class NearestOptions:
    """What may be chosen about a nearest head.

    Attributes:
        radius: tau, the length to which features are scaled; None leaves them as they are.
        averaging: how class means are averaged over steps: "ema", exponentially, with the weight
            alpha_t = max(2 / (t + 1), min_alpha) of the newest; "cma", all alike, alpha_t = 1 / t. The count t is that
            of the steps that held the class.
        min_alpha: least weight of the newest class means under "ema".
        prox_weight: delta, how strongly the rotation is drawn to the proximal point.
        initial: proximal point of the first step. "unregularised": none; that step minimises the distance alone.
            "canonical": the first columns of the identity. "random": a Haar-random rotation.
        prox_point: proximal point of later steps: "previous", the rotation of the step before, or "initial", that of
            the first step.
        solver: "polar", the closed form, or "trust_region". Both reach the same point; the closed form is quicker.
        reduced: use the simplex template with K - 1 rows, whose rotation is unique. False takes the paper's K x K one.
            Other frames ignore this.
        stop_gradient: cut the gradient through the class means: always, or in the steps from the first number, counted
            from 0, up to but without the second.
        trust_region: settings of that solver.

    Raises:
        ValueError: if a name is unknown or a number out of its range.

    Reference: Markou, Ajanthan and Gould (2024), section 3; the defaults are those of its released program.
    """

    radius: float | None = 5.0  # tau, Markou et al. (2024)
    averaging: Literal["ema", "cma"] = "ema"  # Markou et al. (2024)
    min_alpha: float = 1e-4  # Markou et al. (2024)
    prox_weight: float = 1e-3  # delta, Markou et al. (2024)
    initial: Literal["unregularised", "canonical", "random"] = "unregularised"  # Markou et al. (2024)
    prox_point: Literal["previous", "initial"] = "previous"  # Markou et al. (2024)
    solver: Literal["trust_region", "polar"] = "polar"  # the same point as the trust region's, sooner
    reduced: bool = True  # the same frame up to O(delta), and never degenerate (docs/architecture.md)
    stop_gradient: bool | tuple[int, int] = False  # Markou et al. (2024): differentiate through the solve
    trust_region: TrustRegionOptions = field(default_factory=TrustRegionOptions)

    def __post_init__(self):
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius must be positive, or None; got {self.radius}")
        if self.averaging not in ("ema", "cma"):
            raise ValueError(f'averaging must be "ema" or "cma"; got {self.averaging!r}')
        if self.initial not in ("unregularised", "canonical", "random"):
            raise ValueError(f'initial must be "unregularised", "canonical" or "random"; got {self.initial!r}')
        if self.prox_point not in ("previous", "initial"):
            raise ValueError(f'prox_point must be "previous" or "initial"; got {self.prox_point!r}')
        if self.solver not in ("trust_region", "polar"):
            raise ValueError(f'solver must be "trust_region" or "polar"; got {self.solver!r}')
        if not self.prox_weight >= 0:
            raise ValueError(f"prox_weight must be at least 0; got {self.prox_weight}")


def nearest(
    num_classes: int,
    *,
    template: Template | LearnedTemplate | Array | None = None,
    options: NearestOptions = NearestOptions(),
    **changes: Any,
) -> Head:
    r"""Classifier whose frame is the one nearest to the running class means.

    In training, features h (scaled to length tau) give the class means of the batch, averaged over steps into H. For
    the simplex ETF, and every other frame whose vectors sum to zero, they are first centred by the batch's global mean.
    The frame is W = U T, with T the template and U the rotation that brings it nearest to H, both compared at unit
    norm. The logits are W^T (h - g), where g is the running global mean, or zero if the frame is not centred. Gradients
    reach the features through the classifier, too. In evaluation the last frame and mean are used and nothing is
    solved.

    The state holds, in float32: `class_means` (d, K) and `global_mean` (d,), the running means; `updates` (K,), the
    number of steps that held each class; `counts` (K,), the number of its examples; `steps`; `rotation` (d, r), the
    last solution; `frame` (d, K); and with `prox_point="initial"` the rotation of the first step, `anchor` (d, r). A
    class that a batch lacks keeps its running mean; one that never appeared has a zero mean, which attracts nothing.
    Do not write back a state whose `output.solution.status` is `nc_jax.solvers.Status.NON_FINITE`.

    Args:
        num_classes: K, at most d + 1 for the simplex ETF.
        template: of another frame, (r, K) with r <= d: a matrix or a `nc_jax.frames.Template`; or one with parameters,
            see `nc_jax.frames.LearnedTemplate`. None is the simplex ETF's.
        options: all else; its fields may also be given one by one.
        changes: fields of `NearestOptions` by name.

    Raises:
        ValueError: from `init` and `apply`, if d < K - 1 (for a template, d < r), or the template has not K columns;
            from `apply`, if labels are missing in training.

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    chosen = replace(options, **changes)
    kept: Any = None
    if template is None:
        kept = SimplexTemplate.of_unit_columns(num_classes)
        if not chosen.reduced:
            kept = DenseTemplate(kept.scale * simplex_template(num_classes, reduced=False), centred=True)
    else:
        kept = template if isinstance(template, LearnedTemplate) else as_template(template)
        if kept.shape[1] != num_classes:
            raise ValueError(f"a template needs {num_classes} columns; got shape {kept.shape}")

    def declare(dim, dtype):
        del dtype  # the state is float32, whatever the features are
        rank = kept.shape[0]
        if template is None:
            check_room_for_simplex(num_classes, dim)
        if rank > dim:
            raise ValueError(f"a template of {rank} rows needs features of dim >= {rank}; got dim={dim}")
        zeros, floats, ints = jnp.zeros, jnp.float32, jnp.int32
        turned = chosen.initial == "random"
        state = {
            "class_means": constant(lambda: zeros((dim, num_classes), floats)),
            "global_mean": constant(lambda: zeros((dim,), floats)),
            "updates": constant(lambda: zeros((num_classes,), ints)),
            "counts": constant(lambda: zeros((num_classes,), ints)),
            "steps": constant(lambda: zeros((), ints)),
            "rotation": Initial(Stiefel(dim, rank).random_point)
            if turned
            else constant(lambda: jnp.eye(dim, rank, dtype=floats)),
            "frame": constant(lambda: _first(kept).rotate(jnp.eye(dim, rank, dtype=floats))),
        }
        if chosen.prox_point == "initial":
            state["anchor"] = constant(lambda: zeros((dim, rank), floats))
        params = {"template": constant(kept.initial)} if isinstance(kept, LearnedTemplate) else {}
        return Declared(params, state)

    def forward(params, state, features, labels, *, train, mask, axis_name):
        if train and labels is None:
            raise ValueError("a nearest head needs labels in training; got None")
        features = scale_features(features, chosen.radius)
        if not train:
            return _output(features, state["frame"], state["global_mean"], None), state
        here = kept.build(params["template"]) if isinstance(kept, LearnedTemplate) else kept
        if mask is not None:
            labels = jnp.where(mask, labels, -1)
        return _step(chosen, here, state, features, labels, num_classes, axis_name)

    return Head("nearest", num_classes, declare, forward, collection="nearest")


def _first(template: Any) -> Template:
    return template.build(template.initial()) if isinstance(template, LearnedTemplate) else template


def _step(
    options: NearestOptions,
    template: Template,
    state: Arrays,
    features: Array,
    labels: Array,
    num_classes: int,
    axis_name: Axes,
) -> tuple[HeadOutput, Arrays]:
    """Take the batch's class means into the running ones, solve, and classify with the solution."""
    batch_means, global_mean, counts = batch_means_of(features, labels, num_classes, axis_name)
    if not template.centred:
        global_mean = jnp.zeros_like(global_mean)
    present = counts > 0
    updates = state["updates"] + present
    any_present = jnp.any(present)  # a batch of padding is no step
    steps = state["steps"] + any_present
    class_means = jnp.where(
        present,
        _average(state["class_means"], batch_means - global_mean[:, None], _alpha(options, updates)),
        state["class_means"],
    )
    global_mean = jnp.where(
        any_present, _average(state["global_mean"], global_mean, _alpha(options, steps)), state["global_mean"]
    )
    class_means, global_mean = _cut(options, (class_means, global_mean), state["steps"])

    first = state["steps"] == 0
    drawn_to = state["rotation"]
    if "anchor" in state:
        drawn_to = jnp.where(first, drawn_to, state["anchor"])
    found = nearest_at_unit_norm(
        class_means,
        template,
        prox_point=drawn_to,
        prox_weight=_prox_weight(options, first, all_seen=jnp.all(updates > 0)),
        solver=options.solver,
        init=state["rotation"],
        options=options.trust_region,
    )
    new = {
        "class_means": class_means,
        "global_mean": global_mean,
        "updates": updates,
        "counts": state["counts"] + counts,
        "steps": steps,
        "rotation": found.rotation,
        "frame": found.frame,
    }
    if "anchor" in state:
        # The proximal point of the first step; where there was none, what that step found.
        point = found.rotation if options.initial == "unregularised" else drawn_to
        new["anchor"] = jnp.where(first, point, state["anchor"])
    # No gradient reaches the next step.
    new = {name: jax.lax.stop_gradient(value).astype(state[name].dtype) for name, value in new.items()}
    return _output(features, found.frame, global_mean, found.solution), new


def batch_means_of(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    num_classes: int,
    axis_name: Axes = None,
) -> tuple[Float[Array, "dim classes"], Float[Array, " dim"], Int[Array, " classes"]]:
    """Return class means (d, K), global mean (d,) and class counts (K,) of a batch on all devices, padding left out.

    Args:
        features: shape (N, d).
        labels: shape (N,); negative ones mark padding.
        num_classes: K.
        axis_name: see `nc_jax.heads.Head.apply`.
    """
    # A product with the one-hot matrix adds in a fixed order; a scatter does not on every accelerator. Padding (-1)
    # has a column of zeros. Classes are rows until they have been divided: a product followed by a transposition
    # would be compiled as the transposed product, which takes six times as long on a CPU (37 against 6.5 us).
    members = jax.nn.one_hot(labels, num_classes, axis=0, dtype=jnp.float32)
    sums = matmul(members, at_least_float32(features))
    counts = jnp.sum(members, axis=1)
    # Summed before the solve: every device then solves the same problem, and their number changes nothing.
    sums, counts = all_sum((sums, counts), axis_name)
    global_mean = jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts), 1)
    return transpose(sums / jnp.maximum(counts, 1)[:, None]), global_mean, counts.astype(jnp.int32)


def _cut(options: NearestOptions, values: tuple[Array, Array], step: Array) -> tuple[Array, Array]:
    """Stop the gradient through the values, if it is to be stopped in this step."""
    constants = jax.lax.stop_gradient(values)
    if isinstance(options.stop_gradient, bool):
        return constants if options.stop_gradient else values
    start, stop = options.stop_gradient
    cut = (start <= step) & (step < stop)
    return jax.tree.map(lambda fixed, value: jnp.where(cut, fixed, value), constants, values)


def _output(features: Array, frame: Array, global_mean: Array, solution: Any) -> HeadOutput:
    frame, global_mean = frame.astype(features.dtype), global_mean.astype(features.dtype)
    bias = -(global_mean @ frame)
    return HeadOutput(features @ frame + bias, features, frame, bias, solution)


def _alpha(options: NearestOptions, count: Array) -> Array:
    """Return the weight of the newest of `count` values in the running average."""
    count = jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.maximum(2 / (count + 1), options.min_alpha) if options.averaging == "ema" else 1 / count


def _prox_weight(options: NearestOptions, first: Array, all_seen: Bool[Array, ""]) -> Array | float:
    """Return the weight of the proximal term; zero in the first step if that is not to be drawn to anything."""
    if options.initial != "unregularised":
        return options.prox_weight
    # A first batch without some class leaves the rotation open, and rounding would choose it, differently on every
    # number of devices. Then, and only then, the initial rotation decides.
    return jnp.where(first, jnp.where(all_seen, 0.0, _TIE_BREAK), options.prox_weight)


def _average(old: Array, new: Array, alpha: Array) -> Array:
    return old + alpha * (new - old)
