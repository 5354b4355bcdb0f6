"""Do features collapse about the origin with a fixed non-negative orthogonal classifier, and sooner than with others?

Claim     Kim and Kim, Fixed non-negative orthogonal classifier (FNO, ICLR 2024): class means of one length, at right
          angles, along the class vectors (zero-mean collapse), sooner and closer than a learned classifier collapses.
Command   python -m experiments.zero_mean_collapse        (11 minutes on two busy CPU cores)
Expected  digits, d = 64: mean absolute cosine of class means about the origin 0.34 with FNO, 0.03 with arc-mixup, 0.60
          linear, 0.63 turned; within-class variation 0.23, 0.06, 0.30, 0.29; test accuracy 0.972, 0.978, 0.973, 0.975
Writes    runs/zero_mean_collapse/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/,
          checkpoints/, summary.md, summary.json, and for each case own.png, origin.png, mean.png, summary.png,
          occupancy.png
Data      scikit-learn's handwritten digits (10 classes) and rendered characters (100 classes). The preset fashion needs
          the files of Fashion-MNIST; the presets paper-... need the sets that they name.

All networks end in ReLU, so no row has negative features, except where a preset takes the ReLU away. The rows:

- linear: learned class vectors and biases.
- turned at random: a fixed simplex ETF with learned biases. It is frozen like FNO, but not orthogonal.
- FNO: fixed orthogonal class vectors without negative entries, each on features of its own. "weighted" multiplies them
  by a learned number; "arc-mixup" trains on mixed pairs with a loss of the angle.

Every metric is measured about the origin and about the mean of the class means. "own" is the centre about which a row
can collapse: the origin for class vectors that share no feature, and the mean for all others.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nc_jax.metrics import (
    ClassStatistics,
    equiangle,
    equinorm,
    maximal_angle,
    self_duality,
    within_class_collapse,
    zero_mean_collapse,
)
from nc_jax.study import (
    About,
    Column,
    Comparison,
    Experiment,
    Found,
    Run,
    Scene,
    main,
    plan,
    plots,
    refuse_overridden,
    run,
    summary_picture,
)
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import Data, DataOptions
from nc_jax.study.occupancy import occupancy, occupancy_picture, share_no_feature
from nc_jax.study.outputs import Outputs
from nc_jax.training import Evaluation, LoopOptions, OptimizerOptions, Trainer, TrainState
from nc_jax.training.running import Watch

# name of the metric: title in the pictures
METRICS = {
    "equinorm": "equinorm: spread of lengths",
    "equiangle": "equiangularity: spread of cosines",
    "angle": "maximal angle: distance of cosines",
    "convergence": "class means to class vectors",
    "variation": "within-class variation",
}
NARROW = 0.1  # mean distance of the cosines from their value at collapse below which angles count as collapsed
COLUMNS = (
    Column("test/accuracy", "test accuracy", 4, words=("less accurate", "more accurate")),
    Column("epochs_to_fit", "epochs to 99.9 % training accuracy", 1, words=("fits sooner", "fits later")),
    Column("epochs_to_angle", f"epochs to maximal angle {NARROW}, own", 1, words=("sooner", "later")),
    Column("own/equinorm", "equinorm, own", 3, scale="log"),
    Column("own/equiangle", "equiangularity, own", 3, scale="log"),
    Column("own/angle", "maximal angle, own", 3, scale="log", words=("closer in angle", "farther in angle")),
    Column(
        "own/convergence",
        "class-mean convergence, own",
        3,
        scale="log",
        words=("closer to the class vectors", "farther from the class vectors"),
    ),
    Column("own/variation", "within-class variation, own", 4, scale="log", words=("less varied", "more varied")),
    Column("disagreement", "nearest-centre disagreement", 4, test="none"),
    Column("test_disagreement", "nearest-centre disagreement, test", 4, test="none"),
    Column("origin/equinorm", "equinorm, origin", 3, test="none"),
    Column("origin/angle", "maximal angle, origin", 3, test="none"),
    Column("origin/convergence", "class-mean convergence, origin", 3, test="none"),
    Column("mean/equinorm", "equinorm, mean", 3, test="none"),
    Column("mean/angle", "maximal angle, mean", 3, test="none"),
    Column("mean/convergence", "class-mean convergence, mean", 3, test="none"),
    Column("own_share", "share on own features", 3, test="none"),
)


def _case(dataset: str, dim: int, **changes: Any) -> dict[str, Any]:
    return {
        "data.name": dataset,
        "backbone.dim": dim,
        **{name.replace("__", "."): new for name, new in changes.items()},
    }


GLYPHS = {
    "methods": ("fno", "fno-arc", "linear", "turned"),
    "seeds": 3,
    "loop__epochs": 12,
    "loop__evaluate_every": 2,
    "optimizer__milestones": (4.0, 8.0),
}
DEFAULT = Comparison(
    methods=("fno", "fno-weighted", "fno-arc", "linear", "turned"),
    seeds=5,
    backbone=BackboneOptions(hidden=(256,), neck="relu"),
    optimizer=OptimizerOptions(
        # Of 0.01, 0.03, 0.1 and 0.3, 0.1 or 0.3 has the least error of every row on held-out quarters of the digits'
        # training set (60 epochs, d = 64); the two differ by at most three images of 360.
        learning_rate=0.1,
        weight_decay=5e-4,  # Kim and Kim (2024), released settings
        schedule="multistep",
        milestones=(40.0, 80.0),  # thirds of the training, as there
    ),
    loop=LoopOptions(epochs=120, batch_size=128, evaluate_every=5, checkpoint_every=120, keep_checkpoints=1, devices=1),
    grid={
        "digits, d = 64": {"": _case("digits", 64)},
        "digits, d = 128": {"": _case("digits", 128, methods=("fno", "linear", "turned"))},
        # A frame of 100 orthogonal vectors without negative entries needs 100 dimensions.
        "glyphs, d = 128": {"": _case("glyphs", 128, **GLYPHS)},
    },
)


def _paper(dataset: str, network: str) -> Comparison:
    """What the paper trains (Kim and Kim 2024, released settings): the sets whole, not cut to one size per class."""
    return dataclasses.replace(
        DEFAULT,
        methods=("fno", "linear", "turned"),
        data=DataOptions(dataset),  # without augmentation
        backbone=BackboneOptions(network),
        optimizer=OptimizerOptions(
            learning_rate=0.05,  # theirs differ from set to set and network to network, from 0.0096 to 0.18
            weight_decay=5e-4,
            schedule="multistep",
            milestones=(117.0, 233.0),
        ),
        loop=LoopOptions(epochs=350, batch_size=128, checkpoint_every=10, evaluate_every=5),
        grid={"": {"": {}}},
    )


PAPER = {
    f"paper-{dataset.replace('_', '-')}-{network}": _paper(dataset, network)
    for dataset in ("mnist", "fashion_mnist", "svhn_cropped", "cifar10", "cifar100")
    for network in (("resnet18",) if "mnist" in dataset else ("resnet18", "vgg13"))
}
PRESETS = {
    "default": DEFAULT,
    "smoke": dataclasses.replace(
        DEFAULT,
        methods=("fno", "turned"),
        seeds=2,
        backbone=BackboneOptions(hidden=(), dim=20, neck="relu"),
        loop=LoopOptions(epochs=2, batch_size=256, checkpoint_every=1, devices=1),
        grid={"": {"": {}}},
    ),
    "causes": dataclasses.replace(
        DEFAULT,
        methods=("fno", "linear"),
        grid={
            "digits, d = 64": {
                "weight decay 0.005": _case("digits", 64, optimizer__weight_decay=5e-3),
                "without ReLU": _case("digits", 64, backbone__neck="none"),
            },
        },
    ),
    "fashion": dataclasses.replace(
        DEFAULT,
        seeds=3,
        methods=("fno", "linear", "turned"),
        optimizer=dataclasses.replace(DEFAULT.optimizer, learning_rate=0.05, milestones=(3.0, 6.0)),
        loop=dataclasses.replace(DEFAULT.loop, epochs=9, batch_size=256, evaluate_every=3),
        grid={f"d = {dim}": {"": _case("idx:/usr/share/datasets/fashion-mnist", dim)} for dim in (64, 128)},
    ),
    **PAPER,
}
ABOUT = {
    "default": About(
        "FNO, learned classifier and fixed ETF on digits and glyphs, small MLPs",
        11,
        "mean absolute cosine of class means: FNO 0.34, with arc-mixup 0.03, learned 0.60, fixed ETF 0.63",
    ),
    "smoke": About("two methods in two epochs of a small network, for the tests", 0.7),
    "causes": About("FNO and a learned classifier on digits with ten times the weight decay, and without ReLU", 2),
    "fashion": About("FNO, learned and fixed ETF on Fashion-MNIST, 70,000 images, d = 64 and 128", 9),
    **{name: About("the paper's optimiser and 350 epochs, 5 seeds; made for an accelerator") for name in PAPER},
}


def _collapse(statistics: ClassStatistics, frame: Any) -> dict[str, jax.Array]:
    """Return the metrics about the origin, "origin/angle", and about the mean of the class means, "mean/angle"."""
    about_origin = zero_mean_collapse(statistics, frame)
    means, present = statistics.centred_means(), statistics.present
    return {
        "origin/equinorm": about_origin["zero_mean_equinorm_means"],
        "origin/equiangle": about_origin["zero_mean_equiangle_means"],
        "origin/angle": about_origin["zero_mean_angle_means"],
        "origin/convergence": about_origin["zero_mean_convergence"],
        "origin/variation": about_origin["zero_mean_variation"],
        "mean/equinorm": equinorm(means, present),
        "mean/equiangle": equiangle(means, present),
        "mean/angle": maximal_angle(means, present),
        "mean/convergence": self_duality(frame, statistics, "difference"),
        "mean/variation": within_class_collapse(statistics),
    }


_collapse_compiled = jax.jit(_collapse)


def collapse(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics about both centres, and those about the row's own centre once more as "own/angle" and so on.

    Args:
        evaluation: evaluation on the training set.
    """
    found = {name: float(value) for name, value in _collapse_compiled(evaluation.statistics, evaluation.frame).items()}
    own = "origin" if share_no_feature(np.asarray(evaluation.frame)) else "mean"
    found |= {f"own/{name}": found[f"{own}/{name}"] for name in METRICS}
    return found | {"disagreement": 1 - evaluation.metrics["nearest_centre_accuracy"]}


