"""The wheel and the source distribution: what is in them, and that the wheel works in an empty environment."""

import email
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from hiding import PROJECT, ROOT, canonical, closure
from packaging.metadata import Metadata

import nc_jax

pytestmark = pytest.mark.slow

NAME = f"nc_jax-{nc_jax.__version__}"
# What a person finds in the environment: no folder of this checkout on the path.
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment with the wheel and what pip brings for it, from the package index."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    pip = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        ROOT / "constraints.txt",
        wheel,
    ]
    subprocess.run(pip, check=True, env=CLEAN)
    return folder / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Run a program of the environment in an empty folder."""
    return lambda *words: subprocess.run(
        [installed / words[0], *words[1:]], cwd=tmp_path, env=CLEAN, capture_output=True, text=True
    )


def files_below(folder):
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}


def test_the_wheel_holds_the_package_and_the_experiments_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {name for name in files_below("nc_jax") | files_below("experiments") if "__pycache__" not in name}
    wanted = {f"nc_jax/{name}" if name.startswith("experiments/") else name for name in there}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert "nc_jax/py.typed" in names
    assert f"{NAME}.dist-info/licenses/LICENSE" in names


def test_the_metadata_is_valid(wheel):
    raw = zipfile.ZipFile(wheel).read(f"{NAME}.dist-info/METADATA")
    found = Metadata.from_email(raw, validate=True)
    assert (found.name, str(found.version)) == ("nc_jax", nc_jax.__version__)
    assert found.license_expression == "Apache-2.0"
    assert found.description_content_type == "text/markdown"
    assert set(found.provides_extra) == {canonical(name) for name in PROJECT["optional-dependencies"]}
    assert email.message_from_bytes(raw).get_payload().startswith("# ")


def test_the_source_distribution_holds_what_the_tests_need(built):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"LICENSE", "Makefile", "constraints.txt", "tests/conftest.py", "docs/errors.md", "nc_jax/py.typed"}
    assert not [name for name in names if name.startswith((".git/", ".venv", ".cache", "runs", "docs/_build"))]


def test_pip_brings_what_the_mathematics_needs_and_no_more(run):
    listed = run("python", "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check")
    names = {canonical(line.partition("==")[0]) for line in listed.stdout.splitlines()}
    assert names - {"pip", "setuptools", "nc-jax"} <= closure(PROJECT["dependencies"])
    assert run("python", "-m", "pip", "check").returncode == 0


def test_the_command_starts(run):
    assert run("nc-jax", "--version").stdout == f"nc_jax {nc_jax.__version__}\n"
    assert run("python", "-m", "nc_jax", "--help").stdout == run("nc-jax").stdout
    assert "usage: nc-jax COMMAND" in run("nc-jax").stdout


@pytest.mark.parametrize("words", [("list",), ("run", "nearest_etf", "smoke")], ids=" ".join)
def test_an_experiment_names_the_extra(run, words):
    done = run("nc-jax", *words)
    assert done.returncode == 2
    assert done.stderr == "error: an experiment needs flax; install it by: pip install 'nc_jax[experiments]'\n"


PROGRAM = """
import importlib.util
from pathlib import Path
import jax
import nc_jax, nc_jax.frames, nc_jax.heads, nc_jax.losses, nc_jax.metrics, nc_jax.theory
from nc_jax.study.environment import environment

assert (Path(nc_jax.__file__).parent / "experiments" / "nearest_etf.py").is_file()
assert importlib.util.find_spec("experiments") is None
found = environment()
assert found["commit"] is None, found["commit"]
assert found["versions"]["nc_jax"] == nc_jax.__version__
means = jax.random.normal(jax.random.key(0), (8, 3))
frame = nc_jax.nearest_simplex_etf(means - means.mean(axis=1, keepdims=True)).frame
print(round(float((frame.T @ frame)[0, 1]), 5))
"""


def test_the_mathematics_works(run):
    done = run("python", "-W", "error", "-c", PROGRAM)
    assert done.stdout == "-0.5\n", done.stderr


def test_a_type_checker_reads_the_annotations(run, tmp_path):
    """py.typed makes them count: without it, a checker takes everything for unknown."""
    (tmp_path / "program.py").write_text("from nc_jax.frames import simplex_etf\nsimplex_etf('3', 2)\n")
    python = run("python", "-c", "import sys; print(sys.executable)").stdout.strip()
    pyright = [Path(sys.executable).parent / "pyright", "--pythonpath", python, "program.py"]
    said = subprocess.run(pyright, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "reportArgumentType" in said
