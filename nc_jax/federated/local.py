"""Optimisers of clients: what FedProx, SCAFFOLD and FedRep change in a local step, as wrappers of any optimiser.

Each wrapper's state begins anew in every round, with the parameters that the client has received.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nc_jax.checks import check_at_least


class ProximalState(NamedTuple):
    """State of `proximal`: that of the optimiser inside, and the parameters at the begin of the round."""

    inner: Any
    anchor: Any


def proximal(optimizer: optax.GradientTransformation, mu: float) -> optax.GradientTransformationExtraArgs:
    r"""FedProx: keep a client near the model that it has received.

    Adds the gradient :math:`\mu (w - w_0)` of :math:`\tfrac\mu2 \|w - w_0\|^2`, where :math:`w_0` are the parameters
    for which the state was created: those at the begin of the round. The optimiser inside gets the sum.

    Args:
        optimizer: any optimiser.
        mu: weight of the distance, >= 0.

    Raises:
        ValueError: if mu is negative or not finite.

    Example:
        >>> optimizer = proximal(optax.sgd(1.0), mu=0.5)
        >>> state = optimizer.init(jnp.zeros(()))
        >>> float(optimizer.update(jnp.zeros(()), state, jnp.ones(()))[0])
        -0.5

    Reference: Li et al., Federated optimization in heterogeneous networks (2020), equation 2.
    """
    if not 0 <= mu < float("inf"):
        raise ValueError(f"mu must be at least 0 and finite; got {mu}")
    inside = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> ProximalState:
        return ProximalState(inside.init(params), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ProximalState]:
        pulled = jax.tree.map(lambda g, w, start: g + mu * (w - start), updates, params, state.anchor)
        found, inner = inside.update(pulled, state.inner, params, **extra)
        return found, ProximalState(inner, state.anchor)

    return optax.GradientTransformationExtraArgs(init, update)


class CorrectedState(NamedTuple):
    """State of `corrected`.

    Attributes:
        inner: state of the optimiser inside.
        correction: what is added to every gradient; zero until a round sets it.
        gradients: sum of the gradients so far, without the correction.
        steps: number of these gradients.
    """

    inner: Any
    correction: Any
    gradients: Any
    steps: Int[Array, ""]


def corrected(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""SCAFFOLD: correct the gradients of a client by what its data differ from those of all clients.

    Adds a constant :math:`c - c_k` to each gradient, where :math:`c_k` is the client's control variate and c the mean
    of all, weighted by their numbers of examples. The mean of the gradients of the round, without the correction, is
    the client's next control variate. (With plain gradient descent of rate :math:`\eta` it equals the paper's second
    option, :math:`c_k - c + (w_0 - w_S) / (S \eta)`. With other optimisers it stays a mean of gradients. The paper's
    clients have equal weights. With others, only a weighted c lets the minimum of the mean over all examples rest.)

    Args:
        optimizer: any optimiser.

    Reference: Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated learning (2020), algorithm 1.
    """
    inside = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> CorrectedState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return CorrectedState(inside.init(params), zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, CorrectedState]:
        moved = jax.tree.map(jnp.add, updates, state.correction)
        found, inner = inside.update(moved, state.inner, params, **extra)
        gradients = jax.tree.map(jnp.add, state.gradients, updates)
        return found, CorrectedState(inner, state.correction, gradients, state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


class AlternatingState(NamedTuple):
    """State of `alternating`: that of the optimiser inside, and the number of steps of the round."""

    inner: Any
    count: Int[Array, ""]


def alternating(
    optimizer: optax.GradientTransformation, part: str, steps: int
) -> optax.GradientTransformationExtraArgs:
    """FedRep: in the first steps of a round only one part of the model moves, in the others only the rest.

    Args:
        optimizer: any optimiser. It sees all gradients, so its momentum goes on; the updates of what rests are zero.
        part: name of the part in the parameters, such as "head".
        steps: number of steps in which this part moves, at least 1.

    Raises:
        ValueError: if the number of steps is below 1; when the state is created, if there is no such part.

    Reference: Collins et al., Exploiting shared representations for personalized federated learning (2021), algorithm
    1.
    """
    check_at_least("steps", steps)
    inside = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> AlternatingState:
        if part not in params:
            raise ValueError(f"part must be one of {', '.join(params)}; got {part!r}")
        return AlternatingState(inside.init(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, AlternatingState]:
        found: Any
        found, inner = inside.update(updates, state.inner, params, **extra)
        first = state.count < steps
        moved = {
            name: jax.tree.map(lambda leaf, moves=first == (name == part): jnp.where(moves, leaf, 0), below)
            for name, below in found.items()
        }
        return moved, AlternatingState(inner, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def continued(fresh: Any, kept: Any) -> Any:
    """Return an optimiser's state of the last round for a new one: what a wrapper holds of a round begins anew.

    Args:
        fresh: state that the optimiser has for the parameters at the begin of the round.
        kept: state at the end of the client's last round.
    """

    def one(new: Any, old: Any) -> Any:
        return new._replace(inner=continued(new.inner, old.inner)) if _is_of_a_round(new) else old

    return jax.tree.map(one, fresh, kept, is_leaf=_is_of_a_round)


def scheduled(state: Any, step: Array) -> Any:
    """Return an optimiser's state whose schedules stand at a step. Other counts, as Adam's, stay.

    Args:
        state: state of an optimiser.
        step: number of the local step, int32.
    """

    def one(node: Any) -> Any:
        if isinstance(node, optax.InjectStatefulHyperparamsState):
            # optax does not export the type of these states, which hold a count and nothing else.
            own = {
                name: part._replace(count=step) if getattr(part, "_fields", None) == ("count",) else part
                for name, part in node.hyperparams_states.items()
            }
            return node._replace(count=step, hyperparams_states=own, inner_state=scheduled(node.inner_state, step))
        return node._replace(count=step) if _is_schedule(node) else node

    return jax.tree.map(one, state, is_leaf=_is_schedule)


def _is_of_a_round(node: Any) -> bool:
    return isinstance(node, ProximalState | CorrectedState | AlternatingState)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState | optax.InjectStatefulHyperparamsState)
