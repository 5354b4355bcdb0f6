"""What methods of replay add to a step: published losses, means over parts of a batch, masks, devices, parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import NUM_CLASSES, blobs

from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.methods import METHODS, ContinualOptions, Setting
from nc_jax.models import MLP, Classifier, HeadModule
from nc_jax.streams import Tasks, read
from nc_jax.training import (
    AXIS,
    BatchSoftmax,
    Context,
    LogitMemory,
    StepOptions,
    TaskSoftmax,
    data_parallel,
    make_train_step,
)
from nc_jax.training.parallel import replicate
from nc_jax.training.state import create_state

F32_SUMS = 2e-5  # sums in another order, over the steps of these tests
TRAIN = blobs(70)
TASKS = (0, 0, 1, 1)
SETTING = Setting(
    num_classes=NUM_CLASSES,
    num_examples=70,
    # A draw is larger than the memory, so it has padding.
    continual=ContinualOptions(tasks=2, memory=9, draw_size=16, alpha=0.4, beta=0.7),
    task_of_class=TASKS,
)


def output_of(logits):
    """Make an output whose features are the logits, before any mask."""
    logits = jnp.asarray(logits, jnp.float32)
    number = logits.shape[1]
    return HeadOutput(logits, logits, jnp.eye(number), jnp.zeros(number))


def batch_of(labels, replayed, mask=None, slot=None):
    labels = jnp.asarray(labels)
    mask = jnp.ones(len(labels), bool) if mask is None else jnp.asarray(mask)
    slot = jnp.arange(len(labels)) if slot is None else jnp.asarray(slot)
    return Batch(jnp.zeros((len(labels), 1)), labels, mask, slot=slot, replayed=jnp.asarray(replayed))


def context_of(batch):
    new = batch.mask & (batch.replayed == 0)
    count, new_count = jnp.sum(batch.mask * 1.0), jnp.sum(new * 1.0)
    return Context(jnp.zeros((), jnp.int32), train=True, count=count, new_count=new_count, whole=batch)


@pytest.mark.slow
def test_the_loss_of_derpp_is_the_published_one():
    # Two classes, no mask; values of the released program of Kim and Kim (2024).
    logits = [[1.0, 2.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0], [2.0, 0.5]]
    batch = batch_of([1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 2, 2], slot=[-1, -1, 0, 1, -1, -1])
    memory = LogitMemory(capacity=2, weight=0.1, draws=2)
    stored = jnp.array([[0.5, 1.0], [0.0, 2.0]])
    setting = Setting(num_classes=2, continual=ContinualOptions(alpha=0.1, beta=0.5))
    output, context = output_of(logits), context_of(batch)
    each = METHODS["derpp"].loss(setting)(output, batch, context)
    (penalty,) = memory.penalties(context, stored, output, batch).values()
    np.testing.assert_allclose(jnp.mean(each + penalty), 0.7606803774833679, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er", "der", "derpp"])
def test_the_loss_is_a_sum_of_means_over_examples_without_padding(name):
    rng = np.random.default_rng(0)
    draws = 2 if name == "derpp" else 1
    replayed = np.repeat(np.arange(draws + 1), 5)
    mask = np.tile([True, True, True, False, False], draws + 1)
    labels = np.where(mask, rng.integers(NUM_CLASSES, size=len(mask)), -1)
    logits = rng.normal(size=(len(mask), NUM_CLASSES))
    batch = batch_of(labels, replayed, mask)
    each = np.asarray(METHODS[name].loss(SETTING)(output_of(logits), batch, context_of(batch)))
    entropy = jax.nn.logsumexp(logits, axis=1) - np.take_along_axis(logits, np.maximum(labels, 0)[:, None], 1)[:, 0]
    means = [np.mean(entropy[mask & (replayed == draw)]) for draw in range(draws + 1)]
    weight = {"er": 1.0, "der": 0.0, "derpp": 0.7}[name]
    np.testing.assert_allclose(np.mean(each[mask]), means[0] + weight * means[-1], rtol=1e-5)


def test_new_examples_have_the_classes_of_their_task_and_replayed_ones_all():
    batch = batch_of([0, 3, 1, -1], [0, 0, 1, 0], [True, True, True, False])
    output, context = output_of(np.ones((4, 4))), context_of(batch)
    masked = TaskSoftmax(TASKS).on_output(context, None, output, batch).logits
    finite = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(np.isfinite(masked), np.array(finite, bool))
    told = TaskSoftmax(TASKS, replayed=True).on_output(context, None, output, batch).logits
    np.testing.assert_array_equal(np.isfinite(told[2]), [True, True, False, False])
    for extension in (TaskSoftmax(TASKS), BatchSoftmax()):
        assert extension.on_output(context._replace(train=False), None, output, batch) is output


def test_new_examples_have_the_classes_of_their_batch():
    batch = batch_of([0, 2, 1, -1, 3], [0, 0, 1, 0, 0], [True, True, True, False, False])
    masked = BatchSoftmax().on_output(context_of(batch), None, output_of(np.ones((5, 4))), batch).logits
    np.testing.assert_array_equal(np.isfinite(masked[:2]), [[True, False, True, False]] * 2)
    assert np.isfinite(masked[2:]).all()


def test_logits_are_stored_where_the_example_is_and_as_they_were_before_the_mask():
    memory = LogitMemory(capacity=3, weight=1.0)
    batch = batch_of([0, 1, 0], [0, 0, 1], slot=[2, -1, 1])
    output = output_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    stored = memory.update(context_of(batch), jnp.zeros((3, 2)), output._replace(logits=-output.logits), batch)
    np.testing.assert_array_equal(stored, [[0, 0], [0, 0], [1, 2]])


def loss_by_hand(name, logits, batch):
    """Return the mean loss of new examples plus the weighted one of the last draw, with the masks, in NumPy."""
    new, drawn = batch.mask & (batch.replayed == 0), batch.mask & (batch.replayed == batch.replayed.max())
    same = np.array(TASKS)[np.maximum(batch.labels, 0)][:, None] == np.array(TASKS)
    allowed = np.isin(np.arange(NUM_CLASSES), batch.labels[new])[None] if name == "er-ace" else same
    logits = np.where(allowed | (batch.replayed > 0)[:, None] | ~batch.mask[:, None], logits.astype(np.float64), -1e30)
    highest = logits.max(axis=1)
    own = np.take_along_axis(logits, np.maximum(batch.labels, 0)[:, None], axis=1)[:, 0]
    each = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)) - own
    means = [each[part].sum() / max(part.sum(), 1) for part in (new, drawn)]
    return means[0] + (SETTING.continual.beta if name == "derpp" else 1) * means[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts", "devices"),
    [("er", 2, 1), ("er", 1, 8), ("er-ace", 2, 8), ("derpp", 2, 8)],
)
def test_parts_and_devices_share_a_step_whose_loss_is_the_sum_of_means(name, parts, devices):
    method = METHODS[name]
    stream = method.stream(SETTING, Tasks(TRAIN, TRAIN.labels // 2, batch_size=16, epochs=1))
    model = Classifier(MLP((), 6), HeadModule(method.head(SETTING)))
    optimizer, extensions = optax.sgd(0.1), method.extensions(SETTING)
    batches = list(read(TRAIN, stream, seed=0))
    # The third step has padding among the new examples and among those of each draw, and the next task begins after it.
    assert all(
        0 < batches[2].mask[batches[2].replayed == draw].mean() < 1 for draw in range(batches[2].replayed.max() + 1)
    )
    found = []
    for number, count in ((1, 1), (parts, devices)):
        options = StepOptions(accumulate=number, loss=method.loss(SETTING), extensions=extensions)
        chosen = jax.local_devices()[:count]
        step = data_parallel(
            make_train_step(model, optimizer, axis_name=AXIS, options=options), devices=chosen, parts=number
        )
        state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1], extensions=extensions)
        state = replicate(state, chosen)
        for batch in batches:
            logits = np.asarray(model.apply({"params": jax.device_get(state.params)}, jnp.asarray(batch.inputs)).logits)
            state, metrics = step(state, batch)
            assert bool(metrics.finite)
            np.testing.assert_allclose(metrics.loss, loss_by_hand(name, logits, batch), rtol=1e-5)
        found.append(jax.device_get((state.params, state.extensions)))
    chex.assert_trees_all_close(*found, rtol=0, atol=F32_SUMS)


def test_stored_logits_need_a_replay_memory():
    batch = Batch.of(TRAIN.inputs[:8], TRAIN.labels[:8])
    memory = LogitMemory(capacity=3, weight=1.0)
    model, optimizer = Classifier(MLP((), 6), HeadModule(METHODS["er"].head(SETTING))), optax.sgd(0.1)
    state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1], extensions=(memory,))
    step = make_train_step(model, optimizer, options=StepOptions(extensions=(memory,)))
    with pytest.raises(ValueError, match="replayed examples need a stream with a memory"):
        jax.eval_shape(step, state, batch)
    with pytest.raises(ValueError, match="the weight of stored logits must be positive and finite; got 0"):
        LogitMemory(capacity=3, weight=0.0)
