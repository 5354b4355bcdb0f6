"""The pure steps: the loss they report, the padding they ignore, the bad numbers they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import make_trainer

from nc_jax.data import Batch
from nc_jax.models import MLP, Classifier, LearnedHead, NearestHead
from nc_jax.solvers import Status, TrustRegionOptions
from nc_jax.streams import batches
from nc_jax.training import create_state, make_train_step


@pytest.fixture(scope="module")
def learned():
    model, optimizer = Classifier(MLP((16,), 8), LearnedHead(4)), optax.sgd(0.1)
    return model, optimizer, jax.jit(make_train_step(model, optimizer))


@pytest.mark.slow
def test_step_is_sgd_on_the_mean_cross_entropy(learned, train_set):
    model, optimizer, step = learned
    state = create_state(model, optimizer, jax.random.key(0), train_set.inputs[:1])
    inputs, labels = jnp.asarray(train_set.inputs[:20]), train_set.labels[:20]

    def mean_loss(params):
        logits = model.apply({"params": params}, inputs).logits
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(20), labels])

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    # Four rows of padding, with inputs and labels that would change the result.
    batch = Batch(
        inputs=np.concatenate([inputs, np.full((4, 6), 1e3, np.float32)]),
        labels=np.concatenate([labels, np.full(4, 1, np.int32)]),
        mask=np.arange(24) < 20,
    )
    new, metrics = step(state, batch)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    assert (int(new.step), int(metrics.solve_status), bool(metrics.finite)) == (1, Status.CONVERGED, True)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_not_taken(one_device, train_set, bad):
    batch = next(batches(train_set, 24, seed=0, num_steps=1))
    batch.inputs[3, 2] = bad
    before = jax.device_get(one_device.init(train_set, seed=0))
    after, metrics = one_device.step(one_device.init(train_set, seed=0), batch)
    assert not bool(metrics.finite)
    assert int(metrics.solve_status) == Status.NON_FINITE
    after = jax.device_get(after)
    assert not after.totals.finite
    chex.assert_trees_all_equal(after.replace(totals=before.totals), before)
    # A compiled loop goes on with the batches that follow. They do not belong to this state.
    good = next(batches(train_set, 24, seed=0, num_steps=1))
    later, metrics = one_device.step(jax.device_put(after), good)
    assert not bool(metrics.finite)
    chex.assert_trees_all_equal(jax.device_get(later).replace(totals=before.totals), before)
    again, metrics = one_device.step(jax.device_put(before), good)
    assert bool(metrics.finite)
    assert int(again.step) == 1


@pytest.mark.slow
def test_an_unfinished_solve_is_reported(train_set):
    trainer = make_trainer(1, solver="trust_region", trust_region=TrustRegionOptions(max_iterations=1))
    _, metrics = trainer.step(trainer.init(train_set, seed=0), next(batches(train_set, 24, seed=0, num_steps=1)))
    assert int(metrics.solve_status) == Status.ITERATION_LIMIT
    assert float(metrics.solve_grad_norm) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [4, -1, -7])
@pytest.mark.parametrize("head", [LearnedHead(4), NearestHead(4)], ids=["learned", "nearest"])
def test_labels_that_are_no_class_are_counted_and_the_step_is_not_taken(train_set, wrong, head):
    model, optimizer = Classifier(MLP((), 8), head), optax.sgd(0.1)
    state = create_state(model, optimizer, jax.random.key(0), train_set.inputs[:1])
    labels = train_set.labels[:24].copy()
    labels[[3, 5, 20]] = wrong
    batch = Batch(train_set.inputs[:24], labels, mask=np.arange(24) < 20)  # one of the three is padding
    after, metrics = jax.jit(make_train_step(model, optimizer))(state, batch)
    assert int(metrics.without_class) == 2
    assert not bool(metrics.finite)
    chex.assert_trees_all_equal(after.replace(totals=state.totals), state)
    assert after.totals.summary()["without_class"] == 2


def test_one_hot_labels_and_other_masks_are_refused(learned, train_set):
    model, optimizer, step = learned
    state = create_state(model, optimizer, jax.random.key(0), train_set.inputs[:1])
    inputs, labels = train_set.inputs[:8], train_set.labels[:8]
    with pytest.raises(ValueError, match="take argmax"):
        step(state, Batch.of(inputs, np.eye(4)[labels]))
    with pytest.raises(ValueError, match=r"mask must be booleans of shape \(8,\); got float32 of shape \(8,\)"):
        step(state, Batch(inputs, labels, np.ones(8, np.float32)))
