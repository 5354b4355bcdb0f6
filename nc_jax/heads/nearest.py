"""Head whose class vectors are a frame, rotated at every training step to be nearest to the running class means."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, transpose
from nc_jax.checks import Reals, is_traced, real_array, without_class
from nc_jax.collective import Axes, all_sum
from nc_jax.frames import SimplexTemplate, Template, simplex_template
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.frames.template import DenseTemplate, LearnedTemplate, TemplateOrRule, template_rule
from nc_jax.heads.head import Arrays, Declared, Head, Initial, constant
from nc_jax.heads.output import HeadOutput, check_width, scale_features
from nc_jax.manifolds import Stiefel
from nc_jax.nearest import nearest_at_unit_norm
from nc_jax.solvers import Status, TrustRegionOptions

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
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius must be positive, or None; got {self.radius}")
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


def nearest(
    num_classes: int,
    *,
    template: TemplateOrRule | None = None,
    weights: Reals | None = None,
    options: NearestOptions = NearestOptions(),
    **changes: Any,
) -> Head:
    r"""Classifier whose frame is the one nearest to the running class means.

    A training step works as follows:

    1. Scale the features h to length tau (`NearestOptions.radius`) and take the class means of the batch.
    2. If the vectors of the frame sum to zero, as those of the simplex ETF do, subtract the batch's global mean from
       the class means.
    3. Average the class means over the steps; call the result H (d, K).
    4. Set the frame to W = U T, where T (r, K) is the template and U the rotation that brings U T nearest to H. Both
       are compared at unit Frobenius norm. With `weights`, the distance of class k counts w_k times.
    5. The logits are W^T (h - g), where g is the running global mean, or zero if the frame's vectors do not sum to
       zero.

    If some classes have far more examples than others, the global mean of step 2 is nearly the mean of the frequent
    classes, and the mean of a rare class keeps the centre of the batch that it was last seen in. With
    `centre="classes"`, step 2 subtracts nothing. After step 3, g is the mean of the columns of H of all classes seen so
    far, and H - g takes the place of H in step 4.

    Gradients reach the features in two ways: through h in step 5, and through the class means and the inner problem.
    Without `train`, the head uses the last frame and the last g, and solves nothing.

    The state holds arrays (floats in float32, counts in int32):

    - `class_means` (d, K) and `global_mean` (d,): the running means H and g (H without a centre subtracted if
      `centre="classes"`);
    - `updates` (K,): in how many steps each class had an example; `counts` (K,): how many examples each class had;
    - `steps`: the number of training steps;
    - `rotation` (d, r) and `frame` (d, K): the last solution U and the frame U T;
    - `anchor` (d, r), only if `prox_point="initial"`: the proximal point of all steps after the first.

    If a batch lacks a class, that class keeps its running mean. A class that has not appeared yet has a zero mean,
    which does not influence the rotation. A batch with a NaN or an infinity leaves the whole state as it was, and
    `output.solution.status` is `nc_jax.solvers.Status.NON_FINITE`. Under `jax.jit`, so does a batch with a label that
    is neither a class nor -1; outside, such a label is an error.

    Args:
        num_classes: K, at most d + 1 for the simplex ETF.
        template: template of another frame, shape (r, K) with r <= d: a matrix, a `nc_jax.frames.Template`, a
            `nc_jax.frames.LearnedTemplate`, which has trained parameters, or a function from d to one of these. None:
            the template of the simplex ETF.
        weights: w, shape (K,), positive: how much the distance of each class counts in the choice of the rotation. Only
            their ratios matter. None counts all classes alike.
        options: all other settings.
        changes: single settings by name, such as `radius=1.0`; each replaces that field of `options`.

    Raises:
        ValueError: if the template does not have K columns, the weights are not K finite numbers above 0, or a setting
            is out of its range; from `init`, if d < K - 1 (for another template, d < r); from `apply`, if labels are
            missing in training or the features do not have shape (N, d).

    Reference: Markou, Ajanthan and Gould (2024), section 3.
    """
    chosen = replace(options, **changes)
    counting = None if weights is None else _checked_weights(weights, num_classes)
    if template is not None:
        at = template_rule(template, num_classes)
    else:
        simplex: Any = SimplexTemplate.of_unit_columns(num_classes)
        if not chosen.reduced:
            simplex = DenseTemplate(simplex.scale * simplex_template(num_classes, reduced=False), centred=True)
        at = template_rule(simplex, num_classes)

    def declare(dim, dtype):
        del dtype  # the state is float32, whatever the features are
        if template is None:
            check_room_for_simplex(num_classes, dim)
        kept = at(dim)
        rank = kept.shape[0]
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
            "frame": Initial(_first(kept).rotate, random=False, follows="rotation"),
        }
        if chosen.prox_point == "initial":
            state["anchor"] = constant(lambda: zeros((dim, rank), floats))
        params = {"template": constant(kept.initial)} if isinstance(kept, LearnedTemplate) else {}
        return Declared(params, state)

    def forward(params, state, features, labels, *, train, mask, axis_name):
        if train and labels is None:
            raise ValueError("a nearest head needs labels in training; got None")
        check_width(features, state["class_means"].shape[0])
        features = scale_features(features, chosen.radius)
        if not train:
            return _output(features, state["frame"], state["global_mean"], None), state
        kept = at(features.shape[1])
        here = kept.build(params["template"]) if isinstance(kept, LearnedTemplate) else kept
        if mask is not None:
            labels = jnp.where(mask, labels, -1)
        return _step(chosen, here, counting, state, features, labels, axis_name)

    return Head("nearest", num_classes, declare, forward, collection="nearest")


def _checked_weights(weights: Reals, num_classes: int) -> Float[Array, " classes"]:
    """Return the weights of the classes with mean 1: sums of weighted squares then stay in the range of float32."""
    found = real_array(weights, "weights")
    if found.shape != (num_classes,):
        raise ValueError(f"weights must have shape ({num_classes},), one number for each class; got {found.shape}")
    if not is_traced(found):
        wrong = ~(np.isfinite(found) & (np.asarray(found) > 0))
        if wrong.any():
            raise ValueError(f"weights of classes must be finite and above 0; got {np.asarray(found)[wrong][0]:g}")
    found = found / jnp.max(found)
    return found / jnp.mean(found)


def _first(template: Any) -> Template:
    return template.build(template.initial()) if isinstance(template, LearnedTemplate) else template


def _step(
    options: NearestOptions,
    template: Template,
    weights: Array | None,
    state: Arrays,
    features: Array,
    labels: Array,
    axis_name: Axes,
) -> tuple[HeadOutput, Arrays]:
    """Update the running class means with the batch, find the nearest frame, and classify with it."""
    batch_means, global_mean, counts = batch_means_of(features, labels, template.shape[1], axis_name)
    if not template.centred or options.centre == "classes":
        global_mean = jnp.zeros_like(global_mean)
    present = counts > 0
    updates = state["updates"] + present.astype(jnp.int32)
    any_present = jnp.any(present)  # a batch that is all padding does not count as a step
    steps = state["steps"] + any_present.astype(jnp.int32)
    class_means = jnp.where(
        present[None],
        _average(state["class_means"], batch_means - global_mean[:, None], _alpha(options, updates)[None]),
        state["class_means"],
    )
    global_mean = jnp.where(
        any_present, _average(state["global_mean"], global_mean, _alpha(options, steps)), state["global_mean"]
    )
    class_means, global_mean = _cut(options, (class_means, global_mean), state["steps"])
    compared = class_means
    if template.centred and options.centre == "classes":
        # Not in the running means themselves: the mean of a class that was last seen long ago gets today's centre.
        seen = updates > 0
        global_mean = jnp.sum(class_means, axis=1) / jnp.maximum(jnp.sum(seen), 1)
        compared = jnp.where(seen[None], class_means - global_mean[:, None], 0)

    first = state["steps"] == 0
    drawn_to = state["rotation"]
    if "anchor" in state:
        drawn_to = jnp.where(first, drawn_to, state["anchor"])
    found = nearest_at_unit_norm(
        compared,
        template,
        prox_point=drawn_to,
        prox_weight=_prox_weight(options, first, all_seen=jnp.all(updates > 0)),
        solver=options.solver,
        init=state["rotation"],
        weights=weights,
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
        # The proximal point of the first step; if that step had none, the rotation that it found.
        point = found.rotation if options.initial == "unregularised" else drawn_to
        new["anchor"] = jnp.where(first, point, state["anchor"])
    # The state is constant for the next step: no gradient flows from one step back to an earlier one.
    new = {name: jax.lax.stop_gradient(value).astype(state[name].dtype) for name, value in new.items()}
    # A NaN would stay in the running means for ever. All devices decide alike, because they have the same sums.
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in new.values()]))
    new = {name: jnp.where(finite, value, state[name]) for name, value in new.items()}
    status = jnp.where(finite, found.solution.status, Status.NON_FINITE).astype(jnp.int32)
    return _output(features, found.frame, global_mean, found.solution._replace(status=status)), new


def batch_means_of(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    num_classes: int,
    axis_name: Axes = None,
) -> tuple[Float[Array, "dim classes"], Float[Array, " dim"], Int[Array, " classes"]]:
    """Return the class means, the global mean and the class counts of a batch, over all devices and without padding.

    Args:
        features: shape (N, d).
        labels: integer classes 0..K-1, shape (N,); -1 marks padding. If a label is something else, all means are NaN.
        num_classes: K.
        axis_name: name of the mapped axis over which the batch is split; see `nc_jax.heads.Head.apply`.

    Returns:
        Class means (d, K), zero for a class without examples; global mean of the examples (d,); number of examples of
        each class (K,), int32.
    """
    # A product with the one-hot matrix adds in a fixed order; on some accelerators a scatter does not. Padding (-1) has
    # a column of zeros in that matrix. Classes are rows until the division: XLA would compile a product followed by a
    # transposition as the transposed product, which takes six times as long on a CPU (37 against 6.5 us).
    members = jax.nn.one_hot(labels, num_classes, axis=0, dtype=jnp.float32)
    sums = matmul(members, at_least_float32(features))
    sums = jnp.where(jnp.any(without_class(labels, num_classes)), jnp.nan, sums)
    counts = jnp.sum(members, axis=1)
    # Sum over devices before the solve: every device then solves the same problem, so the result does not depend on
    # the number of devices.
    sums, counts = all_sum((sums, counts), axis_name)
    global_mean = jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts), 1)
    return transpose(sums / jnp.maximum(counts, 1)[:, None]), global_mean, counts.astype(jnp.int32)


def _cut(options: NearestOptions, values: tuple[Array, Array], step: Array) -> tuple[Array, Array]:
    """Stop the gradient through the values if `options.stop_gradient` says so for this step."""
    constants = jax.lax.stop_gradient(values)
    if isinstance(options.stop_gradient, bool):
        return constants if options.stop_gradient else values
    start, stop = options.stop_gradient
    cut = (start <= step) & (step < stop)
    return jax.tree.map(lambda fixed, value: jnp.where(cut, fixed, value), constants, values)


def _output(features: Array, frame: Array, global_mean: Array, solution: Any) -> HeadOutput:
    frame, global_mean = frame.astype(features.dtype), global_mean.astype(features.dtype)
    bias = -(global_mean @ frame)
    return HeadOutput(features @ frame + bias[None], features, frame, bias, solution)


def _alpha(options: NearestOptions, count: Array) -> Array:
    """Return the weight that the newest value gets in a running average of `count` values."""
    count = jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.maximum(2 / (count + 1), options.min_alpha) if options.averaging == "ema" else 1 / count


def _prox_weight(options: NearestOptions, first: Array, all_seen: Bool[Array, ""]) -> Array | float:
    """Return the weight of the proximal term; zero in an unregularised first step whose batch holds every class."""
    if options.initial != "unregularised":
        return options.prox_weight
    # If the first batch lacks a class, its means do not determine the rotation. Rounding would then choose one, and the
    # choice would depend on the number of devices. A small pull towards the initial rotation removes this ambiguity.
    return jnp.where(first, jnp.where(all_seen, 0.0, _TIE_BREAK), options.prox_weight)


def _average(old: Array, new: Array, alpha: Array) -> Array:
    return old + alpha * (new - old)
