"""The embedded digits: content, split, first use by several processes, damage, and no TensorFlow."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nc_jax.data import digits


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("digits")
    digits.load("train", data_dir)
    return data_dir


@pytest.fixture
def copied(prepared, tmp_path):
    """A prepared set that a test may damage."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


def version_folder(data_dir):
    return data_dir / "digits" / "1.0.0"


def raw_examples(data_dir, split):
    source = digits.Digits(data_dir=data_dir, file_format="array_record").as_data_source(split)
    return source.__getitems__(range(len(source)))


def test_the_two_splits_are_scikit_learns_images(prepared):
    images, labels = load_digits(return_X_y=True)
    seen = []
    for split in ("train", "test"):
        arrays = digits.load(split, prepared)
        ids = [example["id"] for example in raw_examples(prepared, split)]
        assert ids == sorted(ids)
        assert arrays.inputs.dtype == np.float32
        assert arrays.labels.dtype == np.int32
        np.testing.assert_array_equal(arrays.inputs * 16, images[ids])
        np.testing.assert_array_equal(arrays.labels, labels[ids])
        seen += ids
    assert sorted(seen) == list(range(1797))


def test_the_split_is_stratified(prepared):
    train, test = digits.load("train", prepared), digits.load("test", prepared)
    assert (len(train), len(test)) == (1437, 360)
    share = np.bincount(load_digits().target) / 5
    assert np.abs(test.class_counts() - share).max() < 1
    assert (train.inputs.min(), train.inputs.max()) == (0, 1)


def test_the_split_never_changes(prepared):
    # A stored result. If it changes, results on the digits are not comparable: change the version, not this test.
    assert [example["id"] for example in raw_examples(prepared, "test")][:8] == [2, 10, 12, 13, 25, 26, 31, 38]


def test_a_second_load_prepares_nothing(prepared, monkeypatch):
    def fail(self, dl_manager):
        raise AssertionError("prepared twice")

    monkeypatch.setattr(digits.Digits, "_split_generators", fail)
    assert len(digits.load("test", prepared)) == 360


def test_loading_prints_nothing(tmp_path, capfd):
    digits.load("test", tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_preparation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def die_half_way(self, images, labels, ids):
        yield 0, {"image": images[0], "label": 0, "id": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits.Digits, "_generate_examples", die_half_way)
        with pytest.raises(KeyboardInterrupt):
            digits.load("train", tmp_path)
    assert not version_folder(tmp_path).exists()
    assert len(digits.load("train", tmp_path)) == 1437


def test_a_killed_preparation_is_never_read(copied):
    folder = version_folder(copied)
    folder.rename(folder.with_name("incomplete.ABCDEF_1.0.0"))  # where TFDS works before it renames
    next(folder.parent.glob("incomplete.*/*train*")).write_bytes(b"half")
    assert len(digits.load("train", copied)) == 1437


def test_losing_the_race_reads_the_winners_files(tmp_path, monkeypatch):
    prepare = digits.Digits._split_generators

    def overtaken(self, dl_manager):
        monkeypatch.setattr(digits.Digits, "_split_generators", prepare)
        digits.Digits(data_dir=tmp_path, file_format="array_record").download_and_prepare()
        winners.append(version_folder(tmp_path).stat().st_ino)
        return self._split_generators(dl_manager)

    winners = []
    monkeypatch.setattr(digits.Digits, "_split_generators", overtaken)
    assert len(digits.load("test", tmp_path)) == 360
    assert winners == [version_folder(tmp_path).stat().st_ino]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_an_error_of_the_disk_is_not_mistaken_for_a_lost_race(tmp_path, monkeypatch):
    def full(self, dl_manager):
        raise OSError("no space left")

    monkeypatch.setattr(digits.Digits, "_split_generators", full)
    with pytest.raises(OSError, match="no space left"):
        digits.load("test", tmp_path)


@pytest.mark.slow
def test_two_processes_come_first_and_need_no_tensorflow(tmp_path):
    program = (
        "import sys; from nc_jax.data import digits\n"
        "print(digits.load('train', sys.argv[1]), 'tensorflow' in sys.modules)"
    )
    # TFDS asks protobuf 6 for what protobuf 7 calls by another name (pyproject.toml).
    strict = ["-W", "error", "-W", "ignore:label() is deprecated:DeprecationWarning"]
    command = [sys.executable, *strict, "-c", program, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].decode() for process in running]
    assert outputs == ["LabelledArrays(1437 examples of shape (64,) float32, 10 classes) False\n"] * 2


DAMAGE = {
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no metadata": lambda folder: (folder / "dataset_info.json").unlink(),
    "cut metadata": lambda folder: (folder / "dataset_info.json").write_text("{"),
    "no records": lambda folder: next(folder.glob("*train*")).unlink(),
    "cut records": lambda folder: next(folder.glob("*train*")).write_bytes(b""),
    "other records": lambda folder: next(folder.glob("*test*")).replace(next(folder.glob("*train*"))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_one_sentence(copied, damage):
    damage(version_folder(copied))
    expected = (
        f"digits/1.0.0 in {copied} must hold 1437 train and 360 test examples (delete that folder and load again); got "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        digits.load("train", copied)


def test_refuses_an_unknown_split(tmp_path):
    with pytest.raises(ValueError, match=r"^split must be one of 'train', 'test'; got 'validation'$"):
        digits.load("validation", tmp_path)
    assert not list(tmp_path.iterdir())
