"""Weight decay on raw features: every reduction over examples, on any number of devices."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import make_trainer

from nc_jax import theory
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.models import MLP, Classifier, LearnedHead
from nc_jax.streams import batches
from nc_jax.training import FeatureDecay, StepOptions, create_state, make_train_step

RATE = 0.1
REDUCTIONS = [FeatureDecay(0.3, "mean"), FeatureDecay(0.02, "sum"), FeatureDecay(0.003, "dataset", 100)]


class Table(nn.Module):
    """Free features, looked up by number."""

    number: int
    dim: int

    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        return self.param("table", nn.initializers.normal(1.0), (self.number, self.dim))[inputs]


def taken(model, batch, options=StepOptions(), optimizer=None):
    """The state before and after a step, and the step's metrics."""
    optimizer = optimizer or optax.sgd(RATE)
    before = create_state(model, optimizer, jax.random.key(0), batch.inputs[:1])
    step = jax.jit(make_train_step(model, optimizer, options=options))
    return before, *step(before, batch)


def padded(train_set):
    """Twenty examples, and four rows of padding with inputs that would show."""
    inputs = np.concatenate([train_set.inputs[:20], np.full((4, 6), 1e3, np.float32)])
    labels = np.concatenate([train_set.labels[:20], np.full(4, -1, np.int32)])
    return jax.tree.map(jnp.asarray, Batch(inputs, labels, labels >= 0))


def decayed_by(decay, **options):
    return StepOptions(extensions=(decay,), **options)


@pytest.mark.slow
@pytest.mark.parametrize("decay", REDUCTIONS, ids=str)
@pytest.mark.parametrize("radius", [None, 5.0])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_raw_features_are_penalised_even_if_the_head_scales_them(train_set, decay, radius, parts):
    model = Classifier(MLP((16,), 8), LearnedHead(4, radius=radius))
    batch = padded(train_set)
    inputs, labels = batch.inputs[:20], batch.labels[:20]
    before, after, metrics = taken(model, batch, decayed_by(decay, accumulate=parts))

    def cross_entropy(params):
        return -jnp.mean(jax.nn.log_softmax(model.apply({"params": params}, inputs).logits)[jnp.arange(20), labels])

    def cost(params):
        raw = MLP((16,), 8).apply({"params": params["backbone"]}, inputs)
        squares = np.asarray({"mean": 1 / 20, "sum": 1, "dataset": 100 / 20}[decay.reduction]) * jnp.sum(raw**2)
        return cross_entropy(params) + decay.weight / 2 * squares

    expected = jax.tree.map(lambda p, g: p - RATE * g, before.params, jax.grad(cost)(before.params))
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-6)
    # What is reported stays the cross-entropy.
    np.testing.assert_allclose(metrics.loss, cross_entropy(before.params), rtol=1e-6)


@pytest.mark.slow
def test_a_penalty_on_scaled_features_would_do_nothing(train_set):
    """The released program's option: its gradient is zero; ours is not."""
    head = LearnedHead(4, radius=5.0)
    model = Classifier(MLP((16,), 8), head)
    batch = padded(train_set)
    before, plain, _ = taken(model, batch)
    _, decayed, _ = taken(model, batch, decayed_by(FeatureDecay(1.0, "mean")))
    output = model.apply({"params": before.params}, batch.inputs)
    np.testing.assert_allclose(np.linalg.norm(output.features, axis=1), 5.0, rtol=1e-5)
    slope = jax.grad(lambda params: jnp.mean(model.apply({"params": params}, batch.inputs).features ** 2))(
        before.params
    )
    assert optax.tree.norm(slope) < 1e-5
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, decayed.params, plain.params))
    assert moved > 1e-2


