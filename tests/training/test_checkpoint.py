"""Checkpoints that are damaged are passed over, named and kept; a sound one is what was written."""

import random
import re
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_training import fit, make_trainer

from nc_jax.training import CheckpointError, Checkpoints, read_checkpoint


@pytest.fixture(scope="module")
def state(one_device, train_set):
    return one_device.init(train_set, 0)


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """A folder with checkpoints of the steps 5 and 7."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for step in (5, 7):
            checkpoints.save(state.replace(step=jnp.int32(step)))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def restored(folder, like):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(like)


@pytest.mark.slow
def test_what_was_saved_comes_back_on_any_number_of_devices(state, folder, train_set):
    for devices in (1, 4):
        found = restored(folder, make_trainer(devices).init(train_set, 1))
        chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(state.replace(step=np.int32(7))))
        chex.assert_trees_all_equal_dtypes(found, state)
        assert len(found.params["backbone"]["features"]["bias"].sharding.device_set) == devices


@pytest.mark.slow
def test_a_checkpoint_of_many_devices_is_read_without_them(train_set, tmp_path):
    state = make_trainer(4).init(train_set, 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    kernel = read_checkpoint(tmp_path)["params"]["backbone"]["features"]["kernel"]
    np.testing.assert_array_equal(kernel, state.params["backbone"]["features"]["kernel"])
    assert isinstance(kernel, np.ndarray)


@pytest.mark.slow
def test_what_is_saved_is_the_state_of_that_moment(one_device, train_set, tmp_path):
    """The next step reuses the memory of the state, while the checkpoint is still being written."""
    state = one_device.init(train_set, 0)
    before = jax.device_get(jax.tree.map(jnp.copy, state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for batch in (next(one_device.read(train_set, one_device.stream(train_set), 0, 0)),) * 3:
            state, _ = one_device.step(state, batch)
        jax.block_until_ready(state)
    chex.assert_trees_all_equal(jax.device_get(restored(tmp_path, one_device.init(train_set, 1))), before)


def copy_newest(folder):
    shutil.copytree(folder / "7", folder / "999")


def flip_a_bit(folder):
    # In every file with data: which of them hold numbers, and which are left over, depends on timing.
    for path in (folder / "7" / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def other_numbers(folder):
    """Sound files with other numbers in them, as a fault of the memory leaves them."""
    facts = folder / "7" / "facts" / "metadata"
    facts.write_text(re.sub(r'("params/backbone/features/bias": )\d+', r"\g<1>1", facts.read_text()))


DAMAGES = {
    "empty folder": (lambda folder: (folder / "999").mkdir(), "999", 7),
    "copy": (copy_newest, "999", 7),
    "bit": (flip_a_bit, "7", 5),
    "numbers": (other_numbers, "7", 5),
    "no metadata": (lambda folder: (folder / "7" / "state" / "_METADATA").unlink(), "7", 5),
    "empty metadata": (lambda folder: (folder / "7" / "state" / "_METADATA").write_bytes(b""), "7", 5),
    "no facts": (lambda folder: shutil.rmtree(folder / "7" / "facts"), "7", 5),
}


@pytest.mark.parametrize(("damage", "name", "step"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_named_and_kept(folder, state, caplog, capfd, damage, name, step):
    damage(folder)
    there = {path.relative_to(folder / name) for path in (folder / name).rglob("*")}
    assert int(read_checkpoint(folder)["step"]) == step  # reading changes nothing
    assert (folder / name).is_dir()
    assert int(restored(folder, state).step) == step
    assert f"checkpoint {folder / name} cannot be used (" in caplog.text
    assert f"it is now called {name}.damaged" in caplog.text
    aside = folder / f"{name}.damaged"
    assert {path.relative_to(aside) for path in aside.rglob("*")} == there
    with Checkpoints(folder) as checkpoints:  # saving goes on, with a number below the stray one
        checkpoints.save(state.replace(step=jnp.int32(8)))
    assert int(restored(folder, state).step) == 8
    assert "Traceback" not in capfd.readouterr().err


def test_files_that_are_no_checkpoints_do_not_matter(folder, state):
    (folder / "notes.txt").write_text("mine")
    (folder / "0008").mkdir()
    (folder / "9").write_text("a file")
    assert int(restored(folder, state).step) == 7


def test_without_a_sound_checkpoint_one_sentence_says_what_is_wrong_with_each(folder, state):
    for step in (5, 7):
        (folder / str(step) / "state" / "_METADATA").write_bytes(b"")
    before = sorted(folder.rglob("*"))
    sentence = rf"one of the checkpoints in {folder} must be sound to go on; got 7: JSONDecodeError: .*; 5: JSONDecode"
    for read in (lambda: restored(folder, state), lambda: read_checkpoint(folder)):
        with pytest.raises(CheckpointError, match=sentence):
            read()
    assert sorted(folder.rglob("*")) == before


def test_there_must_be_a_checkpoint_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there must be a checkpoint to read from; got none in {tmp_path}"):
        read_checkpoint(tmp_path)


def test_a_folder_that_vanishes_is_one_sentence(state, tmp_path, capfd):
    def save_and_remove():
        with Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(state)
            checkpoints._manager.wait_until_finished()
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").write_text("a file instead")
            checkpoints.save(state.replace(step=jnp.int32(1)))

    with pytest.raises(CheckpointError, match=rf"a checkpoint must be written to {tmp_path}/run; got \w+: .*"):
        save_and_remove()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_no_damage_stops_a_run_or_is_taken_for_a_state(saved, state, tmp_path, capfd):
    """200 random damages of random files: the newest sound checkpoint, or one sentence."""
    draw, found = random.Random(0), []
    wanted = {step: jax.device_get(state.replace(step=np.int32(step))) for step in (5, 7)}
    for number in range(200):
        folder = Path(shutil.copytree(saved, tmp_path / str(number)))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in draw.sample(files, draw.choice([1, 1, 1, 3, 10])):
            damage_at_random(path, draw)
        try:
            back = restored(folder, state)
        except CheckpointError as error:
            found.append(str(error).replace(str(folder), "F"))
        else:
            found.append(int(back.step))
            chex.assert_trees_all_equal(jax.device_get(back), wanted[found[-1]])
        shutil.rmtree(folder)
    sentence = re.compile(r"one of the checkpoints in F must be sound to go on; got 7: .*; 5: .*")
    assert all(isinstance(one, int) or sentence.fullmatch(one) for one in found)
    assert {5, 7} < set(found)
    assert "Traceback" not in capfd.readouterr().err


def damage_at_random(path, draw):
    content = bytearray(path.read_bytes())
    match draw.choice(["cut", "zero", "delete", "flip", "foreign"]):
        case "cut":
            path.write_bytes(content[: draw.randrange(len(content))])
        case "zero":
            path.write_bytes(bytes(len(content)))
        case "delete":
            path.unlink()
        case "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        case "foreign":
            path.write_bytes(b"\xff" * 99)


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_checkpoint_and_ends_as_the_unbroken_one(one_device, train_set, test_set, tmp_path):
    unbroken = fit(one_device, train_set, test_set, tmp_path)
    (tmp_path / "checkpoints" / "run" / "15" / "state" / "_METADATA").write_bytes(b"{}")
    again = fit(one_device, train_set, test_set, tmp_path)
    chex.assert_trees_all_equal(again, unbroken)
