"""Runs in rounds that are killed between two rounds, and runs that a checkpoint is not of."""

import dataclasses

import chex
import jax
import optax
import pytest
from deadly import Deadly, KilledError
from toy_federated import LOCAL_BATCH, small_model, spread, trainer_of
from toy_training import NUM_CLASSES, blobs, fit, rows_of

from nc_jax import heads
from nc_jax.federated import Federation, Rounds
from nc_jax.models import HeadModule
from nc_jax.streams import Clients
from nc_jax.training import StepOptions
from nc_jax.training.extensions import ModelContrast
from nc_jax.training.fingerprint import describe, difference

DATA, TEST = spread(), blobs(20, seed=1)
STREAM = Clients(DATA, LOCAL_BATCH, rounds=3, per_round=3)
KEEPS = Federation(personal=("head",), server=optax.adam(0.1), remembers=True, controlled=True)
STEP = StepOptions(extensions=(ModelContrast(),))


@pytest.fixture(scope="module")
def trainer():
    return trainer_of(STREAM, optax.sgd(0.1), federation=Federation(personal=("head",)))


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(trainer, tmp_path):
    with pytest.raises(KilledError):
        fit(trainer, DATA, TEST, tmp_path / "broken", stream=Deadly(STREAM, 2))
    broken, unbroken = (fit(trainer, DATA, TEST, tmp_path / name, stream=STREAM) for name in ("broken", "unbroken"))
    chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))


@pytest.mark.slow
def test_so_it_does_with_all_that_clients_may_keep(tmp_path):
    trainer = trainer_of(STREAM, optax.sgd(0.1, 0.9), federation=KEEPS, keep_optimizer=True, step=STEP)
    with pytest.raises(KilledError):
        fit(trainer, DATA, TEST, tmp_path / "broken", stream=Deadly(STREAM, 2))
    assert [row["epoch"] for row in rows_of(tmp_path / "broken")] == [0, 1, 2]
    broken, unbroken = (fit(trainer, DATA, TEST, tmp_path / name, stream=STREAM) for name in ("broken", "unbroken"))
    chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))
    assert set(broken.state.clients.kept) == {"params", "opt_state", "control", "previous"}
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_checkpoint_of_other_rounds_or_of_another_partition_is_refused(trainer, tmp_path):
    fit(trainer, DATA, TEST, tmp_path, stream=dataclasses.replace(STREAM, rounds=1))
    other = spread(seed=1)
    with pytest.raises(ValueError, match=r"begun with other settings: training set\.clients is"):
        fit(trainer, other, TEST, tmp_path, stream=dataclasses.replace(STREAM, source=other))
    for changed, told in (
        ({"local_epochs": 2}, r"stream\.local_epochs is 2 instead of 1"),
        ({"dropouts": 0.5}, r"stream\.dropouts is 0\.5 instead of 0"),
        ({"stragglers": 0.5}, r"stream\.stragglers is 0\.5 instead of 0"),
        ({"local_steps": 2}, r"stream\.local_steps is 2 instead of None"),
    ):
        with pytest.raises(ValueError, match=told):
            fit(trainer, DATA, TEST, tmp_path, stream=dataclasses.replace(STREAM, **changed))
    # More rounds are the same run.
    assert int(fit(trainer, DATA, TEST, tmp_path, stream=STREAM).state.step) == 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"keep_optimizer": True}, "rounds.keep_optimizer is True instead of False"),
        ({"schedule_steps": 7}, "rounds.schedule_steps is 7 instead of None"),
        ({"federation": Federation(server=optax.sgd(1.0, 0.5))}, "rounds.federation.server"),
        ({"federation": Federation(personal=("head",))}, "rounds.federation.personal"),
    ],
)
def test_other_rounds_are_other_runs(changed, told):
    rounds = Rounds(clients=3, local_batch=LOCAL_BATCH)
    same = Rounds(clients=3, local_batch=LOCAL_BATCH)
    here = {"rounds": dataclasses.replace(rounds, **changed)}
    assert difference(describe({"rounds": rounds}), describe({"rounds": same})) == ""
    assert told in difference(describe({"rounds": rounds}), describe(here))


@pytest.mark.slow
def test_a_killed_run_with_a_pooled_head_resumes_bit_for_bit(tmp_path):
    head = heads.pooled(NUM_CLASSES)
    trainer = trainer_of(STREAM, optax.sgd(0.1), model=small_model(HeadModule(head)), pool=head)
    with pytest.raises(KilledError):
        fit(trainer, DATA, TEST, tmp_path / "broken", stream=Deadly(STREAM, 1))
    broken, unbroken = (fit(trainer, DATA, TEST, tmp_path / name, stream=STREAM) for name in ("broken", "unbroken"))
    chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))
