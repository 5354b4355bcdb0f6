"""Benchmarks: one runnable module per claim, `python -m benchmarks.<name> [smoke|default|gpu] [--flag value]`."""

import os

# Worker threads of OpenBLAS and of OpenMP keep spinning after a call (for 2^26 cycles, and for milliseconds). With as
# many threads as cores that delays whatever is timed next: a solve of 0.4 ms took 16. Set before NumPy or PyTorch load.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")  # 2^22 cycles, 1.5 ms: the peers are fastest so
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
