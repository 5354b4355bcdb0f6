"""Few-shot class-incremental learning: its loss against the formula, its memory, and what is frozen from when on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deadly import Deadly, KilledError

from nc_jax import heads
from nc_jax.data import Batch, LabelledArrays
from nc_jax.methods import METHODS, ContinualOptions, Setting
from nc_jax.streams import Epochs, Exemplars, Tasks, read
from nc_jax.study import Comparison
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.continual import watching
from nc_jax.study.data import Data
from nc_jax.study.settings import Group
from nc_jax.study.tasks import arranged
from nc_jax.study.trainers import make_stream, make_trainer, setting_of
from nc_jax.training import Context, LoopOptions, MetricsLog, OptimizerOptions, read_metrics

K, BASE, SHOTS, DIM = 6, 4, 3, 7
OPTIONS = ContinualOptions(tasks=3, base=BASE, shots=SHOTS, memory=2 * K, draw_size=4)
SETTING = Setting(num_classes=K, continual=OPTIONS, task_of_class=(0, 0, 0, 0, 1, 2), task_steps=(6, 2, 2))
SETTINGS = Comparison(
    methods=("few-shot",),
    backbone=BackboneOptions(hidden=(8,), dim=6, neck="mlp", neck_dim=DIM),
    optimizer=OptimizerOptions(learning_rate=0.1),
    loop=LoopOptions(epochs=2, batch_size=16, evaluate_every=2, checkpoint_every=1, devices=2),
    continual=OPTIONS,
)


def blobs(seed: int, each: int) -> LabelledArrays:
    generator = np.random.default_rng(seed)
    labels = np.arange(each * K) % K
    centres = 2 * np.random.default_rng(9).normal(size=(K, 5))
    return LabelledArrays((centres[labels] + generator.normal(size=(each * K, 5))).astype(np.float32), labels, K)


DATA = Data(blobs(0, 12), blobs(1, 6), augment=None, preprocess=None, size=5)


# --- The loss. ---

CASES = {
    "base": np.array([0, 0, 0, 1, 3, -1]),
    "later": np.array([4, 4, 4, 0, 1, -1]),
    "later, nothing replayed": np.array([5, 5, 5, 5, 5, -1]),
}


@pytest.fixture(scope="module")
def step():
    """Return loss and gradient by features, of any batch with as many rows, and the frame."""
    head = heads.fixed(K, radius=1.0)
    loss = METHODS["few-shot"].loss(SETTING)
    with jax.enable_x64(True):
        state = head.init(jax.random.key(0), DIM, jnp.float64)[1]

    def total(features, labels):
        batch = Batch(features, labels, labels >= 0)
        output = head.apply({}, state, features, train=True)[0]
        each = loss(output, batch, Context(jnp.zeros((), jnp.int32), train=True, whole=batch))
        return jnp.sum(jnp.where(batch.mask, each, 0)), each

    return jax.jit(jax.value_and_grad(total, has_aux=True)), np.asarray(state["frame"])


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_its_formula(name, x64, step):
    labels = CASES[name]
    features = np.random.default_rng(0).normal(size=(6, DIM))
    (_, found), gradient = step[0](jnp.asarray(features), jnp.asarray(labels))
    frame, shown = step[1], labels[labels >= 0]
    counts = np.bincount(shown, minlength=K)
    expected, pulls = np.zeros(6), np.zeros((6, DIM))
    for row, label in enumerate(labels[:5]):
        squared = len(shown) / (counts > 0).sum() / counts[label] if (labels >= BASE).any() else 1.0
        unit = features[row] / np.linalg.norm(features[row])
        cosine = frame[:, label] @ unit
        expected[row] = 10 * squared * (1 - cosine) ** 2 / 2
        # The pull along the class vector, less its part along the feature, which the scaling to length 1 takes out.
        pulls[row] = -10 * squared * (1 - cosine) * (frame[:, label] - cosine * unit) / np.linalg.norm(features[row])
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-12)
    np.testing.assert_allclose(gradient, pulls, rtol=1e-10, atol=1e-12)  # of padding: exactly zero


# --- Streams and freezing. ---


def test_it_keeps_equally_many_examples_of_each_class():
    tasks = np.array(SETTING.task_of_class)[DATA.train.labels]
    stream = METHODS["few-shot"].stream(SETTING, Tasks(DATA.train, tasks, batch_size=16))
    assert isinstance(stream, Exemplars)
    assert (stream.per_class, stream.draw_size) == (2, 4)
    epochs = Epochs(DATA.train, 16, 2)
    assert METHODS["few-shot"].stream(SETTING, epochs) is epochs
    small = dataclasses.replace(SETTING, continual=dataclasses.replace(OPTIONS, memory=K - 1))
    with pytest.raises(ValueError, match=r"a place for each of the 6 classes; got --continual\.memory 5"):
        METHODS["few-shot"].stream(small, stream.stream)


@pytest.mark.parametrize(
    "name", ["few-shot", *(pytest.param(name, marks=pytest.mark.slow) for name in ("few-shot-free", "few-shot-linear"))]
)
def test_after_the_base_session_only_the_neck_and_a_learned_head_move(name):
    loop = dataclasses.replace(SETTINGS.loop, devices=1)
    group = Group("", "", name, dataclasses.replace(SETTINGS, methods=(name,), loop=loop))
    trainer, own = make_trainer(group, DATA), arranged(DATA, OPTIONS, 0)
    state, moved = trainer.init(own.train, seed=0), []
    for batch in read(own.train, make_stream(group, own), seed=0):
        before = jax.device_get(state.params)
        state, _ = trainer.step(state, batch)
        changed = jax.tree.map(lambda one, other: not np.array_equal(one, other), before, jax.device_get(state.params))
        parts = {
            "network": changed["backbone"]["backbone"],
            "rest": [changed["backbone"]["necks_1"], changed.get("head")],
        }
        moved.append({part: all(jax.tree.leaves(tree)) for part, tree in parts.items()})
    base = 2 * 3  # two epochs of 48 examples in batches of 16
    assert [one["network"] for one in moved] == [True] * base + [name == "few-shot-free"] * 4
    assert all(one["rest"] for one in moved)


def test_the_end_of_the_base_session_must_not_depend_on_the_seed():
    part = DATA._replace(train=DATA.train.subset(np.arange(71)))  # the last class has an example less
    one = dataclasses.replace(SETTINGS, continual=dataclasses.replace(OPTIONS, order="given"))
    assert setting_of(one, arranged(part, one.continual, 0)).task_steps == (6, 2, 2)
    by_seed = [setting_of(SETTINGS, arranged(part, OPTIONS, seed)).task_steps for seed in range(8)]
    assert None in by_seed
    unknown = dataclasses.replace(SETTING, task_steps=None)
    with pytest.raises(ValueError, match="only if that has equally many steps for every seed; got classes of unequal"):
        METHODS["few-shot"].optimizer(unknown, optax.identity())
    with pytest.raises(ValueError, match="only if that has equally many steps for every seed"):
        METHODS["few-shot"].stream(
            unknown, make_stream(Group("", "", "finetune", SETTINGS), arranged(part, OPTIONS, 0))
        )


def test_with_one_task_nothing_is_frozen():
    optimizer = optax.identity()
    assert METHODS["few-shot"].optimizer(Setting(num_classes=K), optimizer) is optimizer


# --- Runs. ---


@pytest.mark.slow
def test_a_run_over_unequal_tasks_evaluates_after_each_and_resumes_bit_for_bit(tmp_path):
    group, own = Group("", "", "few-shot", SETTINGS), arranged(DATA, OPTIONS, 0)
    trainer, stream = make_trainer(group, DATA), make_stream(group, own)
    assert tuple(stream.ends) == (3, 6, 7, 8, 9, 10)

    def fit(folder, stream=stream):
        folder.mkdir(exist_ok=True)
        with MetricsLog(folder) as log:
            options = {"seed": 0, "run": "run", "directory": folder, "log": log, "stream": stream}
            return trainer.fit(own.train, own.test, watch=watching(trainer, own, SETTINGS), **options)

    with pytest.raises(KilledError):
        fit(tmp_path / "broken", Deadly(stream, 3))
    broken, unbroken = fit(tmp_path / "broken"), fit(tmp_path / "unbroken")
    jax.tree.map(np.testing.assert_array_equal, broken.state.params, unbroken.state.params)
    rows = [[{**row, "step/seconds": 0} for row in read_metrics(tmp_path / name)] for name in ("broken", "unbroken")]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0] if row["epoch"]] == [2, 4, 6]
    weighted = np.average([rows[0][-1][f"class_il/{task}"] for task in range(3)], weights=[BASE, 1, 1])
    assert weighted == pytest.approx(rows[0][-1]["test/accuracy"])
