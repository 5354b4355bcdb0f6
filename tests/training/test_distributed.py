"""Two processes on loopback train as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_training import rows_of

HERE = Path(__file__).parent
FLOAT32_TRAINING = 1e-5


def launch(count: int, directory: Path, what: str) -> list[dict]:
    """Train in so many processes, in steps or in rounds of clients; return the state that each of them ends in."""
    directory.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])}
    command = [sys.executable, str(HERE / "two_processes.py")]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(count), str(port), str(directory), what],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
    return [json.loads((directory / f"state-{index}.json").read_text()) for index in range(count)]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """BatchNorm, nearest head, gradient parts, averages, Grain batches by process, one log, one checkpoint."""
    (alone,) = launch(1, tmp_path / "one", "steps")
    together = launch(2, tmp_path / "two", "steps")
    assert together[0] == together[1], "the replicated state is the same bit for bit"
    for name, expected in alone.items():
        np.testing.assert_allclose(together[0][name], expected, rtol=0, atol=FLOAT32_TRAINING, err_msg=name)
    ours, theirs = rows_of(tmp_path / "two"), rows_of(tmp_path / "one")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    np.testing.assert_allclose(ours[-1]["test/loss"], theirs[-1]["test/loss"], rtol=1e-4)
    assert (tmp_path / "two" / "checkpoints" / "run" / "10").is_dir()


@pytest.mark.slow
def test_two_processes_share_the_clients_of_a_round(tmp_path):
    """Clients keep heads, momenta and control variates, and are read by the process that trains them."""
    (alone,) = launch(1, tmp_path / "one", "rounds")
    together = launch(2, tmp_path / "two", "rounds")
    assert together[0] == together[1], "the replicated state is the same bit for bit"
    for name, expected in alone.items():
        np.testing.assert_allclose(together[0][name], expected, rtol=0, atol=FLOAT32_TRAINING, err_msg=name)
