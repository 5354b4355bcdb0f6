"""Benchmarks: one runnable module per claim, `python -m benchmarks.<name> [smoke|default|gpu] [--flag value]`."""
