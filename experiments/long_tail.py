"""Which parts of the methods for long-tailed data help, and does the alignment of classifier and class means matter?

Claim     Kim and Kim, Fixed non-negative orthogonal classifier (FNO, ICLR 2024), and Yang et al. (2022): a fixed
          classifier with arc-mixup or dot regression knows rare classes better than a learned one. Here every
          ingredient has a row of its own, beside peers that adjust logits, reweight, resample or train in two stages.
Command   python -m experiments.long_tail                 (30 minutes on two CPU cores)
Expected  digits at a ratio of 100: cross-entropy 0.751, logit adjustment 0.847, with mixup 0.867; ETF with dot
          regression 0.841, by counts 0.857; FNO with arc-mixup 0.775, without balanced pairs 0.717. On glyphs:
          cross-entropy 0.569, mixup with logit adjustment 0.617, FNO with arc-mixup 0.550
Writes    runs/long_tail/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, and for each case summary.png, recall.png, bars.png, alignment.png, ratios.png,
          confusion.png
Data      scikit-learn's handwritten digits (10 classes) and rendered characters (100 classes), cut to a long tail. The
          preset fashion needs the files of Fashion-MNIST, shuttle those of R's mlbench (Debian: r-cran-mlbench); the
          presets paper-... need the sets that they name.

Accuracies are means over classes: every class counts once, also where the test set is unequal. The classes are cut into
three groups of equal size, with many, medium and few training examples. In each seed, other classes are rare.
"""

import dataclasses
from functools import partial
from typing import Any

from nc_jax.methods import TailOptions
from nc_jax.study import (
    About,
    Column,
    Comparison,
    Experiment,
    confusions,
    dotted,
    long_tail_plots,
    main,
    plan,
    refuse_overridden,
    run,
    summary_picture,
)
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import DataOptions
from nc_jax.study.long_tail import measure, watching
from nc_jax.training import LoopOptions, OptimizerOptions

COLUMNS = (
    Column("balanced_accuracy", "accuracy, mean over classes", 4, words=("less accurate", "more accurate")),
    Column("many", "of frequent classes", 3),
    Column("medium", "of medium classes", 3),
    Column("few", "of rare classes", 3, words=("worse on rare classes", "better on rare classes")),
    Column("test/accuracy", "accuracy, mean over examples", 4, test="none"),
    Column("calibration_error", "calibration error", 3),
    Column("angle/many", "degrees to class means, frequent", 1),
    Column("angle/few", "degrees to class means, rare", 1),
    Column("exponent_ratio", "error exponent over the best", 3),
    Column("few_cosine", "cosine of rare class vectors", 3),
    Column("train/nc3", "NC3", 3, test="none"),
)
# Every method of the comparison, in the order of the table. Left out: balanced-softmax, which is "adjusted" as long as
# --tail.tau is 1.
PEERS = (
    "linear",
    "adjusted",
    "adjusted-after",
    "class-balanced",
    "focal",
    "ldam",
    "label-aware",
    "balanced-sampler",
    "root-sampler",
    "crt",
    "lws",
    "mixup",
    "mixup-balanced",
    "mixup-adjusted",
    "mixup-adjusted-after",
)
FNO = ("fno", "fno-mixup", "fno-mixup-balanced", "fno-arc", "fno-arc-shuffled", "fno-arc-unmasked", "fno-arc-softmax")
DOT = ("etf-mixup", "etf-mixup-balanced", "etf-dr", "etf-dr-counts", "etf-dr-plain")
CELLS = (
    "fno-mixup-adjusted",
    "etf-mixup-adjusted",
    "scaled-mixup-adjusted",
    "nearest-mixup-adjusted",
    "nearest-centred",
)
MAIN = ("linear", "mixup", "mixup-balanced", "mixup-adjusted", "etf-dr", "etf-dr-counts", "fno-arc", *CELLS)
TURNED = ("mixup-adjusted-regularised", "mixup-adjusted-slerp", "mixup-adjusted-project")
NEAREST = ("nearest-mixup", "nearest-mixup-adjusted", "nearest-counts", "nearest-effective", "nearest-centred")
ALIGNED = tuple(
    f"{name}-{kind}" for name in ("mixup", "mixup-adjusted") for kind in ("regularised", "slerp", "project")
)


