"""Which metrics of a log are drawn as curves, and the curves of saved runs: methods in colours, runs by dashes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nc_jax.methods import METHODS
from nc_jax.study.compared import Row, Saved, label
from nc_jax.study.plots import Look, looks

# What is drawn where the log has it: name without "train/" or "test/", title, scale.
PANELS = [
    ("loss", "loss", "log"),
    ("accuracy", "accuracy", "linear"),
    ("vci", "variability collapse index", "linear"),
    ("nc1", "NC1: within-class variability", "log"),
    ("nc2_means", "NC2 of class means", "log"),
    ("nc2_classifier", "NC2 of the classifier", "linear"),
    ("nearest_etf_means", "class means to the nearest ETF", "log"),
    ("nearest_etf_classifier", "classifier to the nearest ETF", "linear"),
    ("nc3", "NC3: classifier to class means", "log"),
    ("mismatch", "1 - NC4: not the nearest centre", "linear"),
    ("cosine_margin", "mean cosine margin", "linear"),
    ("cosine_margin_min", "least cosine margin", "linear"),
    ("rank_means", "rank of class means", "linear"),
    ("effective_rank_means", "effective rank of class means", "linear"),
]
OF_THE_CLASSIFIER = ("nc2_classifier", "nearest_etf_classifier")  # the same on the training and the test set
SEED = re.compile(r"-?seed\d+$")  # the end of a run's name
Panel = tuple[str, str, str]  # name of a metric in the log, title, scale


class Curves(NamedTuple):
    """What is drawn of saved runs.

    Attributes:
        log: lines of all logs; the names of their runs are told apart.
        groups: the runs (seeds) of each curve.
        looks: how each curve is drawn.
    """

    log: list[dict[str, Any]]
    groups: dict[str, list[str]]
    looks: dict[str, Look]

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics in the log."""
        return {name for line in self.log for name in line}


def panels_of(there: Iterable[str]) -> list[Panel]:
    """Return the known metrics among some names, each with its title and scale."""
    there = set(there)
    splits = [("", ""), ("train/", " (train)"), ("test/", " (test)")]
    return [
        (split + name, title + suffix, scale)
        for name, title, scale in PANELS
        for split, suffix in splits
        if split + name in there and not (split == "test/" and name in OF_THE_CLASSIFIER)
    ]


def with_mismatch(log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of a log with 1 - NC4, which is zero at collapse as the others are, where they have NC4."""
    found = []
    for line in log:
        ours = {
            f"{split}mismatch": 1 - line[f"{split}nc4"]
            for split in ("", "train/", "test/")
            if line.get(f"{split}nc4") is not None
        }
        found.append(dict(line) | ours)
    return found


def group_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of runs by what they have in common: the name without the seed.

    Example:
        >>> group_names(["fixed-seed0", "fixed-seed1", "nearest-seed0"])
        {'fixed': ['fixed-seed0', 'fixed-seed1'], 'nearest': ['nearest-seed0']}
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(SEED.sub("", name), []).append(name)
    return groups


def row_of(name: str) -> Row:
    """Return the row of the table to which a group belongs, as far as its name says it: by the method at its end."""
    method = max((m for m in METHODS if name == m or name.endswith(f"-{m}")), key=len, default="")
    return ("", name.removesuffix(method).removesuffix("-"), method)


def curves_of(runs: Sequence[Saved], logs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Curves]:
    """Return what is drawn of saved runs, finished or not, by case.

    Args:
        runs: the runs.
        logs: the lines of each run's log.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    groups: dict[str, dict[str, list[str]]] = {}
    styles: dict[str, dict[str, tuple[str, str]]] = {}
    for run, log in zip(runs, logs, strict=True):
        known = {name: row for row, names in run.names.items() for name in names}
        by_seed: dict[str, list[str]] = group_names(str(line["run"]) for line in log if SEED.search(str(line["run"])))
        case_of: dict[str, str] = {}
        for base, names in by_seed.items():
            row = next((known[name] for name in names if name in known), row_of(base))
            case, variant, method = row
            title = label(("", variant, method)) or base
            drawn = title if len(runs) == 1 else f"{title}, {run.name}"
            groups.setdefault(case, {})[drawn] = [f"{run.name}/{name}" for name in names]
            look = ", ".join(filter(None, (variant, run.name if len(runs) > 1 else "")))
            styles.setdefault(case, {})[drawn] = (look, METHODS[method].title if method in METHODS else title)
            case_of |= dict.fromkeys(names, case)
        for line in log:
            if line["run"] in case_of:
                named = dict(line) | {"run": f"{run.name}/{line['run']}"}
                lines.setdefault(case_of[line["run"]], []).append(named)
    return {case: Curves(with_mismatch(lines[case]), groups[case], looks(styles[case])) for case in groups}
