"""The nearest head for very many classes: a step touches the columns of the batch's classes and of a random sample."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax import implicit
from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose, wider
from nc_jax.collective import Axes
from nc_jax.frames import Template
from nc_jax.frames.template import LearnedTemplate
from nc_jax.heads.batch_means import batch_means_of
from nc_jax.heads.head import Arrays, Declared, Head, constant
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
from nc_jax.heads.sampling import Candidates, draw, draws_of, places_among
from nc_jax.manifolds import Stiefel
from nc_jax.solvers import Solution, Status


def sampled_nearest(
    head: Head,
    number: int,
    *,
    template_for: Callable[[int], Template | LearnedTemplate],
    weights: Float[Array, " classes"] | None,
    options: NearestOptions,
) -> Head:
    r"""Return the sampled head of a nearest head; `nc_jax.heads.sampled` describes it.

    A batch changes the means of its own classes only. So the head keeps H W T^T, which the inner problem takes from all
    classes, and adds to it what the batch changes. With old means h_k and new means h_k + c_k of the classes in the
    batch, and weights w_k,

    .. math:: H W T^\top \mathrel{+}= \sum_k w_k c_k t_k^\top .

    The squared lengths of the means, whose sum gives the norm of H, are kept for each class. What the state holds is a
    constant of the step, as the old means are. So gradients are those of the dense problem. Logits are t_k^T (U^T h):
    only the template's columns of the candidates are read.

    Only the rounding of c_k t_k^T stays in the sum: after n steps with the class, at most eps (2 log n + n min_alpha)
    times the largest length that its mean had. The sum itself is compensated.

    Args:
        head: the nearest head for all classes.
        number: how many random classes take part in the softmax.
        template_for: function from the feature dimension to the template.
        weights: weights of the classes, with mean 1; None counts all classes alike.
        options: settings of the head.

    Raises:
        ValueError: if the options ask for the trust region, or for `centre="classes"`; from `init`, if the template has
            trained parameters.
    """
    if options.solver != "polar":
        raise ValueError(f'a sampled nearest head needs solver="polar"; got {options.solver!r}')
    if options.centre != "batch":
        raise ValueError(f'a sampled nearest head needs centre="batch"; got {options.centre!r}')

    def template_of(dim: int) -> Template:
        template = template_for(dim)
        if isinstance(template, LearnedTemplate):
            raise ValueError("a sampled nearest head needs a template without parameters; got a LearnedTemplate")
        return template

    def declare(dim, dtype):
        template = template_of(dim)
        state = head.declare(dim, dtype).state
        del state["frame"]
        rank = template.shape[0]
        more = {
            "template": constant(lambda: _matrix(template)),
            "sizes": constant(lambda: _sizes(_matrix(template), weights)),
            "correlation": constant(lambda: jnp.zeros((2, dim, rank), jnp.float32)),
            "squares": constant(lambda: jnp.zeros((head.num_classes,), jnp.float32)),
        }
        return Declared({}, state | more | draws_of())

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del params, mask  # labels have -1 where the mask is False
        dim = state["class_means"].shape[0]
        check_width(features, dim)
        features = scale_features(features, options.radius)
        if not train:
            return _output(features, state["rotation"], state["template"], state["global_mean"]), state
        candidates, drawn = draw(state, labels, head.num_classes, number, axis_name)
        assert labels is not None, "draw has refused it"
        arguments = template_of(dim).centred, weights, candidates, number, state, features, labels, axis_name
        output, new = _step(options, *arguments)
        return output, {**state, **new, **drawn}

    return Head(f"sampled {head.name}", head.num_classes, declare, forward, collection=head.collection)


def _matrix(template: Template) -> Float[Array, "rank classes"]:
    wide = wider(jnp.float32 if template.dtype is None else template.dtype)
    return template.rotate(jnp.eye(template.shape[0], dtype=wide)).astype(wide)


def _sizes(matrix: Array, weights: Array | None) -> Float[Array, "2"]:
    """Return the norm of the template, and the weighted square of its norm once it is scaled to norm 1."""
    squares = jnp.sum(matrix**2, axis=0)
    weighted = squares if weights is None else weights * squares
    return jnp.stack([jnp.sqrt(jnp.sum(squares)), jnp.sum(weighted) / jnp.sum(squares)])


def _step(
    options: NearestOptions,
    centred: bool,
    weights: Array | None,
    candidates: Candidates,
    number: int,
    state: Arrays,
    features: Array,
    labels: Array,
    axis_name: Axes,
) -> tuple[HeadOutput, Arrays]:
    """Do a nearest head's training step with the columns of the candidates only."""
    rows = len(candidates.classes) - number  # places of the batch's classes, the first ones
    classes = candidates.classes[:rows]
    means, batch_mean, counts = batch_means_of(features, places_among(classes, labels), rows, axis_name)
    if not centred:
        batch_mean = jnp.zeros_like(batch_mean)
    read = jnp.maximum(candidates.classes, 0)
    columns = state["template"][:, read]
    wide = wider(means.dtype, columns.dtype)
    own, near = read[:rows], columns[:, :rows].astype(wide)
    # Out of range where there is no class: writing drops those.
    written = jnp.where(classes < 0, state["updates"].shape[0], classes)

    present = counts > 0
    steps = state["steps"] + jnp.any(present).astype(jnp.int32)
    updates = state["updates"][own] + present.astype(jnp.int32)
    old = state["class_means"][:, own]
    new = average(old, means - batch_mean[:, None], newest_weight(options, updates)[None])
    global_mean = average(state["global_mean"], batch_mean, newest_weight(options, steps))
    new, global_mean = (
        jnp.where(present[None], new, old),
        jnp.where(steps > state["steps"], global_mean, state["global_mean"]),
    )
    new, global_mean = cut_gradient(options, (new, global_mean), state["steps"])

    def change_of(new: Array) -> Array:
        """Return what new means of the batch's classes add to H W T^T."""
        change = (new - old).astype(wide)
        change = change if weights is None else change * weights[own].astype(wide)[None]
        return matmul(change, transpose(near))

    def squares_of(new: Array) -> Array:
        """Return the squared lengths of all class means."""
        return state["squares"].astype(new.dtype).at[written].set(jnp.sum(new**2, axis=0), mode="drop")

    size, weighted_template = state["sizes"].astype(wide)
    squares = squares_of(new).astype(wide)
    squares = jnp.sum(squares if weights is None else weights.astype(wide) * squares)
    correlation = jnp.sum(state["correlation"].astype(wide), axis=0) + change_of(new)
    # Zero means do not influence the rotation and get no gradient.
    some = squares > 0
    correlation = jnp.where(some, correlation / (size * jnp.sqrt(jnp.where(some, squares, 1))), 0)

    first = state["steps"] == 0
    drawn_to = proximal_point(state)
    seen = state["updates"].at[written].add(present.astype(jnp.int32), mode="drop")
    pull = jnp.asarray(prox_weight(options, first, all_seen=jnp.all(seen > 0)), wide)
    matrix = 2 * correlation + pull * drawn_to.astype(wide)
    rotation, solution = _solved(matrix, correlation, pull, drawn_to, state["rotation"], rows, weights)
    norms = jnp.where(some, 1, 0) + weighted_template
    solution = solution._replace(value=(norms + solution.value).astype(wide))

    kept = jax.lax.stop_gradient(new).astype(old.dtype)  # the sum is that of the means that the state holds
    correlation = _added(state["correlation"], change_of(kept))
    after = {"steps": steps, "global_mean": global_mean, "rotation": rotation, "correlation": correlation}
    after |= anchor_after(options, state, rotation)
    after = {name: jax.lax.stop_gradient(value).astype(state[name].dtype) for name, value in after.items()}
    # A NaN would stay in the running means for ever. All devices decide alike, because they have the same sums.
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in (kept, *after.values())]))
    after = {name: jnp.where(finite, value, state[name]) for name, value in after.items()}
    after["class_means"] = state["class_means"].at[:, written].set(jnp.where(finite, kept, old), mode="drop")
    after["squares"] = jnp.where(finite, squares_of(kept).astype(state["squares"].dtype), state["squares"])
    after["updates"] = jnp.where(finite, seen, state["updates"])
    after["counts"] = state["counts"].at[written].add(jnp.where(finite, counts, 0), mode="drop")
    status = jnp.where(finite, solution.status, Status.NON_FINITE).astype(jnp.int32)
    output = _output(features, rotation, columns, global_mean, candidates.log_weights)
    return output._replace(solution=solution._replace(status=status), classes=candidates.classes), after


