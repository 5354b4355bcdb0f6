"""Classifier heads: who decides where the class vectors are.

Every head maps (features, labels) to a `HeadOutput`, so one training step serves all of them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm, transpose
from nc_jax.frames import simplex_etf
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.manifolds import Stiefel
from nc_jax.nearest import NearestFrame, nearest_frame, nearest_simplex_etf
from nc_jax.solvers import Solution, TrustRegionOptions


class HeadOutput(NamedTuple):
    """What a head returns.

    Attributes:
        logits: features @ frame + bias, shape (N, K).
        features: the features as the classifier sees them (scaled to length `radius`, if the head does that), (N, d).
        frame: class vectors as columns, (d, K).
        bias: (K,).
        solution: how the inner solve of this call went; None where there was none.
        levels: of heads with a classifier for every level of a label tree (`nc_jax.models.LevelsHead`), their logits
            and frames; None elsewhere.
        raw_features: the features as the backbone gave them, which weight decay on features penalises; a head leaves
            this to its `Classifier`.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch dim"]
    frame: Float[Array, "dim classes"]
    bias: Float[Array, " classes"]
    solution: Solution | None = None
    levels: Any = None
    raw_features: Float[Array, "batch dim"] | None = None


class LearnedHead(nn.Module):
    """Linear classifier with free weights: the baseline everywhere.

    Attributes:
        num_classes: K.
        radius: features are scaled to this length; None leaves them as they are.
        normalize_columns: use unit class vectors, whatever the length of the weights.
        use_bias: learn a bias.
    """

    num_classes: int
    radius: float | None = None  # a plain linear classifier
    normalize_columns: bool = False  # as above
    use_bias: bool = True  # as above

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"] | None = None, *, train: bool = False
    ) -> HeadOutput:
        """Classify a batch. Labels are not looked at."""
        del labels, train
        features = scale_features(features, self.radius)
        shape = (features.shape[-1], self.num_classes)
        frame = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if self.normalize_columns:
            norms = safe_norm(frame, axis=0)
            frame = frame / jnp.where(norms > 0, norms, 1)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        else:
            bias = jnp.zeros((self.num_classes,), frame.dtype)
        return HeadOutput(features @ frame + bias, features, frame, bias)


class FixedHead(nn.Module):
    """Classifier whose frame is drawn once and never trained. It lives in the collection "frame", not in "params".

    Attributes:
        num_classes: K.
        radius: features are scaled to this length; None leaves them as they are.
        frame: constructor (num_classes, dim, *, key, dtype) -> (d, K); the key is the module's "params" stream.
        use_bias: learn a bias, as the released program of Zhu et al. does: the only parameters of this head.

    Reference: Zhu et al., A geometric analysis of neural collapse with unconstrained features (2021), section 3.3.
    """

    num_classes: int
    radius: float | None = None
    frame: Callable[..., Float[Array, "dim classes"]] = simplex_etf
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"] | None = None, *, train: bool = False
    ) -> HeadOutput:
        """Classify a batch. Labels are not looked at.

        Raises:
            ValueError: if the frame does not fit into the feature dimension.
        """
        del labels, train
        features = scale_features(features, self.radius)

        def draw() -> Array:
            return self.frame(self.num_classes, features.shape[-1], key=self.make_rng("params"), dtype=features.dtype)

        frame = self.variable("frame", "frame", draw).value
        if not self.use_bias:
            return HeadOutput(features @ frame, features, frame, jnp.zeros((self.num_classes,), frame.dtype))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return HeadOutput(features @ frame + bias, features, frame, bias)


