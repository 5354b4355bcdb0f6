"""Does the nearest simplex ETF train faster than a fixed one and a learned classifier?

Claim     Markou et al. (2024), section 4: fewer epochs to the same accuracy, and closer to neural collapse.
Command   python -m experiments.nearest_etf        (8 seeds of 3 heads: a minute or two on two CPU cores)
Expected  test accuracy after epoch 1: nearest 0.92, fixed 0.85, learned 0.85 (sd 0.02); epochs to 95 %: 2.6, 4.2, 4.4;
          NC3 after 20 epochs: 0.040, 0.079, 0.22
Writes    runs/nearest_etf/<time>-<preset>/: config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.md,
          summary.json, convergence.png, cosines.png, margins.jsonl; `python -m experiments.analyse DIRECTORY` draws
          more of them
Data      scikit-learn's handwritten digits: 1437 training and 360 test images of 8 x 8 pixels. --dataset takes any
          other, --model any network; the presets named paper-... hold what the paper trained.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import harness, plots, setups
from experiments.nearest_etf_report import METRICS, report, solve_share, summarise, write_margins
from experiments.setups import HeadName, Task
from nc_jax.data import LabelledArrays, steps_per_epoch
from nc_jax.frames.properties import cosines
from nc_jax.models import Classifier
from nc_jax.training import (
    AXIS,
    LoopOptions,
    MetricsLog,
    OptimizerOptions,
    Trained,
    Trainer,
    agd_init,
    make_optimizer,
    read_metrics,
)
from nc_jax.training.optimizers import OptimizerName, ScheduleName


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
                share = solve_share(trainer, train_set)
    if jax.process_index() > 0:  # the log, and what is made from it, are the first process's
        return {}
    rows = read_metrics(directory / "metrics.jsonl")
    heads = summarise(rows, groups, config.target_accuracy)
    if "nearest" in heads:
        heads["nearest"]["solve_share"] = share
    summary = {
        "heads": heads,
        "preset": config.preset,
        "epochs": config.epochs,
        "target_accuracy": config.target_accuracy,
        "absent_classes": list(train_set.absent_classes()) if isinstance(train_set, LabelledArrays) else [],
        "directory": str(directory),
    }
    panels = [(metric, title, scale) for metric, _, _, title, scale in METRICS if metric != "train/nc2_classifier"]
    plots.curves(directory / "convergence.png", rows, groups, panels)
    matrices = {head: np.asarray(cosines(trained.statistics.centred_means())) for head, trained in last.items()}
    plots.cosine_matrices(directory / "cosines.png", matrices, -1 / (train_set.num_classes - 1))
    if jax.process_count() == 1:
        sets = {"train": train_set, "test": test_set}
        write_margins(directory / "margins.jsonl", sets, {groups[head][-1]: last[head] for head in groups}, trainers)
    report(f"{config.dataset}, {config.model}, {config.seeds} seeds", summary, directory)
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
    classifier = setups.make_head(
        head,
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
    )
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
        Classifier(backbone, classifier),
        make_optimizer(optimizer, epochs=config.epochs, epoch_steps=epoch_steps),
        options,
        devices=jax.local_devices()[: config.devices],
        initialise=agd_init if config.optimizer == "agd" else None,
    )


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


if __name__ == "__main__":
    harness.main(run, PRESETS)
