"""What every test runs under: eight virtual CPU devices, a compilation cache, shapes checked at run time."""

import os
from pathlib import Path

# Set before the first import of jax, and in the environment so that programs started by a test inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# Eight virtual devices share two cores. XLA aborts the process when one of them is 40 s late at a sum, as happened on a
# starved machine; ten minutes is longer than any such pause and still ends a deadlock.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
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
