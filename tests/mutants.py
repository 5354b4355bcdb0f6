"""Change one place of the code, and see whether its tests notice: a sample of mutants, and those that survive.

Command   python tests/mutants.py solvers implicit nearest heads metrics --number 40 --seed 1

Works on a copy in a temporary folder. A mutant is noticed if a test fails, and too slow if the tests take ten times as
long as without a change. Quick tests run first, and slow ones for what survives them. Each line says place, change and
verdict; the last one counts them.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


def _listed(*patterns: str) -> str:
    return " ".join(sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)))


# Part of the package -> its files, and the tests that should notice a change.
PARTS = {
    "solvers": ("nc_jax/solvers/*.py", "tests/solvers tests/test_implicit.py"),
    "implicit": ("nc_jax/implicit.py nc_jax/root_rules.py", "tests/test_implicit.py tests/test_root_rules.py"),
    "nearest": ("nc_jax/nearest.py", _listed("tests/test_nearest*.py")),
    "heads": ("nc_jax/heads/*.py", _listed("tests/heads/*.py", "tests/models/test_*head*.py")),
    "metrics": ("nc_jax/metrics/*.py", "tests/metrics"),
}
SWAPPED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.MatMult: "-",
    ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or", ast.Or: "and",
}  # fmt: skip
OTHER_NAME = {
    "maximum": "minimum",
    "minimum": "maximum",
    "any": "all",
    "all": "any",
    "max": "min",
    "min": "max",
    "sum": "mean",
}


class Mutant(NamedTuple):
    """One change: the characters from `start` to `end` of a file become `text`."""

    path: Path
    line: int
    start: int
    end: int
    old: str
    text: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield the changes of one file; annotations, docstrings and the texts of errors stay."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(line: Any, column: Any) -> int:  # ast knows both for every expression, and its types do not say so
        text = source[starts[line - 1] : starts[line]]
        return starts[line - 1] + len(text.encode()[:column].decode())

    def change(node: Any, start: int, end: int, text: str) -> Mutant:
        return Mutant(path, node.lineno, start, end, source[start:end], text)

    def between(left: ast.expr, right: ast.expr, text: str) -> Mutant:
        """Change the operator between two operands; brackets stay."""
        start, end = at(left.end_lineno, left.end_col_offset), at(right.lineno, right.col_offset)
        gap = source[start:end]
        inner = gap.strip("() \n")
        return change(left, start + gap.index(inner), start + gap.index(inner) + len(inner), text)

    def visit(node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
            yield between(node.left, node.right, SWAPPED[type(node.op)])
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
            yield between(node.left, node.comparators[0], SWAPPED[type(node.ops[0])])
        elif isinstance(node, ast.BoolOp):
            yield between(node.values[0], node.values[1], SWAPPED[type(node.op)])
        elif isinstance(node, ast.UnaryOp):
            start, end = at(node.lineno, node.col_offset), at(node.operand.lineno, node.operand.col_offset)
            yield change(node, start, start + len(source[start:end].rstrip(" (")), "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
            others = {bool: not node.value, int: node.value + 1, float: node.value * 2}
            yield change(node, start, end, repr(others[type(node.value)]))
        elif isinstance(node, ast.Attribute) and node.attr in OTHER_NAME:
            end = at(node.end_lineno, node.end_col_offset)
            yield change(node, end - len(node.attr), end, OTHER_NAME[node.attr])
        for field, below in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for child in below if isinstance(below, list) else [below]:
                if isinstance(child, ast.AST):
                    yield from visit(child)

    yield from visit(ast.parse(source))


def run_tests(folder: Path, tests: str, marks: str, limit: float | None) -> str:
    """Run tests in a copy of the project; return "passed", "noticed" or "too slow"."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "-m", marks, *tests.split()]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return "too slow"
    return "passed" if done.returncode in (0, 5) else "noticed"  # 5: no test with these marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--number", type=int, default=40, help="mutants of each part")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv*", ".git", ".cache", "runs", "_build"))
        for part in asked.parts:
            files, tests = PARTS[part]
            found = [m for pattern in files.split() for path in sorted(folder.glob(pattern)) for m in mutants_of(path)]
            limits: dict[str, float] = {}
            for marks in ("not slow and not benchmark", "slow"):
                began = time.perf_counter()
                if run_tests(folder, tests, marks, None) != "passed":
                    raise SystemExit(f"the tests of {part} must pass before anything is changed")
                limits[marks] = 60 + 10 * (time.perf_counter() - began)
            for mutant in random.Random(f"{asked.seed} {part}").sample(found, min(asked.number, len(found))):
                source = mutant.path.read_text(encoding="utf-8")
                mutant.path.write_text(source[: mutant.start] + mutant.text + source[mutant.end :], encoding="utf-8")
                verdict = "passed"
                own = sorted(folder.glob(f"tests/**/test_{mutant.path.stem}.py"))  # first, because likely to notice
                ordered = " ".join([*(str(path.relative_to(folder)) for path in own), tests])
                for marks, limit in limits.items():
                    if verdict == "passed":
                        verdict = run_tests(folder, ordered, marks, limit)
                mutant.path.write_text(source, encoding="utf-8")
                verdict = "SURVIVED" if verdict == "passed" else verdict
                verdicts[verdict] += 1
                place = f"{mutant.path.relative_to(folder)}:{mutant.line}"
                print(f"{verdict:9} {place:45} {mutant.old!r} -> {mutant.text!r}", flush=True)
    print(", ".join(f"{number} {verdict}" for verdict, number in verdicts.items()))


if __name__ == "__main__":
    main()
