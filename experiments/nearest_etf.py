"""Does the nearest simplex ETF train faster than a fixed one and a learned classifier?

Claim     Markou et al. (2024), section 4: fewer epochs to the same accuracy, and closer to neural collapse.
Command   python -m experiments.nearest_etf        (8 seeds of 3 heads: a minute or two on two CPU cores)
Expected  test accuracy after epoch 1: nearest 0.92, fixed 0.85, learned 0.85 (sd 0.02); epochs to 95 %: 2.6, 4.2, 4.4;
          NC3 after 20 epochs: 0.040, 0.079, 0.22
Writes    runs/nearest_etf/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, convergence.png, confusion.png, cosines.png, margins.jsonl;
          `python -m experiments.analyse DIRECTORY` draws more of them
Data      scikit-learn's handwritten digits: 1437 training and 360 test images of 8 x 8 pixels. --data.name takes any
          other, --backbone.name any network; the presets named paper-... hold what the paper trained.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from nc_jax.frames.properties import cosines
from nc_jax.study import (
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
    run,
)
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import DataOptions
from nc_jax.training import LoopOptions, OptimizerOptions, example_margins
from nc_jax.training.logging import write_atomically

COLUMNS = (
    Column("accuracy_epoch_1", "test accuracy after epoch 1", 4),
    Column("epochs_to_target", "epochs to the target accuracy", 1),
    Column("test/accuracy", "final test accuracy", 4, "test accuracy"),
    Column("train/loss", "final train loss", 4, "training loss", "log"),
    Column("train/nc1", "NC1", 4, "NC1: within-class variability", "log"),
    Column("train/nc2_means", "NC2 means", 3, "NC2: class means to a simplex ETF", "log"),
    Column("train/nc2_classifier", "NC2 classifier", 3),
    Column("train/nc3", "NC3", 3, "NC3: classifier to class means", "log"),
    Column("train/nc4", "NC4", 4, "NC4: agreement with nearest centre"),
    # The machine's, not the method's: a test over seeds would say nothing.
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


def cosine_picture(scene: Scene) -> str:
    """Draw the cosines of each head's last seed."""
    last = {label: runs[-1] for label, runs in scene.rows.items() if "cosines" in runs[-1]}
    matrices = {label: np.array(found["cosines"]) for label, found in last.items()}
    if not matrices:
        return ""
    target = -1 / (scene.data.num_classes - 1)
    heat_maps.cosine_matrices(scene.directory / "cosines.png", matrices, target, scene.data.class_names)
    return "cosines.png"


def margin_lines(scene: Scene) -> str:
    """Write the margins as `experiments.analyse` reads them, a line per run and set."""
    lines = [
        json.dumps({"run": name, "split": split, "percentiles": percentiles}) + "\n"
        for label, runs in scene.rows.items()
        for name, found in zip(scene.results.runs(scene.case)[label], runs, strict=True)
        for split, percentiles in found.get("margins", {}).items()
    ]
    write_atomically(scene.directory / "margins.jsonl", "".join(lines))
    return ""


EXPERIMENT = Experiment(
    "nearest_etf",
    COLUMNS,
    baseline="nearest",
    measure=measure,
    pictures=(curves, confusions, cosine_picture, margin_lines),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every head with every seed; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, plan=plan)
