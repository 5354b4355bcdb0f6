"""Arrays in files: every format gives the same rows in pieces of any size, and damaged or wrong files one sentence."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.commands.stored_arrays import arrays_in, find_array

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def write_safetensors(path, arrays):
    """Write the format by its description: length of the header, header, bytes."""
    header, content = {"__metadata__": {"format": "np"}}, b""
    names = {"float32": "F32", "bfloat16": "BF16", "int64": "I64", "float16": "F16"}
    for name, array in arrays.items():
        start, content = len(content), content + array.tobytes()
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [start, len(content)],
        }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def npy(folder):
    np.save(folder / "a.npy", ROWS)
    return "a.npy"


def npy_in_columns(folder):
    np.save(folder / "f.npy", np.asfortranarray(ROWS))
    return "f.npy"


def only_one_of_an_archive(folder):
    np.savez(folder / "one.npz", rows=ROWS, names=np.array([{"an": "object"}], object))
    return "one.npz"


def one_of_several(folder):
    np.savez(folder / "a.npz", labels=np.arange(7), rows=ROWS)
    return "a.npz:rows"


def compressed_in_columns(folder):
    np.savez_compressed(folder / "c.npz", a=np.arange(3), rows=np.asfortranarray(ROWS))
    return "c.npz:rows"


def safetensors(folder):
    write_safetensors(folder / "a.safetensors", {"labels": np.arange(7), "rows": ROWS})
    return "a.safetensors:rows"


def shards(folder):
    (folder / "shards").mkdir()
    for number, part in {2: ROWS[:3], 10: ROWS[3:3], 11: ROWS[3:]}.items():
        np.save(folder / "shards" / f"features-{number}.npy", part)
    (folder / "shards" / "index.json").write_text("{}")
    return "shards"


def shards_of_several(folder):
    (folder / "dump").mkdir()
    for number, part in enumerate((ROWS[:4], ROWS[4:])):
        arrays = {"features": part, "labels": np.arange(len(part))}
        write_safetensors(folder / "dump" / f"dump-0000{number + 1}-of-00002.safetensors", arrays)
    return "dump:features"


def tensor(folder):
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor(ROWS).requires_grad_(), folder / "t.pt")
    return "t.pt"


def nested_dictionary(folder):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3, "model": {"a": torch.zeros(2), "rows": torch.tensor(ROWS)}}, folder / "d.pth")
    return "d.pth:model.rows"


def before_zip_files(folder):
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor(ROWS), folder / "old.pt", _use_new_zipfile_serialization=False)
    return "old.pt"


STORES = (
    npy,
    npy_in_columns,
    only_one_of_an_archive,
    one_of_several,
    compressed_in_columns,
    safetensors,
    shards,
    shards_of_several,
    tensor,
    nested_dictionary,
    before_zip_files,
)


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__name__)
def test_pieces_are_the_rows_in_order(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_array(store(tmp_path))
    assert found.shape == ROWS.shape
    for size in (1, 3, 7, 100):
        pieces = list(found.pieces(size))
        assert [len(piece) for piece in pieces] == [min(size, 7 - start) for start in range(0, 7, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), ROWS)
    np.testing.assert_array_equal(found.read(), ROWS)


def test_pieces_are_copies(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(ROWS))
    first = next(find_array(str(tmp_path / "a.npy")).pieces(3))
    first[:] = 0
    np.testing.assert_array_equal(find_array(str(tmp_path / "a.npy")).read(), ROWS)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_kept(dtype, tmp_path):
    np.save(tmp_path / "a.npy", ROWS.astype(dtype))
    write_safetensors(tmp_path / "a.safetensors", {"a": ROWS.astype(dtype)})
    for name in ("a.npy", "a.safetensors"):
        found = find_array(str(tmp_path / name))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.read(), ROWS.astype(dtype))


def test_tensors_in_half_precision_are_kept(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.tensor(ROWS).bfloat16()}, tmp_path / "a.pt")
    np.testing.assert_array_equal(find_array(str(tmp_path / "a.pt")).read(), ROWS.astype(jnp.bfloat16))


def test_layers_come_in_natural_order(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {name: ROWS for name in ("layer10", "layer2", "layer1")})
    assert list(arrays_in(tmp_path / "a.safetensors")) == ["layer1", "layer2", "layer10"]


def test_files_of_the_library_are_read(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"rows": ROWS, "labels": np.arange(7), "half": ROWS.astype(np.float16), "flags": np.array([True])}
    numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"made": "here"})
    found = arrays_in(tmp_path / "a.safetensors")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(), array)


def damaged(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return name

    return write


def objects(folder):
    np.save(folder / "o.npy", np.array([{}], object))
    return "o.npy"


def short(folder):
    npy(folder)
    (folder / "s.npy").write_bytes((folder / "a.npy").read_bytes()[:-4])
    return "s.npy"


def offsets_outside(folder):
    text = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    return "x.safetensors"


def shards_that_differ(folder):
    (folder / "mixed").mkdir()
    np.save(folder / "mixed" / "features.npy", ROWS)
    np.save(folder / "mixed" / "labels.npy", np.arange(7))
    return "mixed"


def empty_folder(folder):
    (folder / "empty").mkdir()
    return "empty"


def pickled_module(folder):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    return "module.pt"


REFUSED = {
    "arrays must be in a file or a folder that exists; got none.npy": lambda folder: "none.npy",
    "arrays must be in a file or a folder that exists; got none.npz:a": lambda folder: "none.npz:a",
    "a.npz must hold an array 'x'; got a.npz:labels (7,), a.npz:rows (7, 5)": lambda folder: (
        one_of_several(folder) and "a.npz:x"
    ),
    "a.npz must hold one array, or be followed by a colon and its name; got a.npz:labels (7,)": lambda folder: (
        one_of_several(folder) and "a.npz"
    ),
    "b.npy must be a sound .npy file of numbers; got one that is not (": damaged("b.npy", b"hello"),
    "b.npz must be a sound .npz file of numbers; got one that is not (": damaged("b.npz", b"hello"),
    "b.safetensors must be a sound .safetensors file of numbers; got one that is not (a header of": damaged(
        "b.safetensors", b"hello hello"
    ),
    "x.safetensors must be a sound .safetensors file of numbers; got one that is not (a has offsets 0 to 16)": (
        offsets_outside
    ),
    "o.npy must be a sound .npy file of numbers; got one that is not (it holds pickled objects": objects,
    "s.npy must have 7 rows; got a file that ends before row 7": short,
    "files of arrays must end in .npy, .npz, .safetensors, .pt, .pth, .bin, .ckpt; got a.txt": damaged("a.txt", b"1 2"),
    "shards must have rows of one shape; got mixed/features.npy (7, 5) and mixed/labels.npy (7,)": shards_that_differ,
    "a folder of arrays must have files that end in .npy, .npz": empty_folder,
    "module.pt must hold tensors or a state dictionary, and no other objects; got one that": pickled_module,
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_read_is_refused(sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = REFUSED[sentence](tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        find_array(words).read()


def test_without_pytorch_its_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nc_jax.commands.stored_arrays.find_spec", lambda name: None)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pt can be read only with PyTorch, which is not installed; install it by"):
        find_array(str(tmp_path / "a.pt"))
