"""`nc-jax frame`: the files hold the frames of closed forms; what cannot be made or written is one sentence."""

import json
import re
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from nc_jax.commands import main
from nc_jax.commands.frame import Kind
from nc_jax.data import hierarchies
from nc_jax.hierarchy import similarity

# Packages that an installation without extras does not have.
EXTRAS = ("flax", "optax", "orbax", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "PIL", "dm_pix")
EXTRAS += ("tensorboardX", "safetensors", "torch", "flatbuffers")
ROUNDING = 1e-6  # of inner products of float32 vectors with up to ten entries


def simplex(count: int) -> np.ndarray:
    return np.eye(count) * count / (count - 1) - 1 / (count - 1)


FRAMES = {
    "simplex": (["simplex", "--num-classes", "4", "--dim", "6", "--seed", "2"], simplex(4)),
    "canonical": (["simplex", "--num-classes", "4", "--dim", "3"], simplex(4)),
    "orthogonal": (["orthogonal", "--num-classes", "4", "--dim", "6", "--seed", "2"], np.eye(4)),
    "hierarchical": (
        ["hierarchical", "--hierarchy", "digits", "--dim", "12"],
        similarity(hierarchies.load("digits").distances()),
    ),
    "hyperspherical": (["hyperspherical", "--num-classes", "4", "--dim", "6"], simplex(4)),
}


def call(words, capsys) -> str:
    main(["frame", *map(str, words)])
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", FRAMES)
def test_the_file_has_the_inner_products_of_the_frame(kind, tmp_path, capsys):
    words, gram = FRAMES[kind]
    said = call([*words, "--out", tmp_path / "frame.npy"], capsys)
    frame = np.load(tmp_path / "frame.npy").astype(float)
    assert frame.shape == (int(words[words.index("--dim") + 1]), len(gram))
    np.testing.assert_allclose(frame.T @ frame, gram, rtol=0, atol=ROUNDING)
    shown = re.search(r"largest error of the Gram matrix │ +(\S+)", said)
    assert shown is not None
    assert float(shown[1]) < ROUNDING
    assert re.search(rf"rank +│ +{np.linalg.matrix_rank(gram)} ", said)


def test_an_octahedron_is_said_to_be_the_proven_optimum(tmp_path, capsys):
    said = call(["hyperspherical", "--num-classes", 6, "--dim", 3], capsys)
    assert "proven optimum: cross-polytope" in said
    assert re.search(r"angles of pairs, degrees +│ +90 to 180, mean 108 ", said)
    assert "written" not in said


def test_random_vectors_are_those_of_the_seed(tmp_path, capsys):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        call(["random", "--num-classes", 3, "--dim", 5, "--seed", seed, "--out", tmp_path / f"{name}.npy"], capsys)
    one, again, other = (np.load(tmp_path / f"{name}.npy") for name in ("one", "again", "other"))
    np.testing.assert_allclose(np.linalg.norm(one, axis=0), 1, atol=ROUNDING)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_class_names_of_a_tree_come_with_the_frame(tmp_path, capsys):
    call(["hierarchical", "--hierarchy", "cifar100", "--dim", 99, "--out", tmp_path / "frame.npz"], capsys)
    with np.load(tmp_path / "frame.npz") as file:
        assert tuple(file["class_names"]) == hierarchies.load("cifar100").classes
        assert file["frame"].shape == (99, 100)


def test_the_state_of_a_layer_has_rows_and_a_bias_of_zeros(tmp_path, capsys):
    words = ["orthogonal", "--num-classes", 3, "--dim", 4, "--out"]
    call([*words, tmp_path / "frame.npz"], capsys)
    call([*words, tmp_path / "layer.npz", "--torch"], capsys)
    frame, layer = np.load(tmp_path / "frame.npz"), np.load(tmp_path / "layer.npz")
    assert set(layer) == {"weight", "bias"}
    assert np.array_equal(layer["weight"], frame["frame"].T)
    assert np.array_equal(layer["bias"], np.zeros(3, np.float32))


