"""What experiments and benchmarks share: settings, comparisons, ledgers, statistics, tables, plots, command lines.

A name is imported when it is first asked for: a command line and its tables then do without all that training brings,
which takes six seconds to import and which not every machine with an accelerator has.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nc_jax.study import confusion_trees, heat_maps, plots
    from nc_jax.study.cli import RunOptions, main
    from nc_jax.study.comparison import Found, Results, Run, compare
    from nc_jax.study.experiment import Experiment, Scene, confusions, curves, finish, run, summary_picture
    from nc_jax.study.ledger import Ledger
    from nc_jax.study.planning import About, Plan
    from nc_jax.study.settings import Comparison, Group, dotted, refuse_overridden
    from nc_jax.study.tables import Column, Table, comparison_tables
    from nc_jax.study.trainers import check, plan

__all__ = [
    "About",
    "Column",
    "Comparison",
    "Experiment",
    "Found",
    "Group",
    "Ledger",
    "Plan",
    "Results",
    "Run",
    "RunOptions",
    "Scene",
    "Table",
    "check",
    "compare",
    "comparison_tables",
    "confusion_trees",
    "confusions",
    "curves",
    "dotted",
    "finish",
    "heat_maps",
    "main",
    "plan",
    "plots",
    "refuse_overridden",
    "run",
    "summary_picture",
]

_NAMES = {
    "cli": "RunOptions main",
    "comparison": "Found Results Run compare",
    "experiment": "Experiment Scene confusions curves finish run summary_picture",
    "ledger": "Ledger",
    "planning": "About Plan",
    "settings": "Comparison Group dotted refuse_overridden",
    "tables": "Column Table comparison_tables",
    "trainers": "check plan",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
