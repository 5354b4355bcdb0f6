"""The loop: exact resume, loud failure, classes that never appear."""

import math
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from toy_training import fit, make_trainer, rows_of

from nc_jax.data import LabelledArrays
from nc_jax.streams import Epochs
from nc_jax.training import Checkpoints, LoopOptions, NonFiniteError


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_resuming_gives_the_unbroken_run_bit_for_bit(one_device, train_set, test_set, tmp_path):
    unbroken = fit(one_device, train_set, test_set, tmp_path / "unbroken")

    def interrupt(epoch, metrics):
        if epoch == 2:  # its line is written, its checkpoint is not: the line must be replaced
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(one_device, train_set, test_set, tmp_path / "broken", on_epoch=interrupt)
    assert [row["epoch"] for row in rows_of(tmp_path / "broken")] == [0, 1, 2]
    resumed = fit(one_device, train_set, test_set, tmp_path / "broken")
    chex.assert_trees_all_equal(resumed, unbroken)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_has_each_line_once(
    one_device, train_set, test_set, tmp_path
):
    def interrupt(epoch, metrics):
        raise Interrupted

    with pytest.raises(Interrupted):
        fit(one_device, train_set, test_set, tmp_path, on_epoch=interrupt)
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0]
    fit(one_device, train_set, test_set, tmp_path)
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(one_device, train_set, test_set, tmp_path):
    first = fit(one_device, train_set, test_set, tmp_path)
    again = fit(one_device, train_set, test_set, tmp_path)
    chex.assert_trees_all_equal(first, again)
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_divergence_stops_with_a_sentence_and_keeps_the_last_good_state(train_set, test_set, tmp_path):
    trainer = make_trainer(1, learning_rate=1e38)
    with pytest.raises(
        NonFiniteError, match=r"run met a NaN or an infinity in epoch 1, and the last good state \(step \d+\)"
    ):
        fit(trainer, train_set, test_set, tmp_path)
    with Checkpoints(tmp_path / "checkpoints" / "run") as checkpoints:
        state = checkpoints.restore(trainer.init(train_set, seed=0))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.device_get(state)))


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
def test_a_bad_example_stops_the_run_before_its_batch_again_and_again(resident, train_set, test_set, tmp_path):
    inputs = train_set.inputs.copy()
    inputs[5] = 1e38  # its product with the weights overflows
    damaged, stream = LabelledArrays(inputs, train_set.labels, 4), Epochs(train_set, 24, 3)
    before = int(np.flatnonzero((stream.plan(0, 0).index == 5).any(axis=1))[0])
    assert 0 < before < stream.epoch_steps - 1  # there are batches before it and after it
    for _ in range(2):  # resumed, it meets the same batch
        with pytest.raises(NonFiniteError, match=rf"in epoch 1, and the last good state \(step {before}\)"):
            fit(make_trainer(1, resident=resident), damaged, test_set, tmp_path)
        with Checkpoints(tmp_path / "checkpoints" / "run") as checkpoints:
            state = checkpoints.restore(make_trainer(1).init(damaged, seed=0))
        assert int(state.step) == before


@pytest.mark.slow
def test_a_class_that_never_appears_keeps_training_sound(one_device, train_set, test_set, tmp_path):
    without = train_set.subset(train_set.labels != 2)
    assert without.absent_classes() == (2,)
    trained = fit(one_device, without, test_set, tmp_path)
    last = rows_of(tmp_path)[-1]
    assert last["train/num_present"] == 3
    assert last["train/accuracy"] > 0.9
    assert all(math.isfinite(value) for name, value in last.items() if name != "run")
    assert trained.state.variables["nearest"]["head"]["counts"][2] == 0
    frame = np.asarray(trained.state.variables["nearest"]["head"]["frame"], float)
    np.testing.assert_allclose(frame.T @ frame, (4 * np.eye(4) - 1) / 3, atol=1e-5)


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept(one_device, train_set, test_set, tmp_path):
    fit(one_device, train_set, test_set, tmp_path)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints" / "run").iterdir() if path.name.isdigit())
    assert steps == [10, 15]


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(one_device, train_set, test_set, tmp_path):
    fit(one_device, train_set, test_set, tmp_path)
    wider = LabelledArrays(np.zeros((4, 7), np.float32), np.arange(4), 4)
    with (
        Checkpoints(tmp_path / "checkpoints" / "run") as checkpoints,
        pytest.raises(ValueError, match=r"Dense_0/kernel is \(6, 16\) in .* and \(7, 16\) here"),
    ):
        checkpoints.restore(one_device.init(wider, seed=0))


@pytest.mark.parametrize("name", ["epochs", "batch_size", "checkpoint_every", "keep_checkpoints"])
def test_options_are_checked(name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got {value}"):
            LoopOptions(**{"epochs": 1, "batch_size": 1} | {name: value})


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_each_program_is_compiled_once(train_set, test_set, tmp_path, caplog, resident):
    """Steps compile once for all seeds. A first state with another placement or a weak type would compile them anew."""
    trainer = make_trainer(1, resident=resident)
    with jax.log_compiles():
        for seed in (0, 1):
            fit(trainer, train_set, test_set, tmp_path, seed=seed, run=f"run{seed}")
    compiled = [message.split()[1] for message in caplog.messages if message.startswith("Compiling jit(")]
    assert compiled.count("jit(init)") == 1
    # One program for the step and one for each of the two passes of evaluation, whose sets differ in size.
    assert compiled.count("jit(_fun)") == 3


TWO_RUNS = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from toy_training import blobs, fit, make_trainer
fit(make_trainer(1, epochs=20), blobs(100), blobs(40, seed=1), pathlib.Path(sys.argv[1]), run=sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_log_into_one_directory_without_loss(tmp_path):
    program = TWO_RUNS.format(tests=str(Path(__file__).parents[1]))
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), run]) for run in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    for run in ("a", "b"):
        assert [row["epoch"] for row in rows_of(tmp_path) if row["run"] == run] == list(range(21))


@pytest.mark.slow
def test_the_same_run_twice_at_once_is_one_run_and_one_sentence(tmp_path):
    program = TWO_RUNS.format(tests=str(Path(__file__).parents[1]))
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), "a"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.wait(): process.communicate()[1] for process in both}
    assert set(said) == {0, 1}
    assert re.search(r"BusyError: only one process at a time may work on run 'a' in .*; process \d+ on", said[1])
    assert [row["epoch"] for row in rows_of(tmp_path)] == list(range(21))
