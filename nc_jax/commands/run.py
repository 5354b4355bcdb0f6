"""Train: one of the experiments, with a preset and settings.

Usage: nc-jax run EXPERIMENT [PRESET] [--setting value ...]

`nc-jax list` lists the experiments, `nc-jax run EXPERIMENT --help` says what one of them takes.
"""

import runpy
import sys
from collections.abc import Sequence

from nc_jax.commands.experiments_folder import NAME, import_experiments
from nc_jax.study.ends import fail, started_by_nc_jax
from nc_jax.study.listing import experiments_in


def main(words: Sequence[str]) -> None:
    """Run an experiment as `python -m experiments.NAME` does."""
    if not words or words[0] in ("--help", "-h"):
        print(__doc__)
        return
    folder = import_experiments()
    there = experiments_in(folder)
    if words[0] not in there:
        fail(f"the experiment must be one of {', '.join(there)}; got {words[0]!r}")
    sys.argv[1:] = words[1:]
    sys.modules[NAME].end_on_ctrl_c()
    with started_by_nc_jax():
        runpy.run_module(f"{NAME}.{words[0]}", run_name="__main__", alter_sys=True)
