"""One device equals many, and pmap equals shard_map."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_training import NormalisedMLP, fit, make_trainer
from trees import PAIRS

from nc_jax.data import Batch
from nc_jax.hierarchy import LabelTree
from nc_jax.losses import hierarchy_aware_features
from nc_jax.models import MLP, Classifier, LearnedHead, LevelsHead, NearestHead
from nc_jax.streams import batches
from nc_jax.training import (
    AXIS,
    FeatureDecay,
    LoopOptions,
    StepOptions,
    Trainer,
    UnequalDevicesError,
    create_state,
    data_parallel,
    forward,
    make_train_step,
)

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


@pytest.mark.slow
def test_eight_devices_train_as_one(one_device, train_set, test_set):
    eight = make_trainer(8)
    state_1, metrics_1 = train(one_device, train_set, 15)
    state_8, metrics_8 = train(eight, train_set, 15)
    chex.assert_trees_all_close(state_1, state_8, rtol=0, atol=FLOAT32_TRAINING)
    chex.assert_trees_all_close(metrics_1, metrics_8, rtol=1e-4, atol=FLOAT32_TRAINING)
    np.testing.assert_array_equal(predictions(one_device, state_1, test_set), predictions(eight, state_8, test_set))


@pytest.mark.slow
def test_eight_devices_evaluate_as_one(one_device, train_set):
    state = one_device.init(train_set, seed=0)
    found = [
        trainer.evaluate(state, lambda: batches(train_set, 24, seed=0, num_steps=5), collapse=True)
        for trainer in (one_device, make_trainer(8))
    ]
    chex.assert_trees_all_close(found[0].metrics, found[1].metrics, rtol=1e-4, atol=1e-6)
    for name in ("counts", "means", "scatter", "class_scatter"):  # about origins and in units of their own
        ours, theirs = (getattr(one.statistics, name) for one in found)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


SHARDED = {
    "nearest head": (MLP((16,), 8), NearestHead(4), {}),
    "trust region, batch norm, two parts, extensions, average": (
        NormalisedMLP(),
        NearestHead(4, solver="trust_region"),
        {"accumulate": 2, "average_decay": 0.9, "extensions": (FeatureDecay(1e-3, "mean"),)},
    ),
    "learned head, augmented": (MLP((16,), 8), LearnedHead(4), {"augment": lambda key, x: x + jax.random.normal(key)}),
    "levels": (
        MLP((16,), 8),
        LevelsHead(LabelTree.from_edges(PAIRS), "hafeature"),
        {
            "loss": lambda output, batch, context: hierarchy_aware_features(
                output.levels.logits,
                output.levels.frames,
                batch.labels,
                LabelTree.from_edges(PAIRS).levels(),
                everyone=context.everyone,
            )
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED)
@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_shard_map_gives_the_same_step(train_set, case, check):
    """With its replication check, JAX itself proves that state and metrics are the same on all devices."""
    backbone, head, options = SHARDED[case]
    model, optimizer = Classifier(backbone, head), optax.sgd(0.05, 0.9)
    options = StepOptions(**options)
    batch = next(batches(train_set, 96, seed=0, num_steps=1))
    batch = batch._replace(mask=np.arange(96) % 5 > 0)
    state = create_state(
        model, optimizer, jax.random.key(0), train_set.inputs[:1], average=options.average_decay is not None
    )
    alone = jax.jit(make_train_step(model, optimizer, options=options))(state, _in_parts(batch, options.accumulate))
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    specs = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        make_train_step(model, optimizer, axis_name=AXIS, options=options),
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(),
        check_vma=check,
    )
    together = jax.jit(mapped)(state, batch)
    chex.assert_trees_all_close(jax.device_get(together), jax.device_get(alone), rtol=1e-4, atol=1e-5)


def _in_parts(batch, parts):
    """Order the rows of a batch as one device needs them to see the parts that eight devices see."""
    rows = np.arange(96).reshape(8, parts, -1).swapaxes(0, 1).ravel()
    return jax.tree.map(lambda array: array[rows], batch)


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="must be a multiple of the 8 devices times accumulate=3; got 16"):
        data_parallel(lambda state, batch: state, parts=3)(0, np.zeros(16))
    with pytest.raises(ValueError, match="must be a multiple of the 1 device times accumulate=3; got 16"):
        Trainer(NormalisedMLP(), optax.sgd(0.1), LoopOptions(batch_size=16, devices=1), step=StepOptions(accumulate=3))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_checked_step_is_the_same_and_a_forgotten_sum_is_an_error(train_set):
    model, optimizer = Classifier(MLP((8,), 6), NearestHead(4)), optax.sgd(0.05)
    state = create_state(model, optimizer, jax.random.key(0), train_set.inputs[:1])
    batch = next(batches(train_set, 24, seed=0, num_steps=1))
    step = make_train_step(model, optimizer, axis_name=AXIS)
    devices = jax.local_devices()[:4]
    mapped, checked = (data_parallel(step, devices=devices, checked=check)(state, batch) for check in (False, True))
    chex.assert_trees_all_close(jax.device_get(mapped), jax.device_get(checked), rtol=0, atol=1e-6)
    alone = make_train_step(model, optimizer)  # names no axis, so nothing is summed
    with pytest.raises(ValueError, match="out_specs"):
        data_parallel(alone, devices=devices, checked=True)(state, batch)


class Forgetful(nn.Module):
    """Keeps a running mean of the examples of its own device."""

    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        seen = self.variable("seen", "mean", lambda: jnp.zeros(inputs.shape[1]))
        if train:
            seen.value = seen.value + inputs.mean(axis=0)
        return nn.Dense(8)(inputs)


@pytest.mark.slow
def test_devices_that_disagree_after_the_first_step_stop_the_run(train_set, test_set, tmp_path):
    sentence = (
        "all devices must hold the same state after a step; their copies of variables/seen/backbone/mean differ by"
    )
    trainer = make_trainer(4, backbone=Forgetful(), resident=False)
    with pytest.raises(UnequalDevicesError, match=sentence):
        fit(trainer, train_set, test_set, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.isdigit()]  # no checkpoint
