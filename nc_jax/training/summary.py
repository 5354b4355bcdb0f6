"""What a step reports, and its running summary over an epoch, which is part of the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nc_jax.solvers import Status


class StepMetrics(NamedTuple):
    """What one training step reports, over the whole batch on all devices.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: share of right answers before the update.
        grad_norm: length of the parameters' gradient.
        solve_status: worst `nc_jax.solvers.Status` of the inner solve; CONVERGED for heads without one.
        solve_grad_norm: Riemannian gradient norm at its end; 0 for heads without one.
        finite: whether the loss, the gradient and the new state are finite. If not, the step was not taken.
    """

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    solve_status: Int[Array, "..."]
    solve_grad_norm: Float[Array, "..."]
    finite: Bool[Array, "..."]


class EpochTotals(NamedTuple):
    """The steps of an epoch so far: the sums of their losses, accuracies and gradient norms, the worst of the rest.

    Living on the device, it costs the loop no wait; living in the state, it survives an interrupted epoch.
    """

    steps: Int[Array, ""]
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    grad_norm: Float[Array, ""]
    solve_status: Int[Array, ""]
    solve_grad_norm: Float[Array, ""]
    finite: Bool[Array, ""]

    @staticmethod
    def zero() -> "EpochTotals":
        """Return the totals of no steps."""
        return _no_steps()

    def add(self, metrics: StepMetrics) -> "EpochTotals":
        """Add a step."""
        return EpochTotals(
            steps=self.steps + 1,
            loss=self.loss + metrics.loss,
            accuracy=self.accuracy + metrics.accuracy,
            grad_norm=self.grad_norm + metrics.grad_norm,
            solve_status=jnp.maximum(self.solve_status, metrics.solve_status),
            solve_grad_norm=jnp.maximum(self.solve_grad_norm, metrics.solve_grad_norm),
            finite=self.finite & metrics.finite,
        )

    def summary(self) -> dict[str, float]:
        """Return means over the steps, but the worst status and the largest inner gradient norm."""
        steps = max(int(self.steps), 1)
        means = {name: float(getattr(self, name)) / steps for name in ("loss", "accuracy", "grad_norm")}
        return means | {
            "solve_status": int(self.solve_status),
            "solve_grad_norm": float(self.solve_grad_norm),
            "finite": bool(self.finite),
        }


@jax.jit  # one dispatch instead of seven, once per epoch
def _no_steps() -> EpochTotals:
    # Each field a buffer of its own: steps donate their state, and one buffer cannot be donated twice.
    return EpochTotals(
        steps=jnp.zeros((), jnp.int32),
        loss=jnp.zeros(()),
        accuracy=jnp.zeros(()),
        grad_norm=jnp.zeros(()),
        solve_status=jnp.array(Status.CONVERGED, jnp.int32),  # not jnp.full, whose type is weak for an enumeration
        solve_grad_norm=jnp.zeros(()),
        finite=jnp.ones((), bool),
    )
