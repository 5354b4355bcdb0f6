"""Does a fixed non-negative orthogonal classifier forget less when classes come task after task?

Claim     Kim and Kim, Fixed non-negative orthogonal classifier (2024): with a masked softmax, experience replay and
          DER++ keep more accuracy with this classifier than with a learned one, at every size of the memory.
Command   python -m experiments.continual        (480 runs: 53 minutes on two CPU cores that did other work, too)
Expected  Class-IL of ER on digits with 20 examples in memory: 0.757 learned, 0.829 fixed ETF, 0.853 FNO; on 100 glyphs
          with 500: 0.733 learned, 0.666 FNO (docs/findings/continual.md)
Writes    runs/continual/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, and for each case summary.png, tasks.png, matrix.png, mistakes.png,
          occupancy.png
Data      scikit-learn's handwritten digits (5 tasks of 2 classes) and rendered characters (10 tasks of 10 classes). The
          preset fashion needs the files of Fashion-MNIST; the presets paper-... need the sets that they name.

Every method visits the same new examples in the same order: the seed draws an order of the classes, and each task is
trained for some epochs. A method may keep some examples in a replay memory, a uniform random subset of all that it has
seen. Class-IL is the mean accuracy over the tasks after the last one, among all classes; Task-IL is the same among the
classes of the example's task. A fixed simplex ETF with the same learned scale is a control: it shows what a frozen
classifier does without the zeros of the orthogonal one.

The preset few-shot begins with a base session of 60 classes and adds five at a time, with five examples of each. Its
accuracies count every test example once, and its learning rates are chosen by them.
"""

import dataclasses
from functools import partial
from typing import Any

from nc_jax.methods import ContinualOptions
from nc_jax.study import About, Column, Comparison, Experiment, continual_plots, main, plan, run, summary_picture
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.continual import check_tasks, measure, watching
from nc_jax.study.data import DataOptions
from nc_jax.study.occupancy import occupancy_picture
from nc_jax.study.settings import refuse_overridden
from nc_jax.training import LoopOptions, OptimizerOptions

COLUMNS = (
    Column("class_il", "Class-IL", 4, words=("less accurate", "more accurate")),
    Column("task_il", "Task-IL", 4),
    Column("forgetting", "forgetting", 3),
    Column("backward_transfer", "backward transfer", 3, test="none"),
    Column("forward_transfer", "forward transfer", 3, test="none"),
    # With a base session only.
    Column("accuracy_seen", "accuracy", 4, words=("less accurate", "more accurate")),
    Column("accuracy_base", "base classes", 4),
    Column("accuracy_new", "later classes", 4),
    Column("drop", "drop", 3),
)


def _loop(epochs: int, batch_size: int) -> LoopOptions:
    """Evaluate and save after each task."""
    return LoopOptions(
        epochs=epochs,
        batch_size=batch_size,
        evaluate_every=epochs,
        checkpoint_every=epochs,
        keep_checkpoints=1,
        devices=1,
    )


# What the claim is about, with a fixed simplex ETF as a control of "frozen" without "orthogonal".
MAIN = ("er", "er-fno", "er-etf", "derpp", "derpp-fno", "derpp-etf")
FULL = ("er", "er-fno", "derpp", "derpp-fno")
PEERS = (
    "finetune",
    "joint",
    "er-scaled",
    "er-nearest",
    "er-ace",
    "er-ace-fno",
    "der",
    "der-fno",
    "derpp-nearest",
    "gdumb",
    "gdumb-fno",
)


RATES = (0.03, 0.1, 0.3)  # around the paper's; at 0.3 some methods diverge, at 0.03 none has converged


def _case(memory: int) -> dict[str, dict[str, Any]]:
    """Return the variants of one size of the memory: with the mask, and with the softmax over all classes."""
    size = {"continual.memory": memory}
    return {"masked": size, "full softmax": {**size, "continual.mask": False, "methods": FULL}}


def _glyphs(dim: int) -> dict[str, dict[str, Any]]:
    """Return the only variant of a case of ten tasks of ten glyphs, every method at the rate that suits it."""
    changes = {"data.name": "glyphs", "continual.tasks": 10, "continual.memory": 500, "backbone.dim": dim}
    return {"": {**changes, "seeds": 5, "rates": RATES, "methods": ("er", "er-fno", "er-etf", "derpp", "derpp-fno")}}


