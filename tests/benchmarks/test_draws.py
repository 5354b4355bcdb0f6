"""The benchmark of random orientations runs, and refuses a frame that is no simplex."""

import dataclasses
import json

import pytest

from benchmarks import draws, harness

pytestmark = pytest.mark.benchmark

CONFIG = draws.PRESETS["smoke"]


def test_draws_are_counted_in_products(tmp_path):
    document = draws.run(dataclasses.replace(CONFIG, results=tmp_path, preset="smoke"))
    assert json.loads(document["path"].read_text())["rows"] == document["rows"]
    rows = {row["program"]: row for row in document["rows"]}
    assert rows[draws.PRODUCT]["products"] == 1
    assert all(row["error"] < 1e-6 for name, row in rows.items() if name != draws.PRODUCT)
    assert [claim["met"] for claim in document["claims"]] == [None]  # the target is one of the large size


def test_a_frame_that_is_no_simplex_gets_no_time(monkeypatch):
    right = draws.simplex_etf
    monkeypatch.setattr(draws, "simplex_etf", lambda *size, **options: 1.01 * right(*size, **options))
    with pytest.raises(harness.WrongAnswerError, match="Gram matrix of simplex_etf"):
        draws.time_size(CONFIG, 5, 8)
