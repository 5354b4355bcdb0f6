"""Space alignment in a training step: on several devices, in parts, and what a strong penalty does."""

import chex
import jax
import numpy as np
import optax
import pytest
from toy_training import NUM_CLASSES, blobs

from nc_jax import heads
from nc_jax.models import MLP, Classifier, HeadModule
from nc_jax.streams import Epochs, read
from nc_jax.training import (
    AXIS,
    AlignmentPenalty,
    AlignmentProjection,
    AlignmentSlerp,
    StepOptions,
    TaskSoftmax,
    create_state,
    data_parallel,
    make_train_step,
)

KEY = jax.random.key(0)
F32_SUMS = 2e-5  # sums in another order, over a few steps
DIM = 6
TRAIN = blobs(70)  # the last batch of an epoch of 24 is padded
ALIGNED = (
    TaskSoftmax((0, 0, 1, 1)),
    AlignmentPenalty(0.5, min_alpha=0.2),
    AlignmentSlerp(0.3, start=2, every=3),
    AlignmentProjection(0.8),
)


def steps_of(head, devices, *, extensions=ALIGNED, checked=False, accumulate=1):
    model, optimizer = Classifier(MLP((8,), DIM), HeadModule(head)), optax.sgd(0.1, 0.9)
    options = StepOptions(extensions=extensions, accumulate=accumulate)
    state = create_state(model, optimizer, KEY, TRAIN.inputs[:1], extensions=extensions)
    step = make_train_step(model, optimizer, axis_name=AXIS, options=options)
    step = data_parallel(step, devices=jax.local_devices()[:devices], checked=checked, parts=accumulate)
    for batch in read(TRAIN, Epochs(TRAIN, 48, 3), seed=0, num_steps=5):
        state, metrics = step(state, batch)
        assert bool(metrics.finite)
    return jax.device_get(state)


HEADS = {
    "learned": heads.learned(NUM_CLASSES),
    "fixed": heads.fixed(NUM_CLASSES, radius=2.0),
    "nearest": heads.nearest(NUM_CLASSES),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_eight_devices_are_one_with_any_head(name):
    one, eight = (steps_of(HEADS[name], devices) for devices in (1, 8))
    chex.assert_trees_all_close(one, eight, rtol=0, atol=F32_SUMS)
    assert set(one.extensions) == {type(extension).__name__ for extension in ALIGNED[1:]}
    assert all(np.abs(one.extensions[name]["target"]).max() > 0.1 for name in ("AlignmentSlerp", "AlignmentProjection"))


@pytest.mark.slow
def test_eight_devices_are_one_by_checked_sums_and_in_parts():
    head = HEADS["learned"]
    chex.assert_trees_all_close(steps_of(head, 8, checked=True), steps_of(head, 1), rtol=0, atol=F32_SUMS)
    one, eight = (steps_of(head, devices, accumulate=2) for devices in (1, 8))
    chex.assert_trees_all_close(one, eight, rtol=0, atol=F32_SUMS)
    assert one.extensions["AlignmentPenalty"]["updates"].max() == 8  # parts count, but for two of padding


@pytest.mark.slow
def test_a_strong_penalty_aligns():
    """After five steps, class vectors and class means are closer than without it."""
    plain = (AlignmentPenalty(1e-6),)
    strong = (AlignmentPenalty(5.0),)
    cosines = []
    for extensions in (plain, strong):
        state = steps_of(HEADS["learned"], 1, extensions=extensions)
        means = state.extensions["AlignmentPenalty"]["means"]
        means = means - means.mean(axis=1, keepdims=True)
        kernel = state.params["head"]["kernel"]
        unit = [array / np.linalg.norm(array, axis=0) for array in (means, kernel)]
        cosines.append(np.sum(unit[0] * unit[1], axis=0).mean())
    assert cosines[1] > cosines[0] + 0.1