def _solved(
    matrix: Array, correlation: Array, pull: Array, drawn_to: Array, start: Array, rows: int, weights: Array | None
) -> tuple[Array, Solution]:
    """Return the polar factor of B = 2 H W T^T + delta P, and how the solve ended, without the norms of H and T."""
    dim, rank = matrix.shape
    # H and T have norm 1, and the root mean square of T's r singular values is 1 / sqrt(r), as is that of H. The sums
    # over all classes are compensated, so their rounding is that of what a batch adds.
    heaviest = 1 if weights is None else jnp.sqrt(jnp.max(weights))
    rounding = max(dim, rows) * float(jnp.finfo(matrix.dtype).eps) * (2 * heaviest / rank + pull)
    rotation, decomposition, _ = implicit.polar_root()((start, jax.lax.stop_gradient(rounding)), matrix)
    point, matrix, correlation, pull = jax.lax.stop_gradient((rotation, matrix, correlation, pull))
    none = jnp.zeros((), jnp.int32)
    solution = Solution(
        point=point,
        value=-2 * jnp.vdot(point, correlation, precision="highest") + pull / 2 * jnp.sum((point - drawn_to) ** 2),
        grad_norm=safe_norm(Stiefel(dim, rank).gradient(point, -matrix)).reshape(()),
        iterations=none + decomposition.iterations,
        inner_iterations=none,
        status=jnp.where(decomposition.unique, none + Status.CONVERGED, Status.NOT_UNIQUE),
    )
    return rotation, solution


def _added(pair: Array, change: Array) -> Array:
    """Add to a number that is kept as the sum of two floats, high and low, with the rounding of twice their digits."""
    high, low = pair.astype(change.dtype)
    change = change + low
    total = high + change
    # What the addition has lost, exactly (Knuth's two-sum).
    part = total - high
    lost = (high - (total - part)) + (change - part)
    rounded = total.astype(pair.dtype)
    return jnp.stack([rounded, ((total - rounded.astype(total.dtype)) + lost).astype(pair.dtype)])


def _output(
    features: Array, rotation: Array, columns: Array, global_mean: Array, log_weights: Array | None = None
) -> HeadOutput:
    """Classify with U T, without computing that product unless somebody reads the frame."""
    dtype = features.dtype
    frame = matmul(at_least_float32(rotation), at_least_float32(columns)).astype(dtype)
    turn, columns, centre = rotation.astype(dtype), columns.astype(dtype), global_mean.astype(dtype)
    bias = -((centre @ turn) @ columns)
    if log_weights is not None:
        bias = bias + log_weights.astype(dtype)
    return HeadOutput((features @ turn) @ columns + bias[None], features, frame, bias)
