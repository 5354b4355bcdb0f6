"""Benchmarks: one runnable module per claim, `python -m benchmarks.<name> [smoke|default|gpu] [--flag value]`."""

import os

# Worker threads of OpenBLAS keep spinning for 2^26 cycles after a call, those of OpenMP for milliseconds. If there are
# as many threads as cores, this delays whatever is timed next: a solve of 0.4 ms took 16 ms. Set these variables before
# NumPy or PyTorch is loaded.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")  # 2^22 cycles, 1.5 ms: with this value the peers are fastest
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
