"""Losses whose weights depend on the batch: those of the whole batch, on any number of devices and in any parts."""

import chex
import jax
import numpy as np
import optax
import pytest
from toy_training import NUM_CLASSES, blobs

from nc_jax.data import LabelledArrays
from nc_jax.methods import METHODS, Setting
from nc_jax.models import MLP, Classifier, HeadModule
from nc_jax.streams import Epochs, read
from nc_jax.training import AXIS, StepOptions, create_state, data_parallel, make_train_step

F32_SUMS = 2e-5  # sums in another order
ARRAYS = blobs(70)
# Two classes are rare, so some parts and some devices have none of their examples.
KEPT = np.flatnonzero((ARRAYS.labels < 2) | (np.arange(70) < 12))
TRAIN = LabelledArrays(ARRAYS.inputs[KEPT], ARRAYS.labels[KEPT], NUM_CLASSES)
SETTING = Setting(num_classes=NUM_CLASSES, class_counts=tuple(TRAIN.class_counts().tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["etf-dr", "fno-arc", "fno-arc-shuffled", "mixup-balanced", "mixup-adjusted"])
def test_eight_devices_and_three_parts_are_one_whole_batch(name):
    method = METHODS[name]
    model, optimizer = Classifier(MLP((), 6), HeadModule(method.head(SETTING))), optax.sgd(0.1)
    extensions = method.extensions(SETTING)
    # A batch with padding, of which the first part lacks a class.
    batches = read(TRAIN, Epochs(TRAIN, 24, epochs=20), seed=0)
    (batch, *_) = [one for one in batches if not one.mask.all() and len(set(one.labels[:8].tolist())) < NUM_CLASSES]
    state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1], extensions=extensions)
    after = []
    for parts, devices in ((1, 1), (3, 1), (3, 8)):
        options = StepOptions(accumulate=parts, loss=method.loss(SETTING), extensions=extensions)
        step = make_train_step(model, optimizer, axis_name=AXIS, options=options)
        here = data_parallel(step, devices=jax.local_devices()[:devices], parts=parts)
        after.append(jax.device_get(here(state, batch)))
    for other in after[1:]:
        chex.assert_trees_all_close(after[0], other, rtol=F32_SUMS, atol=F32_SUMS)
    assert float(after[0][1].grad_norm) > 0
