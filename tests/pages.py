"""Run the blocks of a page of documentation, one after the other, as its reader would.

`python tests/pages.py PAGE` runs a page in the current folder:

- ```python blocks run in one namespace; one that begins with a comment that is the name of a file (`# my_method.py`) is
  saved under this name, too;
- of ```bash and ```console blocks, the lines that begin with `nc-jax` or `python -m` run, with or without a prompt `$`.
  An experiment that is neither a smoke preset nor asked for help says what it would do (`--dry-run`). Other lines
  (`pip install`, `cd`), and lines with a word that the reader replaces, in capitals (RUN), are for the reader only;
- a ```text block that follows directly is what the block prints, as `compare` compares it;
- `<!-- not run: the reason -->` before a block: it does not run.
"""

import ast
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# In a checked text, numbers with a point may be off by this share, or by two of their last digits: training on another
# machine ends in other roundings. Whole numbers and words must be the same.
RELATIVE, LAST_DIGITS = 0.05, 2
COMMANDS = ("bash", "console")
_BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]*?) -->\n+)?```([^\n]*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# (\w+\.py)$", re.M)
_NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")


class Block(NamedTuple):
    """A block of a page.

    Attributes:
        language: the word behind the opening fence.
        text: what is between the fences.
        line: number of the first line of the text in the page, from 1.
        not_run: why it does not run; None if it does.
        prints: what the block must print; None if that is not checked.
    """

    language: str
    text: str
    line: int
    not_run: str | None = None
    prints: str | None = None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line that runs."""
        if self.language not in COMMANDS:
            return []
        lines = [line.removeprefix("$ ") for line in self.text.replace("\\\n", " ").splitlines()]
        found = [shlex.split(line, comments=True) for line in lines if line.startswith(("nc-jax ", "python -m "))]
        return [words for words in found if not any(re.fullmatch("[A-Z_]{3,}", word) for word in words)]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        block = Block(match[2], match[3], text.count("\n", 0, match.start(3)) + 1, match[1])
        if block.language == "text" and found and not text[end : match.start()].strip():
            found[-1] = found[-1]._replace(prints=block.text)
        found.append(block)
        end = match.end()
    return found


def imports_of(block: Block) -> set[str]:
    """Return the top-level packages that a python block imports."""
    names = set()
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def run_page(page: Path, folder: Path) -> str:
    """Run a page in a process of its own, in a folder, and return what it prints.

    Raises:
        AssertionError: if the page fails; with what it printed, and the line where it failed.
    """
    words = [sys.executable, str(Path(__file__)), str(page)]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{page} fails\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_command(words: list[str], folder: Path) -> str:
    """Run a command in a folder and return what it prints.

    Raises:
        AssertionError: if it fails.
    """
    program, *rest = words
    if program == "python":
        rest = rest[1:]  # without -m
    experiment = rest[0] == "run" if program == "nc-jax" else rest[0].startswith("experiments.")
    if experiment and rest[0] != "experiments.analyse" and not {"smoke", "--help", "--dry-run"} & set(rest):
        return _dry_run(rest)
    called = [sys.executable, "-m", *(["nc_jax"] if program == "nc-jax" else []), *rest]
    done = subprocess.run(called, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)} fails\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _dry_run(words: list[str]) -> str:
    """Let an experiment say what it would do: here, because a process of its own would import everything again."""
    name = words[1] if words[0] == "run" else words[0].removeprefix("experiments.")
    sys.argv[1:] = [*words[2 if words[0] == "run" else 1 :], "--dry-run"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        except SystemExit as stop:
            raise AssertionError(f"{shlex.join(words)} fails") from stop
    return printed.getvalue()


def compare(got: str, wanted: str) -> None:
    """Raise an AssertionError unless two texts have the same words and, up to a tolerance, the same numbers.

    The lengths of blanks do not matter. Whole numbers are the same; numbers with a point or an exponent may be off by
    `RELATIVE`, or by `LAST_DIGITS` units of the last digit that is wanted.
    """
    both = "\n".join(["the page says", wanted, "and the block prints", got])
    lines = [[" ".join(line.split()) for line in text.strip().splitlines()] for text in (got, wanted)]
    assert len(lines[0]) == len(lines[1]), both
    for here, there in zip(*lines, strict=True):
        here, there = _NUMBER.split(here), _NUMBER.split(there)
        assert here[::2] == there[::2], both
        for value, number in zip(here[1::2], there[1::2], strict=True):
            assert value == number or abs(float(value) - float(number)) <= _tolerance(number), both


def _tolerance(number: str) -> float:
    digits, _, exponent = number.lower().partition("e")
    if "." not in digits and not exponent:
        return 0
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return max(RELATIVE * abs(float(number)), LAST_DIGITS * unit * (1 + 1e-6))  # the margin is for binary fractions


def environment() -> dict[str, str]:
    """The environment of this process, in which every other one finds nc_jax and experiments."""
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


def _outputs(page: Path) -> Iterator[tuple[Block, str]]:
    module = types.ModuleType("page")
    sys.modules["page"] = module  # classes of a page look up their module
    # What a page does, and what it asks of nc_jax, must not be deprecated. Other packages may warn of each other.
    warnings.filterwarnings("error", module=r"page$|nc_jax\b")
    for block in blocks_of(page):
        if block.not_run is not None:
            continue
        if block.language == "python":
            if named := _FILE.match(block.text):
                Path(named[1]).write_text(block.text, encoding="utf-8")
            program = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(program, vars(module))
            yield block, printed.getvalue()
        elif block.commands:
            yield block, "".join(run_command(words, Path.cwd()) for words in block.commands)


def _main(page: Path) -> None:
    for block, printed in _outputs(page):
        print(printed, end="")
        if block.prints is not None:
            try:
                compare(printed, block.prints)
            except AssertionError as error:
                sys.exit(f"{page}, line {block.line}: {error}")


if __name__ == "__main__":
    sys.path[:1] = ["", str(ROOT)]  # not the folder of the tests, whose modules a page must not find
    _main(Path(sys.argv[1]))
