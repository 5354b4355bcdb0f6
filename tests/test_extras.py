"""What `pip install nc_jax` is enough for, which extra brings what, and the sentence where one is missing."""

import json
import re
from importlib import metadata

import pytest
from hiding import PROJECT, ROOT, canonical, requirements, run_hidden

from nc_jax import extras
from nc_jax.extras import MissingExtraError, require_all

PAGE = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
# Extra -> (what the page says that it brings, what for).
ROWS = {
    name.strip("`"): (brings, purpose)
    for name, brings, purpose in re.findall(r"^\| (none|`[a-z]+`) \| (.+?) \| (.+) \|$", PAGE, re.M)
}
MODULES = {extra: re.findall(r"`(nc_jax[\w.]*)`", purpose) for extra, (_, purpose) in ROWS.items()}
NOT_FOR_USERS = {"dev", "docs", "bench"}
ACCELERATORS = {"cuda12", "cuda13", "tpu"}

SURVEY = """
import importlib, json, pathlib
import nc_jax

ROOT = pathlib.Path(nc_jax.__file__).parent
found = {}
for path in sorted(ROOT.rglob("*.py")):
    name = ".".join(("nc_jax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
            found[name] = None
        except ImportError as error:
            found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""

MEASURE = """
import numpy as np
from nc_jax import heads, nearest_simplex_etf
from nc_jax.metrics import ClassStatistics, collapse_metrics

rng = np.random.default_rng(0)
labels = np.repeat(np.arange(3), 4)
frame = nearest_simplex_etf(rng.normal(size=(5, 3)).astype(np.float32)).frame
features = np.asarray(frame).T[labels]
found = collapse_metrics(ClassStatistics.from_batch(features, labels, 3), frame)
print(all(abs(float(found[name])) < 1e-5 for name in ("nc1", "nc2_means", "nc2_classifier", "nc3")))
"""


def test_the_page_has_a_row_for_every_extra():
    assert ROWS.keys() - {"none"} == PROJECT["optional-dependencies"].keys() - NOT_FOR_USERS - ACCELERATORS
    assert all(f"nc_jax[{extra}]" in PAGE for extra in ACCELERATORS)


@pytest.mark.parametrize("extra", ROWS)
def test_an_extra_brings_what_the_page_says(extra):
    said = {canonical(word.strip("`")) for word in ROWS[extra][0].split(", ")}
    written = PROJECT["dependencies"] if extra == "none" else PROJECT["optional-dependencies"][extra]
    brought = set()
    for one in written:
        ours = re.match(r"nc_jax\[(.*)\]", one)
        brought |= set(ours[1].split(",")) if ours else {canonical(re.match(r"[\w-]+", one)[0])}
    assert said == brought


@pytest.mark.slow
@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_program_knows_what_an_extra_brings(extra):
    """Distributions and packages have different names: scikit-learn and sklearn, for instance."""
    brought = {canonical(one.name) for one in requirements(extra)}
    known = set()
    for package in extras.EXTRAS[extra]:
        providers = {canonical(name) for name in metadata.packages_distributions()[package]} & brought
        assert providers, f"{extra} does not bring {package}"
        known |= providers
    assert known == brought


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "plots", ("json", "no_such_package"))
    with pytest.raises(MissingExtraError) as caught:
        require_all("plots", "a picture")
    assert str(caught.value) == "a picture needs no_such_package; install it by: pip install 'nc_jax[plots]'"
    assert caught.value.name == "no_such_package"


@pytest.mark.slow
def test_without_extras_a_module_can_be_imported_or_names_the_extra():
    done = run_hidden(SURVEY)
    found = json.loads(done.stdout.splitlines()[-1])
    missing = {name: error for name, error in found.items() if error is not None}
    assert [name for name in MODULES["none"] if name in missing] == []
    for name, (kind, sentence) in missing.items():
        assert kind == "MissingExtraError", f"{name}: {sentence}"
        assert re.fullmatch(r"nc_jax\S+ needs \w+; install it by: pip install 'nc_jax\[[a-z]+\]'", sentence), name
    for extra, modules in MODULES.items():
        for module in modules if extra != "none" else ():
            assert module in missing, f"{module} needs no extra"


@pytest.mark.slow
def test_without_extras_collapse_can_be_measured():
    done = run_hidden(MEASURE)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("extra", [extra for extra, modules in MODULES.items() if modules and extra != "none"])
def test_an_extra_is_enough_for_what_the_page_says(extra):
    imports = "\n".join(f"import {module}" for module in MODULES[extra])
    done = run_hidden(f"{imports}\nprint('imported')", extra)
    assert done.stdout.splitlines()[-1:] == ["imported"], done.stderr


DOORS = {
    "nc-jax list": "from nc_jax.commands import main; main(['list'])",
    "nc-jax run": "from nc_jax.commands import main; main(['run', 'nearest_etf', 'smoke'])",
    "python -m experiments": "import runpy, sys; sys.argv[0] = '-m'; runpy.run_module('experiments', alter_sys=True)",
    "python -m experiments.nearest_etf": (
        "import runpy, sys; sys.argv[0] = '-m'; runpy.run_module('experiments.nearest_etf', alter_sys=True)"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_every_door_to_the_experiments_names_the_extra(door):
    done = run_hidden(DOORS[door])
    assert done.returncode == 2
    assert done.stderr == "error: an experiment needs flax; install it by: pip install 'nc_jax[experiments]'\n"
