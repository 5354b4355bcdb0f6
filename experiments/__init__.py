"""Runnable experiments: `python -m experiments.<name> [preset] [--flag value]`."""
