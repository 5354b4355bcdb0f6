"""Mixup in a step: pairs, on the line and on the arc, padding, parts and devices."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from toy_training import NUM_CLASSES, blobs

from nc_jax.data import Batch
from nc_jax.losses import arc_weights
from nc_jax.models import MLP, Classifier, LearnedHead
from nc_jax.streams import Epochs, read
from nc_jax.training import (
    AXIS,
    Context,
    Mixup,
    PairLoss,
    StepOptions,
    create_state,
    data_parallel,
    make_train_step,
)
from nc_jax.training.extensions import class_balanced_pairs, shuffled_pairs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["fno"]
F32_SUMS = 2e-5  # sums in another order
KEY = jax.random.key(0)
LABELS = np.array(GOLDEN["balanced_pair_sampling"]["labels"])


ARC = Mixup(curve="arc", pairs="balanced")


@partial(jax.jit, static_argnums=2)
def mixed(batch, key, mixup=ARC):
    context = Context(jnp.zeros((), jnp.int32), train=True, key=key, places=jnp.arange(len(batch.labels)))
    return mixup.on_batch(context, None, batch)


# --- Pairs. ---


@pytest.mark.slow
def test_pairs_are_balanced_over_classes_and_never_of_one():
    """The released program's frequencies, over 4000 batches: any class is as likely, and any example of it."""
    keys = jax.random.split(KEY, 4000)
    used = jnp.ones(len(LABELS), bool)
    first, second = (
        np.asarray(part).ravel()
        for part in jax.jit(jax.vmap(lambda key: class_balanced_pairs(key, jnp.asarray(LABELS), used)))(keys)
    )
    assert np.all(LABELS[first] != LABELS[second])
    expected = np.array(GOLDEN["balanced_pair_sampling"]["p_first"]) * first.size
    for drawn in (first, second):  # the second classes are uniform, too, over all pairs
        assert scipy.stats.chisquare(np.bincount(drawn, minlength=len(LABELS)), expected).pvalue > 1e-3
    given = second[LABELS[first] == 0]  # half of class 1 (two examples), half of class 2 (one)
    weights = np.where(LABELS == 1, 0.25, 0.5) * (LABELS > 0) * given.size
    assert scipy.stats.chisquare(np.bincount(given, minlength=len(LABELS))[6:], weights[6:]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[2, 2, 2, -1], [-1, -1, -1, -1], [0, -1, -1, -1]])
def test_a_batch_of_one_class_or_none_stays_as_it_is(labels):
    labels = jnp.asarray(labels)
    batch = Batch(jax.random.normal(KEY, (4, 3)), labels, labels >= 0)
    found = mixed(batch, KEY)
    np.testing.assert_array_equal(found.inputs, batch.inputs)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.partner.weight, 1)
    np.testing.assert_array_equal(found.partner.other_weight, 0)


