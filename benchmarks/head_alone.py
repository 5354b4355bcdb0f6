"""The heads that `benchmarks.train_step` compares, timed without the network below them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import harness
from benchmarks.networks import Problem, Solver, learned_head, nearest_head
from benchmarks.problems import PROX_WEIGHT
from nc_jax import nearest_simplex_etf


def time_alone(
    problem: Problem, solver: Solver, step: dict[str, Any], *, repeats: int, budget: float
) -> dict[str, float]:
    """Time both heads on given features, and the inner solve, as they were in a training step.

    Args:
        problem: gives the labels.
        solver: solver of the nearest head.
        step: the result of `benchmarks.training_runs.check`.
        repeats: timed calls of each program.
        budget: seconds after which a program gets no more timed calls.

    Returns:
        Medians in seconds: "learned" and "nearest" of a head's forward and backward pass, "solve" of the solve and its
        derivative.
    """
    calls = {
        "learned": _head_alone(learned_head(problem.num_classes), problem, step),
        "nearest": _head_alone(nearest_head(problem.num_classes, solver), problem, step),
        "solve": _solve_alone(solver, step),
    }
    times = harness.compare(calls, repeats=repeats, budget=budget)
    return {name: timing.median for name, timing in times.items()}


def _head_alone(head: Any, problem: Problem, step: dict[str, Any]) -> Callable[[], Any]:
    """Return the forward and backward pass of a head, on features scattered about the step's class means."""
    labels, means = jnp.asarray(problem.batches[0].labels), jnp.asarray(step["class_means"])
    features = means.T[labels] + jnp.std(means) * jax.random.normal(jax.random.key(0), (len(labels), len(means)))
    variables = head.init(jax.random.key(1), features)
    params = variables.pop("params", {})
    if "nearest" in variables:
        # The state before a step that is not the first one, because the first step solves twice.
        stored = {"class_means": means, "rotation": jnp.asarray(step["previous"]), "steps": jnp.ones((), jnp.int32)}
        variables = {"nearest": variables["nearest"] | stored}

    @jax.jit
    def passes(features: jax.Array, params: Any, variables: Any) -> Any:
        def loss(features: jax.Array, params: Any) -> Any:
            collections = {"params": params, **variables}
            output, updated = head.apply(collections, features, labels, train=True, mutable=list(variables))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)), updated

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(features, params)

    return functools.partial(passes, features, params, variables)


def _solve_alone(solver: Solver, step: dict[str, Any]) -> Callable[[], Any]:
    """Return the inner solve from a warm start, and its derivative for a cotangent of the frame."""

    @jax.jit
    def solve(means: jax.Array, previous: jax.Array, cotangent: jax.Array) -> Any:
        def frame_of(means: jax.Array) -> jax.Array:
            return nearest_simplex_etf(
                means, prox_point=previous, prox_weight=PROX_WEIGHT, solver=solver, init=previous
            ).frame

        frame, pull_back = jax.vjp(frame_of, means)
        return frame, pull_back(cotangent)

    means, previous = jnp.asarray(step["class_means"]), jnp.asarray(step["previous"])
    return functools.partial(solve, means, previous, jax.random.normal(jax.random.key(0), means.shape))
