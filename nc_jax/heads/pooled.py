"""Nearest head for federated learning: clients add up their class means, and the server rotates the frame."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from nc_jax.frames.template import LearnedTemplate, TemplateOrRule
from nc_jax.heads.batch_means import batch_means_of
from nc_jax.heads.head import Arrays, Declared, Head, constant
from nc_jax.heads.nearest import follow, nearest, rule_of
from nc_jax.heads.nearest_options import NearestOptions
from nc_jax.heads.output import scale_features
from nc_jax.solvers import Solution


def pooled(
    num_classes: int,
    *,
    template: TemplateOrRule | None = None,
    options: NearestOptions = NearestOptions(),
    **changes: Any,
) -> Head:
    r"""Classifier whose frame is the one nearest to class means that many clients have added up.

    Class sums are additive over clients: with the sums :math:`S_k` (d, K) and counts :math:`n_k` (K,) of what client k
    has seen in a round, the class means of all of them are :math:`\sum_k S_k / \sum_k n_k`. So the server can rotate
    the frame to the class means of all clients, and no feature of a single example leaves a client.

    In a step of a client, the frame stays as it is, and the features, scaled to length `NearestOptions.radius`, are
    added to the sums. `Head.pool` is what the server does after a round: the steps 2 to 4 of `nc_jax.heads.nearest`,
    with the round in the place of the batch. Gradients reach the features through the logits only.

    The state is that of `nc_jax.heads.nearest`, and holds besides

    - `sums` (d, K), float32, and `seen` (K,), int32: sums and counts of the features of a client's round. The server's
      are zero.

    Args:
        num_classes: K, at most d + 1 for the simplex ETF.
        template: template of another frame, as that of `nc_jax.heads.nearest`, without trained parameters; None: that
            of the simplex ETF.
        options: all other settings, as those of `nc_jax.heads.nearest`.
        changes: single settings by name, such as `radius=1.0`; each replaces that field of `options`.

    Raises:
        ValueError: as `nc_jax.heads.nearest`; and from `init`, if the template has parameters to train.

    Reference: Markou, Ajanthan and Gould (2024), section 3, for the inner problem; the sums over clients are not from a
    paper.

    Example:
        >>> head = pooled(2, radius=1.0)
        >>> params, server = head.init(jax.random.key(0), dim=3)
        >>> _, client = head.apply(params, server, 2 * jnp.eye(2, 3), jnp.arange(2), train=True)
        >>> server, solution = head.pool(server, jax.tree.map(jnp.subtract, client, server))
        >>> server["frame"][:, 0].round(1)
        Array([ 0.7, -0.7,  0. ], dtype=float32)
    """
    chosen = replace(options, **changes)
    whole, at = nearest(num_classes, template=template, options=chosen), rule_of(num_classes, template, chosen)

    def declare(dim, dtype):
        if isinstance(at(dim), LearnedTemplate):
            raise ValueError("the template of a pooled head must have no parameters to train; got a LearnedTemplate")
        params, state = whole.declare(dim, dtype)
        more = {
            "sums": constant(lambda: jnp.zeros((dim, num_classes), jnp.float32)),
            "seen": constant(lambda: jnp.zeros((num_classes,), jnp.int32)),
        }
        return Declared(params, state | more)

    def forward(params, state, features, labels, *, train, mask, axis_name):
        output, _ = whole.forward(params, state, features, None, train=False, mask=None, axis_name=None)
        if not train:
            return output, state
        if labels is None:
            raise ValueError("a pooled head needs labels in training; got None")
        if mask is not None:
            labels = jnp.where(mask, labels, -1)
        # Not the output's features: a padded row of zeros stays out of the sums by its label.
        scaled = jax.lax.stop_gradient(scale_features(features, chosen.radius))
        means, _, counts = batch_means_of(scaled, labels, num_classes, axis_name)
        more = {"sums": state["sums"] + means * counts, "seen": state["seen"] + counts}
        return output, state | more

    def pool(state: Arrays, changes: Arrays) -> tuple[Arrays, Solution]:
        sums, counts = changes["sums"], changes["seen"]
        means = sums / jnp.maximum(counts, 1)
        global_mean = jnp.sum(sums, axis=1) / jnp.maximum(jnp.sum(counts), 1)
        template: Any = at(len(sums))
        own = {name: value for name, value in state.items() if name not in ("sums", "seen")}
        _, _, solution, new = follow(chosen, template, None, own, means, global_mean, counts)
        return new | {"sums": state["sums"], "seen": state["seen"]}, solution

    return Head("pooled", num_classes, declare, forward, collection="nearest", pool=pool)
