"""The memory meter of the benchmarks."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Memory(NamedTuple):
    """Memory of one call, beyond the memory that was held before it.

    Attributes:
        peak: measured extra bytes at the highest point, including the result.
        planned: bytes that XLA plans for temporaries and results of the compiled program, without the work space of
            LAPACK and of matrix products; None if the call is not an XLA program.
        method: how `peak` was measured.
    """

    peak: int
    planned: int | None
    method: str


def peak_memory(prepare: Callable[..., Callable[[], Any]], *args: Any) -> Memory:
    """Measure the extra peak memory of one call, in a fresh process.

    In the new process, `prepare(*args)` builds the inputs and returns the call. For JAX, return
    `functools.partial(compiled, *inputs)` with `compiled = jitted.lower(*inputs).compile()`, so that compilation ends
    before the measurement starts. `prepare` must be a function of a module, and its arguments must pickle.

    On a CPU (Linux), the kernel's high-water mark of resident memory is reset before the call and read after it. So
    even a short peak is seen, and a fresh process has little freed memory that the call could reuse unseen. On a GPU
    the allocator reports the peak.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _prepare_child, (jax.default_backend(),)) as pool:
        return pool.submit(_peak_of_one_call, prepare, args).result()


def _prepare_child(backend: str) -> None:
    """Set the variables that JAX reads when a process first uses its device."""
    if backend == "gpu":
        # No preallocation, because the parent process may hold most of the memory. No autotuning, because its trial
        # buffers would raise the high-water mark before the call.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()


def _peak_of_one_call(prepare: Callable[..., Callable[[], Any]], args: tuple) -> Memory:
    call = prepare(*args)
    program = getattr(call, "func", call)
    planned = None
    if hasattr(program, "memory_analysis"):
        plan = program.memory_analysis()
        if plan is not None:
            planned = plan.temp_size_in_bytes + plan.output_size_in_bytes
    device = jax.devices()[0]
    gc.collect()
    if device.platform != "cpu":
        before = device.memory_stats()["bytes_in_use"]
        result = jax.block_until_ready(call())
        peak = device.memory_stats()["peak_bytes_in_use"] - before
        method = "device.memory_stats()"
    else:
        with contextlib.suppress(OSError, AttributeError):  # glibc only: give freed memory back to the system
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS, man 5 proc
        before = _status_bytes("VmRSS")
        result = jax.block_until_ready(call())
        peak = _status_bytes("VmHWM") - before
        method = "VmHWM - VmRSS of a fresh process"
    del result
    return Memory(peak, planned, method)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status must hold {field}; got none")
    return int(found[1]) * 1024
