"""The rows for long tails: what each part does, and what two stages leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import losses
from nc_jax.data import Batch, LabelledArrays
from nc_jax.heads import HeadOutput
from nc_jax.methods import METHODS, Setting, TailOptions
from nc_jax.streams import Epochs, Staged, Tasks, Weighted, read
from nc_jax.study import Comparison
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import Data
from nc_jax.study.settings import Group
from nc_jax.study.trainers import make_stream, make_trainer
from nc_jax.training import Context, LoopOptions, OptimizerOptions

COUNTS = (24, 8, 2)
SETTING = Setting(num_classes=3, epochs=10, epoch_steps=4, class_counts=COUNTS)
LABELS = jnp.array([0, 1, 2, 2])
OUTPUT = HeadOutput(
    jax.random.normal(jax.random.key(0), (4, 3)),
    jax.random.normal(jax.random.key(1), (4, 5)),
    jax.random.normal(jax.random.key(2), (5, 3)),
    jnp.zeros(3),
)
BATCH = Batch.of(jnp.zeros((4, 1)), LABELS)
ARRAYS = LabelledArrays(
    np.random.default_rng(0).normal(size=(34, 6)).astype(np.float32), np.repeat([0, 1, 2], COUNTS), 3
)


def loss_of(name, step=0, setting=SETTING, whole=BATCH):
    context = Context(jnp.asarray(step, jnp.int32), train=True, whole=whole)
    return METHODS[name].loss(setting)(OUTPUT, BATCH, context)


def test_balanced_softmax_is_logit_adjustment_with_tau_one():
    assert METHODS["balanced-softmax"].extensions(SETTING) == METHODS["adjusted"].extensions(SETTING)
    other = dataclasses.replace(SETTING, tail=TailOptions(tau=0.5))
    assert METHODS["balanced-softmax"].extensions(other) != METHODS["adjusted"].extensions(other)


@pytest.mark.slow
def test_ldam_reweights_in_the_second_stage_only():
    early, late = loss_of("ldam", 31), loss_of("ldam", 32)  # of 40 steps
    weights = losses.effective_number_weights(jnp.asarray(COUNTS), SETTING.tail.beta)
    np.testing.assert_allclose(late, weights[LABELS] * early, rtol=1e-6)
    margins = losses.ldam_margins(jnp.asarray(COUNTS))
    np.testing.assert_allclose(early, losses.ldam(OUTPUT.logits / 30, LABELS, margins), rtol=1e-6)


@pytest.mark.slow
def test_dot_regression_takes_its_lengths_from_the_whole_batch_or_from_the_training_set():
    whole = Batch.of(jnp.zeros((6, 1)), jnp.array([0, 0, 0, 0, 1, 2]))
    plain = loss_of("etf-dr-plain")
    # Six examples of three classes: two of each would have the length 1, and the loss grows with its square.
    np.testing.assert_allclose(loss_of("etf-dr", whole=whole), np.array([1 / 2, 2, 2, 2]) * plain, rtol=1e-5)
    factors = np.sum(COUNTS) / 3 / np.array(COUNTS)
    np.testing.assert_allclose(loss_of("etf-dr-counts"), factors[np.asarray(LABELS)] * plain, rtol=1e-5)


def test_class_balanced_weights_and_label_aware_smoothing_follow_the_counts():
    each = losses.cross_entropy(OUTPUT.logits, LABELS)
    weights = losses.effective_number_weights(jnp.asarray(COUNTS), SETTING.tail.beta)
    np.testing.assert_allclose(loss_of("class-balanced"), weights[LABELS] * each, rtol=1e-6)
    smoothing = losses.label_aware_smoothing(jnp.asarray(COUNTS))
    expected = losses.smoothed_cross_entropy(OUTPUT.logits, LABELS, smoothing)
    np.testing.assert_allclose(loss_of("label-aware"), expected, rtol=1e-6)


def test_samplers_and_second_stages_have_their_streams():
    epochs = Epochs(ARRAYS, 16, SETTING.epochs)
    for name, power in (("balanced-sampler", 0.0), ("root-sampler", 0.5)):
        stream = METHODS[name].stream(SETTING, epochs)
        assert isinstance(stream, Weighted)
        assert (stream.power, list(stream.ends)) == (power, list(epochs.ends))
    for name in ("crt", "lws"):
        stream = METHODS[name].stream(SETTING, epochs)
        assert isinstance(stream, Staged)
        assert stream.segments == 8
        np.testing.assert_array_equal(stream.plan(0, 7).index, epochs.plan(0, 7).index)
    tasks = Tasks(ARRAYS, ARRAYS.labels, 16, 2)
    with pytest.raises(ValueError, match="a sampler of classes needs epochs over the whole training set; got Tasks"):
        METHODS["crt"].stream(SETTING, tasks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crt", "lws"])
def test_a_second_stage_moves_its_own_parameters_alone(name):
    settings = Comparison(
        methods=(name,),
        backbone=BackboneOptions(hidden=(), dim=4),
        optimizer=OptimizerOptions(learning_rate=0.1, weight_decay=1e-2),
        loop=LoopOptions(epochs=2, batch_size=17, devices=1),
        tail=TailOptions(second_stage=0.5),
    )
    group, data = Group("", "", name, settings), Data(ARRAYS, ARRAYS, augment=None, preprocess=None, size=6)
    trainer, stream = make_trainer(group, data), make_stream(group, data)
    state = trainer.init(ARRAYS, seed=0)
    states = []
    for batch in read(ARRAYS, stream, seed=0):
        state, _ = trainer.step(state, batch)
        states.append(jax.device_get(state.params))
    before, after = states[1], states[3]
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, old), new in zip(
            jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
        )
        if not np.array_equal(old, new)
    }
    assert moved == ({"head/second/kernel", "head/second/bias"} if name == "crt" else {"head/scales"})


def test_counts_that_are_unknown_or_zero_are_refused():
    with pytest.raises(ValueError, match="this method needs the number of training examples of each class; got none"):
        METHODS["adjusted"].extensions(Setting(num_classes=3))
    with pytest.raises(ValueError, match="this method needs a training example of every class; class 1 has none"):
        METHODS["ldam"].loss(dataclasses.replace(SETTING, class_counts=(5, 0, 1)))


@pytest.mark.parametrize("name", ["mixup", "mixup-balanced", "fno-arc", "fno-arc-shuffled", "etf-dr"])
def test_every_mixture_has_the_alpha_of_the_settings(name):
    (mixup, *_) = METHODS[name].extensions(dataclasses.replace(SETTING, tail=TailOptions(mixup=0.2)))
    assert mixup.alpha == 0.2