def test_safetensors_hold_the_state_of_a_layer(tmp_path, capsys):
    """The format is read by its description: a length in eight bytes, a header in JSON, the numbers."""
    pytest.importorskip("safetensors")
    words = ["simplex", "--num-classes", 3, "--dim", 4, "--seed", 1, "--out"]
    call([*words, tmp_path / "frame.npy"], capsys)
    call([*words, tmp_path / "layer.safetensors", "--torch"], capsys)
    content = (tmp_path / "layer.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    first, last = header["weight"]["data_offsets"]
    weight = np.frombuffer(content[start + first : start + last], "<f4").reshape(header["weight"]["shape"])
    assert np.array_equal(weight, np.load(tmp_path / "frame.npy").T)
    assert (header["weight"]["dtype"], header["bias"]["shape"]) == ("F32", [3])


def test_torch_loads_the_state_into_its_layer(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    words = ["simplex", "--num-classes", 3, "--dim", 4, "--seed", 1, "--out"]
    call([*words, tmp_path / "frame.npy"], capsys)
    call([*words, tmp_path / "layer.pt", "--torch"], capsys)
    layer = torch.nn.Linear(4, 3)
    layer.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert np.array_equal(layer.weight.detach().numpy().T, np.load(tmp_path / "frame.npy"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["simplex", "--num-classes", "5", "--dim", "3"], "a simplex ETF of 5 classes needs dim >= 4; got dim=3"),
        (["orthogonal", "--num-classes", "5", "--dim", "3"], "needs dim >= num_classes >= 1, a feature for every"),
        (["hyperspherical", "--num-classes", "5", "--dim", "1"], "need num_classes >= 2 and dim >= 2 (1 for two"),
        (["random", "--num-classes", "5", "--dim", "3"], "random class vectors need a key; got None (--seed 0)"),
        (["hierarchical", "--hierarchy", "digits", "--dim", "3"], "span 9 dimensions, so dim >= 9; got dim=3"),
        (["hierarchical", "--hierarchy", "digits", "--dim", "9", "--num-classes", "4"], "is of 10 classes; got num"),
        (["hierarchical", "--num-classes", "4", "--dim", "9"], "needs a label tree (--hierarchy); got None for a h"),
        (["simplex", "--hierarchy", "digits", "--dim", "9"], "(--hierarchy); got digits for a simplex frame"),
        (["simplex", "--dim", "9"], "a simplex frame needs the number of classes (--num-classes); got none"),
        (["simplex", "--num-classes", "3", "--dim", "9", "--torch"], "--torch says what is written, so it needs --out"),
        (["simplex", "--num-classes", "3", "--dim", "9", "--out", "a.txt"], "must end in .npy or .npz or .safetensors"),
        (["simplex", "--num-classes", "3", "--dim", "9", "--out", "there.npy"], "a name that does not exist yet; got"),
        (["simplex", "--num-classes", "3", "--dim", "9", "--out", "no/a.npy"], "a folder that exists; got no/a.npy"),
        (
            ["simplex", "--num-classes", "3", "--dim", "9", "--out", "a.npy", "--torch"],
            "two arrays, and .npy holds one",
        ),
        (["cube", "--num-classes", "3", "--dim", "9"], "invalid choice 'cube' for argument 'kind'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npy").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["frame", *words])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith("error: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.npy"]
    assert (tmp_path / "there.npy").read_text() == "mine"


@pytest.mark.parametrize(("ending", "package"), [(".safetensors", "safetensors"), (".pt", "torch")])
def test_a_package_that_is_missing_is_named_before_anything_is_computed(ending, package, monkeypatch, capsys):
    monkeypatch.setattr("nc_jax.extras.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["frame", "simplex", "--num-classes", "3", "--dim", "2", "--out", f"frame{ending}"])
    assert f"a {ending} file needs {package}; install it by: pip install" in capsys.readouterr().err


def test_help_names_every_kind(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["frame", "--help"])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert all(f"  {kind} " in said for kind in get_args(Kind))
    assert "--hierarchy" in said


@pytest.mark.slow
def test_a_frame_needs_no_package_of_an_extra():
    """Every other package is made impossible to import."""
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from nc_jax.commands import main
main(["frame", "hierarchical", "--hierarchy", "digits", "--dim", "9"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hierarchical frame of 10 classes in 9 dimensions" in done.stdout
