"""What a run records about the program that made it."""

import importlib.util
import shutil
import subprocess

import pytest

from nc_jax.study import environment


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path):
    """A repository of a user's own, with an installation in it that git ignores."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("site-packages\n")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "--quiet", "-m", "theirs")
    (tmp_path / "site-packages").mkdir()
    return tmp_path


def commit_of(folder):
    """What the copy of the module in a folder says."""
    path = shutil.copy(environment.__file__, folder)
    spec = importlib.util.spec_from_file_location("copied", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.environment()["commit"]


def test_an_installation_does_not_take_the_commit_of_the_project_around_it(project, monkeypatch):
    monkeypatch.delenv("NC_JAX_COMMIT", raising=False)
    assert commit_of(project / "site-packages") is None
    monkeypatch.setenv("NC_JAX_COMMIT", "0123")
    assert commit_of(project / "site-packages") == "0123"


def test_a_checkout_has_its_commit_and_says_when_it_differs_from_it(project):
    shutil.copy(environment.__file__, project)
    git(project, "add", "environment.py")
    git(project, "commit", "--quiet", "-m", "ours")
    clean = commit_of(project)
    assert len(clean) == 12
    (project / ".gitignore").write_text("")
    assert commit_of(project) == f"{clean}-dirty"


def test_versions_and_devices_are_recorded():
    found = environment.environment()
    assert found["versions"]["jax"]
    assert found["device"]["platform"] == "cpu"
