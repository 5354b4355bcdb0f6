"""Does the nearest simplex ETF train faster than a fixed one and a learned classifier?

Claim     Markou et al. (2024), section 4: fewer epochs to the same accuracy, and closer to neural collapse.
Command   python -m experiments.nearest_etf        (8 seeds of 3 heads: about a minute on two CPU cores)
Expected  test accuracy after epoch 1: nearest 0.92, fixed 0.85, learned 0.85 (sd 0.02); epochs to 95 %: 2.6, 4.2, 4.4;
          NC3 after 20 epochs: 0.040, 0.079, 0.22
Writes    runs/nearest_etf/<time>-<preset>/: config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.md,
          summary.json, convergence.png, cosines.png, margins.jsonl; `python -m experiments.analyse DIRECTORY` draws
          more of them
Data      scikit-learn's handwritten digits: 1437 training and 360 test images of 8 x 8 pixels. --dataset takes any
          other, --model any network; the presets named paper-... hold what the paper trained.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import harness, plots, setups
from experiments.setups import Task
from nc_jax.data import LabelledArrays, batches, steps_per_epoch
from nc_jax.frames.properties import cosines
from nc_jax.models import Classifier, FixedHead, LearnedHead, NearestHead
from nc_jax.nearest import nearest_simplex_etf
from nc_jax.solvers import describe
from nc_jax.training import (
    AXIS,
    LoopOptions,
    MetricsLog,
    OptimizerOptions,
    Trained,
    Trainer,
    agd_init,
    example_margins,
    make_optimizer,
    read_metrics,
)
from nc_jax.training.logging import write_atomically
from nc_jax.training.optimizers import OptimizerName, ScheduleName

HeadName = Literal["learned", "fixed", "nearest"]


@dataclasses.dataclass(frozen=True)
class Config(harness.RunOptions):
    """Settings of the experiment.

    Attributes:
        heads: which classifiers to compare.
        seeds: how many seeds each; a seed sets the initial state and the order of the examples.
        epochs: passes over the training set.
        batch_size: examples per step on all devices together.
        dataset: as `nc_jax.data.sources.load` names it: digits, glyphs, glyphs/low-data, cifar10, ...
        num_classes: of the glyphs.
        per_class: training images to keep of each class.
        augmentation: "none", "shift" or "cifar".
        model: "mlp", or a network of `experiments.setups`.
        width_multiplier: of networks other than the MLP.
        stem: of convolutional networks: "imagenet" (quarter resolution) or "cifar"; None follows the images' size.
        dtype: of their activations.
        optimizer: "sgd", "adam", "adamw" or "agd" (no learning rate; networks without biases and scales).
        learning_rate: of the optimiser; of "agd" the gain.
        momentum: of SGD.
        weight_decay: see `nc_jax.training.OptimizerOptions`, as the next two.
        schedule: of the learning rate.
        period: of the schedule "step".
        hidden: widths of the MLP's hidden layers.
        dim: the MLP's feature dimension d.
        radius: tau, the length to which features are scaled, for all heads.
        solver: of the nearest head.
        averaging: of its class means.
        prox_weight: delta.
        initial: proximal point of its first step, see `nc_jax.models.NearestHead`.
        prox_point: of later steps.
        full_template: use the paper's K x K template.
        stop_gradient: do not differentiate through the solve.
        stop_gradient_epochs: not in these epochs, from the first number (counted from 0) up to the second.
        stratified: spread each class evenly over the batches of an epoch.
        target_accuracy: the test accuracy whose first epoch is reported.
        without_class: leave this class out of the training set.
        evaluate_every: epochs between evaluations.
        slow_metrics: log the variability collapse index and ranks, too (see `nc_jax.training.LoopOptions`).
        threads: that decode images of sets too large for the memory.
        devices: use only so many of the local devices; None uses all.
        checkpoint_every: epochs between checkpoints.
        data_dir: where TFDS keeps prepared data; None is its own default.
    """

    heads: tuple[HeadName, ...] = ("learned", "fixed", "nearest")
    seeds: int = 8  # enough for a paired test; five at least
    epochs: int = 20  # on this set the curves are flat by then
    batch_size: int = 256  # 6 steps an epoch: the early epochs show who is quicker
    dataset: str = "digits"
    num_classes: int | None = None
    per_class: int | None = None
    augmentation: str = "none"
    model: str = "mlp"
    width_multiplier: float = 1.0
    stem: Literal["cifar", "imagenet"] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.05  # with momentum 0.9 the best of 0.02, 0.05, 0.1 for the learned head
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleName = "constant"
    period: float = 40.0  # Markou et al. (2024), released setting
    hidden: tuple[int, ...] = (256, 256)
    dim: int = 128
    radius: float = 5.0  # Markou et al. (2024)
    solver: Literal["trust_region", "polar"] = "polar"  # both reach the same point; this is the quicker
    averaging: Literal["ema", "cma"] = "ema"  # Markou et al. (2024)
    prox_weight: float = 1e-3  # Markou et al. (2024)
    initial: Literal["unregularised", "canonical", "random"] = "unregularised"  # Markou et al. (2024)
    prox_point: Literal["previous", "initial"] = "previous"  # Markou et al. (2024)
    full_template: bool = False
    stop_gradient: bool = False
    stop_gradient_epochs: tuple[int, int] | None = None
    stratified: bool = False
    target_accuracy: float = 0.95
    without_class: int | None = None
    evaluate_every: int = 1
    slow_metrics: bool = False
    threads: int = 1
    devices: int | None = None
    checkpoint_every: int = 5
    data_dir: str | None = None


# What the paper trains: 200 epochs in stratified batches of 256, by automatic gradient descent, networks without biases
# and scales (Markou et al. 2024, section 4, and the released scripts). Which augmentation is not known: the usual one.
PAPER = Config(
    seeds=5,
    epochs=200,
    optimizer="agd",
    learning_rate=1.0,
    augmentation="cifar",
    stratified=True,
    checkpoint_every=10,
    evaluate_every=5,
    slow_metrics=True,  # the paper plots them
)
PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(preset="smoke", seeds=2, epochs=2, hidden=(32,), dim=16, checkpoint_every=1),
    **{
        f"paper-{dataset}-{model}": dataclasses.replace(
            PAPER, preset=f"paper-{dataset}-{model}", dataset=dataset, model=model
        )
        for dataset in ("cifar10", "cifar100", "stl10")
        for model in ("resnet18", "resnet50", "vgg13")
    },
    # No stratification: the labels of a set that is read as it is trained on are not known before.
    **{
        f"paper-imagenet-{model}": dataclasses.replace(
            PAPER,
            preset=f"paper-imagenet-{model}",
            dataset="imagenet2012",
            model=model,
            augmentation="none",  # random crops are the set's own
            stratified=False,
            threads=16,
        )
        for model in ("resnet34", "resnet50")
    },
}

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


def run(config: Config) -> dict[str, Any]:
    """Train every head with every seed; write and show the comparison.

    Returns:
        What summary.json holds: per head the metrics of each seed, the table's rows, and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        NonFiniteError: if training diverges.
    """
    if config.resume is None:
        check(config, load(config))
    directory, config = harness.open_run("nearest_etf", config)
    task = load(config)
    train_set, test_set = task.train, task.test
    groups: dict[HeadName, list[str]] = {
        head: [f"{head}-seed{seed}" for seed in range(config.seeds)] for head in config.heads
    }
    last: dict[HeadName, Trained] = {}
    trainers: dict[str, Trainer] = {}
    share = math.nan
    with MetricsLog(directory) as log, progress(config) as bar:
        for head, runs in groups.items():
            trainer = trainers[runs[-1]] = make_trainer(config, head, task)
            for seed, name in enumerate(runs):
                line = bar.add_task(name, total=config.epochs, accuracy=0.0)
                last[head] = trainer.fit(
                    train_set,
                    test_set,
                    seed=seed,
                    run=name,
                    directory=directory,
                    log=log,
                    on_epoch=_updater(bar, line),
                )
                bar.update(line, visible=seed == len(runs) - 1)
            if head == "nearest" and jax.process_count() == 1 and config.model == "mlp":
                share = solve_share(config, trainer, train_set)
    if jax.process_index() > 0:  # the log, and what is made from it, are the first process's
        return {}
    rows = read_metrics(directory / "metrics.jsonl")
    summary = summarise(config, rows, groups, share)
    summary["absent_classes"] = list(train_set.absent_classes()) if isinstance(train_set, LabelledArrays) else []
    summary["directory"] = str(directory)
    panels = [(metric, title, scale) for metric, _, _, title, scale in METRICS if metric != "train/nc2_classifier"]
    plots.curves(directory / "convergence.png", rows, groups, panels)
    matrices = {head: np.asarray(cosines(trained.statistics.centred_means())) for head, trained in last.items()}
    plots.cosine_matrices(directory / "cosines.png", matrices, -1 / (train_set.num_classes - 1))
    if jax.process_count() == 1:
        write_margins(directory, task, {groups[head][-1]: last[head] for head in groups}, trainers)
    report(config, summary, directory)
    return summary


def check(config: Config, task: Task) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not config.heads or config.seeds < 1:
        raise ValueError(f"at least one head and one seed are needed; got heads={config.heads}, seeds={config.seeds}")
    if not config.radius > 0 or config.prox_weight < 0:
        raise ValueError(
            "radius must be positive and prox_weight at least 0; "
            f"got radius={config.radius}, prox_weight={config.prox_weight}"
        )
    if min((*config.hidden, config.dim)) < 1:
        raise ValueError(f"widths must be at least 1; got hidden={config.hidden}, dim={config.dim}")
    if config.devices is not None and not 1 <= config.devices <= jax.local_device_count():
        raise ValueError(f"devices must lie in 1..{jax.local_device_count()}, the local ones; got {config.devices}")
    for head in config.heads:
        trainer = make_trainer(config, head, task)
        jax.eval_shape(lambda trainer=trainer: trainer.init(task.train, 0))


def load(config: Config) -> Task:
    """Return the data set, without a class if one is to be left out."""
    task = setups.load(
        config.dataset,
        config.data_dir,
        flat=config.model == "mlp",
        num_classes=config.num_classes,
        per_class=config.per_class,
        augmentation=config.augmentation,
    )
    if config.without_class is None:
        return task
    if not isinstance(task.train, LabelledArrays):
        raise ValueError(f"without_class needs a set in memory; got {config.dataset}")
    if not 0 <= config.without_class < task.train.num_classes:
        raise ValueError(f"without_class must lie in 0..{task.train.num_classes - 1}; got {config.without_class}")
    return task._replace(train=task.train.subset(task.train.labels != config.without_class))


def make_trainer(config: Config, head: HeadName, task: Task) -> Trainer:
    """Return the compiled steps of one head; only the head differs between them."""
    num_classes = task.train.num_classes
    epoch_steps = steps_per_epoch(len(task.train), config.batch_size)
    stop_gradient: bool | tuple[int, int] = config.stop_gradient
    if config.stop_gradient_epochs is not None and not config.stop_gradient:
        start, stop = config.stop_gradient_epochs
        stop_gradient = (start * epoch_steps, stop * epoch_steps)
    heads: dict[str, Callable[[], Any]] = {
        # Unit class vectors and no bias, as the other two have: what remains is who moves them.
        "learned": lambda: LearnedHead(num_classes, radius=config.radius, normalize_columns=True, use_bias=False),
        "fixed": lambda: FixedHead(num_classes, radius=config.radius),
        "nearest": lambda: NearestHead(
            num_classes,
            radius=config.radius,
            averaging=config.averaging,
            prox_weight=config.prox_weight,
            initial=config.initial,
            prox_point=config.prox_point,
            solver=config.solver,
            reduced=not config.full_template,
            stop_gradient=stop_gradient,
            axis_name=AXIS,
        ),
    }
    backbone = setups.make_backbone(
        config.model,
        size=task.size,
        hidden=config.hidden,
        dim=config.dim,
        width_multiplier=config.width_multiplier,
        only_matrices=config.optimizer == "agd",
        stem=config.stem,
        dtype=jnp.dtype(config.dtype),
    )
    optimizer = OptimizerOptions(
        name=config.optimizer,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        period=config.period,
    )
    options = LoopOptions(
        epochs=config.epochs,
        batch_size=config.batch_size,
        stratified=config.stratified,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        slow_metrics=config.slow_metrics,
        threads=config.threads,
        step=task.step,
    )
    return Trainer(
        Classifier(backbone, heads[head]()),
        make_optimizer(optimizer, epochs=config.epochs, epoch_steps=epoch_steps),
        options,
        devices=jax.local_devices()[: config.devices],
        initialise=agd_init if config.optimizer == "agd" else None,
    )


def write_margins(directory: Path, task: Task, last: dict[str, Trained], trainers: dict[str, Trainer]) -> None:
    """Write the distribution of all examples' final cosine margins: percentiles 0 to 100, a line per run and set."""
    lines = []
    for run, trained in last.items():
        for split, examples in (("train", task.train), ("test", task.test)):
            margins = example_margins(trainers[run].outputs(trained.state, examples), trained.statistics)
            percentiles = np.percentile(margins, np.arange(101)).tolist()
            lines.append(json.dumps({"run": run, "split": split, "percentiles": percentiles}) + "\n")
    write_atomically(directory / "margins.jsonl", "".join(lines))


