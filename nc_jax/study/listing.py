"""What a package of experiments holds: question, claim, command and presets of each."""

import ast
import importlib
import re
import textwrap
from pathlib import Path

from nc_jax.study.ends import as_started_here
from nc_jax.study.planning import MACHINE, WIDTH, describe_presets


def describe_experiments(folder: Path) -> str:
    """Return a text that lists the experiments in a folder.

    A header begins with a question and has lines "Claim" and "Command"; modules without such a header are left out.

    Args:
        folder: folder of a package that can be imported by its name.
    """
    package, entries = folder.name, []
    for name, header in experiments_in(folder).items():
        lines = [f"python -m {package}.{name}"]
        for sentence in (header.splitlines()[0], f"Claim: {part_of(header, 'Claim')}"):
            lines += textwrap.wrap(sentence, WIDTH, initial_indent="    ", subsequent_indent="    ")
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, "PRESETS"):
            lines.append(describe_presets(module.PRESETS, module.ABOUT, module.plan, indent="    "))
        entries.append("\n".join(lines))
    ending = (
        f"Times are on {MACHINE}. python -m {package}.NAME [PRESET] starts a run; --help says what can be set,\n"
        "--dry-run how much work it is."
    )
    return as_started_here("\n\n".join([*entries, ending]))


def experiments_in(folder: Path) -> dict[str, str]:
    """Return the headers of the experiments in a folder by the experiments' names."""
    headers = {
        path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    }
    return {name: header for name, header in headers.items() if "Command" in header}


def part_of(header: str, name: str) -> str:
    """Return a part of a header, its lines joined."""
    found = re.search(rf"^{name} +(.*?)(?=^\S|\Z)", header, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""
