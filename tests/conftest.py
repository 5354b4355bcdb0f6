"""What every test runs under: eight virtual CPU devices, a compilation cache, shapes checked at run time."""

import gc
import os
from pathlib import Path

# Set before the first import of jax, and in the environment so that programs started by a test inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compilation is most of what the tests cost, and their programs are small: without LLVM's optimisations, the emitters
# of fused loops and the splitting of a program over threads it takes about a third. Without fused multiply-adds (AVX
# has none) a value is rounded alike wherever it is computed, which nothing else promises once a compiler leaves it in
# two places. Flags from outside come last and win: CONTRIBUTING.md has those that compile as a user's program is
# compiled.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    f"--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_max_isa=AVX {os.environ.get('XLA_FLAGS', '')}"
).strip()
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

MANY_MAPS = 20_000  # a module adds a few thousand at most

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
    """Free the compiled programs once they are many.

    Each holds a dozen memory maps, and Linux gives a process 65,530: a worker that kept all of them died of a
    segmentation fault in the compilation that needed one more.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()