DEFAULT = Comparison(
    methods=MAIN,
    seeds=10,
    backbone=BackboneOptions(hidden=(100,), dim=100, neck="relu"),  # Kim and Kim (2024), sequential MNIST
    optimizer=OptimizerOptions(learning_rate=0.1, momentum=0.0),  # Kim and Kim (2024), sequential MNIST
    loop=_loop(5, 10),
    continual=ContinualOptions(tasks=5),
    grid={
        "digits, memory of 20": _case(20),
        "digits, memory of 50": _case(50),
        "digits, memory of 200": _case(200),
        "digits, other methods": {"": {"continual.memory": 50, "methods": ("er", "er-fno", *PEERS)}},
        # Each class owns d / 100 features; the first network is the paper's.
        "glyphs, one feature a class": _glyphs(100),
        "glyphs, ten features a class": _glyphs(1000),
    },
)


def _paper(
    dataset: str, tasks: int, epochs: int, batch_size: int, rows: dict[int, tuple[Any, ...]], **changes: Any
) -> Comparison:
    """Kim and Kim (2024), released settings. Their tables mask the softmax in both columns.

    Args:
        dataset: name of the set.
        tasks: number of tasks.
        epochs: passes over each task.
        batch_size: new examples per step.
        rows: size of the memory -> (rate of ER; rate, alpha, beta and examples in a draw of DER++).
        changes: further settings.
    """
    grid: dict[str, dict[str, Any]] = {}
    for memory, (er, derpp, alpha, beta, draw_size) in rows.items():
        common = {"continual.memory": memory}
        grid[f"memory of {memory}"] = {
            f"rate {er:g}": {**common, "methods": ("er", "er-fno"), "optimizer.learning_rate": er},
            f"rate {derpp:g}, alpha {alpha:g}, beta {beta:g}": {
                **common,
                "methods": ("derpp", "derpp-fno"),
                "optimizer.learning_rate": derpp,
                "continual.alpha": alpha,
                "continual.beta": beta,
                "continual.draw_size": draw_size,
            },
        }
    defaults: dict[str, Any] = {
        "backbone": BackboneOptions("resnet18"),
        "optimizer": OptimizerOptions(momentum=0.0),
        "data": DataOptions(dataset, augmentation="cifar"),
    }
    return dataclasses.replace(
        DEFAULT,
        seeds=5,
        loop=_loop(epochs, batch_size),
        continual=ContinualOptions(tasks=tasks, draw_size=batch_size, order="given"),
        grid=grid,
        **(defaults | changes),
    )


