"""What a package of experiments holds: question, claim, time and presets of each, from its header."""

import ast
import importlib
import re
from pathlib import Path


def describe_experiments(folder: Path) -> str:
    """Return a text that lists the experiments in a folder.

    A header begins with a question and has lines "Claim" and "Command"; modules without such a header are left out.

    Args:
        folder: of a package that can be imported by its name.
    """
    package, entries = folder.name, []
    for path in sorted(folder.glob("*.py")):
        header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if path.stem.startswith("_") or "Command" not in header:
            continue
        lines = [f"python -m {package}.{path.stem}", f"    {header.splitlines()[0]}"]
        lines.append(f"    Claim: {_part(header, 'Claim')}")
        times = re.findall(r"\(([^()]*(?:minute|hour|second)[^()]*)\)", _part(header, "Command"))
        lines += [f"    Time: {time}" for time in times[:1]]
        presets = getattr(importlib.import_module(f"{package}.{path.stem}"), "PRESETS", {})
        lines += [f"    Presets: {', '.join(presets)}"] if presets else []
        entries.append("\n".join(lines))
    return "\n\n".join([*entries, f"python -m {package}.NAME --help says more, --dry-run what a run would take."])


def _part(header: str, name: str) -> str:
    """Return a part of a header, its lines joined."""
    found = re.search(rf"^{name} +(.*?)(?=^\S|\Z)", header, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""