def solve_share(config: Config, trainer: Trainer, train_set: LabelledArrays) -> float:
    """Measure the part of a training step that the inner solve and its derivative take, as a ratio of medians."""
    state = trainer.init(train_set, seed=0)
    stream = batches(train_set, config.batch_size, seed=0)
    means = jax.random.normal(jax.random.key(0), (config.dim, train_set.num_classes))
    previous = nearest_simplex_etf(means, solver=config.solver, reduced=not config.full_template).rotation

    @jax.jit
    @jax.grad
    def solve(means: jax.Array) -> jax.Array:
        found = nearest_simplex_etf(
            means,
            prox_point=previous,
            prox_weight=config.prox_weight,
            solver=config.solver,
            init=previous,
            reduced=not config.full_template,
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


def summarise(config: Config, rows: list[dict], groups: dict[HeadName, list[str]], share: float) -> dict[str, Any]:
    """Collect the numbers of the last epoch, of the first, and the epochs to the target, per head and seed."""
    heads: dict[str, dict[str, Any]] = {}
    for head, runs in groups.items():
        histories = [sorted((row for row in rows if row["run"] == name), key=lambda row: row["epoch"]) for name in runs]
        values = {metric: [history[-1][metric] for history in histories] for metric, *_ in METRICS}
        values["accuracy_epoch_1"] = [_at_epoch(history, 1) for history in histories]
        values["epochs_to_target"] = [_first_epoch(history, config.target_accuracy) for history in histories]
        values["seconds_per_epoch"] = [
            statistics.median(row["step/seconds"] for row in history[1:]) for history in histories
        ]
        worst = max(row["step/solve_status"] for history in histories for row in history[1:])
        heads[head] = {"values": values, "solve_status": int(worst), "solve_share": share if head == "nearest" else 0.0}
    return {"heads": heads, "epochs": config.epochs, "target_accuracy": config.target_accuracy}


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show the table."""
    heads = summary["heads"]
    lines = [
        ("test accuracy after epoch 1", "accuracy_epoch_1", 4),
        (f"epochs to {config.target_accuracy:.0%} test accuracy", "epochs_to_target", 1),
        *((f"{title} after epoch {config.epochs}", metric, digits) for metric, title, digits, _, _ in METRICS),
        ("seconds per epoch", "seconds_per_epoch", 3),
    ]
    columns = ["", *heads]
    others = [head for head in heads if head != "nearest"] if "nearest" in heads else []
    columns += [f"nearest - {head}" for head in others]
    table = []
    for title, name, precision in lines:
        values = {head: heads[head]["values"][name] for head in heads}
        row = [title, *(harness.mean_and_sd(values[head], precision) for head in heads)]
        timed = name == "seconds_per_epoch"  # the machine's, not the method's: a test over seeds would say nothing
        row += [
            "" if timed else harness.paired_difference(values["nearest"], values[head], precision) for head in others
        ]
        table.append(row)
    blank = [""] * len(others)
    table.append(["share of the step in the solve", *(f"{heads[head]['solve_share']:.1%}" for head in heads), *blank])
    table.append(["worst solver status", *(_status(head, heads[head]["solve_status"]) for head in heads), *blank])
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")

    title = (
        f"{config.dataset}, {config.model}, {config.seeds} seeds, mean ± standard deviation; "
        "differences with a paired t test"
    )
    notes = [describe(heads[head]["solve_status"]) for head in heads if head == "nearest"]
    text = f"# nearest_etf, preset {config.preset}\n\n{title}\n\n{harness.markdown_table(columns, table)}\n"
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


def progress(config: Config) -> Progress:
    """Return the progress bar."""
    return Progress(
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, test accuracy {task.fields[accuracy]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _updater(bar: Progress, task: Any) -> Callable[[int, dict[str, float]], None]:
    return lambda epoch, metrics: bar.update(task, completed=epoch, accuracy=metrics["test/accuracy"])


def _at_epoch(history: list[dict], epoch: int) -> float:
    return next((row["test/accuracy"] for row in history if row["epoch"] == epoch), math.nan)


def _first_epoch(history: list[dict], target: float) -> float:
    return next((row["epoch"] for row in history if row["test/accuracy"] >= target), math.nan)


def _status(head: str, status: int) -> str:
    return describe(status).split(":")[0] if head == "nearest" else "no solve"


if __name__ == "__main__":
    harness.main(run, PRESETS)