class NearestHead(nn.Module):
    r"""Classifier that is, at every training step, the simplex ETF nearest to the running class means.

    In training, features h (scaled to length tau) give the batch's class means, centred by the batch's global mean and
    averaged over steps into H; the class vectors are W = sqrt(K / (K - 1)) U M for the rotation U nearest to H, and the
    logits are W^T (h - g) with g the running global mean. Gradients reach the features through the classifier, too,
    unless `stop_gradient` is set. In evaluation the last frame and mean are used.

    The collection "nearest" holds, in float32: `class_means` (d, K) and `global_mean` (d,), the running means;
    `updates` (K,), the number of steps that held each class; `counts` (K,), the number of its examples; `steps`;
    `rotation` (d, r), the last solution; `frame` (d, K). A class that a batch lacks keeps its running mean; one that
    never appeared has a zero mean, which attracts nothing.

    Attributes:
        num_classes: K, at most d + 1 (d for the full template).
        radius: tau, the length to which features are scaled; None leaves them as they are.
        averaging: "ema" with alpha_t = max(2 / (t + 1), min_alpha), or "cma", alpha_t = 1 / t; t counts the steps that
            held the class.
        min_alpha: floor of the EMA's weight.
        prox_weight: delta.
        initial: what the first step is drawn to: "unregularised", nothing (its solution without the proximal term is
            then the solution with it, too); "canonical", the first columns of the identity; "random", a Haar-random
            rotation.
        prox_point: what later steps are drawn to: "previous", the rotation of the step before, or "initial", that of
            the first step (kept as `anchor`).
        solver: "polar", the closed form, or "trust_region".
        reduced: use the template of full rank; False is the paper's K x K template.
        stop_gradient: cut the gradient through the class means, for ablations: always, or in the steps (start, stop),
            start included and counted from 0.
        template: module () -> T (r, K) of another frame in its own coordinates, r <= d, with columns of unit length
            (`nc_jax.models.HierarchicalTemplate`); None is the simplex ETF's.
        centred: take the global mean away, as the simplex, whose vectors sum to zero, wants it. Without, there is no
            bias, and the class means themselves are drawn to the frame.
        axis_name: name of the pmap axis over which batch sums are added; None on one device.
        options: of the trust region.

    Reference: Markou, Ajanthan and Gould (2024), section 3; the settings are those of its released program.
    """

    num_classes: int
    radius: float | None = 5.0  # tau, Markou et al. (2024)
    averaging: Literal["ema", "cma"] = "ema"  # Markou et al. (2024)
    min_alpha: float = 1e-4  # Markou et al. (2024)
    prox_weight: float = 1e-3  # delta, Markou et al. (2024)
    initial: Literal["unregularised", "canonical", "random"] = "unregularised"  # Markou et al. (2024)
    prox_point: Literal["previous", "initial"] = "previous"  # Markou et al. (2024)
    solver: Literal["trust_region", "polar"] = "polar"  # the same point as the trust region's, sooner
    reduced: bool = True  # the same frame up to O(delta), and never degenerate (docs/architecture.md)
    stop_gradient: bool | tuple[int, int] = False  # Markou et al. (2024): differentiate through the solve
    template: nn.Module | None = None
    centred: bool = True  # Markou et al. (2024)
    axis_name: str | None = None
    options: TrustRegionOptions = TrustRegionOptions()

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"] | None = None, *, train: bool = False
    ) -> HeadOutput:
        """Classify a batch; in training, first move the frame to it.

        Args:
            features: (N, d).
            labels: (N,), needed in training. Negative ones mark padding, which counts for nothing.
            train: update the running means and solve.

        Raises:
            ValueError: in training without labels; if d < K - 1 (d < r for a template); if `averaging`, `initial` or
                `prox_point` is unknown.
        """
        if labels is None and train:
            raise ValueError("NearestHead needs labels in training; got None")
        if self.averaging not in ("ema", "cma"):
            raise ValueError(f'averaging must be "ema" or "cma"; got {self.averaging!r}')
        if self.initial not in ("unregularised", "canonical", "random"):
            raise ValueError(f'initial must be "unregularised", "canonical" or "random"; got {self.initial!r}')
        if self.prox_point not in ("previous", "initial"):
            raise ValueError(f'prox_point must be "previous" or "initial"; got {self.prox_point!r}')
        features = scale_features(features, self.radius)
        dim = features.shape[-1]
        template = self._template(dim)
        state = _NearestState(self, dim, template)
        if labels is None or not train or self.is_initializing():
            return self._output(features, state.frame.value, state.global_mean.value, None)

        batch_means, global_mean, counts = self._batch_means(features, labels)
        if not self.centred:
            global_mean = jnp.zeros_like(global_mean)
        present = counts > 0
        updates = state.updates.value + present
        any_present = jnp.any(present)  # a batch of padding is no step
        steps = state.steps.value + any_present
        class_means = jnp.where(
            present,
            _average(state.class_means.value, batch_means - global_mean[:, None], self._alpha(updates)),
            state.class_means.value,
        )
        global_mean = jnp.where(
            any_present,
            _average(state.global_mean.value, global_mean, self._alpha(steps)),
            state.global_mean.value,
        )
        class_means, global_mean = self._cut((class_means, global_mean), state.steps.value)

        first = state.steps.value == 0
        drawn_to = state.rotation.value
        if state.anchor is not None:
            drawn_to = jnp.where(first, drawn_to, state.anchor.value)
        solve: dict[str, Any] = {
            "prox_point": drawn_to,
            "init": state.rotation.value,
            "prox_weight": self._prox_weight(state, all_seen=jnp.all(updates > 0)),
            "solver": self.solver,
            "options": self.options,
        }
        if template is None:
            found = nearest_simplex_etf(class_means, reduced=self.reduced, **solve)
        else:
            found = _nearest_to_template(class_means, template, **solve)
        state.update(class_means, global_mean, updates, state.counts.value + counts, steps, found.rotation, found.frame)
        if state.anchor is not None:
            # What the first step was drawn to; where that was nothing, what it found.
            point = found.rotation if self.initial == "unregularised" else drawn_to
            state.anchor.value = jnp.where(first, jax.lax.stop_gradient(point), state.anchor.value)
        return self._output(features, found.frame, global_mean, found.solution)

    def _cut(self, values: tuple[Array, Array], step: Array) -> tuple[Array, Array]:
        """Stop the gradient through the values, if it is to be stopped in this step."""
        constants = jax.lax.stop_gradient(values)
        if isinstance(self.stop_gradient, bool):
            return constants if self.stop_gradient else values
        start, stop = self.stop_gradient
        cut = (start <= step) & (step < stop)
        return jax.tree.map(lambda constant, value: jnp.where(cut, constant, value), constants, values)

    def _template(self, dim: int) -> Array | None:
        """Return the template, checked, or None for the simplex."""
        if self.template is None:
            check_room_for_simplex(self.num_classes, dim)
            return None
        template = self.template()
        if template.shape[1] != self.num_classes or template.shape[0] > dim:
            raise ValueError(
                f"a template needs {self.num_classes} columns and at most dim={dim} rows; got shape {template.shape}"
            )
        return template

    def _output(self, features: Array, frame: Array, global_mean: Array, solution: Solution | None) -> HeadOutput:
        frame, global_mean = frame.astype(features.dtype), global_mean.astype(features.dtype)
        bias = -(global_mean @ frame)
        return HeadOutput(features @ frame + bias, features, frame, bias, solution)

    def _batch_means(self, features: Array, labels: Array) -> tuple[Array, Array, Array]:
        """Class means (d, K), global mean (d,) and class counts (K,) of the batch on all devices, padding left out."""
        # A product with the one-hot matrix adds in a fixed order; a scatter does not on every accelerator. Padding (-1)
        # has a column of zeros. Classes are rows until they have been divided: a product followed by a transposition
        # would be compiled as the transposed product, which takes six times as long on a CPU (37 against 6.5 us).
        members = jax.nn.one_hot(labels, self.num_classes, axis=0, dtype=jnp.float32)
        sums = matmul(members, at_least_float32(features))
        counts = jnp.sum(members, axis=1)
        if self.axis_name is not None:
            # Summed before the solve: every device then solves the same problem, and their number changes nothing.
            sums, counts = jax.lax.psum((sums, counts), self.axis_name)
        global_mean = jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts), 1)
        return transpose(sums / jnp.maximum(counts, 1)[:, None]), global_mean, counts.astype(jnp.int32)

    def _alpha(self, count: Array) -> Array:
        """Weight of the newest of `count` values in the running average."""
        count = jnp.maximum(count, 1).astype(jnp.float32)
        return jnp.maximum(2 / (count + 1), self.min_alpha) if self.averaging == "ema" else 1 / count

    def _prox_weight(self, state: "_NearestState", all_seen: Array) -> Array | float:
        """Weight of the proximal term; none in the first step if nothing is to draw it."""
        if self.initial != "unregularised":
            return self.prox_weight
        # A first batch without some class leaves the rotation open, and rounding would choose it, differently on every
        # number of devices. Then, and only then, the initial rotation decides.
        first = jnp.where(all_seen, 0.0, _TIE_BREAK)
        return jnp.where(state.steps.value == 0, first, self.prox_weight)


