"""What `experiments.nearest_etf` measures after training, and how it shows it."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness
from nc_jax.data import ExampleSource, LabelledArrays, batches
from nc_jax.models import Classifier, NearestHead
from nc_jax.nearest import nearest_simplex_etf
from nc_jax.solvers import describe
from nc_jax.training import Trained, Trainer, example_margins
from nc_jax.training.logging import write_atomically

# Metric, title in the table, digits, title in the plot, scale of the plot.
METRICS = [
    ("test/accuracy", "test accuracy", 4, "test accuracy", "linear"),
    ("train/loss", "train loss", 4, "training loss", "log"),
    ("train/nc1", "NC1", 4, "NC1: within-class variability", "log"),
    ("train/nc2_means", "NC2 means", 3, "NC2: class means to a simplex ETF", "log"),
    ("train/nc2_classifier", "NC2 classifier", 3, "NC2: classifier to a simplex ETF", "linear"),
    ("train/nc3", "NC3", 3, "NC3: classifier to class means", "log"),
    ("train/nc4", "NC4", 4, "NC4: agreement with nearest centre", "linear"),
]


def solve_share(trainer: Trainer, train_set: LabelledArrays) -> float:
    """Measure the part of a training step that the inner solve and its derivative take, as a ratio of medians."""
    assert isinstance(trainer.model, Classifier)
    head = trainer.model.head
    assert isinstance(head, NearestHead)
    state = trainer.init(train_set, seed=0)
    stream = batches(train_set, trainer.options.batch_size, seed=0)
    means = jax.random.normal(jax.random.key(0), state.variables["nearest"]["head"]["class_means"].shape)
    solve_options: dict[str, Any] = {"solver": head.solver, "reduced": head.reduced}
    previous = nearest_simplex_etf(means, **solve_options).rotation

    @jax.jit
    @jax.grad
    def solve(means: jax.Array) -> jax.Array:
        found = nearest_simplex_etf(
            means, prox_point=previous, prox_weight=head.prox_weight, init=previous, **solve_options
        )
        return jnp.sum(found.frame**3)

    steps, solves = [], []
    for _ in range(40):  # medians of 40 agree to a few percent between runs
        batch = next(stream)
        began = time.perf_counter()
        state, _ = jax.block_until_ready(trainer.step(state, batch))
        middle = time.perf_counter()
        jax.block_until_ready(solve(means))
        steps.append(middle - began)
        solves.append(time.perf_counter() - middle)
    return statistics.median(solves) / statistics.median(steps)


def write_margins(
    path: Path, sets: Mapping[str, ExampleSource], last: Mapping[str, Trained], trainers: Mapping[str, Trainer]
) -> None:
    """Write the distribution of all examples' final cosine margins: percentiles 0 to 100, a line per run and set."""
    lines = []
    for run, trained in last.items():
        for split, examples in sets.items():
            margins = example_margins(trainers[run].outputs(trained.state, examples), trained.statistics)
            percentiles = np.percentile(margins, np.arange(101)).tolist()
            lines.append(json.dumps({"run": run, "split": split, "percentiles": percentiles}) + "\n")
    write_atomically(path, "".join(lines))


def summarise(rows: list[dict], groups: Mapping[Any, Sequence[str]], target: float) -> dict[str, dict[str, Any]]:
    """Collect the numbers of the last epoch, of the first, and the epochs to the target accuracy, per head and seed."""
    heads: dict[str, dict[str, Any]] = {}
    for head, runs in groups.items():
        histories = [sorted((row for row in rows if row["run"] == name), key=lambda row: row["epoch"]) for name in runs]
        values = {metric: [history[-1][metric] for history in histories] for metric, *_ in METRICS}
        values["accuracy_epoch_1"] = [_at_epoch(history, 1) for history in histories]
        values["epochs_to_target"] = [_first_epoch(history, target) for history in histories]
        values["seconds_per_epoch"] = [
            statistics.median(row["step/seconds"] for row in history[1:]) for history in histories
        ]
        worst = max(row["step/solve_status"] for history in histories for row in history[1:])
        heads[head] = {"values": values, "solve_status": int(worst), "solve_share": 0.0}
    return heads


def report(title: str, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show the table.

    Args:
        title: what was trained.
        summary: "heads" of `summarise`, "preset", "epochs", "target_accuracy", "absent_classes".
        directory: of the run.
    """
    heads = summary["heads"]
    lines = [
        ("test accuracy after epoch 1", "accuracy_epoch_1", 4),
        (f"epochs to {summary['target_accuracy']:.0%} test accuracy", "epochs_to_target", 1),
        *((f"{label} after epoch {summary['epochs']}", metric, digits) for metric, label, digits, _, _ in METRICS),
        ("seconds per epoch", "seconds_per_epoch", 3),
    ]
    columns = ["", *heads]
    others = [head for head in heads if head != "nearest"] if "nearest" in heads else []
    columns += [f"nearest - {head}" for head in others]
    table = []
    for label, name, precision in lines:
        values = {head: heads[head]["values"][name] for head in heads}
        row = [label, *(harness.mean_and_sd(values[head], precision) for head in heads)]
        timed = name == "seconds_per_epoch"  # the machine's, not the method's: a test over seeds would say nothing
        row += [
            "" if timed else harness.paired_difference(values["nearest"], values[head], precision) for head in others
        ]
        table.append(row)
    blank = [""] * len(others)
    table.append(["share of the step in the solve", *(f"{heads[head]['solve_share']:.1%}" for head in heads), *blank])
    table.append(["worst solver status", *(_status(head, heads[head]["solve_status"]) for head in heads), *blank])
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")

    title += ", mean ± standard deviation; differences with a paired t test"
    notes = [describe(heads[head]["solve_status"]) for head in heads if head == "nearest"]
    text = f"# nearest_etf, preset {summary['preset']}\n\n{title}\n\n{harness.markdown_table(columns, table)}\n"
    text += "".join(f"Inner solves of the nearest head, worst of all steps: {note}.\n" for note in notes)
    if summary["absent_classes"]:
        note = f"Classes without a training example, left out of all NC metrics: {summary['absent_classes']}."
        text += note + "\n"
        notes.append(note)
    text += "\n![curves](convergence.png)\n\n![cosines](cosines.png)\n"
    write_atomically(directory / "summary.md", text)
    harness.show_table(title, columns, table)
    for note in notes:
        print(note)
    print(f"written to {directory}")


def _at_epoch(history: list[dict], epoch: int) -> float:
    return next((row["test/accuracy"] for row in history if row["epoch"] == epoch), math.nan)


def _first_epoch(history: list[dict], target: float) -> float:
    return next((row["epoch"] for row in history if row["test/accuracy"] >= target), math.nan)


def _status(head: str, status: int) -> str:
    return describe(status).split(":")[0] if head == "nearest" else "no solve"
