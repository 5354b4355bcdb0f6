"""Run a program as if only some of the installed packages were installed.

    python tests/hiding.py '["numpy"]' 'import numpy'

The first argument is a JSON list of requirements: these distributions, and what they require, stay visible; all others
cannot be found. The second is the program.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
OURS = {"nc_jax", "experiments", "benchmarks"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run_hidden(program: str, *extras: str) -> subprocess.CompletedProcess[str]:
    """Run a program as after `pip install nc_jax[extras]`."""
    visible = [*PROJECT["dependencies"], *(str(one) for extra in extras for one in requirements(extra))]
    command = [sys.executable, __file__, json.dumps(visible), program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def requirements(extra: str) -> Iterator[Requirement]:
    """Yield what an extra of pyproject.toml requires, with what it takes from other extras."""
    for one in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if canonical(one.name) != "nc-jax":
            yield one
        for other in sorted(one.extras) if canonical(one.name) == "nc-jax" else ():
            yield from requirements(other)


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the names of distributions that requirements bring, with all that these require in turn."""
    found, waiting = set(), [Requirement(one) for one in requirements]
    while waiting:
        one = waiting.pop()
        key = (canonical(one.name), frozenset(one.extras))
        if key in found:
            continue
        found.add(key)
        waiting += [other for other in _requirements_of(one.name) if _applies(other, one.extras)]
    return {name for name, _ in found}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements_of(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:  # such as one for another platform
        return []


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    return requirement.marker is None or any(
        requirement.marker.evaluate({"extra": extra}) for extra in ("", *sorted(extras))
    )


class Hiding:
    """Finds modules as usual, except those of hidden packages."""

    def __init__(self, visible: set[str]):
        self.finders = list(sys.meta_path)
        self.hidden = {
            module
            for module, distributions in metadata.packages_distributions().items()
            if module not in OURS and not visible & {canonical(one) for one in distributions}
        }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *arguments) -> Iterator[metadata.Distribution]:
        for finder in self.finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*arguments)


if __name__ == "__main__":
    visible, program = sys.argv[1:3]
    sys.meta_path[:] = [Hiding(closure(json.loads(visible)))]
    sys.argv[:] = ["-c"]
    sys.path[0] = ""  # the current folder, as with -c and -m
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
