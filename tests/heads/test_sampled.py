"""Heads with a sampled softmax: an unbiased sample, the dense head's gradients and state, one device and eight."""

import re
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from toy_training import blobs, fit, rows_of

from nc_jax import heads
from nc_jax.data import Batch, Partner
from nc_jax.frames import random_unit
from nc_jax.hierarchy import LabelTree
from nc_jax.losses import cross_entropy
from nc_jax.models import MLP, Classifier, HeadModule, SampledHead
from nc_jax.solvers import Status
from nc_jax.training import AXIS, LoopOptions, Trainer, create_state, data_parallel, make_train_step

K, DIM, N, DRAWN = 30, 5, 12, 7
KEY = jax.random.key(0)


def template(rank=DIM, num_classes=K, centred=False):
    """In float64, if a test has switched it on."""
    columns = np.random.default_rng(rank).normal(size=(rank, num_classes))
    columns /= np.linalg.norm(columns, axis=0)
    return jnp.asarray(columns - centred * columns.mean(axis=1, keepdims=True))


def generator(seed=0):
    return np.random.default_rng(seed)


def batch_of(seed=0, dtype: Any = np.float64, padding=2):
    rng = generator(seed)
    labels = rng.integers(0, K, N)
    labels[N - padding :] = -1
    return jnp.asarray(rng.normal(size=(N, DIM)).astype(dtype)), jnp.asarray(labels, jnp.int32)


def summed_loss(output, labels):
    if output.classes is not None:
        labels = heads.places_among(output.classes, labels)
    return jnp.sum(jnp.where(labels >= 0, cross_entropy(output.logits, labels), 0))


def only(output, candidates):
    """The output of a head for all classes, cut down to the candidates."""
    columns = jnp.maximum(candidates.classes, 0)
    logits = output.logits[:, columns] + candidates.log_weights[None]
    return output._replace(logits=logits, classes=candidates.classes)


# --- The sample. ---


@pytest.mark.slow
def test_the_sum_over_the_candidates_has_the_expectation_of_the_sum_over_all_classes():
    labels, number, draws = jnp.array([3, 17, 3, -1]), 6, 4000
    found = jax.vmap(lambda key: heads.class_candidates(key, labels, 20, number))(jax.random.split(KEY, draws))
    assert np.all(found.classes[:, :4] == np.array([3, 17, -1, -1]))
    weights = np.zeros((draws, 20))  # how many classes each class stands for in each draw
    rows, columns = np.nonzero(np.asarray(found.classes) >= 0)
    np.add.at(weights, (rows, found.classes[rows, columns]), np.exp(found.log_weights[rows, columns]))
    assert np.all(weights[:, [3, 17]] == 1)
    error = weights.std(axis=0) / draws**0.5
    assert np.all(np.abs(weights.mean(axis=0) - 1) <= 5 * error)
    assert np.all(np.isneginf(found.log_weights) == (found.classes == -1))
    for row in np.asarray(found.classes[:50]):
        assert len(set(row[row >= 0])) == np.sum(row >= 0)


@pytest.mark.slow
def test_all_devices_draw_the_same_candidates_and_see_all_labels():
    shares = jnp.array([[5, 1], [1, -1], [9, 0]])
    each = jax.vmap(lambda share: heads.class_candidates(KEY, share, 12, 4, axis_name="x"), axis_name="x")(shares)
    whole = heads.class_candidates(KEY, shares.reshape(-1), 12, 4)
    for one in range(3):
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, one=one: leaf[one], each), whole)


