"""What every test runs under: eight virtual CPU devices, a compilation cache, shapes checked at run time."""

import gc
import os
from pathlib import Path

# Set before the first import of jax, and in the environment so that programs started by a test inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["MPLBACKEND"] = "Agg"
# The cache is shared by the xdist workers: its files are never changed once written, and a reader that meets a
# half-written one compiles for itself (the warning that says so is ignored in pyproject.toml).
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import hypothesis
import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("nc_jax", "beartype.beartype")

# derandomize: what fails in CI fails here. The x64 fixture holds for all examples of a test, which is what is meant.
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
    """Free a module's compiled programs when it ends.

    Each holds a dozen memory maps, and Linux gives a process 65,530: a worker that kept them all had 57,000 after three
    quarters of the tests, and soon died of a segmentation fault in the next compilation.
    """
    yield
    jax.clear_caches()
    gc.collect()
