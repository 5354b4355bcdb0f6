"""Every method is trained, killed and resumed: the final state equals that of an unbroken run, bit for bit."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from deadly import Deadly, KilledError

from nc_jax.methods import METHODS, FederatedOptions, federated
from nc_jax.study import Comparison
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import DataOptions
from nc_jax.study.settings import Group
from nc_jax.study.trainers import data_of, make_stream, make_trainer, of_run
from nc_jax.training import LoopOptions, MetricsLog, OptimizerOptions, read_metrics

pytestmark = pytest.mark.slow


def with_a_new_part() -> list[str]:
    """Return the methods that have a part (head, loss, extensions, and so on) that no method before them has.

    The others are combinations of parts that are tested already, as experience replay with another head.
    """
    known: set[int] = set()
    found = []
    for row, method in METHODS.items():
        names = ("head", "loss", "extensions", "stream", "optimizer", "federation")
        parts = {id(getattr(method, name)) for name in names}
        if parts - known:
            found.append(row)
        known |= parts
    return found


@pytest.mark.parametrize("name", with_a_new_part())
def test_a_killed_run_resumes_bit_for_bit(name, tmp_path, digits_dir):
    settings = Comparison(
        methods=(name,),
        data=DataOptions("digits", "digits", data_dir=digits_dir, per_class=20),
        backbone=BackboneOptions(hidden=(16,), dim=12),
        optimizer=OptimizerOptions(learning_rate=0.05),
        loop=LoopOptions(epochs=3, batch_size=64, checkpoint_every=1, devices=2),
    )
    if name in federated.METHODS:
        options = FederatedOptions(clients=4, local_steps=2, head_steps=1, per_round=1 if name == "centralised" else 2)
        loop = LoopOptions(epochs=3, batch_size=20, checkpoint_every=1, devices=1 if name == "centralised" else 2)
        settings = dataclasses.replace(settings, federated=options, loop=loop)
    group = Group("", "", name, settings)
    trainer, data = make_trainer(group, data_of(settings)), of_run(data_of(settings), settings, seed=0)
    stream = make_stream(group, data)

    def fit(folder, stream):
        folder.mkdir(exist_ok=True)
        with MetricsLog(folder) as log:
            options = {"seed": 0, "run": "run", "directory": folder, "log": log, "stream": stream}
            return trainer.fit(data.train, data.test, **options)

    with pytest.raises(KilledError):
        fit(tmp_path / "broken", Deadly(stream, 2))
    broken, unbroken = fit(tmp_path / "broken", stream), fit(tmp_path / "unbroken", stream)
    chex.assert_trees_all_equal(jax.device_get(broken.state), jax.device_get(unbroken.state))
    np.testing.assert_array_equal(broken.test.confusion, unbroken.test.confusion)
    assert broken.test.confusion.sum() == len(data.test)
    rows = [read_metrics(tmp_path / folder) for folder in ("broken", "unbroken")]
    ours, theirs = ([{**row, "step/seconds": 0} for row in part] for part in rows)
    assert ours == theirs
