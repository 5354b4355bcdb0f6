"""Space alignment: class vectors and class means are brought into line, whatever the head and the loss.

Misalignment is an angle between a class vector and its class mean, seen from the centre of all class means. One
extension penalises it; two correct the class vectors between head and loss, in training and in evaluation. All of them
keep running class means of their own. Their formulas are ours: `docs/space_alignment.md` derives them.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import at_least_float32, matmul, normalized, safe_norm, slerp, transpose
from nc_jax.checks import check_at_least
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput, batch_means_of
from nc_jax.training.extension import Context, Extension

State = dict[str, Any]


@dataclass(frozen=True)
class _ClassMeans(Extension):
    """Keeps running means of the features that the classifier sees, "means" (d, K), and counts of their "updates"."""

    strength: float
    min_alpha: float = 1e-4  # as for the nearest head: Markou et al. (2024)

    def __post_init__(self):
        if not 0 <= self.min_alpha <= 1:
            raise ValueError(f"min_alpha must lie in [0, 1]; got {self.min_alpha}")

    def init(self, key: PRNGKeyArray, output: HeadOutput) -> State:
        """Return zero means, of classes that have not been seen."""
        del key
        return {"means": jnp.zeros(output.frame.shape), "updates": jnp.zeros(output.frame.shape[1:], jnp.int32)}

    def update(self, context: Context, state: State, output: HeadOutput, batch: Batch) -> State:
        """Average the class means of the batch into the running ones."""
        del context
        return _kept_if_finite(self._averaged(state, output, batch), state)

    def _averaged(self, state: State, output: HeadOutput, batch: Batch) -> State:
        """Return means and updates with those of the batch; classes that the batch lacks keep theirs."""
        # Padding may hold anything, a NaN too.
        features = jnp.where(batch.mask[:, None], output.features, 0)
        newest, _, counts = batch_means_of(features, jnp.where(batch.mask, batch.labels, -1), output.frame.shape[1])
        present = counts > 0
        updates = state["updates"] + present.astype(jnp.int32)
        alpha = jnp.maximum(2 / (updates.astype(newest.dtype) + 1), self.min_alpha)
        means = jnp.where(present[None], state["means"] + alpha[None] * (newest - state["means"]), state["means"])
        return {**state, "means": means, "updates": updates}


@dataclass(frozen=True)
class AlignmentPenalty(_ClassMeans):
    r"""Penalty on the angles between class vectors :math:`w_k` and centred running class means.

    .. math:: \lambda \, \frac1S \sum_{k \text{ seen}} \big(1 - \cos(w_k,\; m_k - m_G)\big)

    Here S is the number of classes seen so far, :math:`m_k` their running means, with the batch averaged into them, and
    :math:`m_G` the mean of these. The gradient reaches the class vectors, if they are learned, and the features: an
    example of class k through the weight that the batch has in :math:`m_k`, which falls with time down to `min_alpha`.

    A mixed example counts for its own class. If a batch comes in parts, each part is averaged into the means from
    before the step.

    Attributes:
        strength: :math:`\lambda > 0`.
        min_alpha: smallest weight, in [0, 1], of the newest batch in a running mean. The weight is max(2 / (t + 1),
            min_alpha), where t is the number of batches so far that held the class.

    Raises:
        ValueError: if an attribute is out of its range.

    Reference: ours, see `docs/space_alignment.md`.
    """

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.strength < math.inf:
            raise ValueError(f"the strength of an alignment penalty must be positive and finite; got {self.strength}")

    def penalties(
        self, context: Context, state: State, output: HeadOutput, batch: Batch
    ) -> dict[str, Float[Array, " batch"]]:
        """Return the penalty, the same for each example, so that it is their mean.

        A device's share of the mean is differentiated, with a sum over devices inside. The transpose of that sum adds
        the shares again, so the gradients of all devices add up to that of the whole.
        """
        del context
        after = self._averaged(state, output, batch)
        directions, _ = normalized(centred(after["means"], after["updates"]), axis=0)
        vectors, _ = normalized(at_least_float32(output.frame), axis=0)
        cosines = jnp.sum(vectors.astype(directions.dtype) * directions, axis=0)
        seen = after["updates"] > 0
        penalty = self.strength * jnp.sum(jnp.where(seen, 1 - cosines, 0)) / jnp.maximum(jnp.sum(seen), 1)
        return {"misalignment": jnp.broadcast_to(penalty, batch.labels.shape)}


@dataclass(frozen=True)
class _Correction(_ClassMeans):
    """Replaces the class vectors W by W', which a target decides: a function of the means, renewed now and then."""

    start: int = 1
    every: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise ValueError(f"the strength of a correction must lie in (0, 1]; got {self.strength}")
        for name in ("start", "every"):
            check_at_least(f"{name} of a correction", getattr(self, name))

    def init(self, key: PRNGKeyArray, output: HeadOutput) -> State:
        """Return zero means, and a target of zeros, which corrects nothing."""
        dim = output.frame.shape[0]
        return super().init(key, output) | {"target": jnp.zeros(output.frame.shape), "centre": jnp.zeros(dim)}

    def on_output(self, context: Context, state: State, output: HeadOutput, batch: Batch) -> HeadOutput:
        """Correct the class vectors, and the logits by as much as these change them."""
        del context, batch
        frame = at_least_float32(output.frame)
        target, centre = state["target"].astype(frame.dtype), state["centre"].astype(frame.dtype)
        corrected = self._corrected(frame, target)
        # A class without a target has not been seen. What an earlier extension has done to the logits stays.
        change = jnp.where(jnp.any(target != 0, axis=0)[None], corrected - frame, 0)
        # Class vectors turn about the centre of the class means, where no logit changes.
        offset = centre @ change
        moved = output.features.astype(frame.dtype) @ change - offset[None]
        return output._replace(
            logits=output.logits + moved.astype(output.logits.dtype),
            frame=(frame + change).astype(output.frame.dtype),
            bias=(output.bias - offset).astype(output.bias.dtype),
        )

    def update(self, context: Context, state: State, output: HeadOutput, batch: Batch) -> State:
        """Average the class means, and renew the target if the next step is one of those in which it is due."""
        after = jax.lax.stop_gradient(self._averaged(state, output, batch))
        ahead = context.step + 1 - self.start
        due = (ahead >= 0) & (ahead % self.every == 0)

        def renewed() -> State:
            means = centred(after["means"], after["updates"]).astype(state["target"].dtype)
            return {"target": self._target(means), "centre": _centre(after["means"], after["updates"])[:, 0]}

        held = jax.lax.cond(due, renewed, lambda: {name: state[name] for name in ("target", "centre")})
        return _kept_if_finite(after | held, state)

    def _target(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim classes"]:
        """Return the target of these centred means. Its columns are zero for classes that have not been seen."""
        raise NotImplementedError

    def _corrected(
        self, frame: Float[Array, "dim classes"], target: Float[Array, "dim classes"]
    ) -> Float[Array, "dim classes"]:
        """Return the corrected class vectors."""
        raise NotImplementedError


@dataclass(frozen=True)
class AlignmentSlerp(_Correction):
    r"""Turns the class vectors towards their centred class means, by a share of the angle.

    .. math:: w_k' = \text{slerp}(w_k,\; \mu_k - \mu_G;\; s), \qquad \|w_k'\| = \|w_k\|

    Here :math:`\mu_k` are running class means and :math:`\mu_G` is their mean over the classes seen so far. The logits
    change by :math:`(h - \mu_G)^\top (w_k' - w_k)`, and the biases by :math:`-\mu_G^\top (w_k' - w_k)`: class vectors
    turn about the centre of the class means, where no logit changes, and an offset of all features plays no part. This
    serves every head whose logits are :math:`W^\top h + b`, in training and in evaluation. Gradients reach :math:`w_k`
    and h; the means are constants.
    A class that has not been seen keeps its class vector.

    Attributes:
        strength: share s of the angle, in (0, 1]; 1 puts the class vectors into the directions of the means.
        min_alpha: smallest weight, in [0, 1], of the newest batch in a running mean; see `AlignmentPenalty`.
        start: first step with a correction, counted from 0; at least 1, since the means come from earlier steps.
        every: number of steps for which the class means of the correction are held, before those of that time take
            their place. The class vectors that are turned are those of the current step.

    Raises:
        ValueError: if an attribute is out of its range.

    Reference: ours, see `docs/space_alignment.md`.
    """

    def _target(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim classes"]:
        return means

    def _corrected(
        self, frame: Float[Array, "dim classes"], target: Float[Array, "dim classes"]
    ) -> Float[Array, "dim classes"]:
        return slerp(frame, target, self.strength)


@dataclass(frozen=True)
class AlignmentProjection(_Correction):
    r"""Projects the class vectors onto the span of the centred class means, and gives them back their lengths.

    .. math:: w_k' = \|w_k\| \, \frac{(1 - s) \, w_k + s P w_k}{\|(1 - s) \, w_k + s P w_k\|}

    P is the orthogonal projector onto the span of :math:`\mu_k - \mu_G`, which has at most K - 1 dimensions. Logits,
    bias, gradients and unseen classes are as in `AlignmentSlerp`.

    The state keeps the polar factor Q (d, K) of the centred means, with :math:`P = Q Q^\top`. Unlike an orthonormal
    basis, Q is unique, also where the means have collapsed and their singular values are equal.

    Attributes:
        strength: s in (0, 1].
        min_alpha: smallest weight, in [0, 1], of the newest batch in a running mean; see `AlignmentPenalty`.
        start: first step with a correction, counted from 0; see `AlignmentSlerp`.
        every: number of steps for which P is held. A new one takes a singular value decomposition of the means.
        tolerance: directions in which the means spread less than this share of their largest spread are not in the
            span; in (0, 1).

    Raises:
        ValueError: if an attribute is out of its range.

    Reference: ours, see `docs/space_alignment.md`.
    """

    # Rounding leaves 1e-7 of the length of the means in directions in which they do not spread. This is above it, even
    # if they lie a thousand times their spread away from the origin.
    tolerance: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie in (0, 1); got {self.tolerance}")

    def _target(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim classes"]:
        left, values, right = jnp.linalg.svd(means, full_matrices=False)
        within = (values > self.tolerance * values[0]) & (values > 0)
        factor = matmul(jnp.where(within[None], left, 0), right)
        return jnp.where(jnp.any(means != 0, axis=0)[None], factor, 0)

    def _corrected(
        self, frame: Float[Array, "dim classes"], target: Float[Array, "dim classes"]
    ) -> Float[Array, "dim classes"]:
        inside = matmul(target, matmul(transpose(target), frame))
        directions, lengths = normalized(frame + self.strength * (inside - frame), axis=0)
        # A class vector with nothing inside the span has no direction there.
        return jnp.where(lengths > 0, safe_norm(frame, axis=0) * directions, frame)


def centred(means: Float[Array, "dim classes"], updates: Array) -> Float[Array, "dim classes"]:
    """Return the means of the classes seen so far, minus the mean of these; zeros for the other classes."""
    return jnp.where((updates > 0)[None], means - _centre(means, updates), 0)


def _centre(means: Float[Array, "dim classes"], updates: Array) -> Float[Array, "dim 1"]:
    seen = (updates > 0)[None]
    return jnp.sum(jnp.where(seen, means, 0), axis=1, keepdims=True) / jnp.maximum(jnp.sum(seen), 1)


def _kept_if_finite(new: State, old: State) -> State:
    # A NaN would stay in the running means for ever. All devices decide alike, because they have the same sums.
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in new.values()]))
    return jax.tree.map(lambda after, before: jnp.where(finite, after, before.astype(after.dtype)), new, old)