def watching(trainer: Trainer, data: Data, settings: Comparison) -> Watch:
    """Return what measures collapse at every evaluation."""
    del trainer, data, settings

    def watch(state: TrainState, train: Evaluation, test: Evaluation) -> dict[str, float]:
        del state, test
        return collapse(train)

    return watch


def measure(run: Run) -> Found:
    """Return collapse at the end, how soon it came, and on whose features the test examples lie."""
    history = sorted(run.history, key=lambda row: row["epoch"])
    found: Found = collapse(run.trained.train)
    found["test_disagreement"] = 1 - run.trained.test.metrics["nearest_centre_accuracy"]
    # Kim and Kim (2024) call this the zero-error epoch.
    found["epochs_to_fit"] = _first(history, lambda row: row["train/accuracy"] >= 0.999)
    found["epochs_to_angle"] = _first(history, lambda row: row["own/angle"] < NARROW)
    outputs = Outputs.of(run.trainer, run.trained.state, run.data.test)
    return found | occupancy(np.asarray(run.trained.test.frame), outputs)


def _first(history: list[dict[str, Any]], reached: Callable[[dict[str, Any]], bool]) -> float:
    return next((row["epoch"] for row in history if reached(row)), math.nan)


def _curves(centre: str, scene: Scene) -> Path:
    """Draw accuracy, disagreement, and the metrics about a centre against the epochs."""
    panels = [("test/accuracy", "test accuracy", "linear")]
    panels += [(f"{centre}/{name}", title, "log") for name, title in METRICS.items()]
    panels += [("disagreement", "nearest-centre disagreement", "log"), ("train/loss", "training loss", "log")]
    path = scene.path(centre)
    plots.curves(path, scene.log, scene.results.runs(scene.case), panels, look=scene.looks)
    return path


EXPERIMENT = Experiment(
    "zero_mean_collapse",
    COLUMNS,
    pairs=(("fno", "linear"), ("fno", "turned"), ("fno", "fno-weighted"), ("fno-arc", "fno"), ("fno-arc", "linear")),
    measure=measure,
    watching=watching,
    pictures=(*(partial(_curves, centre) for centre in ("own", "origin", "mean")), summary_picture, occupancy_picture),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every method with every seed; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=partial(refuse_overridden, besides=("methods",)))
