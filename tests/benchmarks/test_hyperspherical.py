"""The benchmark of hyperspherical frames runs from end to end, and refuses a frame that misses a known energy."""

import dataclasses

import pytest

from benchmarks import harness, hyperspherical

pytestmark = pytest.mark.benchmark


def test_energies_are_right_before_they_are_fast(tmp_path, monkeypatch):
    config = dataclasses.replace(hyperspherical.PRESETS["smoke"], results=tmp_path, preset="smoke")
    document = hyperspherical.run(config)
    (row,) = document["rows"]
    assert row["energy"] < row["random_energy"]
    assert row["peak_bytes"] > 0
    assert len(list(tmp_path.glob("hyperspherical-smoke-cpu-*.json"))) == 1
    monkeypatch.setattr(hyperspherical, "least_energy", lambda *_: 0.5)
    with pytest.raises(harness.WrongAnswerError, match="the energy"):
        hyperspherical.run(config)
