"""What a training step reports, the totals of an epoch, which are part of the training state, and numbers by name."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nc_jax.solvers import Status


class StepMetrics(NamedTuple):
    """What one training step reports, over the whole batch on all devices.

    Attributes:
        loss: mean loss over the examples; in nats for cross-entropy.
        accuracy: share of right answers before the update.
        grad_norm: Euclidean norm of the gradient over all parameters.
        solve_status: worst `nc_jax.solvers.Status` of the inner solves; CONVERGED for heads without an inner solve.
        solve_grad_norm: largest Riemannian gradient norm at the end of the inner solves; 0 for heads without one.
        without_class: number of examples whose label is not one of the classes of the logits.
        finite: whether cost, gradient and new state are finite and no example is without a class, in this step and in
            those before it that the totals of the state count. If not, the step kept the old state.
    """

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    solve_status: Int[Array, "..."]
    solve_grad_norm: Float[Array, "..."]
    without_class: Int[Array, "..."]
    finite: Bool[Array, "..."]


class EpochTotals(NamedTuple):
    """Totals over the steps of an epoch so far.

    loss, accuracy, grad_norm and without_class are sums; solve_status, solve_grad_norm and finite hold the worst value.
    The totals stay on the device, so the loop need not wait for a step to end. They are part of the state, so a
    checkpoint in the middle of an epoch keeps them.
    """

    steps: Int[Array, ""]
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    grad_norm: Float[Array, ""]
    solve_status: Int[Array, ""]
    solve_grad_norm: Float[Array, ""]
    without_class: Int[Array, ""]
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
            without_class=self.without_class + metrics.without_class,
            finite=self.finite & metrics.finite,
        )

    def summary(self) -> dict[str, float]:
        """Return the means over the steps, the number of examples without a class, and the worst values, by name."""
        steps = max(int(self.steps), 1)
        means = {name: float(getattr(self, name)) / steps for name in ("loss", "accuracy", "grad_norm")}
        return means | {
            "solve_status": int(self.solve_status),
            "solve_grad_norm": float(self.solve_grad_norm),
            "without_class": int(self.without_class),
            "finite": bool(self.finite),
        }


class Numbers(flax.struct.PyTreeNode):
    """Numbers by name as one array, shape (n,): a program returns and a device sends one faster than many.

    Attributes:
        values: the numbers, an array of shape (n,).
        names: their names.
    """

    values: Any  # a traced array, a jax or a NumPy one
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, numbers: dict[str, Array]) -> "Numbers":
        """Put numbers into one array."""
        return cls(jnp.stack(list(numbers.values())), tuple(numbers))

    def by_name(self) -> dict[str, float]:
        """Return the numbers by name."""
        return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


@jax.jit  # one dispatch instead of eight
def _no_steps() -> EpochTotals:
    # Each field needs a buffer of its own: steps donate their state, and a buffer cannot be donated twice.
    return EpochTotals(
        steps=jnp.zeros((), jnp.int32),
        loss=jnp.zeros(()),
        accuracy=jnp.zeros(()),
        grad_norm=jnp.zeros(()),
        solve_status=jnp.array(Status.CONVERGED, jnp.int32),  # jnp.full would give a weak type for an enumeration
        solve_grad_norm=jnp.zeros(()),
        without_class=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
    )
