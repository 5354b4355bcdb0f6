"""List the experiments: question, claim, command, presets and times of each.

Usage: nc-jax list
"""

from collections.abc import Sequence

from nc_jax.commands.experiments_folder import import_experiments
from nc_jax.study.ends import fail, started_by_nc_jax
from nc_jax.study.listing import describe_experiments


def main(words: Sequence[str]) -> None:
    """Print the list."""
    if set(words) & {"--help", "-h"}:
        print(__doc__)
        return
    if words:
        fail(f"nc-jax list takes no arguments; got {' '.join(words)}")
    with started_by_nc_jax():
        print(describe_experiments(import_experiments()))
