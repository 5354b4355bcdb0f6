"""Finished runs read back, to be set beside each other: what differs in their settings, and in their results."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nc_jax.methods import METHODS
from nc_jax.study.cli import WHERE
from nc_jax.study.ledger import Ledger
from nc_jax.study.runs import SETTINGS, read_document
from nc_jax.study.tables import Column, Table, comparison_tables, named
from nc_jax.study.verdict import verdicts

RESULTS = "results.jsonl"
Row = tuple[str, str, str]  # case, variant of the settings, method


class Saved(NamedTuple):
    """A run on disk.

    Attributes:
        name: name of the run beside other runs.
        directory: directory of the run.
        experiment: name of the run's experiment.
        settings: values by dotted name, with the version of the code and of JAX and the device.
        results: the numbers of each row of the table, by seed.
        names: names of each row's runs in metrics.jsonl.
    """

    name: str
    directory: Path
    experiment: str
    settings: dict[str, Any]
    results: dict[Row, dict[int, dict[str, Any]]]
    names: dict[Row, list[str]]


def names_of(directories: Sequence[Path]) -> list[str]:
    """Return names of runs beside each other: those of their directories, or their paths if two have the same name.

    Raises:
        ValueError: if two directories are the same.
    """
    if len({path.resolve() for path in directories}) < len(directories):
        raise ValueError(f"the runs must be in different directories; got {', '.join(map(str, directories))}")
    names = [path.resolve().name for path in directories]
    return names if len(set(names)) == len(names) else [str(path) for path in directories]


def load(directories: Sequence[Path]) -> list[Saved]:
    """Read runs back.

    Args:
        directories: directories of the runs.

    Raises:
        FileNotFoundError: if a directory has no config.json or no results.jsonl.
        ValueError: if a run has no results by method and seed, or two directories are the same.
    """
    return [_load(path, name) for path, name in zip(directories, names_of(directories), strict=True)]


def _load(directory: Path, name: str) -> Saved:
    document = read_document(directory / SETTINGS)
    kind = f"{directory}, of {document['experiment']}"
    if not (directory / RESULTS).is_file():
        raise FileNotFoundError(f"runs that can be compared have a {RESULTS}; got {kind}, without")
    results, names = results_of(directory)
    if not results:
        raise ValueError(f"runs that can be compared have results by method and seed; got {kind}, without")
    return Saved(name, directory, document["experiment"], settings_of(document), results, names)


def settings_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in a run's config.json by dotted name, with what else a result depends on.

    Args:
        document: what `nc_jax.study.runs.read_document` returns.
    """
    settings = dict(_flat(document["config"], ""))
    about = document.get("environment", {})
    settings |= {"code": about.get("commit"), "jax": about.get("versions", {}).get("jax")}
    return settings | {"device": about.get("device", {}).get("kind")}


def results_of(directory: Path) -> tuple[dict[Row, dict[int, dict[str, Any]]], dict[Row, list[str]]]:
    """Return what each seed of each row of a run's table reached so far, and the names of each row's runs in the log.

    Both are empty if the run has no results by method and seed.

    Raises:
        ValueError: if the file of results is damaged.
    """
    results: dict[Row, dict[int, dict[str, Any]]] = {}
    names: dict[Row, list[str]] = {}
    for key, found in Ledger(directory / RESULTS).items():
        if "method" not in key or "seed" not in key:
            continue
        row = (str(key["case"]), str(key.get("variant", "")), str(key["method"]))
        run = key.get("run", f"{row[0]}-{row[2]}-seed{key['seed']}")  # experiments without variants name no run
        if run.endswith(f"-seed{key['seed']}"):  # others choose a learning rate
            results.setdefault(row, {})[int(key["seed"])] = found
            names.setdefault(row, []).append(run)
    return results, names


def _flat(settings: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if not path and name in WHERE:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def settings_table(runs: Sequence[Saved], *, differ: bool = True) -> Table:
    """Return the settings in which runs differ, a row each.

    Args:
        runs: the runs.
        differ: False returns the settings in which they agree.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [
        [name, *(json.dumps(run.settings.get(name), ensure_ascii=False) for run in runs)]
        for name in names
        if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs) is differ
    ]
    title = ("Settings that differ" if rows else "No setting differs.") if differ else "Settings that are the same"
    return Table(title, ["", *(run.name for run in runs)], rows)


def common_rows(runs: Sequence[Saved]) -> list[Row]:
    """Return the rows that all runs have for a common seed at least."""
    seeds = {row: [set(run.results.get(row, ())) for run in runs] for row in runs[0].results}
    return [row for row, found in seeds.items() if set.intersection(*found)]


def columns_of(runs: Sequence[Saved], names: Sequence[str], own: Sequence[Column]) -> list[Column]:
    """Return the metrics to compare: those that are named, or the experiment's own, or all numbers.

    Args:
        runs: the runs to compare.
        names: names of metrics; empty leaves the choice to the experiment.
        own: the metrics of the experiment's own tables; empty if it does not say.

    Raises:
        ValueError: if a metric is in none of the runs.
    """
    there = dict.fromkeys(
        name
        for run in runs
        for seeds in run.results.values()
        for found in seeds.values()
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"metrics must be among {', '.join(there)}; got {', '.join(unknown)}")
    known = {column.key: column for column in named(own, runs[0].settings.get("target_accuracy") or 0)}
    return [known.get(name, Column(name, name, 4)) for name in names or (known or there)]


def compared(runs: Sequence[Saved], row: Row, columns: Sequence[Column]) -> tuple[list[str], list[Table]]:
    """Compare a row of the table between runs, seed by seed.

    Args:
        runs: the first is what the others are compared with.
        row: one of `common_rows`.
        columns: the metrics.

    Returns:
        Sentences and tables.
    """
    seeds = sorted(set.intersection(*(set(run.results[row]) for run in runs)))
    results = {
        run.name: {c.key: [float(run.results[row][seed].get(c.key, float("nan"))) for seed in seeds] for c in columns}
        for run in runs
    }
    first, *others = results
    if len({repr(values) for values in results.values()}) == 1:
        return [f"{label(row)}: the runs agree in every number of their {len(seeds)} common seeds."], []
    said = [f"{label(row)}: {line}" for other in others for line in verdicts(results, columns, other, [first])]
    return said, comparison_tables(results, columns, first, what=label(row))


def label(row: Row) -> str:
    """Return the name of a row."""
    case, variant, method = row
    title = METHODS[method].title if method in METHODS else method
    return ", ".join(filter(None, (case, variant, title)))
