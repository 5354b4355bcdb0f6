"""Our report and the definitions in PyTorch agree, and a figure that differs is refused."""

import dataclasses

import pytest

from benchmarks import harness, peer_metrics, torch_metrics
from nc_jax.metrics import uniform_duality

pytestmark = pytest.mark.benchmark


def test_figures_are_equal_before_they_are_fast(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    config = dataclasses.replace(peer_metrics.PRESETS["smoke"], results=tmp_path, preset="smoke")
    document = peer_metrics.run(config)
    assert document["rows"][0]["program"] == peer_metrics.OURS
    for row in document["rows"]:
        assert row["figures"].keys() == row["errors"].keys() == set(torch_metrics.FIGURES)
        assert max(row["errors"].values()) < peer_metrics.TOLERANCE
        assert row["peak_bytes"] > 0
    assert len(list(tmp_path.glob("peer_metrics-smoke-cpu-*.json"))) == 1
    # Population variances in place of sample variances: 1 / K apart.
    monkeypatch.setitem(
        peer_metrics.FIGURES, "nc3u_uni_dual", lambda stats, frame, foreign: uniform_duality(frame, stats)
    )
    with pytest.raises(harness.WrongAnswerError, match="our nc3u_uni_dual"):
        peer_metrics.run(config)


def test_a_folder_without_the_package_is_no_package(tmp_path):
    assert not torch_metrics.find_package(tmp_path)
