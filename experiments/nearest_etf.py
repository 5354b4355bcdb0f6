"""Does the nearest simplex ETF train faster than a fixed one and a learned classifier?

Claim     Markou et al. (2024), section 4: fewer epochs to the same accuracy, and closer to neural collapse.
Command   python -m experiments.nearest_etf        (8 seeds of 3 heads: a minute or two on two CPU cores)
Expected  test accuracy after epoch 1: nearest 0.92, fixed 0.85, learned 0.85 (sd 0.02); epochs to 95 %: 2.6, 4.2, 4.4;
          NC3 after 20 epochs: 0.040, 0.079, 0.22
Writes    runs/nearest_etf/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, convergence.png, summary.png, confusion.png, cosines.png, margins.png
Data      scikit-learn's handwritten digits: 1437 training and 360 test images of 8 x 8 pixels. --data.name takes any
          other, --backbone.name any network; the presets named paper-... hold what the paper trained.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nc_jax.frames.properties import cosines
from nc_jax.study import (
    About,
    Column,
    Comparison,
    Experiment,
    Found,
    Run,
    Scene,
    confusions,
    curves,
    heat_maps,
    main,
    plan,
    plots,
    run,
    summary_picture,
)
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import DataOptions
from nc_jax.training import LoopOptions, OptimizerOptions, example_margins

COLUMNS = (
    Column("accuracy_epoch_1", "test accuracy after epoch 1", 4),
    Column("epochs_to_target", "epochs to {target} test accuracy", 1, words=("sooner", "later")),
    Column("test/accuracy", "final test accuracy", 4, "test accuracy", words=("less accurate", "more accurate")),
    Column("train/loss", "final training loss", 4, "training loss", "log"),
    Column("train/nc1", "NC1 (within-class)", 4, "NC1: within-class variability", "log"),
    Column("train/nc2_means", "NC2 of class means", 3, "NC2: class means to a simplex ETF", "log"),
    Column("train/nc2_classifier", "NC2 of classifier", 3, test="none"),  # zero for both frames, to rounding
    Column(
        "train/nc3",
        "NC3 (classifier to means)",
        3,
        "NC3: classifier to class means",
        "log",
        words=("closer to self-duality", "farther from self-duality"),
    ),
    Column("train/nc4", "NC4 (nearest centre)", 4, "NC4: agreement with nearest centre", test="none"),
    # How long an epoch takes depends on the machine, so a test over seeds would say nothing about the methods.
    Column("seconds_per_epoch", "seconds per epoch", 3, test="none"),
)
DEFAULT = Comparison(
    # On this set the curves are flat after 20 epochs; with 6 steps an epoch, the early ones show who is quicker.
    loop=LoopOptions(epochs=20, batch_size=256),
    optimizer=OptimizerOptions(
        learning_rate=0.05
    ),  # with momentum 0.9 the best of 0.02, 0.05, 0.1 for the learned head
)


def _paper(dataset: str, model: str, **loop: Any) -> Comparison:
    """What the paper trains, networks without biases and scales (Markou et al. 2024, section 4, released scripts).

    Which augmentation is not known: the usual one of CIFAR is taken.
    """
    options = {"epochs": 200, "batch_size": 256, "stratified": True, "checkpoint_every": 10, "evaluate_every": 5}
    return Comparison(
        seeds=5,
        data=DataOptions(dataset, augmentation="none" if dataset == "imagenet2012" else "cifar"),
        backbone=BackboneOptions(model),
        optimizer=OptimizerOptions("agd", learning_rate=1.0),
        loop=LoopOptions(**options | loop, slow_metrics=True),  # the paper plots them
    )


PRESETS = {
    "default": DEFAULT,
    # For the tests: every part of the program, in seconds.
    "smoke": dataclasses.replace(
        DEFAULT,
        seeds=2,
        loop=LoopOptions(epochs=2, batch_size=256, checkpoint_every=1),
        backbone=BackboneOptions(hidden=(32,), dim=16),
    ),
    **{
        f"paper-{dataset}-{model}": _paper(dataset, model)
        for dataset in ("cifar10", "cifar100", "stl10")
        for model in ("resnet18", "resnet50", "vgg13")
    },
    # The labels of a set that is read as it is trained on are not known before, so its batches are not stratified.
    **{
        f"paper-imagenet-{model}": _paper("imagenet2012", model, stratified=False, threads=16)
        for model in ("resnet34", "resnet50")
    },
}


PAPER = "the paper's network, optimiser (AGD) and 200 epochs, 5 seeds; made for an accelerator"
ABOUT = {
    "default": About(
        "learned, fixed and nearest head on digits, a small MLP, 20 epochs",
        1.2,
        "epochs to 95 %: nearest 2.6, fixed 4.2, learned 4.4; final accuracy 0.979, 0.976, 0.975",
    ),
    "smoke": About("every part of the program in two epochs, for the tests", 0.4),
    **{name: About(PAPER) for name in PRESETS if name.startswith("paper-")},
}


def measure(run: Run) -> Found:
    """Return the cosines between class means; of the last seed, the distribution of all examples' margins, too."""
    found: Found = {"cosines": heat_maps.rounded(cosines(run.trained.statistics.centred_means()), 4)}
    if run.seed == run.group.settings.seeds - 1 and jax.process_count() == 1:
        sets = {"train": run.data.train, "test": run.data.test}
        margins = {
            split: example_margins(run.trainer.outputs(run.trained.state, examples), run.trained.statistics)
            for split, examples in sets.items()
        }
        found["margins"] = {name: np.percentile(one, np.arange(101)).tolist() for name, one in margins.items()}
    return found


def cosine_picture(scene: Scene) -> Path | None:
    """Draw the cosines of each head's last seed."""
    last = {label: runs[-1] for label, runs in scene.rows.items() if "cosines" in runs[-1]}
    matrices = {label: np.array(found["cosines"]) for label, found in last.items()}
    if not matrices:
        return None
    target, path = -1 / (scene.data.num_classes - 1), scene.path("cosines")
    heat_maps.cosine_matrices(path, matrices, target, scene.data.class_names)
    return path


def margins(scene: Scene) -> Path | None:
    """Draw how the cosine margins of all examples are distributed, for each head's last seed."""
    sets: dict[str, dict[str, list[float]]] = {}
    for label, runs in scene.rows.items():
        for split, percentiles in runs[-1].get("margins", {}).items():
            sets.setdefault("training" if split == "train" else split, {})[label] = percentiles
    if not sets:
        return None
    path = scene.path("margins")
    plots.quantiles(path, sets, scene.looks)
    return path


EXPERIMENT = Experiment(
    "nearest_etf",
    COLUMNS,
    baseline="nearest",
    measure=measure,
    pictures=(curves, summary_picture, confusions, cosine_picture, margins),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every head with every seed; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan)
