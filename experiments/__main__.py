"""List what there is: `python -m experiments`."""

from pathlib import Path

from nc_jax.study.listing import describe_experiments

print(describe_experiments(Path(__file__).parent))
