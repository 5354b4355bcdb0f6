"""Frames on disk: computed once, whole files only, damage found, several processes."""

import concurrent.futures
import threading

import numpy as np
import pytest

from nc_jax.frames.stored import cache_folder, stored


class Counted:
    """A computation that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"points": np.arange(6.0).reshape(2, 3), "value": np.array(0.5)}


def test_is_computed_once_for_each_description(tmp_path):
    compute = Counted()
    for _ in range(2):
        found = stored("a frame", compute, tmp_path)
        np.testing.assert_array_equal(found["points"], np.arange(6.0).reshape(2, 3))
        assert found["value"] == 0.5
    assert compute.calls == 1
    stored("another frame", compute, tmp_path)
    assert compute.calls == 2
    assert len(list(tmp_path.rglob("*"))) == 3  # the folder and two files, nothing half-written


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "no archive": lambda _: b"points",
    "a bit has flipped": lambda content: content.replace(np.float64(5).tobytes(), np.float64(7).tobytes()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_computed_anew(tmp_path, damage):
    compute = Counted()
    stored("a frame", compute, tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="a stored frame must be readable; .* is computed anew"):
        found = stored("a frame", compute, tmp_path)
    np.testing.assert_array_equal(found["points"], np.arange(6.0).reshape(2, 3))
    stored("a frame", compute, tmp_path)
    assert compute.calls == 2


def test_a_file_of_another_frame_is_not_used(tmp_path):
    stored("a frame", Counted(), tmp_path)
    stored("another frame", lambda: {"points": np.zeros(1)}, tmp_path)
    one, other = tmp_path.rglob("*.npz")
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    with pytest.warns(UserWarning, match="it describes another frame"):
        found = stored("a frame", Counted(), tmp_path)
    np.testing.assert_array_equal(found["points"], np.arange(6.0).reshape(2, 3))


def test_a_folder_that_cannot_be_written_is_told_and_does_no_harm(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="must be"):
        assert stored("a frame", Counted(), blocked)["value"] == 0.5


def test_several_writers_leave_a_whole_file(tmp_path):
    barrier = threading.Barrier(8)

    def compute():
        barrier.wait(timeout=60)  # all of them have found no file
        return {"points": np.ones((100, 100))}

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: stored("a frame", compute, tmp_path), range(8)))
    for found in [*results, stored("a frame", compute, tmp_path)]:
        np.testing.assert_array_equal(found["points"], 1)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_the_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NC_JAX_CACHE")
    assert cache_folder() == tmp_path / "nc_jax"
    monkeypatch.setenv("NC_JAX_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
