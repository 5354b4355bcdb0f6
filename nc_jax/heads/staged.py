"""Two heads, one after the other: classifier re-training."""

from typing import Any

import jax
import jax.numpy as jnp

from nc_jax.checks import check_at_least
from nc_jax.collective import own
from nc_jax.heads.head import Arrays, Declared, Head, Initial, constant
from nc_jax.heads.output import HeadOutput


def staged(first: Head, second: Head, steps: int) -> Head:
    """Classifier that is one head for its first training steps, and another one afterwards.

    Classifier re-training (cRT) trains a network with its classifier, then freezes the network
    (`nc_jax.training.frozen`) and trains a new classifier on balanced batches.

    The head that is off is not computed; its state stays, and its parameters get a zero gradient. Evaluation uses the
    head of the last training step. Parameters and state hold those of the two heads under "first" and "second" (a head
    that has none is left out); the state also counts the training "steps". If the training step cuts its batches into
    parts (`accumulate`), every part counts.

    Args:
        first: head of the first stage.
        second: head of the second stage, for the same classes.
        steps: number of training steps of the first stage, at least 1.

    Raises:
        ValueError: if the heads have different numbers of classes or one has parameters on a manifold, or there are no
            steps; from `apply`, if the outputs of the two heads have not the same structure, shapes and dtypes (those
            of a nearest head say how its inner problem ended, which others have not); whatever the two heads raise.

    Example:
        >>> from nc_jax import heads
        >>> head = staged(heads.learned(3), heads.learned(3), steps=100)
        >>> params, state = head.init(jax.random.key(0), dim=5)
        >>> jax.tree.map(jnp.shape, params["second"]), state
        ({'bias': (3,), 'kernel': (5, 3)}, {'steps': Array(0, dtype=int32)})

    Reference: Kang et al., Decoupling representation and classifier for long-tailed recognition (2020), section 4.
    """
    if first.num_classes != second.num_classes:
        raise ValueError(
            f"both stages need the same number of classes; got {first.num_classes} and {second.num_classes}"
        )
    check_at_least("the number of steps of the first stage", steps)
    heads = {"first": first, "second": second}
    for name, head in heads.items():
        if head.manifolds:
            raise ValueError(
                f"the heads of stages have no parameters on a manifold (a rotated head has another parametrisation); "
                f"got {', '.join(head.manifolds)} in the {name} one"
            )

    def declare(dim, dtype):
        params, state = {}, {"steps": constant(lambda: jnp.zeros((), jnp.int32))}
        for name, head in heads.items():
            declared = head.declare(dim, dtype)
            if declared.params:
                params[name] = Initial(lambda key, head=head: head.init(key, dim, dtype)[0])
            if declared.state:
                state[name] = Initial(lambda key, head=head: head.init(key, dim, dtype)[1])
        return Declared(params, state)

    def forward(params, state, features, labels, *, train, mask, axis_name):
        def stage(name: str, params: Arrays, state: Arrays, features: Any) -> tuple[HeadOutput, Arrays]:
            output, new = heads[name].forward(
                params.get(name, {}), state.get(name, {}), features, labels, train=train, mask=mask, axis_name=axis_name
            )
            # How an inner problem ended is the same on all devices; the rest is taken as different on each, which both
            # stages must agree on.
            output = own(output._replace(solution=None))._replace(solution=output.solution)
            return output, {**state, name: new} if name in state else state

        begun = state["steps"]
        early = begun < steps if train else begun <= steps
        arguments = params, state, features
        branches = [lambda *given, name=name: stage(name, *given) for name in heads]
        _check_alike(*(jax.eval_shape(branch, *arguments)[0] for branch in branches))
        output, new = jax.lax.cond(early, *branches, *arguments)
        return output, {**new, "steps": begun + 1} if train else state

    return Head("staged", first.num_classes, declare, forward, collection="staged")


def _check_alike(first: HeadOutput, second: HeadOutput) -> None:
    """Raise a ValueError unless the outputs of both stages have the same structure, shapes and dtypes."""
    kinds = []
    for output in (first, second):
        leaves = jax.tree_util.tree_flatten_with_path(output)[0]
        kinds.append({jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves})
    differing = [name for name in kinds[0] | kinds[1] if kinds[0].get(name) != kinds[1].get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"both stages must give outputs of one structure; got {name.lstrip('.')} {kinds[0].get(name, 'missing')} "
            f"and {kinds[1].get(name, 'missing')}"
        )