def test_shuffled_pairs_are_a_random_order_of_the_examples():
    used = jnp.array([True, False, True, True, False, True, True])
    draw = jax.jit(jax.vmap(lambda key: shuffled_pairs(key, used)[1]))
    second = np.asarray(draw(jax.random.split(KEY, 3000)))
    np.testing.assert_array_equal(second[:, ~used], np.tile([1, 4], (3000, 1)))
    assert np.all(np.sort(second[:, used]) == np.flatnonzero(used))
    assert scipy.stats.chisquare(np.bincount(second[:, 2], minlength=7)[used]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mixup", [ARC, Mixup(), Mixup(curve="arc")], ids=["balanced arc", "line", "arc"])
def test_padding_is_neither_drawn_nor_changed(mixup):
    labels = jnp.array([1, -1, 0, -1, 2, 0])
    batch = Batch(jnp.where(labels[:, None] >= 0, labels[:, None] + 1.0, jnp.nan), labels, labels >= 0)
    for seed in range(20):
        found = mixed(batch, jax.random.key(seed), mixup)
        np.testing.assert_array_equal(found.mask, batch.mask)
        assert np.isfinite(found.inputs[batch.mask]).all()
        assert np.isnan(found.inputs[~batch.mask]).all()
        assert found.labels[~batch.mask].tolist() == [-1, -1]
        assert np.all((found.labels >= 0) == batch.mask)


# --- Mixtures. ---


@pytest.mark.slow
def test_mixed_inputs_are_the_released_programs():
    case = GOLDEN["arc_mixup_inputs"]
    own, other = arc_weights(0.25)
    inputs = np.array(case["x"])
    np.testing.assert_allclose(own * inputs + other * inputs[[1, 2, 0]], case["mixed"], atol=1e-6)
    # The extension mixes in the same way: with one-hot inputs, a row tells its weights and its two examples.
    batch = Batch.of(jnp.eye(len(LABELS)), jnp.asarray(LABELS))._replace(index=jnp.arange(len(LABELS)) + 100)
    found = mixed(batch, KEY)
    assert len(set(np.asarray(found.partner.weight).tolist())) == 1  # one draw for the batch
    np.testing.assert_allclose(found.partner.weight**2 + found.partner.other_weight**2, 1, atol=1e-6)
    rows = (np.asarray(part) for part in (found.inputs, found.labels, found.partner.labels, found.index))
    for row, label, partner, index in zip(*rows, strict=True):
        (first, second) = np.flatnonzero(row)
        first, second = (first, second) if first == index - 100 else (second, first)
        assert (LABELS[first], LABELS[second]) == (label, partner)
        np.testing.assert_allclose(row[[first, second]], [found.partner.weight[0], found.partner.other_weight[0]])


@pytest.mark.slow
@pytest.mark.parametrize("curve", ["line", "arc"])
def test_shuffled_mixtures_keep_the_own_example_and_those_of_one_class_have_weights_that_sum_to_one(curve):
    batch = Batch.of(jnp.eye(len(LABELS)), jnp.asarray(LABELS))
    found = mixed(batch, KEY, Mixup(curve=curve))
    np.testing.assert_array_equal(found.labels, LABELS)
    own, other = (np.asarray(part) for part in found.partner.weights())
    same = np.asarray(found.labels == found.partner.labels)
    assert 0 < same.sum() < len(same)
    power = 1 if curve == "line" else 2
    np.testing.assert_allclose(own[same] + other[same], 1, atol=1e-6)
    np.testing.assert_allclose((own**power + other**power)[~same], 1, atol=1e-6)
    inputs = np.asarray(found.inputs)
    np.testing.assert_allclose(inputs.sum(axis=1), own + other, atol=1e-6)
    for row, weight, label in zip(inputs, other, found.partner.labels, strict=True):
        (place,) = np.flatnonzero(np.isclose(row, weight) & (label == LABELS))[:1]
        assert LABELS[place] == label


@pytest.mark.slow
def test_the_first_weight_has_the_arcsine_law():
    batch = Batch.of(jnp.zeros((2, 1)), jnp.arange(2))
    weights = jax.jit(jax.vmap(lambda key: mixed(batch, key).partner.weight[0]))(jax.random.split(KEY, 2000))
    law = scipy.stats.arcsine()  # of the square; the weight itself has the density 2 / (pi sqrt(1 - w^2))
    assert scipy.stats.kstest(np.asarray(weights, float) ** 2, law.cdf).pvalue > 1e-3
    assert abs(np.mean(weights) - 2 / np.pi) < 0.03


@pytest.mark.slow
def test_inputs_keep_their_dtype():
    found = mixed(Batch.of(jnp.ones((4, 3), jnp.bfloat16), jnp.arange(4)), KEY)
    assert found.inputs.dtype == jnp.bfloat16


def test_alpha_must_be_positive():
    with pytest.raises(ValueError, match=r"^alpha must be positive; got 0\.0$"):
        Mixup(alpha=0.0)


# --- In a step. ---


def sees_both(output, batch, context):
    """A loss that is not linear in the two classes, and counts how often padding is among them."""
    chosen = jnp.take_along_axis(output.logits, batch.labels[:, None], axis=1)[:, 0]
    other = jnp.take_along_axis(output.logits, batch.partner.labels[:, None], axis=1)[:, 0]
    own_weight, other_weight = batch.partner.weights()
    return (own_weight * chosen + other_weight * other) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("mixup", [ARC, Mixup()], ids=["balanced arc", "line"])
def test_eight_devices_and_three_parts_are_one_with_padding(mixup):
    train = blobs(70)
    model, optimizer = Classifier(MLP((), 6), LearnedHead(NUM_CLASSES)), optax.sgd(0.1)
    state = create_state(model, optimizer, KEY, train.inputs[:1])
    (batch,) = read(train, Epochs(train, 48), seed=0, start_step=1, num_steps=1)
    assert not batch.mask.all()
    after = []
    for parts, devices in ((1, 1), (3, 1), (3, 8)):
        options = StepOptions(accumulate=parts, extensions=(mixup,), loss=PairLoss(sees_both))
        step = make_train_step(model, optimizer, axis_name=AXIS, options=options)
        after.append(data_parallel(step, devices=jax.local_devices()[:devices], parts=parts)(state, batch)[0])
    for other in after[1:]:
        chex.assert_trees_all_close(jax.device_get(after[0]), jax.device_get(other), rtol=0, atol=F32_SUMS)


@pytest.mark.slow
def test_a_plain_loss_is_summed_with_both_weights_and_a_pair_loss_sees_the_pair():
    """Of two classes with one example each, every mixture is known up to its order."""
    model, optimizer = Classifier(MLP((), 6), LearnedHead(NUM_CLASSES)), optax.sgd(0.1)
    inputs = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    batch = Batch.of(inputs, np.array([0, 1], np.int32))
    state = create_state(model, optimizer, KEY, inputs)
    seen = []

    def watching(output, batch, context):
        seen.append(batch.partner)
        return sees_both(output, batch, context)

    losses = {}
    for name, loss in {"plain": None, "pair": PairLoss(watching)}.items():
        options = StepOptions(extensions=(ARC,), **({} if loss is None else {"loss": loss}))
        losses[name] = jax.jit(make_train_step(model, optimizer, options=options))(state, batch)[1].loss
    assert len(seen) == 1

    context_key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), 0)
    found = mixed(batch, context_key)
    output: Any = model.apply({"params": state.params}, found.inputs)
    logits = output.logits
    each = optax.softmax_cross_entropy_with_integer_labels
    pairs = [(found.partner.weight, found.labels), (found.partner.other_weight, found.partner.labels)]
    np.testing.assert_allclose(losses["plain"], np.mean(sum(w * each(logits, k) for w, k in pairs)), rtol=1e-5)
    chosen = sum(w * logits[jnp.arange(2), k] for w, k in pairs)
    np.testing.assert_allclose(losses["pair"], np.mean(chosen**2), rtol=1e-5)