@pytest.mark.slow
def test_a_step_on_free_features_descends_the_objective_of_the_theory():
    """Full batch, "dataset", and the optimiser's decay on the head alone: the gradient is the theory's."""
    problem = theory.UnconstrainedFeatures.balanced(3, 4, dim=5, weight_decay=0.05, feature_decay=0.02)
    model = Classifier(Table(12, 5), LearnedHead(3, use_bias=False))
    mask = {"backbone": {"table": False}, "head": {"kernel": True}}
    optimizer = optax.chain(optax.add_decayed_weights(problem.weight_decay, mask), optax.sgd(RATE))
    decay = FeatureDecay(problem.feature_decay, "dataset", 12)
    batch = Batch.of(jnp.arange(12), jnp.arange(12) // 4)
    before, after, _ = taken(model, batch, decayed_by(decay), optimizer)

    def point_of(params):
        return theory.Point(params["head"]["kernel"], params["backbone"]["table"])

    slope = jax.grad(lambda point: theory.objective(problem, point))(point_of(before.params))
    expected = jax.tree.map(lambda here, way: here - RATE * way, point_of(before.params), slope)
    chex.assert_trees_all_close(point_of(after.params), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batches_estimate_the_sum_over_the_set():
    """The mean over all batches of a partition is the full batch's gradient, whatever the batch size."""
    model = Classifier(Table(12, 5), LearnedHead(3, use_bias=False))
    labels = jnp.arange(12) % 3
    options = decayed_by(FeatureDecay(0.1, "dataset", 12))

    def moved(indices):
        before, after, _ = taken(model, Batch.of(indices, labels[indices]), options)
        return jax.tree.map(jnp.subtract, after.params, before.params)

    for size in (4, 6):
        parts = [moved(jnp.arange(start, start + size)) for start in range(0, 12, size)]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
        chex.assert_trees_all_close(mean, moved(jnp.arange(12)), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("decay", REDUCTIONS, ids=str)
def test_eight_devices_decay_as_one(train_set, decay):
    states = []
    for num_devices in (1, 8):
        trainer = make_trainer(num_devices, step=decayed_by(decay))
        state = trainer.init(train_set, seed=0)
        for batch in batches(train_set, 24, seed=0, num_steps=5):  # the last one is mostly padding
            state, _ = trainer.step(state, batch)
        states.append(jax.device_get(state))
    chex.assert_trees_all_close(*states, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_line_searches_see_the_penalty(train_set):
    """A line search on the cross-entropy alone would step to where the cost is higher."""
    model = Classifier(MLP((), 4), LearnedHead(4))
    batch = Batch.of(jnp.asarray(train_set.inputs[:24]), jnp.asarray(train_set.labels[:24]))
    decay = FeatureDecay(5.0, "mean")
    optimizer = optax.lbfgs()
    state = create_state(model, optimizer, jax.random.key(0), batch.inputs[:1])
    step = jax.jit(make_train_step(model, optimizer, options=decayed_by(decay)))

    def cost(params):
        output = model.apply({"params": params}, batch.inputs)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.labels))
        return float(loss + 2.5 * jnp.mean(jnp.sum(output.raw_features**2, axis=1)))

    costs = [cost(state.params)]
    for _ in range(4):
        state, _ = step(state, batch)
        costs.append(cost(state.params))
    assert all(later < earlier for earlier, later in itertools.pairwise(costs))


class HeadOnly(nn.Module):
    """A model whose output has no raw features."""

    @nn.compact
    def __call__(self, inputs, labels=None, *, train=False, mask=None):
        frame = self.param("frame", nn.initializers.normal(), (6, 4))
        return HeadOutput(inputs @ frame, inputs, frame, jnp.zeros(4))


def test_a_model_without_raw_features_is_refused(train_set):
    with pytest.raises(ValueError, match="feature decay needs raw features in the model's output, as Classifier gives"):
        taken(HeadOnly(), padded(train_set), decayed_by(FeatureDecay(1.0, "mean")))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((0.0, "mean"), "the weight of a feature decay must be positive and finite; got 0.0"),
        ((-1.0, "mean"), "the weight of a feature decay must be positive and finite; got -1.0"),
        ((1.0, "dataset"), 'num_examples goes with the reduction "dataset", and only with it; got num_examples=None'),
        ((1.0, "mean", 5), 'num_examples goes with the reduction "dataset", and only with it; got num_examples=5'),
        ((1.0, "dataset", 0), "num_examples must be at least 1, or None; got 0"),
    ],
)
def test_options_are_checked(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        FeatureDecay(*options)
