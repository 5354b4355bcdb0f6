"""Extensions and streams in a training step: on one device and eight, with padding, killed and resumed."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deadly import Deadly, KilledError
from small_extensions import Balanced, LogitAdjustment, Mixup, SeenClasses
from toy_training import NUM_CLASSES, blobs, fit

from nc_jax import collective
from nc_jax.data import Batch
from nc_jax.models import MLP, Classifier, LearnedHead, NearestHead
from nc_jax.streams import Epochs, Replay, Tasks, eval_batches, read
from nc_jax.training import (
    AXIS,
    AlignmentPenalty,
    AlignmentProjection,
    AlignmentSlerp,
    BatchSoftmax,
    Extension,
    LogitMemory,
    LoopOptions,
    StepOptions,
    TaskSoftmax,
    Trainer,
    create_state,
    data_parallel,
    make_train_step,
)

F32_SUMS = 2e-5  # sums in another order, over the steps of these tests
TRAIN, TEST = blobs(70), blobs(30, seed=1)  # the last batch of an epoch is padded
CONTINUAL = (
    (
        SeenClasses(NUM_CLASSES),
        TaskSoftmax((0, 0, 1, 1)),
        BatchSoftmax(),
        LogitMemory(capacity=12, weight=0.5),
    ),
    Replay(Tasks(TRAIN, TRAIN.labels // 2, batch_size=16, epochs=2), capacity=12, draw_size=8),
)
LONG_TAIL = ((Mixup(), LogitAdjustment((40, 20, 8, 2))), Balanced(TRAIN.labels, batch_size=24, epochs=3))
ALIGNED = (
    (
        AlignmentPenalty(0.5),
        AlignmentSlerp(0.3, start=2, every=3),
        AlignmentProjection(0.8),
    ),
    Balanced(TRAIN.labels, batch_size=24, epochs=3),
)
KINDS = {"continual": CONTINUAL, "long tail": LONG_TAIL, "aligned": ALIGNED}


def trainer_of(kind, devices):
    extensions, stream = KINDS[kind]
    model = Classifier(MLP((8,), 6), LearnedHead(NUM_CLASSES))
    loop = LoopOptions(epochs=3, batch_size=stream.batch_size, checkpoint_every=1, devices=devices)
    return Trainer(model, optax.sgd(0.1, 0.9), loop, step=StepOptions(extensions=extensions))


def steps_of(kind, trainer, count):
    state = trainer.init(TRAIN, seed=0)
    for batch in read(TRAIN, KINDS[kind][1], seed=0, num_steps=count):
        state, metrics = trainer.step(state, batch)
        assert bool(metrics.finite)
    return jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["continual", "long tail"])  # test_space_alignment.py has the other kind
def test_eight_devices_are_one(kind):
    one, eight = (steps_of(kind, trainer_of(kind, devices), 8) for devices in (1, 8))
    chex.assert_trees_all_close(one, eight, rtol=0, atol=F32_SUMS)
    if kind == "continual":
        seen, memory = one.extensions["SeenClasses"], one.extensions["LogitMemory"]
        assert seen.all()  # eight steps reach the second task
        assert (np.abs(memory).max(axis=1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_bit_for_bit_with_its_extensions(kind, resident, tmp_path):
    trainer, stream = trainer_of(kind, 2), KINDS[kind][1]
    trainer.options = dataclasses.replace(trainer.options, resident=resident)

    with pytest.raises(KilledError):
        fit(trainer, TRAIN, TEST, tmp_path / "broken", stream=Deadly(stream, len(stream.ends) - 1))
    broken, unbroken = (fit(trainer, TRAIN, TEST, tmp_path / name, stream=stream) for name in ("broken", "unbroken"))
    chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))
    assert (unbroken.state.extensions is None) == (kind == "long tail")
    # Evaluation has not changed the state, and masks the same classes as training.
    again = trainer.evaluate(unbroken.state, lambda: eval_batches(TEST, 16))
    assert again.metrics["accuracy"] == unbroken.test.metrics["accuracy"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inputs", "features"])
def test_mixed_examples_have_two_labels_and_the_nearest_head_counts_their_own(where):
    model = Classifier(MLP((8,), 6), NearestHead(NUM_CLASSES))
    options = StepOptions(extensions=(Mixup(where),))
    optimizer = optax.sgd(0.1)
    state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1])
    (batch,) = read(TRAIN, Epochs(TRAIN, 24), seed=0, start_step=2, num_steps=1)  # mostly padding
    step = make_train_step(model, optimizer, axis_name=AXIS, options=options)
    one, eight = (data_parallel(step, devices=jax.local_devices()[:count])(state, batch)[0] for count in (1, 8))
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(eight), rtol=0, atol=F32_SUMS)
    counts = np.bincount(batch.labels[batch.mask], minlength=NUM_CLASSES)
    np.testing.assert_array_equal(one.variables["nearest"]["head"]["counts"], counts)
    plain = data_parallel(make_train_step(model, optimizer, axis_name=AXIS), devices=jax.local_devices()[:1])
    other = plain(state, batch)[0]
    kernels = [tree.params["backbone"]["features"]["kernel"] for tree in (one, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


@pytest.mark.slow
def test_the_loss_of_a_mixed_example_is_that_of_both_labels():
    class Half(Extension):
        """Every example is half of class 0."""

        def on_batch(self, context, state, batch):
            from nc_jax.data import Partner

            return batch._replace(partner=Partner(jnp.zeros_like(batch.labels), jnp.full(len(batch.labels), 0.5)))

    model, optimizer = Classifier(MLP((), 6), LearnedHead(NUM_CLASSES)), optax.sgd(0.1)
    state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1])
    batch = Batch.of(TRAIN.inputs[:8], TRAIN.labels[:8])
    step = jax.jit(make_train_step(model, optimizer, options=StepOptions(extensions=(Half(),))))
    _, metrics = step(state, batch)
    logits = model.apply({"params": state.params}, jnp.asarray(batch.inputs)).logits
    each = optax.softmax_cross_entropy_with_integer_labels
    expected = (each(logits, batch.labels) + each(logits, jnp.zeros(8, int))).mean() / 2
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_an_adjustment_by_class_counts_plays_no_part_in_evaluation():
    trainer = trainer_of("long tail", 1)
    state = trainer.init(TRAIN, seed=0)
    (output, _), *_ = trainer.outputs(state, TEST)
    plain = trainer.model.apply({"params": state.params}, jnp.asarray(TEST.inputs[:24]))
    np.testing.assert_allclose(output.logits[:24], plain.logits, rtol=1e-5, atol=1e-6)


def test_balanced_batches_hold_every_class_alike():
    labels = np.repeat([0, 1], [190, 10])
    drawn = labels[Balanced(labels, batch_size=100, epochs=10).plan(0, 3).index]
    assert abs(drawn.mean() - 0.5) < 0.15


@pytest.mark.slow
def test_a_round_of_clients_has_the_type_of_a_step():
    """Clients are vmapped inside a device; sums run over clients and devices together."""
    model, optimizer = Classifier(MLP((), 6), LearnedHead(NUM_CLASSES)), optax.sgd(0.1)
    state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1])
    local = make_train_step(model, optimizer)
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(TRAIN), size=(8, 3, 5))  # clients, local steps, examples
    rounds = Batch(TRAIN.inputs[chosen], TRAIN.labels[chosen], np.ones(chosen.shape, bool))
    counts = np.arange(1.0, 9.0, dtype=np.float32)

    def one_round(state, batches, counts):
        with collective.over(AXIS):

            def client(batches):
                with collective.over():  # nothing is summed inside a client
                    return jax.lax.scan(local, state, batches)[0].params

            params = jax.vmap(client)(batches)
            total = collective.all_sum(jnp.sum(counts))
            mean = jax.tree.map(lambda leaf: jnp.tensordot(counts, leaf, 1) / total, params)
            return state.replace(params=collective.all_sum(mean))

    one, eight = (
        data_parallel(one_round, devices=jax.local_devices()[:count], split=(0, 0))(state, rounds, counts).params
        for count in (1, 8)
    )
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(eight), rtol=0, atol=F32_SUMS)
    by_hand = [
        jax.lax.scan(local, state, jax.tree.map(lambda part, c=c: part[c], Batch(*rounds[:3])))[0].params
        for c in range(8)
    ]
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(counts / 36, leaves, strict=True)), *by_hand
    )
    chex.assert_trees_all_close(jax.device_get(one), expected, rtol=0, atol=F32_SUMS)


# --- The plain step. ---


@pytest.mark.slow
def test_an_extension_that_overrides_nothing_is_not_in_the_program():
    model, optimizer = Classifier(MLP((8,), 6), LearnedHead(NUM_CLASSES)), optax.sgd(0.1)
    state = create_state(model, optimizer, jax.random.key(0), TRAIN.inputs[:1])
    batch = Batch.of(TRAIN.inputs[:8], TRAIN.labels[:8])

    class Nothing(Extension):
        """Overrides no hook."""

    def program(extensions):
        step = make_train_step(model, optimizer, options=StepOptions(extensions=extensions))
        return jax.jit(step).lower(state, batch).as_text()

    assert program((Nothing(),)) == program(())
    assert program((LogitAdjustment((1,) * NUM_CLASSES),)) != program(())


def test_two_extensions_need_two_names():
    with pytest.raises(ValueError, match="the extensions of a step need different names; got Mixup, Mixup"):
        StepOptions(extensions=(Mixup(), Mixup("features")))
