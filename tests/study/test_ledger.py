"""Every part of a run is done once, whatever state a crash has left."""

import math

import pytest

from nc_jax.study import Ledger


def test_a_part_is_computed_once(tmp_path):
    path = tmp_path / "results.jsonl"
    first = Ledger(path).once({"seed": 0}, lambda: {"a": (1, 2), "b": math.nan})
    again = Ledger(path).once({"seed": 0}, lambda: pytest.fail("computed again"))
    assert first["a"] == again["a"] == [1, 2]
    assert math.isnan(first["b"])
    assert math.isnan(again["b"])


def test_another_key_is_another_result_in_any_order_of_its_parts(tmp_path):
    ledger = Ledger(tmp_path / "results.jsonl")
    assert ledger.once({"seed": 0, "method": "a"}, lambda: 1) == 1
    assert ledger.once({"method": "a", "seed": 0}, lambda: 2) == 1
    assert ledger.once({"method": "a", "seed": 1}, lambda: 3) == 3
    assert len(ledger) == 2
    assert ledger.get({"method": "b", "seed": 1}) is None


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_a_line_that_a_crash_cut_is_done_again(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    for seed in (0, 1):
        ledger.once({"seed": seed}, lambda seed=seed: seed)
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:cut])
    ledger = Ledger(path)
    assert ledger.once({"seed": 0}, lambda: 9) == 0
    assert ledger.once({"seed": 1}, lambda: 9) == 9
    assert Ledger(path).get({"seed": 1}) == 9


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"nonsense", r"must hold one JSON object a line; line 2 is 'nonsense'"),
        (b"[1]", r"must hold one JSON object a line; line 2 is '\[1\]'"),
        (b"\xff\xfe", r"must hold one JSON object a line; line 2 is "),
        (b'{"found": 1}', r"must hold {\"key\": .* in each line; line 2 is {'found': 1}"),
        (b'{"key": 3, "found": 1}', r"must hold {\"key\": .* in each line; line 2 is {'key': 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    path = tmp_path / "results.jsonl"
    whole = b'{"key": {"a": 1}, "found": 1}\n'
    path.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(ValueError, match=f"results.jsonl {sentence}"):
        Ledger(path)
