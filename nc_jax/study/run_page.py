"""One page about one or several runs: what was run, settings, results with tests, curves, confusions, pictures."""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nc_jax.study import heat_maps, plots
from nc_jax.study.compared import columns_of, common_rows, compared, label, settings_table
from nc_jax.study.comparison import Found, mean_confusion
from nc_jax.study.ends import as_started_here
from nc_jax.study.opened import Opened
from nc_jax.study.page import Page
from nc_jax.study.saved_curves import Curves, Panel, curves_of, panels_of
from nc_jax.study.statistics import mean_and_sd
from nc_jax.study.tables import Column, Table, comparison_tables
from nc_jax.study.verdict import verdicts

FIRST = ("accuracy", "loss", "nc1", "nc2_means", "nc2_classifier", "nc3", "mismatch")  # curves that are not folded
REDRAWN = ("convergence", "confusion")  # pictures of a run in whose place the page has its own
MOST_ROWS = 30  # of a table that is not folded


class Known(NamedTuple):
    """What is known of an experiment besides its runs.

    Attributes:
        question: the question that it asks; "" if it is not known.
        claim: the claim that it tests.
        columns: the metrics of its tables; none if it does not say.
        planned: the settings of a run, as config.json has them -> number of runs of all methods and seeds; None if that
            is not known.
    """

    question: str = ""
    claim: str = ""
    columns: Sequence[Column] = ()
    planned: Callable[[Path], int | None] = lambda _: None


def page_of(runs: Sequence[Opened], known: Mapping[str, Known]) -> str:
    """Return a page about runs.

    Args:
        runs: the runs; the first of each experiment is what its others are compared with.
        known: what is known of their experiments, by name.
    """
    by_experiment: dict[str, list[Opened]] = {}
    for run in runs:
        by_experiment.setdefault(run.saved.experiment, []).append(run)
    page = Page("; ".join(f"{name}: {', '.join(one.name for one in group)}" for name, group in by_experiment.items()))
    _what_was_run(page, runs, by_experiment, known)
    for name, group in by_experiment.items():
        _settings(page, group, name if len(by_experiment) > 1 else "")
    for name, group in by_experiment.items():
        for run in group:
            page.heading(f"Results of {run.name}")
            _results(page, run, known[name].columns)
        if len(group) > 1:
            page.heading(f"Runs of {name} beside each other")
            _beside(page, group, known[name].columns)
    for name, group in by_experiment.items():
        drawn = curves_of([run.saved for run in group], [run.log for run in group])
        if any(panels_of(curves.metrics) for curves in drawn.values()):
            page.heading(f"Curves of {name}" if len(by_experiment) > 1 else "Curves")
            for case, curves in drawn.items():
                _curves(page, case, curves)
    for run in runs:
        _by_class(page, run)
        _pictures(page, run)
    return page.text()


# --- What was run, and how. ---


def _what_was_run(
    page: Page, runs: Sequence[Opened], by_experiment: Mapping[str, Sequence[Opened]], known: Mapping[str, Known]
) -> None:
    page.heading("What was run")
    for name in by_experiment:
        if known[name].question:
            page.say([f"{name}: {known[name].question}"])
            page.say([f"Claim: {known[name].claim}"] if known[name].claim else [])
    if len(by_experiment) > 1:
        page.say(["Runs of different experiments are not compared with each other."])
    facts = [_facts(run, known[run.saved.experiment]) for run in runs]
    rows = [[name, *(one[name] for one in facts)] for name in facts[0]]
    page.tables([Table("", ["", *(run.name for run in runs)], rows)], text_columns=range(1, len(runs) + 1))
    for run in runs:
        page.say(_missing(run))


