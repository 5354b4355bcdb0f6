"""A method may change the optimiser: classifier re-training and learnable weight scaling, from the table to steps."""

import itertools

import jax
import numpy as np
import optax
import pytest

from nc_jax import heads
from nc_jax.data import LabelledArrays
from nc_jax.methods import METHODS, Method, Setting
from nc_jax.streams import read
from nc_jax.study import Comparison
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import Data
from nc_jax.study.settings import Group
from nc_jax.study.trainers import make_stream, make_trainer
from nc_jax.training import LoopOptions, OptimizerOptions, frozen

K = 4
STEPS = 3  # of an epoch


def blobs(seed: int, count: int) -> LabelledArrays:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % K
    return LabelledArrays(generator.normal(size=(count, 5)).astype(np.float32), labels, K)


def retrained(setting, optimizer):
    return frozen(optimizer, "backbone", after=setting.epoch_steps)


def rescaled(setting, optimizer):
    for part in ("backbone", "head/kernel", "head/bias"):
        optimizer = frozen(optimizer, part, after=setting.epoch_steps)
    return frozen(optimizer, "head/scales", before=setting.epoch_steps)


ROWS = {
    "crt": Method(
        "cRT",
        lambda setting: heads.staged(heads.learned(K), heads.learned(K), setting.epoch_steps),
        optimizer=retrained,
    ),
    "lws": Method("LWS", lambda setting: heads.learned(K, class_scales=True), optimizer=rescaled),
}
# Whether a part moves in the first and in the second stage. The momentum of the first classifier runs on; nothing reads
# that classifier any more.
MOVES = {
    "crt": {"backbone": (True, False), "head/first": (True, True), "head/second": (False, True)},
    "lws": {
        "backbone": (True, False),
        "head/kernel": (True, False),
        "head/bias": (True, False),
        "head/scales": (False, True),
    },
}


def params_of(trainer, data, stream):
    state = trainer.init(data.train, seed=0)
    found = [jax.device_get(state.params)]
    for batch in read(data.train, stream, seed=0, num_steps=2 * STEPS):
        state, metrics = trainer.step(state, batch)
        assert bool(metrics.finite)
        found.append(jax.device_get(state.params))  # the next step takes the state's memory
    return [
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        }
        for params in found
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_each_stage_trains_its_own_part(name, monkeypatch):
    monkeypatch.setitem(METHODS, name, ROWS[name])
    # Without weight decay: it would also shrink the head that is to be trained later.
    settings = Comparison(
        methods=(name,),
        backbone=BackboneOptions(hidden=(8,), dim=6),
        optimizer=OptimizerOptions(learning_rate=0.1),
        loop=LoopOptions(epochs=2, batch_size=16, devices=1),
    )
    data = Data(blobs(0, 16 * STEPS), blobs(1, 16), augment=None, preprocess=None, size=5)
    group = Group("", "", name, settings)
    found = params_of(make_trainer(group, data), data, make_stream(group, data))
    for step, (before, after) in enumerate(itertools.pairwise(found)):
        for part, stages in MOVES[name].items():
            paths = [path for path in before if path.startswith(part)]
            moved = [not np.array_equal(before[path], after[path]) for path in paths]
            assert moved == [stages[step >= STEPS]] * len(paths), (step, paths)


def test_without_a_word_from_the_method_the_optimiser_is_the_users():
    optimizer = optax.sgd(0.1)
    assert METHODS["learned"].optimizer(Setting(num_classes=K), optimizer) is optimizer