FEW_SHOT = ("few-shot", "few-shot-free", "few-shot-etf", "few-shot-linear", "er", "er-etf", "finetune")
PRESETS = {
    "default": DEFAULT,
    "few-shot": dataclasses.replace(
        DEFAULT,
        methods=FEW_SHOT,
        seeds=5,
        rates=(0.01, 0.03, 0.1),  # learned class vectors want smaller ones than fixed ones
        data=DataOptions("glyphs"),
        backbone=BackboneOptions(hidden=(256,), dim=256, neck="mlp", neck_dim=128),  # d >= K - 1
        optimizer=OptimizerOptions(schedule="cosine"),
        loop=_loop(20, 64),
        # Yang et al. (2023), CIFAR-100: 60 classes, then 8 times 5 with 5 examples each
        continual=ContinualOptions(tasks=9, base=60, shots=5, memory=500, draw_size=64),
        grid={"": {"": {}}},
    ),
    # For the tests: every part of the program, in seconds.
    "smoke": dataclasses.replace(
        DEFAULT,
        methods=("er", "er-fno", "derpp-fno"),
        seeds=2,
        backbone=BackboneOptions(hidden=(), dim=20, neck="relu"),
        loop=_loop(1, 40),
        continual=ContinualOptions(tasks=5, memory=20, draw_size=20),
        grid={"": {"": {}}},
    ),
    "rates": dataclasses.replace(
        DEFAULT, rates=RATES, grid={f"digits, memory of {memory}": _case(memory) for memory in (20, 50, 200)}
    ),
    "fashion": dataclasses.replace(
        DEFAULT,
        seeds=5,
        rates=(0.01, 0.03, 0.1),  # at 0.1, the learned classifier diverges
        data=DataOptions("idx:/usr/share/datasets/fashion-mnist"),
        loop=_loop(1, 10),
        grid={"memory of 200": _case(200), "memory of 5120": {"masked": {"continual.memory": 5120}}},
    ),
    "paper-s-mnist": _paper(
        "mnist",
        5,
        1,
        10,
        {200: (0.01, 0.03, 0.2, 1.0, 128), 500: (0.1, 0.03, 1.0, 0.5, 10), 5120: (0.1, 0.1, 0.2, 0.5, 64)},
        data=DataOptions("mnist"),
        backbone=DEFAULT.backbone,
    ),
    "paper-s-cifar10": _paper(
        "cifar10",
        5,
        50,
        32,
        {200: (0.1, 0.03, 0.1, 0.5, 32), 500: (0.1, 0.03, 0.2, 0.5, 32), 5120: (0.1, 0.03, 0.1, 1.0, 32)},
    ),
    "paper-s-cifar100": _paper(
        "cifar100",
        10,
        50,
        32,
        {memory: (0.1, 0.03, 0.1, 0.5, 32) for memory in (200, 500, 5120)},
        optimizer=OptimizerOptions(momentum=0.0, schedule="multistep", milestones=(35.0, 45.0)),
    ),
    "paper-s-tiny-imagenet": _paper(
        "tiny_imagenet",
        10,
        100,
        32,
        {200: (0.1, 0.03, 0.1, 1.0, 32), 500: (0.03, 0.03, 0.2, 0.5, 32), 5120: (0.1, 0.03, 0.1, 0.5, 32)},
    ),
    # Yang et al. (2023): rate, batch, width of the neck and sessions. ResNet-18 stands for their ResNet-12, and five
    # examples of each class for their mean feature of it. Momentum, decay and augmentation are those usual on CIFAR;
    # the epochs are those of the long-tailed setting of the same authors.
    "paper-few-shot-cifar100": dataclasses.replace(
        DEFAULT,
        methods=FEW_SHOT,
        seeds=5,
        data=DataOptions("cifar100", augmentation="cifar"),
        backbone=BackboneOptions("resnet18", neck="mlp", neck_dim=512),
        optimizer=OptimizerOptions(learning_rate=0.25, weight_decay=5e-4, schedule="cosine"),
        loop=_loop(200, 512),
        continual=ContinualOptions(tasks=9, base=60, shots=5, memory=500, draw_size=500, order="given"),
        grid={"": {"": {}}},
    ),
}
ABOUT = {
    "default": About(
        "digits in 5 tasks at three sizes of the memory, other methods, glyphs in 10 tasks",
        53,
        "Class-IL of ER on digits, memory of 20: learned 0.757, FNO 0.853; on glyphs 0.733, 0.666",
    ),
    "few-shot": About(
        "60 glyph classes, then 8 times 5 with 5 examples each, every method at its learning rate",
        expect="accuracy on all classes at fixed rates: reserved ETF 0.720, learned head 0.626, ER 0.557",
    ),
    "smoke": About("three methods in one epoch of a small network, for the tests", 0.5),
    "rates": About("digits as in the preset default, every method at the learning rate that suits it"),
    "fashion": About(
        "Fashion-MNIST, 70,000 images, in 5 tasks, every method at the learning rate that suits it",
        expect="Class-IL, memory of 200: ER 0.773, with FNO 0.777; DER++ 0.782, 0.789",
    ),
    **{name: About("the paper's settings; the images are yours to bring") for name in PRESETS if "paper" in name},
}
EXPERIMENT = Experiment(
    "continual",
    COLUMNS,
    pairs=(
        ("er-fno", "er"),
        ("er-fno", "er-etf"),
        ("derpp-fno", "derpp"),
        ("derpp-fno", "derpp-etf"),
        ("er-ace-fno", "er-ace"),
        ("der-fno", "der"),
        ("gdumb-fno", "gdumb"),
        ("er-nearest", "er-scaled"),
        ("er-nearest", "er-fno"),
        *(("few-shot", other) for other in ("few-shot-linear", "few-shot-etf", "few-shot-free", "er", "er-etf")),
    ),
    measure=measure,
    watching=watching,
    check=check_tasks,
    score="rate_error",
    pictures=(
        summary_picture,
        continual_plots.tasks,
        continual_plots.matrix,
        continual_plots.mistakes,
        occupancy_picture,
    ),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every method with every seed; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=partial(refuse_overridden, besides=("methods",)))
