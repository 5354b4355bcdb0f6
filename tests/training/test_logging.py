"""Logs survive crashes, and only grow."""

import math

import pytest

from nc_jax.training import MetricsLog, read_metrics


def test_lines_come_back_as_they_went_in(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("a", 3, 1, {"loss": 0.5, "nc1": math.nan})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["run"], row["step"], row["epoch"], row["loss"]) == ("a", 3, 1, 0.5)
    assert math.isnan(row["nc1"])
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()  # JSON has no NaN
    assert list((tmp_path / "tensorboard" / "a").iterdir())


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"run": "a", "step": 1, "epoch": 1}\n{"run": "a", "st')
    assert [row["step"] for row in read_metrics(path)] == [1]
    with MetricsLog(tmp_path) as log:
        log.rewind("a", 1)
        log.write("a", 2, 2, {})
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"run": "a"\n{"run": "a", "step": 1, "epoch": 1}\n')
    with pytest.raises(ValueError, match="must hold one JSON object a line; line 1 is"):
        read_metrics(path)


def test_a_log_may_be_named_by_its_directory(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("a", 1, 1, {})
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl") != []


def test_lines_are_only_ever_added(tmp_path):
    with MetricsLog(tmp_path) as log, MetricsLog(tmp_path) as other:
        log.write("a", 1, 1, {})
        log.write("a", 2, 2, {})
        before = log.path.read_bytes()
        log.rewind("a", 1)
        other.write("b", 2, 2, {})
        log.rewind("b", 2)  # nothing is stale: no line
        log.write("a", 2, 2, {"loss": 0.5})
        assert log.path.read_bytes().startswith(before)
    assert [(row["run"], row["step"], row.get("loss")) for row in read_metrics(tmp_path)] == [
        ("a", 1, None),
        ("b", 2, None),
        ("a", 2, 0.5),
    ]


def test_a_line_that_is_no_row_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"run": "a", "step": 1, "epoch": 1}\n{"loss": 1}\n')
    with pytest.raises(ValueError, match='must hold lines with "run" and "step"; line 2 has loss'):
        read_metrics(tmp_path)


def test_only_the_named_runs_later_lines_are_dropped(tmp_path):
    with MetricsLog(tmp_path) as log:
        for run in ("a", "b"):
            for step in (1, 2):
                log.write(run, step, step, {})
        log.rewind("a", 1)
    assert [(row["run"], row["step"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        ("a", 1),
        ("b", 1),
        ("b", 2),
    ]