def _facts(run: Opened, known: Known) -> dict[str, str]:
    about = run.document.get("environment", {})
    versions, device, cpu = (about.get(name) or {} for name in ("versions", "device", "cpu"))
    done = sum(len(seeds) for seeds in run.saved.results.values())
    planned = known.planned(run.saved.directory)
    of = f" of {planned}" if planned else ""
    return {
        "experiment": run.saved.experiment,
        "preset": str(run.document["config"].get("preset", "-")),
        "state": "finished" if run.finished else f"not finished: {done}{of} trainings are done",
        "started": str(about.get("time", "-")).replace("T", " "),
        "command": _command(str(about.get("command", "-"))),
        "directory": str(run.saved.directory),
        "nc_jax": f"{versions.get('nc_jax', '-')}, commit {about.get('commit') or 'unknown'}",
        "jax": f"{versions.get('jax', '-')}, Python {about.get('python', '-')}",
        "device": f"{device.get('count', '-')} x {device.get('kind', '-')}",
        "processor": f"{cpu.get('cores', '-')} core{'' if cpu.get('cores') == 1 else 's'}, {cpu.get('model', '-')}",
    }


def _command(words: str) -> str:
    """Return a command as it was typed: its record begins behind the interpreter, with -m or the path of a script."""
    first, _, rest = words.partition(" ")
    return f"python {words}" if first == "-m" else f"{Path(first).name} {rest}"


def _missing(run: Opened) -> list[str]:
    """Say what a run lacks."""
    said = [f"{run.name}: {trouble}, so the page does without it." for trouble in run.troubles]
    if not run.finished:
        program = f"python -m experiments.{run.saved.experiment}"
        go_on = as_started_here(f"{program} --resume {run.saved.directory}")
        said.append(f"{run.name} is not finished, so it has no summary of its own; to go on: {go_on}")
    return said


def _settings(page: Page, group: Sequence[Opened], experiment: str) -> None:
    page.heading(f"Settings of {experiment}" if experiment else "Settings")
    saved, places = [run.saved for run in group], range(1, len(group) + 1)
    differ, same = settings_table(saved), settings_table(saved, differ=False)
    if differ.rows:
        page.tables([differ], text_columns=places)
    elif len(saved) > 1:
        page.say([differ.title])
    # One value says it for all.
    rows = [row[:2] for row in same.rows]
    with page.folded(f"{'The other' if differ.rows else 'All'} {len(rows)} settings"):
        page.tables([Table("", ["", "value"], rows)], text_columns=[1])


# --- What came out. ---


def _results(page: Page, run: Opened, own: Sequence[Column]) -> None:
    if not run.parts:
        _results_so_far(page, run, own)
    for kind, some in itertools.groupby(run.parts, key=lambda part: part.kind):
        contents = [part.content for part in some]
        if kind == "heading":
            page.subheading(contents[-1])
        elif kind == "sentence":
            page.say(contents)
        elif kind == "table":
            page.tables(contents)


def _results_so_far(page: Page, run: Opened, own: Sequence[Column]) -> None:
    """Say what the ledger of a run says, in place of a summary."""
    results = run.saved.results
    if not results:
        page.say(["There are no results yet."])
        return
    columns = columns_of([run.saved], (), own)
    for case in dict.fromkeys(row[0] for row in results):
        rows = [row for row in results if row[0] == case]
        seeds = sorted(set.intersection(*(set(results[row]) for row in rows)))
        page.say([f"Seeds that all rows have: {', '.join(map(str, seeds)) or 'none'}."])
        if not seeds:
            continue
        values = {
            label(("", *row[1:])): {c.key: [_number(results[row][seed].get(c.key)) for seed in seeds] for c in columns}
            for row in rows
        }
        first, *others = values
        page.say(verdicts(values, columns, first, others))
        page.tables(comparison_tables(values, columns, first, what=case or run.saved.experiment))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _beside(page: Page, group: Sequence[Opened], own: Sequence[Column]) -> None:
    """Compare runs of one experiment, seed by seed."""
    saved = [run.saved for run in group if run.saved.results]
    without = [run.name for run in group if not run.saved.results]
    page.say([f"Without results by method and seed, so not compared: {', '.join(without)}."] if without else [])
    if len(saved) < 2:
        return
    rows = common_rows(saved)
    if not rows:
        page.say(["The runs have no row (case, variant and method) with a seed in common, so they are not compared."])
        return
    columns = columns_of(saved, (), own)
    found = [compared(saved, row, columns) for row in rows]
    for sentences, _ in found:
        page.say(sentences)
    for _, tables in found:
        page.tables(tables)