# Glyphs have 60 training images of each class, so the rarest keeps one of them.
GLYPHS: dict[str, Any] = {
    "data__name": "glyphs",
    "tail__ratio": 0.02,
    "backbone__hidden": (256,),
    "backbone__dim": 128,
    "loop__epochs": 100,
    "loop__evaluate_every": 20,
    "loop__checkpoint_every": 100,
    "optimizer__milestones": (80.0, 90.0),
}
DEFAULT = Comparison(
    methods=(*PEERS, *FNO, *DOT, *CELLS),
    seeds=10,
    data=DataOptions("digits"),
    # The frame of FNO needs features that are not negative, so all networks end in ReLU.
    backbone=BackboneOptions(hidden=(100,), dim=100, neck="relu"),
    optimizer=OptimizerOptions(
        learning_rate=0.1,  # Kim and Kim (2024), released settings; with the clipping below, no run has diverged
        weight_decay=5e-4,
        schedule="multistep",
        milestones=(240.0, 270.0),  # at 80 and 90 % of the training, as there
        # The log loss of arc-mixup has no bound: without clipping it diverges now and then.
        clip_norm=0.5,
    ),
    loop=LoopOptions(
        epochs=300,
        batch_size=128,  # Kim and Kim (2024), released settings
        evaluate_every=30,
        checkpoint_every=300,
        keep_checkpoints=1,
        devices=1,
    ),
    tail=TailOptions(ratio=0.01),
    grid={
        "digits": {"": dotted(data__name="digits")},
        "glyphs": {"": dotted(**GLYPHS, methods=MAIN, seeds=5)},
    },
)


def _ratios(*ratios: int) -> dict[str, dict[str, Any]]:
    return {f"ratio {ratio}": dotted(tail__ratio=1 / ratio) for ratio in ratios}


def _preset(grid: dict[str, dict[str, dict[str, Any]]], **changes: Any) -> Comparison:
    return dataclasses.replace(DEFAULT, grid=grid, **changes)


def _paper(data: DataOptions, network: str, *, epochs: int, batch_size: int, **changes: Any) -> Comparison:
    """What Kim and Kim (2024) train, by their released settings, but with resnet18 in place of ResNet-32."""
    settings: dict[str, Any] = {
        "optimizer": OptimizerOptions(
            learning_rate=0.1,
            weight_decay=2e-4,
            schedule="multistep",
            warmup=5.0,
            milestones=(160.0, 180.0),
        ),
        "methods": ("linear", "mixup", "mixup-adjusted", "ldam", "crt", "etf-dr", "fno-arc"),
        "seeds": 5,
        "loop": LoopOptions(epochs=epochs, batch_size=batch_size, checkpoint_every=10, evaluate_every=10),
        "data": data,
        "backbone": BackboneOptions(network),
    }
    return dataclasses.replace(DEFAULT, **(settings | changes))


def _listed(name: str, lists: str, network: str, *, epochs: int, mixup: float, arc: float) -> Comparison:
    """Images that the lists of Liu et al. (2019) name; they have a long tail of their own.

    Args:
        name: folder of the images.
        lists: beginning of the names of the lists.
        network: name of the network.
        epochs: passes over the training set.
        mixup: alpha of mixup.
        arc: alpha of arc-mixup.
    """
    data = DataOptions(
        name, augmentation="flip", train_list=f"{lists}_train.txt", test_list=f"{lists}_test.txt", image_size=224
    )
    return _paper(
        data,
        network,
        epochs=epochs,
        batch_size=256,
        optimizer=OptimizerOptions(learning_rate=0.1, weight_decay=5e-4, schedule="cosine"),
        grid={
            "": {
                "": {"tail.ratio": None, "tail.mixup": mixup},
                "arc": {"tail.ratio": None, "tail.mixup": arc, "methods": ("fno-arc",)},
            }
        },
    )


