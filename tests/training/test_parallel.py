"""One device equals many, and pmap equals shard_map."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_training import make_trainer

from nc_jax.data import Batch
from nc_jax.streams import batches
from nc_jax.training import AXIS, data_parallel, forward, make_train_step

FLOAT32_TRAINING = 1e-5  # what sums in another order leave in the parameters after three epochs


def train(trainer, arrays, num_steps):
    state, metrics = trainer.init(arrays, seed=0), []
    for batch in batches(arrays, 24, seed=0, num_steps=num_steps):
        state, step_metrics = trainer.step(state, batch)
        metrics.append(jax.device_get(step_metrics))
    return jax.device_get(state), metrics


def predictions(trainer, state, arrays):
    batch = Batch.of(jnp.asarray(arrays.inputs), arrays.labels)
    state = jax.tree.map(jnp.asarray, state)
    output, *_ = forward(trainer.model, state.params, state.variables, batch, train=False)
    return np.argmax(output.logits, axis=1)


def test_eight_devices_train_as_one(one_device, train_set, test_set):
    eight = make_trainer(8)
    state_1, metrics_1 = train(one_device, train_set, 15)
    state_8, metrics_8 = train(eight, train_set, 15)
    chex.assert_trees_all_close(state_1, state_8, rtol=0, atol=FLOAT32_TRAINING)
    chex.assert_trees_all_close(metrics_1, metrics_8, rtol=1e-4, atol=FLOAT32_TRAINING)
    np.testing.assert_array_equal(predictions(one_device, state_1, test_set), predictions(eight, state_8, test_set))


def test_eight_devices_evaluate_as_one(one_device, train_set):
    state = one_device.init(train_set, seed=0)
    found = [
        trainer.evaluate(state, lambda: batches(train_set, 24, seed=0, num_steps=5), collapse=True)
        for trainer in (one_device, make_trainer(8))
    ]
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_shard_map_gives_the_same_step(one_device, train_set):
    """The step does not depend on pmap: replacing it by shard_map would change one file."""
    model, optimizer = one_device.model, one_device.optimizer
    step = make_train_step(model, optimizer, axis_name=AXIS)
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    twin = jax.jit(
        partial(jax.shard_map, mesh=mesh, in_specs=(replicated, split), out_specs=replicated, check_vma=False)(step)
    )
    state = jax.device_get(one_device.init(train_set, seed=0))
    batch = next(batches(train_set, 24, seed=0, num_steps=1))
    ours = data_parallel(step)(state, batch)
    chex.assert_trees_all_close(jax.device_get(ours), jax.device_get(twin(state, batch)), rtol=1e-6, atol=1e-7)


def test_gradients_cross_devices_through_the_class_means(train_set):
    """If cotangents from the losses of other devices were dropped, the values of a single step would not show it."""
    with_gradient, without = (
        train(make_trainer(8, stop_gradient=stop), train_set, 2)[0].params for stop in (False, True)
    )
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), with_gradient, without)
    assert max(jax.tree.leaves(differences)) > 100 * FLOAT32_TRAINING


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="the batch size must be a multiple of the 8 devices; got 12"):
        data_parallel(lambda state, batch: state)(0, np.zeros(12))


def test_a_first_batch_without_some_class_starts_all_device_counts_alike(train_set):
    """A missing class leaves the rotation undetermined. If rounding chose it, frames would differ by order one."""
    batch = next(batches(train_set.subset(train_set.labels != 2), 24, seed=0, num_steps=1))
    frames = []
    for num_devices in (1, 8):
        trainer = make_trainer(num_devices)
        state, metrics = trainer.step(trainer.init(train_set, seed=0), batch)
        assert bool(metrics.finite)
        frames.append(np.asarray(state.variables["nearest"]["head"]["frame"]))
    # Rounding over the tie-breaking weight of 1e-3.
    np.testing.assert_allclose(frames[0], frames[1], atol=1e-3)
