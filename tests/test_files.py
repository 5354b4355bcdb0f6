"""Files survive crashes, and one process at a time uses them."""

import json
import subprocess
import sys

import pytest

from nc_jax.files import BusyError, append_line, exclusive, read_lines, write_atomically

ROWS = [{"run": "a", "step": 1}, {"run": "b", "also": {"x": [1, 2]}}]


@pytest.mark.parametrize("torn", ["", '{"run": "c"', '{"run": "c", "also": {"x": 1}', "\x00" * 100_000])
def test_a_torn_end_is_left_out_and_overwritten(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    for row in ROWS:
        append_line(path, row)
    path.write_text(path.read_text() + torn)
    assert read_lines(path) == ROWS
    append_line(path, {"run": "d"})
    assert read_lines(path) == [*ROWS, {"run": "d"}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff\xfe", b""])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"run": "a"}\n' + line + b'\n{"run": "a"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl must hold one JSON object a line; line 2 is '"):
        read_lines(path)


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "absent") == []


@pytest.mark.slow
def test_a_lock_is_held_once_and_freed_by_the_end_of_its_process(tmp_path):
    path = tmp_path / ".lock"
    program = (
        "import pathlib, sys, os; from nc_jax.files import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), 'the run r'):\n"
        "    print('held', flush=True); sys.stdin.read(); os.abort()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=rf"may work on the run r; process {holder.pid} on .* is doing so"):
        exclusive(path, "the run r").__enter__()
    holder.communicate()
    with exclusive(path, "the run r"), pytest.raises(BusyError), exclusive(path, "the run r"):
        pass


@pytest.mark.slow
def test_processes_append_to_one_file_without_loss(tmp_path):
    path = tmp_path / "rows.jsonl"
    program = (
        "import pathlib, sys; from nc_jax.files import append_line\n"
        "for i in range(200): append_line(pathlib.Path(sys.argv[1]), {'who': sys.argv[2], 'i': i, 'long': 'x' * 5000})"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(path), who]) for who in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    rows = read_lines(path)
    for who in "ab":
        assert [row["i"] for row in rows if row["who"] == who] == list(range(200))


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_atomically(path, json.dumps(ROWS))
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads(path.read_text()) == ROWS