ALL_CLASSES = {
    "learned": heads.learned(K, radius=2.0),
    "learned, unit columns and scales": heads.learned(K, normalize_columns=True, use_bias=False, class_scales=True),
    "fixed": heads.fixed(K, frame=random_unit, use_bias=True, learn_scale=True),
    "rotated": heads.rotated(K, template=template(), parametrisation="cayley"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_CLASSES)
def test_with_all_classes_drawn_it_is_the_full_softmax(x64, name):
    head = ALL_CLASSES[name]
    few = heads.sampled(head, K)
    params, state = few.init(KEY, DIM, jnp.float64)
    features, labels = batch_of()

    @jax.jit
    def both(params, features):
        losses = []
        for one in (head, few):
            loss = lambda p, h, one=one: summed_loss(one.apply(p, state, h, labels, train=True)[0], labels)  # noqa: E731
            losses.append(jax.value_and_grad(loss, argnums=(0, 1))(params, features))
        return losses

    full, sampled = both(params, features)
    chex.assert_trees_all_close(sampled, full, rtol=1e-6)  # parameters are float32
    np.testing.assert_allclose(
        few.apply(params, state, features)[0].logits, head.apply(params, state, features)[0].logits, rtol=1e-12
    )


# --- The nearest head. ---

NEAREST = {
    "r = d": ({}, DRAWN),
    "r < d, centred, anchor, all classes": (
        {"template": partial(template, 3, centred=True), "prox_point": "initial"},
        K,
    ),
    "weights, running means of all steps": (
        {"weights": 1 + np.arange(K) % 3, "averaging": "cma", "radius": None},
        DRAWN,
    ),
    "constant in steps 1 and 2": ({"stop_gradient": (1, 3)}, DRAWN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAREST)
def test_gradient_and_state_are_those_of_the_dense_nearest_head(x64, name):
    settings, number = NEAREST[name]
    dense = heads.nearest(K, **settings | {"template": settings.get("template", template)()})
    few = heads.sampled(dense, number)
    widened = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    (_, whole), (_, state) = (jax.tree.map(widened, one.init(KEY, DIM, jnp.float64)) for one in (dense, few))

    @jax.jit
    def both(state, whole, features, labels):
        def few_loss(features):
            output, after = few.apply({}, state, features, labels, train=True)
            return summed_loss(output, labels), (after, output)

        def dense_loss(features):
            output, after = dense.apply({}, whole, features, labels, train=True)
            key = jax.random.fold_in(jax.random.wrap_key_data(state["seed"], impl="threefry2x32"), state["draws"])
            candidates = heads.class_candidates(key, labels, K, number)
            return summed_loss(only(output, candidates), labels), (after, output)

        return jax.value_and_grad(few_loss, has_aux=True)(features), jax.value_and_grad(dense_loss, has_aux=True)(
            features
        )

    for step in range(5):
        ((value, (state, output)), slopes), ((expected, (whole, dense_output)), dense_slopes) = both(
            state, whole, *batch_of(step)
        )
        np.testing.assert_allclose(value, expected, rtol=1e-11)
        np.testing.assert_allclose(slopes, dense_slopes, atol=1e-9 * np.abs(dense_slopes).max(), err_msg=str(step))
        kept = {key: state[key] for key in whole if key != "frame"}
        chex.assert_trees_all_close(kept, {key: whole[key] for key in kept}, atol=1e-11)
        solved, dense_solved = output.solution, dense_output.solution
        for field in ("value", "grad_norm", "status"):
            np.testing.assert_allclose(getattr(solved, field), getattr(dense_solved, field), atol=1e-10)
        used = output.classes >= 0
        np.testing.assert_allclose(output.frame[:, used], whole["frame"][:, output.classes[used]], atol=1e-9)
        logits = output.features @ output.frame + output.bias
        np.testing.assert_allclose(logits[:, used], output.logits[:, used], atol=1e-10)
    evaluated = few.apply({}, state, batch_of()[0])[0]
    np.testing.assert_allclose(evaluated.frame, whole["frame"], atol=1e-9)
    assert evaluated.classes is None


@pytest.mark.slow
def test_the_gradient_is_that_of_a_numpy_program(x64):
    """The first two steps written down in NumPy with an SVD, differentiated by central differences."""
    columns, radius, delta = np.asarray(template()), 5.0, 1e-3
    few = heads.sampled(heads.nearest(K, template=template()), K)
    state = few.init(KEY, DIM, jnp.float64)[1]
    state = {name: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf for name, leaf in state.items()}
    (first, labels), (second, other) = batch_of(1, padding=0), batch_of(2, padding=0)
    other = labels.at[: N // 2].set(other[: N // 2])  # some classes of the first batch, and some new ones

    def program(features):
        means, counts, rotation = np.zeros((DIM, K)), np.zeros(K), np.eye(DIM)
        for h, y in ((np.asarray(first), labels), (features, other)):
            h = radius * h / np.linalg.norm(h, axis=1, keepdims=True)
            for k in set(np.asarray(y).tolist()):
                counts[k] += 1
                means[:, k] += float(np.float32(2) / np.float32(counts[k] + 1)) * (
                    h[np.asarray(y) == k].mean(axis=0) - means[:, k]
                )
            unit = means / np.linalg.norm(means), columns / np.linalg.norm(columns)
            rotation = oracles.procrustes_rotation(*unit, rotation, delta)
        logits = h @ rotation @ columns
        return np.sum(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(N), np.asarray(other)])

    @jax.jit
    @partial(jax.value_and_grad, argnums=1, has_aux=True)
    def few_loss(state, features, labels):
        output, after = few.apply({}, state, features, labels, train=True)
        return summed_loss(output, labels), after  # all classes are drawn

    (_, state), _ = few_loss(state, first, labels)
    (value, _), slopes = few_loss(state, second, other)
    np.testing.assert_allclose(value, program(np.asarray(second)), rtol=1e-9)
    direction = generator().normal(size=(N, DIM))
    slope = oracles.central_difference(lambda t: program(np.asarray(second) + t * direction), 1e-5)
    np.testing.assert_allclose(np.vdot(slopes, direction), slope, rtol=1e-7)


@pytest.mark.slow
def test_the_running_sums_do_not_drift():
    """After 600 steps, and after the features have shrunk to a hundredth, the sums are those of the means."""
    steps, columns = 300, np.asarray(template(num_classes=40))
    few = heads.sampled(heads.nearest(40, template=jnp.asarray(columns), radius=None), 4)
    state = few.init(KEY, DIM)[1]

    @jax.jit
    def train(state, features, labels):
        step = lambda state, batch: (few.apply({}, state, *batch, train=True)[1], None)  # noqa: E731
        return jax.lax.scan(step, state, (features, labels))[0]

    rng = generator()
    for scale in (1.0, 1e-2):
        features = (scale * rng.normal(size=(steps, N, DIM))).astype(np.float32)
        state = train(state, features, rng.integers(0, 40, (steps, N)).astype(np.int32))
        means = np.asarray(state["class_means"], np.float64)
        size = np.linalg.norm(means) * np.linalg.norm(columns)
        # One product of all means with the template in float32 is off by as much: 1e-7 of the norms.
        drift = np.asarray(state["correlation"], np.float64).sum(axis=0) - means @ columns.astype(np.float64).T
        assert np.linalg.norm(drift) <= 1e-6 * size
        np.testing.assert_allclose(state["squares"], np.sum(means**2, axis=0), rtol=1e-5)


@pytest.mark.slow
def test_a_batch_that_is_not_finite_or_has_a_wrong_label_leaves_the_state():
    few = heads.sampled(heads.nearest(K, template=template()), DRAWN)
    train = jax.jit(partial(few.apply, train=True))
    state = train({}, few.init(KEY, DIM)[1], *batch_of(1, np.float32))[1]
    features, labels = batch_of(2, np.float32)
    for wrong in ((features.at[0, 0].set(jnp.nan), labels), (features, labels.at[0].set(K))):
        output, after = train({}, state, *wrong)
        assert output.solution.status == Status.NON_FINITE
        chex.assert_trees_all_equal(after | {"draws": 1}, state | {"draws": 1})
    # Padding alone is not a step.
    after = train({}, state, features, jnp.full_like(labels, -1))[1]
    chex.assert_trees_all_close(after["class_means"], state["class_means"])
    assert after["steps"] == state["steps"]
    mask = jnp.arange(N) < 4
    masked, padded = (
        train({}, state, features, labels, mask=mask),
        train({}, state, features, jnp.where(mask, labels, -1)),
    )
    chex.assert_trees_all_equal(masked[1], padded[1])


@pytest.mark.slow
def test_features_of_16_bits_keep_the_state_in_32():
    few = heads.sampled(heads.nearest(K, template=template()), DRAWN)
    features, labels = batch_of(1, np.float32)
    state = few.init(KEY, DIM)[1]
    train = jax.jit(partial(few.apply, train=True))
    output, after = train({}, state, features.astype(jnp.bfloat16), labels)
    assert output.logits.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    exact = train({}, state, features, labels)[0].logits
    used = output.classes >= 0
    np.testing.assert_allclose(output.logits[:, used].astype(np.float32), exact[:, used], atol=0.1)


# --- Training. ---

SMALL = {
    "learned": SampledHead(heads.learned(4), 2),
    "nearest": HeadModule(heads.sampled(heads.nearest(4, template=template(3, 4)), 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "nearest"])
def test_the_trainer_fits_and_eight_devices_are_one(name, tmp_path):
    model, train_set = Classifier(MLP((16,), 3), SMALL[name]), blobs(100)
    states, accuracies = [], []
    for devices in (1, 8):
        trainer = Trainer(model, optax.sgd(0.05, 0.9), LoopOptions(epochs=6, batch_size=24, devices=devices))
        state, *_ = jax.device_get(fit(trainer, train_set, blobs(40, seed=1), tmp_path / str(devices)))
        accuracies.append(rows_of(tmp_path / str(devices))[-1]["test/accuracy"])
        states.append(state)
    chex.assert_trees_all_close(states[0].params, states[1].params, rtol=0, atol=5e-5)
    chex.assert_trees_all_close(states[0].variables, states[1].variables, rtol=0, atol=5e-5)
    assert min(accuracies) >= 0.9, accuracies


@pytest.mark.slow
def test_a_step_with_mixed_examples_is_the_same_on_two_devices_and_sums_what_it_must():
    model, optimizer = Classifier(MLP((), 3), SMALL["nearest"]), optax.sgd(0.1)
    features, labels = generator().normal(size=(16, 6)).astype(np.float32), np.arange(16, dtype=np.int32) % 4
    batch = Batch(features, labels, np.arange(16) < 14)
    batch = batch._replace(partner=Partner(jnp.asarray(labels[::-1]), jnp.full(16, 0.7)))
    found = []
    for devices, checked in ((1, False), (2, True)):
        step = make_train_step(model, optimizer, axis_name=AXIS)
        step = data_parallel(step, devices=jax.local_devices()[:devices], checked=checked)
        state, metrics = step(create_state(model, optimizer, KEY, features[:1]), batch)
        assert bool(metrics.finite)
        assert metrics.without_class == 0
        found.append(jax.device_get(state.replace(totals=None)))
    chex.assert_trees_all_close(found[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_label_that_is_no_class_is_counted_and_stops_the_step():
    model, optimizer = Classifier(MLP((), 3), SMALL["learned"]), optax.sgd(0.1)
    batch = Batch.of(generator().normal(size=(6, 6)).astype(np.float32), np.array([0, 1, 4, 2, -2, 1], np.int32))
    batch = batch._replace(mask=np.ones(6, bool))
    state = create_state(model, optimizer, KEY, batch.inputs[:1])
    after, metrics = jax.jit(make_train_step(model, optimizer))(state, batch)
    assert metrics.without_class == 2
    assert not metrics.finite
    chex.assert_trees_all_equal(after.params, state.params)


# --- What is refused. ---

TREE = LabelTree.from_edges([("root", name) for name in "abcd"])
REFUSED = {
    "lie in 1..4; got 0": lambda: heads.sampled(heads.learned(4), 0),
    "lie in 1..4; got 5": lambda: heads.class_candidates(KEY, jnp.array([1]), 4, 5),
    "has a sampled softmax; got a tree softmax one": lambda: heads.sampled(heads.tree_softmax(TREE), 2),
    "needs solver=\"polar\"; got 'trust_region'": lambda: heads.sampled(heads.nearest(4, solver="trust_region"), 2),
    "needs centre=\"batch\"; got 'classes'": lambda: heads.sampled(heads.nearest(4, centre="classes"), 2),
    "template without parameters; got a LearnedTemplate": lambda: heads.sampled(
        heads.nearest(4, template=heads.tree_template(TREE, learn=True)), 2
    ).init(KEY, 6),
    "needs labels in training; got None": lambda: SAMPLED.apply(
        {}, SAMPLED.init(KEY, 5)[1], jnp.ones((2, 5)), train=True
    ),
    "labels must lie in 0..29": lambda: SAMPLED.apply({}, {}, jnp.ones((1, 5)), jnp.array([30]), train=True),
    "features must have shape (batch, 5)": lambda: SAMPLED.apply(
        {}, SAMPLED.init(KEY, 5)[1], jnp.ones((1, 4)), jnp.array([3]), train=True
    ),
    "a template of 5 rows needs features of dim >= 5": lambda: SAMPLED.init(KEY, 4),
}
SAMPLED = heads.sampled(heads.nearest(K, template=template()), DRAWN)


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_work_is_refused_in_a_sentence(sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        REFUSED[sentence]()
