"""The open questions of Markou et al. (2024): which of the nearest head's ingredients matter, and when?

Claim     None: each question is answered by a table and a plot (docs/findings/).
Command   python -m experiments.ablations [gradient|proximal|batches|backbones]
Writes    runs/ablations/<time>-<question>/: config.json, summary.md, summary.json, a plot per task, and below it the
          run of every variant (see experiments.nearest_etf)

Every question compares variants of `experiments.nearest_etf` over the same seeds; the first variant of a task is what
the others are tested against, seed by seed. An interrupted run resumes at the variant, and within it, where it stopped.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from experiments import harness, nearest_etf, plots
from nc_jax.training import read_metrics
from nc_jax.training.logging import write_atomically

Question = Literal["gradient", "proximal", "batches", "backbones"]
Variants = dict[str, nearest_etf.Config]


@dataclasses.dataclass(frozen=True)
class Config(harness.RunOptions):
    """Settings of the experiment.

    Attributes:
        question: which.
        seeds: of the tasks that take seconds; those of convolutional networks take half as many.
        tasks: which of the question's tasks; empty takes all.
        epochs: of every run; None takes the task's own.
        data_dir: where TFDS keeps prepared data; None is its own default.
    """

    question: Question = "gradient"
    seeds: int = 8  # enough for a paired test
    tasks: tuple[str, ...] = ()
    epochs: int | None = None
    data_dir: str | None = None


PRESETS = {
    "default": Config(),
    "gradient": Config(preset="gradient", question="gradient"),
    "proximal": Config(preset="proximal", question="proximal"),
    "batches": Config(preset="batches", question="batches"),
    "backbones": Config(preset="backbones", question="backbones"),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(preset="smoke", seeds=2, tasks=("digits, MLP",), epochs=2),
}

# What is trained. The learning rates are the best of 0.02, 0.05, 0.1 for the learned head on digits, 0.05 elsewhere.
NEAREST = nearest_etf.Config(heads=("nearest",), devices=1)
DIGITS = NEAREST
GLYPHS = dataclasses.replace(NEAREST, dataset="glyphs/low-data", hidden=(256,), dim=256, target_accuracy=0.7)
RESNET = dataclasses.replace(NEAREST, model="resnet18", width_multiplier=1 / 8, batch_size=128, epochs=10)

METRICS = [
    ("accuracy_epoch_1", "accuracy after epoch 1", 3),
    ("epochs_to_target", "epochs to the target", 1),
    ("test/accuracy", "final accuracy", 4),
    ("train/loss", "training loss", 4),
    ("train/nc1", "NC1", 4),
    ("train/nc3", "NC3", 4),
]
PANELS = [
    ("test/accuracy", "test accuracy", "linear"),
    ("train/loss", "training loss", "log"),
    ("train/nc3", "NC3: classifier to class means", "log"),
]


def gradient(config: Config) -> dict[str, Variants]:
    """With and without the gradient through the inner problem."""

    def both(base: nearest_etf.Config) -> Variants:
        return {"with the gradient": base, "without": dataclasses.replace(base, stop_gradient=True)}

    def phases(base: nearest_etf.Config) -> Variants:
        early, late = (0, base.epochs // 4), (base.epochs // 4, base.epochs)
        return both(base) | {
            f"without, epochs {start + 1} to {stop}": dataclasses.replace(base, stop_gradient_epochs=(start, stop))
            for start, stop in (early, late)
        }

    return {
        "digits, MLP": phases(DIGITS),
        "glyphs, MLP": phases(GLYPHS),
        "glyphs, MLP, batch 64": both(dataclasses.replace(GLYPHS, batch_size=64)),
        "glyphs, MLP, batch 1024": both(dataclasses.replace(GLYPHS, batch_size=1024, epochs=60)),
        "digits, ResNet": both(_half(RESNET, config)),
    }


def proximal(config: Config) -> dict[str, Variants]:
    """Proximal weight over five decades; what the first step, and what later steps are drawn to."""
    del config

    def all_of(base: nearest_etf.Config) -> Variants:
        weights = {f"weight {weight:g}": {"prox_weight": weight} for weight in (1e-5, 1e-4, 1e-2, 1e-1, 1.0)}
        starts: dict[str, dict[str, Any]] = {
            f"{initial}, {point}": {"initial": initial, "prox_point": point}
            for point in ("previous", "initial")
            for initial in ("unregularised", "canonical", "random")
        }
        del starts["unregularised, previous"]
        changes = weights | starts | {"random, initial, weight 1": {**starts["random, initial"], "prox_weight": 1.0}}
        return {"weight 0.001": base} | {name: dataclasses.replace(base, **change) for name, change in changes.items()}

    return {"digits, MLP": all_of(DIGITS), "glyphs, MLP": all_of(GLYPHS)}


def batches(config: Config) -> dict[str, Variants]:
    """Batches with fewer examples than classes; the averaging of means; template and solver."""
    del config
    changes: dict[str, dict[str, Any]] = {
        "cumulative average": {"averaging": "cma"},
        "stratified": {"stratified": True},
        "full template": {"full_template": True},
        "trust region": {"solver": "trust_region"},
    }
    tasks: dict[str, Variants] = {}
    for name, base in (
        ("digits, MLP", DIGITS),
        ("glyphs, MLP, batch 256", GLYPHS),
        ("glyphs, MLP, batch 32", dataclasses.replace(GLYPHS, batch_size=32)),
    ):
        tasks[name] = {"as it is": base} | {
            variant: dataclasses.replace(base, **change) for variant, change in changes.items()
        }
    return tasks


def backbones(config: Config) -> dict[str, Variants]:
    """The three heads on other networks, and on more classes."""
    tasks: dict[str, Variants] = {}
    widths = {"resnet18": 1 / 8, "densenet40": 1 / 4, "efficientnet": 1 / 4, "vit": 1 / 4}
    for model, width in widths.items():
        base = _half(dataclasses.replace(RESNET, model=model, width_multiplier=width), config)
        if model in ("vit", "efficientnet"):
            # Without momentum's help they do not leave the start in ten epochs of plain SGD at 0.05.
            base = dataclasses.replace(base, optimizer="adamw", learning_rate=2e-3)
        if model == "vit":
            base = dataclasses.replace(base, epochs=20)  # the nearest head, seed 0: 94 % by then, 85 after ten
        tasks[f"digits, {model}"] = _heads(base)
    # A simplex of 100 classes needs 99 dimensions, which this width has; the stem is that of quarter resolution, which
    # takes a tenth of the time.
    glyphs = dataclasses.replace(
        RESNET, dataset="glyphs/low-data", width_multiplier=1 / 4, stem="imagenet", target_accuracy=0.7
    )
    return tasks | {"glyphs, resnet18": _heads(_half(glyphs, config)), "glyphs, MLP": _heads(GLYPHS)}


def _heads(base: nearest_etf.Config) -> Variants:
    return {head: dataclasses.replace(base, heads=(head,)) for head in ("nearest", "fixed", "learned")}


def _half(base: nearest_etf.Config, config: Config) -> nearest_etf.Config:
    return dataclasses.replace(base, seeds=max(config.seeds // 2, 1))


QUESTIONS: dict[Question, Callable[[Config], dict[str, Variants]]] = {
    "gradient": gradient,
    "proximal": proximal,
    "batches": batches,
    "backbones": backbones,
}


def run(config: Config) -> dict[str, Any]:
    """Train every variant of every task; write and show a table and a plot per task.

    Returns:
        What summary.json holds: per task and variant the numbers of each seed, and the directory.

    Raises:
        ValueError: if there is no such task.
        FileExistsError: if the run directory exists.
    """
    tasks = _tasks(config)
    directory, config = harness.open_run("ablations", config)
    tasks = _tasks(config)
    summary: dict[str, Any] = {"question": config.question, "tasks": {}, "directory": str(directory)}
    text = f"# {QUESTIONS[config.question].__doc__}\n"
    for task, variants in tasks.items():
        rows, groups, found = [], {}, {}
        for name, variant in variants.items():
            below = directory / _slug(task) / _slug(name)
            found[name] = harness.subrun(nearest_etf.run, variant, below)["heads"][variant.heads[0]]["values"]
            groups[name] = [f"{name}/{seed}" for seed in range(variant.seeds)]
            runs = {f"{variant.heads[0]}-seed{seed}": run for seed, run in enumerate(groups[name])}
            rows += [row | {"run": runs[row["run"]]} for row in read_metrics(below / "metrics.jsonl")]
        plot = f"{_slug(task)}.png"
        plots.curves(directory / plot, rows, groups, PANELS)
        summary["tasks"][task] = found
        text += _table(task, variants, found, plot)
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")
    return summary


def _tasks(config: Config) -> dict[str, Variants]:
    tasks = QUESTIONS[config.question](config)
    unknown = set(config.tasks) - set(tasks)
    if unknown:
        raise ValueError(f"tasks must be among {', '.join(map(repr, tasks))}; got {', '.join(map(repr, unknown))}")
    changes: dict[str, Any] = {"data_dir": config.data_dir}
    if config.epochs is not None:
        changes["epochs"] = config.epochs
    return {
        task: {
            # Half the seeds where the question says so.
            name: dataclasses.replace(
                variant, seeds=variant.seeds if variant.model != "mlp" else config.seeds, **changes
            )
            for name, variant in variants.items()
        }
        for task, variants in tasks.items()
        if not config.tasks or task in config.tasks
    }


def _table(task: str, variants: Variants, found: dict[str, dict[str, list[float]]], plot: str) -> str:
    first = next(iter(found))
    columns = [task, *(title for _, title, _ in METRICS), f"final accuracy - {first}"]
    table = []
    for name, values in found.items():
        row = [name, *(harness.mean_and_sd(values[metric], digits) for metric, _, digits in METRICS)]
        accuracies = values["test/accuracy"], found[first]["test/accuracy"]
        table.append([*row, "" if name == first else harness.paired_difference(*accuracies, 4)])
    base = next(iter(variants.values()))
    title = f"{task}: {base.seeds} seeds, {base.epochs} epochs, target {base.target_accuracy:.0%}, mean ± sd"
    harness.show_table(title, columns, table)
    return f"\n{title}\n\n{harness.markdown_table(columns, table)}\n![{task}]({plot})\n"


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").replace("/", "-")


if __name__ == "__main__":
    harness.main(run, PRESETS)