PAPER = {
    f"paper-{name}-lt": _paper(
        DataOptions(dataset, augmentation=augmentation),
        "resnet18",
        epochs=200,
        batch_size=128,
        grid={"": _ratios(100, 50, 10)},
    )
    for name, dataset, augmentation in (
        ("cifar10", "cifar10", "cifar"),
        ("cifar100", "cifar100", "cifar"),
        ("svhn", "svhn_cropped", "none"),
        ("stl10", "stl10", "cifar"),
    )
} | {
    "paper-imagenet-lt": _listed("imagenet", "ImageNet_LT", "resnet50", epochs=180, mixup=0.2, arc=5.0),
    "paper-places-lt": _listed("places365", "Places_LT", "resnet50", epochs=90, mixup=0.2, arc=0.2),
}
RATES = (0.02, 0.05, 0.1)
PRESETS = {
    "default": DEFAULT,
    # For the tests: every part of the program, in seconds.
    "smoke": dataclasses.replace(
        DEFAULT,
        methods=("linear", "fno-arc"),
        seeds=2,
        backbone=BackboneOptions(hidden=(), dim=20, neck="relu"),
        loop=LoopOptions(epochs=2, batch_size=64, checkpoint_every=1, devices=1),
        optimizer=dataclasses.replace(DEFAULT.optimizer, milestones=(1.0,)),
        grid={"": _ratios(20, 10)},
    ),
    "ratios": _preset({"digits": _ratios(100, 50, 10)}, methods=MAIN),
    "ablation": _preset({"digits": {"": {}}}, methods=("linear", "mixup", "mixup-balanced", *FNO)),
    "alignment": _preset(
        {
            "kinds": {"": {"methods": ("mixup", "mixup-adjusted", *ALIGNED)}},
            "when and how often": {
                "": {"methods": ("mixup-adjusted",)},
                **{
                    f"from {start:g}, every {every or 1} {'epochs' if every else 'step'}": dotted(
                        tail__align_from=start, tail__align_every=every, methods=("mixup-adjusted-slerp",)
                    )
                    for start in (0.0, 0.5, 0.9)
                    for every in (0, 10)
                },
            },
        },
    ),
    "nearest": _preset({"digits": {"": {}}}, methods=("mixup", "mixup-adjusted", *NEAREST)),
    "fashion": _preset(
        {"": {"": {}}},
        methods=(*MAIN, *TURNED),
        rates=RATES,
        data=DataOptions("idx:/usr/share/datasets/fashion-mnist"),
        loop=dataclasses.replace(DEFAULT.loop, epochs=20, evaluate_every=5, checkpoint_every=20),
        optimizer=dataclasses.replace(DEFAULT.optimizer, milestones=(16.0, 18.0)),
    ),
    "glyphs": _preset({"": {"": dotted(**GLYPHS)}}, methods=(*MAIN, *TURNED), rates=RATES),
    "shuttle": _preset(
        {"": {"": {}}},
        methods=(*MAIN, *TURNED),
        rates=RATES,
        data=DataOptions("shuttle"),
        tail=TailOptions(ratio=None),
        loop=dataclasses.replace(DEFAULT.loop, epochs=10, evaluate_every=5, checkpoint_every=10),
        optimizer=dataclasses.replace(DEFAULT.optimizer, milestones=(8.0, 9.0)),
    ),
    **PAPER,
}
ABOUT = {
    "default": About(
        "every method on digits at a ratio of 100, and twelve on 100 glyphs at 50",
        30,
        "digits: cross-entropy 0.751, logit adjustment 0.847, with mixup 0.867, FNO with arc-mixup 0.775",
    ),
    "smoke": About("two methods at two ratios in two epochs of a small network, for the tests", 0.5),
    "ratios": About("twelve methods on digits at the ratios 100, 50 and 10"),
    "ablation": About("the parts of FNO's recipe one by one: frame, pairs, arc, mask and loss"),
    "alignment": About("three ways to align class vectors with class means, when and how often", 9),
    "nearest": About("the nearest ETF with class weights, and with the centre of the classes", 8),
    "fashion": About("fifteen methods on Fashion-MNIST, each at the learning rate that suits it"),
    "glyphs": About("fifteen methods on 100 glyphs at a ratio of 50, each at the learning rate that suits it"),
    "shuttle": About(
        "fifteen methods on Shuttle, 7 classes with 45,586 to 10 examples, each at its learning rate",
        40,
        "mixup with logit adjustment 0.907, nearest ETF 0.954, ETF with dot regression by counts 0.996",
    ),
    **{name: About("the paper's optimiser, 5 seeds; made for an accelerator") for name in PAPER},
}


EXPERIMENT = Experiment(
    "long_tail",
    COLUMNS,
    rivals=(*MAIN, *TURNED),
    pairs=tuple(
        (name, other)
        for other in ("linear", "mixup-adjusted")
        for name in (*PEERS, *FNO, *DOT, *CELLS, "nearest-mixup", "nearest-counts", "nearest-effective", *ALIGNED)
        if name != other
    ),
    measure=measure,
    watching=watching,
    score="balanced_error",
    pictures=(
        summary_picture,
        long_tail_plots.bars,
        long_tail_plots.recall_by_size,
        long_tail_plots.accuracy_by_ratio,
        long_tail_plots.alignment_curves,
        confusions,
    ),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every method with every seed; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=partial(refuse_overridden, besides=("methods",)))
