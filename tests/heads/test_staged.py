"""Heads in stages: which one is on, that the other rests, in Linen, NNX and plain JAX, on one device and eight."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nc_jax import collective, heads
from nc_jax.data import Batch
from nc_jax.losses import cross_entropy
from nc_jax.models import MLP, Classifier, HeadModule, StagedHead
from nc_jax.models.nnx import NNXHead
from nc_jax.training import AXIS, create_state, data_parallel, make_train_step

K, DIM, N = 4, 6, 16
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.normal(size=(N, DIM)), jnp.float32)
LABELS = jnp.arange(N) % K
PAIRS = {
    "learned twice": (heads.learned(K), heads.learned(K)),
    "learned, then fixed": (heads.learned(K, radius=2.0), heads.fixed(K, radius=2.0)),
    "nearest twice": (heads.nearest(K), heads.nearest(K, radius=3.0)),
}
EVERY = {name: heads.staged(*pair, steps=2) for name, pair in PAIRS.items()}
CRT, NEAREST = EVERY["learned twice"], EVERY["nearest twice"]


def alone(stage, head, params, state, *, train):
    """What the head of one stage gives by itself."""
    labels = LABELS if train else None
    return head.apply(params.get(stage, {}), state.get(stage, {}), FEATURES, labels, train=train)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_it_is_the_first_head_and_then_the_second(name):
    head = EVERY[name]
    params, state = head.init(KEY, DIM)
    evaluate, train = jax.jit(head.apply), jax.jit(partial(head.apply, train=True))
    for step in range(4):
        stage = "first" if step < 2 else "second"
        other = {"first": "second", "second": "first"}[stage]
        one = PAIRS[name][stage == "second"]
        output, after = train(params, state, FEATURES, LABELS)
        expected, new = alone(stage, one, params, state, train=True)
        chex.assert_trees_all_close((output, after.get(stage, {})), (expected, new), atol=1e-5)
        chex.assert_trees_all_equal(after.get(other), state.get(other))
        assert after["steps"] == step + 1
        state = after
        # Evaluation takes the head that this step has trained.
        evaluated, same = evaluate(params, state, FEATURES)
        chex.assert_trees_all_close(evaluated, alone(stage, one, params, state, train=False)[0], atol=1e-5)
        chex.assert_trees_all_equal(same, state)


def test_the_head_that_is_off_gets_a_zero_gradient():
    params, state = CRT.init(KEY, DIM)

    @jax.jit
    @jax.grad
    def slopes_of(params, state):
        return jnp.mean(cross_entropy(CRT.apply(params, state, FEATURES, LABELS, train=True)[0].logits, LABELS))

    for steps, on, off in ((0, "first", "second"), (5, "second", "first")):
        slopes = slopes_of(params, state | {"steps": jnp.asarray(steps)})
        assert not any(np.any(slope) for slope in jax.tree.leaves(slopes[off]))
        assert all(np.any(slope) for slope in jax.tree.leaves(slopes[on]))


@pytest.mark.parametrize("name", ["learned, then fixed", pytest.param("nearest twice", marks=pytest.mark.slow)])
def test_linen_and_nnx_give_the_same_numbers(name):
    head = EVERY[name]
    params, state = head.init(KEY, DIM)
    module = HeadModule(head)
    assert jax.tree.map(jnp.shape, module.init(KEY, FEATURES)) == jax.tree.map(
        jnp.shape, ({"params": params} if params else {}) | {"staged": state}
    )
    network = NNXHead(head, DIM, rngs=nnx.Rngs(0))
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    for variables, values in ((network.params, params), (network.state, state)):
        found = jax.tree.leaves(variables, is_leaf=is_variable)
        for variable, value in zip(found, jax.tree.leaves(values), strict=True):
            variable[...] = value

    @nnx.jit
    def in_nnx(network):
        return network(FEATURES, LABELS, train=True).logits

    @jax.jit
    def in_linen(state):
        variables = {"params": params, "staged": state}
        return module.apply(variables, FEATURES, LABELS, train=True, mutable=["staged"])

    for _ in range(3):
        expected, state = jax.jit(partial(head.apply, train=True))(params, state, FEATURES, LABELS)
        found, _ = in_linen(jax.tree.map(lambda variable: variable[...], network.state, is_leaf=is_variable))
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
        np.testing.assert_allclose(in_nnx(network), expected.logits, atol=1e-5)
    chex.assert_trees_all_close(
        jax.tree.map(lambda variable: variable[...], network.state, is_leaf=is_variable), state, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned, then fixed", "nearest twice"])
def test_eight_devices_are_one_with_padding(name):
    model, optimizer = Classifier(MLP((), DIM), HeadModule(EVERY[name])), optax.sgd(0.1, 0.9)
    batch = Batch(np.asarray(FEATURES), np.asarray(LABELS, np.int32), np.arange(N) < 13)
    found = []
    for devices, checked in ((1, False), (8, False), (8, True)):
        state = create_state(model, optimizer, KEY, batch.inputs[:1])
        step = make_train_step(model, optimizer, axis_name=AXIS)
        step = data_parallel(step, devices=jax.local_devices()[:devices], checked=checked)
        for _ in range(4):
            state, metrics = step(state, batch)
            assert bool(metrics.finite)
        found.append(jax.device_get(state))
    chex.assert_trees_all_close(found[0], found[1], rtol=0, atol=2e-5)
    chex.assert_trees_all_close(found[1], found[2], rtol=0, atol=2e-5)
    assert found[0].variables["staged"]["head"]["steps"] == 4


def test_the_linen_constructor_takes_the_two_heads():
    assert StagedHead(heads.learned(K), heads.learned(K), 3).head.name == "staged"


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match=r"^both stages need the same number of classes; got 4 and 5$"):
        heads.staged(heads.learned(4), heads.learned(5), 1)
    with pytest.raises(ValueError, match=r"^the number of steps of the first stage must be at least 1; got 0$"):
        heads.staged(heads.learned(4), heads.learned(4), 0)
    sentence = r"the heads of stages have no parameters on a manifold \(.*\); got rotation in the second one$"
    with pytest.raises(ValueError, match=sentence):
        heads.staged(heads.learned(4), heads.rotated(4), 1)
    mixed = heads.staged(heads.nearest(4), heads.learned(4), 1)
    params, state = mixed.init(KEY, DIM)
    assert mixed.apply(params, state, FEATURES)[0].solution is None  # in evaluation they are alike
    with pytest.raises(ValueError, match=r"must give outputs of one structure; got solution\.\w+ .* and missing$"):
        mixed.apply(params, state, FEATURES, LABELS, train=True)
    with pytest.raises(ValueError, match="a nearest head needs labels in training; got None"):
        NEAREST.apply(*NEAREST.init(KEY, DIM), FEATURES, train=True)


# --- The learned scales of classes. ---


@pytest.mark.slow
def test_each_class_has_a_scale_of_its_class_vector_and_not_of_its_bias(x64):
    head = heads.learned(K, class_scales=True, normalize_columns=True)
    params, _ = head.init(KEY, DIM)
    np.testing.assert_array_equal(params["scales"], np.ones(K))
    kernel, features = RNG.normal(size=(DIM, K)), RNG.normal(size=(N, DIM))
    params = {"kernel": jnp.asarray(kernel), "scales": jnp.arange(1.0, K + 1), "bias": jnp.ones(K)}
    output, _ = head.apply(params, {}, features)
    unit = kernel / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(output.logits, np.arange(1, K + 1) * (features @ unit) + 1, rtol=1e-12)
    np.testing.assert_allclose(output.features @ output.frame + output.bias, output.logits, rtol=1e-12)
    slope = jax.grad(lambda scales: jnp.sum(head.apply(params | {"scales": scales}, {}, features)[0].logits))
    np.testing.assert_allclose(slope(params["scales"]), np.sum(features @ unit, axis=0), rtol=1e-9)


@pytest.mark.slow
def test_heads_add_what_differs_between_devices():
    """Inside `over`, with the devices as a mapped axis, every device keeps the same state."""
    params, state = NEAREST.init(KEY, DIM)

    def on_a_device(features, labels):
        with collective.over("devices"):
            return NEAREST.apply(params, state, features, labels, train=True)[1]

    shares = FEATURES.reshape(4, -1, DIM), LABELS.reshape(4, -1)
    found = jax.jit(jax.vmap(on_a_device, axis_name="devices"))(*shares)
    whole = jax.jit(partial(NEAREST.apply, train=True))(params, state, FEATURES, LABELS)[1]
    for device in range(4):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, d=device: leaf[d], found), whole, atol=1e-5)