_TIE_BREAK = 1e-3  # the paper's proximal weight: far above float32's rounding, far below what determined means weigh


class _NearestState:
    """The variables of a NearestHead, by name."""

    def __init__(self, head: NearestHead, dim: int, template: Array | None):
        rank = head.num_classes - 1 if head.reduced else head.num_classes
        rank = rank if template is None else template.shape[0]
        zeros, floats, ints = jnp.zeros, jnp.float32, jnp.int32
        self.class_means = head.variable("nearest", "class_means", zeros, (dim, head.num_classes), floats)
        self.global_mean = head.variable("nearest", "global_mean", zeros, (dim,), floats)
        self.updates = head.variable("nearest", "updates", zeros, (head.num_classes,), ints)
        self.counts = head.variable("nearest", "counts", zeros, (head.num_classes,), ints)
        self.steps = head.variable("nearest", "steps", zeros, (), ints)
        self.rotation = head.variable("nearest", "rotation", self._draw, head, dim, rank)
        self.frame = head.variable("nearest", "frame", self._frame, head, dim, template)
        self.anchor = None
        if head.prox_point == "initial":
            self.anchor = head.variable("nearest", "anchor", zeros, (dim, rank), floats)

    @staticmethod
    def _draw(head: NearestHead, dim: int, rank: int) -> Array:
        if head.initial == "random":
            return Stiefel(dim, rank).random_point(head.make_rng("params"))
        return jnp.eye(dim, rank, dtype=jnp.float32)

    @staticmethod
    def _frame(head: NearestHead, dim: int, template: Array | None) -> Array:
        if template is None:
            return simplex_etf(head.num_classes, dim)
        return jnp.pad(jax.lax.stop_gradient(template), ((0, dim - len(template)), (0, 0)))

    def update(self, *values: Any) -> None:
        """Store new values, in the order of the attributes. None carries a gradient to the next step."""
        for variable, value in zip(list(vars(self).values())[: len(values)], values, strict=True):
            variable.value = jax.lax.stop_gradient(value).astype(variable.value.dtype)


def scale_features(features: Float[Array, "batch dim"], radius: float | None) -> Float[Array, "batch dim"]:
    """Scale each feature vector to the given length (None: leave it); a zero vector stays zero.

    Raises:
        ValueError: if the features are not of shape (N, d), or the radius is not positive.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (batch, dim); got shape {features.shape}")
    if radius is None:
        return features
    if not radius > 0:
        raise ValueError(f"radius must be positive; got {radius}")
    norms = safe_norm(features, axis=1)
    return radius * features / jnp.where(norms > 0, norms, 1)


def _nearest_to_template(class_means: Array, template: Array, **solve: Any) -> NearestFrame:
    """Compare means and template at unit Frobenius norm, as `nearest_simplex_etf` does."""
    norm, size = safe_norm(class_means), safe_norm(template)
    found = nearest_frame(class_means / jnp.where(norm > 0, norm, 1), template / size, **solve)
    return found._replace(frame=found.frame * size)


def _average(old: Array, new: Array, alpha: Array) -> Array:
    return old + alpha * (new - old)
