"""A head trained for a few steps in four kinds of loop: plain JAX, Linen, NNX and Equinox."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nc_jax import heads
from nc_jax.losses import cross_entropy
from nc_jax.models import HeadModule
from nc_jax.models.nnx import NNXHead

K, DIM, INPUTS, N, STEPS = 4, 6, 5, 24, 4
KEY, RATE = jax.random.key(0), 0.05
SAME = 1e-5  # the same arithmetic, compiled in another program


def batches():
    """Inputs and labels of every step; from the second on a class is absent, and the last ends with padding."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, INPUTS))
    labels = np.stack([np.resize([k for k in range(K) if step == 0 or k != step % K], N) for step in range(STEPS)])
    inputs = centres[labels] + 0.5 * rng.normal(size=(STEPS, N, INPUTS))
    labels[-1, -5:] = -1
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32)


BATCHES = batches()
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(INPUTS, DIM)), jnp.float32)


def compiled(function):
    """`jax.jit` for functions that run once: without optimisation, compilation takes 60 % of the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def mean_loss(output, labels):
    return jnp.sum(jnp.where(labels >= 0, cross_entropy(output.logits, labels), 0)) / jnp.sum(labels >= 0)


def stepped(tree, slopes):
    return jax.tree.map(lambda value, slope: value - RATE * slope, tree, slopes)


def losses_in_plain_jax(head, start, apply=None):
    """Train a linear layer below a head by gradient descent; return the losses and the final head."""
    apply = apply or partial(head.apply, train=True)

    def step(carry, batch):
        trained, state = carry
        inputs, labels = batch

        def loss(trained):
            weights, params = trained
            output, after = apply(params, state, inputs @ weights, labels)
            return mean_loss(output, labels), after

        (value, state), slopes = jax.value_and_grad(loss, has_aux=True)(trained)
        return (stepped(trained, slopes), state), value

    params, state = start
    ((_, params), state), losses = compiled(partial(jax.lax.scan, step))(((WEIGHTS, params), state), BATCHES)
    return losses, params, state


def losses_in_linen(head, start):
    module: nn.Module = HeadModule(head)

    def apply(params, state, features, labels):
        variables = {"params": params, head.collection: state}
        output, after = module.apply(variables, features, labels, train=True, mutable=[head.collection])
        return output, after.get(head.collection, {})

    return losses_in_plain_jax(head, start, apply)


def losses_in_nnx(head, start):
    class Network(nnx.Module):
        def __init__(self):
            self.weights = nnx.Param(WEIGHTS)
            self.head = NNXHead(head, DIM, rngs=nnx.Rngs(0))

    @nnx.jit
    def step(network, inputs, labels):
        def loss(network):
            return mean_loss(network.head(inputs @ network.weights[...], labels, train=True), labels)

        value, slopes = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.Param))(network)
        nnx.update(network, stepped(nnx.state(network, nnx.Param), slopes))
        return value

    network = Network()
    for variables, values in zip((network.head.params, network.head.state), start, strict=True):
        pairs = zip(jax.tree.leaves(variables, is_leaf=is_variable), jax.tree.leaves(values), strict=True)
        for variable, value in pairs:
            variable[...] = value
    losses = [step(network, *batch) for batch in zip(*BATCHES, strict=True)]
    parts = (network.head.params, network.head.state)
    return losses, *jax.tree.map(lambda variable: variable[...], parts, is_leaf=is_variable)


def is_variable(node):
    return isinstance(node, nnx.Variable)


class EquinoxHead(eqx.Module):
    """A head as an Equinox module, as a user would write it."""

    params: dict
    index: eqx.nn.StateIndex
    head: heads.Head = eqx.field(static=True)

    def __init__(self, head, start):
        self.head, (self.params, state) = head, start
        self.index = eqx.nn.StateIndex(state)

    def __call__(self, features, labels, state, *, train=False):
        output, after = self.head.apply(self.params, state.get(self.index), features, labels, train=train)
        return output, state.set(self.index, after)


def losses_in_equinox(head, start):
    @eqx.filter_jit
    def step(trained, state, inputs, labels):
        def loss(trained):
            weights, module = trained
            output, after = module(inputs @ weights, labels, state, train=True)
            return mean_loss(output, labels), after

        (value, state), slopes = eqx.filter_value_and_grad(loss, has_aux=True)(trained)
        return eqx.apply_updates(trained, jax.tree.map(lambda slope: -RATE * slope, slopes)), state, value

    module, state = eqx.nn.make_with_state(EquinoxHead)(head, start)
    trained, losses = (WEIGHTS, module), []
    for batch in zip(*BATCHES, strict=True):
        trained, state, loss = step(trained, state, *batch)
        losses.append(loss)
    return losses, trained[1].params, state.get(module.index)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], atol=SAME)
    jax.tree.map(partial(np.testing.assert_allclose, atol=SAME), found[1:], expected[1:])