# --- What can be seen. ---


def _curves(page: Page, case: str, curves: Curves) -> None:
    panels = panels_of(curves.metrics)
    legend = {name: (look.colour, look.dash) for name, look in curves.looks.items()}
    if case:
        page.subheading(case)
    shown = [panel for panel in panels if panel[0].rpartition("/")[2] in FIRST]
    others = [panel for panel in panels if panel not in shown]

    def drawn(panel: Panel) -> bytes:
        what = (curves.log, curves.groups, [panel])
        return _drawn(plots.curves, *what, look=curves.looks, legend=False)

    page.panels({panel[1]: drawn(panel) for panel in shown}, legend)
    page.say(["A curve is the mean over seeds, in a band of one standard deviation."])
    if others:
        with page.folded(f"{len(others)} more {'curve' if len(others) == 1 else 'curves'}"):
            page.panels({panel[1]: drawn(panel) for panel in others}, legend)


def _drawn(draw: Callable[..., None], *what: Any, **how: Any) -> bytes:
    """Return a picture that a function writes to a file, whose path is its first argument."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path, *what, **how)
        return path.read_bytes()


def _by_class(page: Page, run: Opened) -> None:
    """Show confusions and recalls of each case."""
    results = run.saved.results
    for case in dict.fromkeys(row[0] for row in results):
        rows = {label(("", *row[1:])): list(seeds.values()) for row, seeds in results.items() if row[0] == case}
        of = ", ".join(filter(None, (run.name, case)))
        found = {name: mean_confusion(seeds) for name, seeds in rows.items()}
        matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
        recalls = {
            name: np.array([seed["class_accuracy"] for seed in seeds if "class_accuracy" in seed], float)
            for name, seeds in rows.items()
        }
        recalls = {name: values for name, values in recalls.items() if values.size}
        if matrices or recalls:
            page.heading(f"Classes of {of}")
        if matrices:
            names = _class_names(rows, len(next(iter(matrices.values()))))
            picture = _drawn(heat_maps.confusion, matrices, names)
            page.picture(picture, f"{of}: which classes are taken for which on the test set, summed over seeds")
        if recalls:
            table = _recall(recalls, _class_names(rows, next(iter(recalls.values())).shape[1]))
            if len(table.rows) <= MOST_ROWS:
                page.tables([table])
            else:
                with page.folded(f"Recall of {len(table.rows)} classes"):
                    page.tables([table])


def _recall(recalls: Mapping[str, np.ndarray], names: Sequence[str]) -> Table:
    count = len(next(iter(recalls.values()))[0])
    seeds = max(map(len, recalls.values()))
    rows = [
        [names[k] if names else str(k), *(mean_and_sd((100 * values[:, k]).tolist(), 1) for values in recalls.values())]
        for k in range(count)
    ]
    spread = f": mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", 1 seed"
    return Table(f"Recall of each class on the test set, in %{spread}", ["class", *recalls], rows)


def _class_names(rows: Mapping[str, Sequence[Found]], count: int) -> Sequence[str]:
    """Return the names of the classes, if the results know them."""
    named = (seed.get("class_names", ()) for seeds in rows.values() for seed in seeds)
    return next((names for names in named if len(names) == count), ())


def _pictures(page: Page, run: Opened) -> None:
    """Show the pictures of a run that the page has not drawn itself."""
    redrawn = REDRAWN if run.saved.results and run.log else ()
    paths = [path for path in run.pictures if path.stem not in redrawn]
    if not paths:
        return
    page.heading(f"Pictures of {run.name}")
    for path in paths:
        title = str(path.relative_to(run.saved.directory).with_suffix("")).replace("_", " ")
        try:
            data = path.read_bytes()
        except OSError:
            page.say([f"{path} is named by the run, but cannot be read."])
            continue
        if data.startswith(b"\x89PNG") or b"<svg" in data[:1000]:
            page.picture(data, f"{run.name}: {title}")
        else:
            page.say([f"{path} is no picture that a page can show (PNG or SVG)."])
