"""Head whose class vectors are a frame, rotated at every training step to be nearest to the running class means."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax.checks import Reals, is_traced, real_array
from nc_jax.collective import Axes
from nc_jax.frames import SimplexTemplate, Template, simplex_template
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.frames.template import DenseTemplate, LearnedTemplate, TemplateOrRule, template_rule
from nc_jax.heads.batch_means import batch_means_of
from nc_jax.heads.head import Arrays, Declared, Head, Initial, constant
from nc_jax.heads.nearest_options import (
    NearestOptions,
    anchor_after,
    average,
    cut_gradient,
    newest_weight,
    prox_weight,
    proximal_point,
)
from nc_jax.heads.output import HeadOutput, check_width, scale_features
from nc_jax.heads.sampled_nearest import sampled_nearest
from nc_jax.manifolds import Stiefel
from nc_jax.nearest import nearest_at_unit_norm
from nc_jax.solvers import Solution, Status


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

    A step costs O(d r K) for the products with the template. `nc_jax.heads.sampled` makes of this head one for very
    many classes, whose steps do not need them.

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
    at = rule_of(num_classes, template, chosen)

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
        # Behind a barrier, XLA does not fold the norms of a template that is a constant of the program. It did so for
        # 20 of 27 s of compilation at 128 x 10,000, and for two minutes at 128 x 100,000.
        here = (
            kept.build(params["template"]) if isinstance(kept, LearnedTemplate) else jax.lax.optimization_barrier(kept)
        )
        if mask is not None:
            labels = jnp.where(mask, labels, -1)
        return _step(chosen, here, counting, state, features, labels, axis_name)

    few = partial(sampled_nearest, template_for=at, weights=counting, options=chosen)
    return Head("nearest", num_classes, declare, forward, collection="nearest", subsampled=few)


def rule_of(
    num_classes: int, template: TemplateOrRule | None, options: NearestOptions
) -> Callable[[int], Template | LearnedTemplate]:
    """Return the function d -> template of a nearest head; without a template, the simplex ETF's."""
    if template is not None:
        return template_rule(template, num_classes)
    simplex: Any = SimplexTemplate.of_unit_columns(num_classes)
    if not options.reduced:
        simplex = DenseTemplate(simplex.scale * simplex_template(num_classes, reduced=False), centred=True)
    return template_rule(simplex, num_classes)


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
    batch = batch_means_of(features, labels, template.shape[1], axis_name)
    frame, global_mean, solution, new = follow(options, template, weights, state, *batch)
    return _output(features, frame, global_mean, solution), new


def follow(
    options: NearestOptions,
    template: Template,
    weights: Array | None,
    state: Arrays,
    batch_means: Float[Array, "dim classes"],
    global_mean: Float[Array, " dim"],
    counts: Int[Array, " classes"],
) -> tuple[Array, Array, Solution, Arrays]:
    """Update the running class means with the means of some examples, and find the nearest frame.

    Args:
        options: the settings of the head.
        template: its template, r x K.
        weights: weights of the classes, mean 1; None counts all alike.
        state: the head's state.
        batch_means: class means of the examples, shape (d, K); those of classes without an example do not matter.
        global_mean: mean of the examples, shape (d,).
        counts: number of examples of each class, shape (K,).

    Returns:
        The frame (d, K) and the running global mean (d,), through which gradients flow; how the inner problem ended;
        and the next state.
    """
    if not template.centred or options.centre == "classes":
        global_mean = jnp.zeros_like(global_mean)
    present = counts > 0
    updates = state["updates"] + present.astype(jnp.int32)
    any_present = jnp.any(present)  # a batch that is all padding does not count as a step
    steps = state["steps"] + any_present.astype(jnp.int32)
    class_means = jnp.where(
        present[None],
        average(state["class_means"], batch_means - global_mean[:, None], newest_weight(options, updates)[None]),
        state["class_means"],
    )
    global_mean = jnp.where(
        any_present, average(state["global_mean"], global_mean, newest_weight(options, steps)), state["global_mean"]
    )
    class_means, global_mean = cut_gradient(options, (class_means, global_mean), state["steps"])
    compared = class_means
    if template.centred and options.centre == "classes":
        # Not in the running means themselves: the mean of a class that was last seen long ago gets today's centre.
        seen = updates > 0
        global_mean = jnp.sum(class_means, axis=1) / jnp.maximum(jnp.sum(seen), 1)
        compared = jnp.where(seen[None], class_means - global_mean[:, None], 0)

    first = state["steps"] == 0
    drawn_to = proximal_point(state)
    found = nearest_at_unit_norm(
        compared,
        template,
        prox_point=drawn_to,
        prox_weight=prox_weight(options, first, all_seen=jnp.all(updates > 0)),
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
    } | anchor_after(options, state, found.rotation)
    # The state is constant for the next step: no gradient flows from one step back to an earlier one.
    new = {name: jax.lax.stop_gradient(value).astype(state[name].dtype) for name, value in new.items()}
    # A NaN would stay in the running means for ever. All devices decide alike, because they have the same sums.
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in new.values()]))
    new = {name: jnp.where(finite, value, state[name]) for name, value in new.items()}
    status = jnp.where(finite, found.solution.status, Status.NON_FINITE).astype(jnp.int32)
    return found.frame, global_mean, found.solution._replace(status=status), new


def _output(features: Array, frame: Array, global_mean: Array, solution: Any) -> HeadOutput:
    frame, global_mean = frame.astype(features.dtype), global_mean.astype(features.dtype)
    bias = -(global_mean @ frame)
    return HeadOutput(features @ frame + bias[None], features, frame, bias, solution)
