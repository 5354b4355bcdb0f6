"""Imports go one way, the mathematics needs few packages, and what may go one day is used in one file."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module may import from its own layer and from those above it in this list. New parts get their place here.
LAYERS = (
    (
        "nc_jax.arrays",
        "nc_jax.checks",
        "nc_jax.closures",
        "nc_jax.collective",
        "nc_jax.energies",
        "nc_jax.extras",
        "nc_jax.files",
        "nc_jax.pairs",
        "nc_jax.root_rules",
        "nc_jax.frames.properties",
        "nc_jax.manifolds",
    ),
    ("nc_jax.solvers",),
    ("nc_jax.implicit", "nc_jax.frames"),
    (
        "nc_jax.discrepancies",
        "nc_jax.inner_problem",
        "nc_jax.nearest",
        "nc_jax.losses",
        "nc_jax.metrics",
        "nc_jax.hierarchy",
        "nc_jax.theory",
        "nc_jax.attacks",
        "nc_jax",
    ),
    ("nc_jax.heads",),
    # From here on flax, optax, orbax, tensorflow_datasets and grain may be imported.
    ("nc_jax.data", "nc_jax.models", "nc_jax.optim"),
    ("nc_jax.streams",),
    ("nc_jax.training",),
    ("nc_jax.federated", "nc_jax.methods"),
    ("nc_jax.study",),
    ("nc_jax.commands", "nc_jax.__main__", "experiments", "benchmarks"),
)
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}
LAST_PURE_LAYER = LAYER_OF["nc_jax.heads"]
NOT_IN_PURE_LAYERS = {"flax", "optax", "orbax", "tensorflow_datasets", "grain"}
# What `pip install nc_jax` brings for the mathematics. Functions may import more, for those who call them.
FOR_PURE_LAYERS = {"jax", "jaxlib", "jaxopt", "jaxtyping", "numpy", "scipy"}
# Packages that change or end: a move away from them touches one file.
USED_IN_ONE_FILE = {"jaxopt": "nc_jax.root_rules", "orbax": "nc_jax.training.checkpoint"}
KNOW_LINEN = ("nc_jax.models", "nc_jax.training.state", "nc_jax.study.free_features", "experiments", "benchmarks")
CALLS_PMAP = "nc_jax.training.parallel"


def imported_names(module: str, source: str, *, at_import: bool = False) -> Iterator[str]:
    """Yield every imported module, or module.name, in absolute form; `module` of a package ends in .__init__.

    With `at_import`, only what is imported with the module: not within functions, nor for type checkers.
    """
    for node in _run_at_import(ast.parse(source)) if at_import else ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            yield from (".".join([*package, *filter(None, [node.module]), alias.name]) for alias in node.names)


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_at_import(node)


def uses_pmap(source: str) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr == "pmap")
        or (isinstance(node, ast.alias) and node.name == "pmap")
        for node in ast.walk(ast.parse(source))
    )


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def part_of(name: str) -> str | None:
    return max((part for part in LAYER_OF if is_within(name, part)), key=len, default=None)


def violations(sources: Mapping[str, str]) -> list[str]:
    """Check {module: source}; each violation is a sentence."""
    found = []
    for module, source in sources.items():
        name = module.removesuffix(".__init__")
        part = part_of(name)
        if part is None or (part == "nc_jax" and name != "nc_jax"):
            found.append(f"{name} has no place in LAYERS")
            continue
        for imported in imported_names(module, source):
            imported_part = part_of(imported)
            if imported_part and LAYER_OF[imported_part] > LAYER_OF[part]:
                found.append(f"{name} imports {imported}: {part} comes before {imported_part}")
            if LAYER_OF[part] <= LAST_PURE_LAYER and imported.split(".")[0] in NOT_IN_PURE_LAYERS:
                found.append(f"{name} imports {imported}: the mathematics does without it")
            elif is_within(imported, "flax.linen") and not any(is_within(name, known) for known in KNOW_LINEN):
                found.append(f"{name} imports {imported}: only {', '.join(KNOW_LINEN)} know Linen")
            only = USED_IN_ONE_FILE.get(imported.split(".")[0], name)
            if only != name:
                found.append(f"{name} imports {imported}: only {only} does")
        if LAYER_OF[part] <= LAST_PURE_LAYER:
            brought = FOR_PURE_LAYERS | NOT_IN_PURE_LAYERS | set(sys.stdlib_module_names) | {"nc_jax"}
            for imported in imported_names(module, source, at_import=True):
                if imported.split(".")[0] not in brought:
                    found.append(f"{name} imports {imported}: pip install nc_jax does not bring it")
        if uses_pmap(source) and name != CALLS_PMAP:
            found.append(f"{name} calls pmap: only {CALLS_PMAP} does")
    return found


def project_sources() -> dict[str, str]:
    files = (file for folder in ("nc_jax", "experiments", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text() for file in files}


@pytest.mark.slow
def test_the_project_keeps_its_architecture():
    assert violations(project_sources()) == []


def test_pmap_is_called_in_its_one_file():
    assert uses_pmap(project_sources()[CALLS_PMAP])


@pytest.mark.parametrize("package", USED_IN_ONE_FILE)
def test_a_package_is_imported_in_its_one_file(package):
    module = USED_IN_ONE_FILE[package]
    assert any(is_within(name, package) for name in imported_names(module, project_sources()[module]))


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        ("nc_jax.solvers.polar", "import nc_jax.nearest", "nc_jax.solvers comes before nc_jax.nearest"),
        ("nc_jax.solvers.polar", "def f():\n    from nc_jax import frames", "comes before nc_jax.frames"),
        ("nc_jax.manifolds.__init__", "from nc_jax import nearest_frame", "nc_jax.manifolds comes before nc_jax"),
        ("nc_jax.manifolds.__init__", "from ..training import step", "comes before nc_jax.training"),
        ("nc_jax.frames.properties", "from .simplex import simplex_etf", "comes before nc_jax.frames"),
        ("nc_jax.training.loop", "import experiments.nearest_etf", "nc_jax.training comes before experiments"),
        ("nc_jax.__init__", "from nc_jax.models import NearestHead", "nc_jax comes before nc_jax.models"),
        ("nc_jax.metrics.collapse", "import optax", "the mathematics does without it"),
        ("nc_jax.losses", "from flax import linen as nn", "the mathematics does without it"),
        ("nc_jax.theory.optimum", "import optax", "the mathematics does without it"),
        ("nc_jax.theory.objective", "from nc_jax import training", "nc_jax.theory comes before nc_jax.training"),
        ("nc_jax.training.loop", "from flax import linen", "know Linen"),
        ("nc_jax.training.step", "import jax\nstep = jax.pmap(abs)", "nc_jax.training.step calls pmap"),
        ("nc_jax.streams.reader", "from jax import pmap as parallel", "nc_jax.streams.reader calls pmap"),
        ("nc_jax.surprise", "import jax", "nc_jax.surprise has no place in LAYERS"),
        ("nc_jax.implicit", "import jaxopt", "only nc_jax.root_rules does"),
        ("nc_jax.study.runs", "def f():\n    from orbax import checkpoint", "only nc_jax.training.checkpoint does"),
        ("nc_jax.hierarchy.tree", "import networkx", "pip install nc_jax does not bring it"),
        ("nc_jax.hierarchy.tree", "try:\n    import torch\nfinally:\n    pass", "does not bring it"),
    ],
)
def test_a_planted_violation_is_found(module, source, sentence):
    (found,) = violations({module: source})
    assert sentence in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nc_jax.solvers.polar", "from nc_jax.arrays import matmul\nfrom nc_jax import manifolds"),
        ("nc_jax.frames.hyperspherical", "from nc_jax.frames.properties import gram\nfrom . import simplex"),
        ("nc_jax.training.state", "import flax.linen as nn\nimport optax"),
        ("nc_jax.training.parallel", "import jax\nstep = jax.pmap(abs)"),
        ("experiments.nearest_etf", "from nc_jax import nearest_frame\nimport benchmarks"),
        ("nc_jax.hierarchy.drawing", "def draw():\n    import matplotlib.figure"),
        ("nc_jax.hierarchy.drawing", "if TYPE_CHECKING:\n    from networkx import DiGraph"),
    ],
)
def test_the_permitted_is_permitted(module, source):
    assert violations({module: source}) == []
