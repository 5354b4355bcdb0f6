"""Settings for all tests: eight virtual CPU devices, a compilation cache, and shapes checked at run time."""

import gc
import itertools
import os
from importlib import metadata
from pathlib import Path

# Set before the first import of jax, and in the environment so that programs started by a test inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# The tests spend most of their time on compilation, and their programs are small. Without LLVM's optimisations, without
# the emitters of fused loops and without splitting a program over threads, compilation takes about a third of the time.
# AVX has no fused multiply-adds, so a value that a program computes in two places is rounded in the same way in both.
# Flags in the environment come last and win. CONTRIBUTING.md has the flags that compile as for a user.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    f"--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_max_isa=AVX {os.environ.get('XLA_FLAGS', '')}"
).strip()
if metadata.version("jaxlib").startswith("0.10."):  # later versions have no other way, and end at an unknown flag
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ['XLA_FLAGS']}"
os.environ["MPLBACKEND"] = "Agg"
# The xdist workers share the cache. Its files never change once they are written. A worker that reads a half-written
# file compiles the program itself (pyproject.toml ignores the warning about this).
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".cache" / "jax")
os.environ["NC_JAX_CACHE"] = str(Path(__file__).resolve().parents[1] / ".cache" / "nc_jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import hypothesis
import jax
import jaxtyping
import pytest

MANY_MAPS = 20_000  # twenty tests add some thousands at most

jaxtyping.install_import_hook("nc_jax", "beartype.beartype")

# derandomize: a failure in CI can be reproduced here. The x64 fixture applies to all examples of a test, as intended.
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


# What imports and collection make stays until the end, and Python would look through all of it again and again.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(items):
    """Mark what is told by its kind or file.

    Examples in docstrings are slow: each compiles programs of its own. The tests of every file that skips some without
    PyTorch get the mark by which `-m torch` runs them where it is there.
    """
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("slow")
    for path, tests in itertools.groupby(items, lambda item: item.path):
        if path.name.startswith("test_") and 'importorskip("torch")' in path.read_text(encoding="utf-8"):
            for test in tests:
                test.add_marker("torch")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: figures.append(self) or save(self, *args, **kw))
    return figures


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _drop_compiled_programs():
    """Free the compiled programs once they are many.

    Each program holds a dozen memory maps, and Linux allows 65,530 per process. A worker that kept all programs ended
    with a segmentation fault when a compilation needed one more map.
    """
    yield
    if next(_tests) % 20:  # counting takes as long as a small test
        return
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> str:
    """Digits, prepared once for all tests that train on them through a command line."""
    return str(tmp_path_factory.mktemp("tfds"))
