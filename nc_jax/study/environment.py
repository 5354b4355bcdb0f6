"""What a result depends on besides its settings."""

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

# Environment variables that decide how many threads a program gets, or what XLA compiles.
SETTINGS = (
    "XLA_FLAGS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_THREAD_TIMEOUT",
)


def environment() -> dict[str, Any]:
    """Return what a number depends on besides the settings: machine, load, versions, commit, command, time."""
    packages = ("nc_jax", "jax", "jaxlib", "jaxopt", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
    peers = ("torch", "pymanopt", "geojax", "flwr", "ray")  # of benchmarks
    devices = jax.devices()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.orig_argv[1:]),
        "commit": _commit(),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "cpu": {"model": _cpu_model(), "cores": len(os.sched_getaffinity(0))},
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ}
        | {"jax_cpu_enable_async_dispatch": jax.config.read("jax_cpu_enable_async_dispatch")},
        "load": list(os.getloadavg()),  # over 1, 5 and 15 minutes, the benchmark's own included
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages}
        | {name: version for name in peers if (version := _version(name)) is not None},
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installation may lie within a checkout of something else, whose commit would say nothing.
        _said([*git, "ls-files", "--error-unmatch", Path(__file__).name])
        return _said([*git, "describe", "--always", "--dirty", "--abbrev=12"])
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout
        return os.environ.get("NC_JAX_COMMIT")  # whoever copied the files there may know


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
