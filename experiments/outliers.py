"""Does a collapsed network find outliers by the geometry of its features, and does a fixed or nearest frame help?

Claim     Ammar et al., NECO (2024): late in training, outliers are orthogonal to the class means (NC5), and the share
          of a feature in the span of the training features finds them. Liu and Qin, NCI (2025): so does the angle of a
          feature to its class vector, with its length. Both compare with ViM (Wang et al. 2022) and with logits.
Command   python -m experiments.outliers          (4 methods x 2 lengths x 5 seeds: 13 minutes on two busy CPU cores)
Expected  AUROC for other characters after 100 epochs: energy 0.773 linear, 0.927 to 0.929 learned, fixed and nearest;
          NECO 0.694 and 0.911 to 0.914 (0.835 to 0.850 after 8 epochs); ViM 0.862 and 0.912 to 0.915. NC5 0.19
Writes    runs/outliers/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, scores.png, summary.png
Data      rendered characters: the first 20 are the classes, others are outliers. The preset fashion needs the files of
          Fashion-MNIST.

Test examples and outliers get a score from one network, and AUROC says how often an example scores above an outlier.
The sets of outliers are *characters* (images of 40 other characters: near), *digits* (scikit-learn's handwritten
digits, enlarged) and *scrambled* (the test images with their tiles in another order: no characters). No score has a
number that was chosen with outliers.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
from nc_jax.study.data import DataOptions
from nc_jax.study.outliers import OUTLIERS, SCORES, check_images, find_outliers
from nc_jax.study.statistics import half_width, paired_difference
from nc_jax.study.trainers import data_of
from nc_jax.training import LoopOptions, OptimizerOptions


@dataclasses.dataclass(frozen=True)
class Config(Comparison):
    """Settings of the experiment.

    Attributes:
        outliers: sets of outliers, of characters, digits and scrambled.
    """

    outliers: tuple[str, ...] = ("characters", "scrambled")


COLUMNS = (
    Column("test/accuracy", "test accuracy", 4, words=("less accurate", "more accurate")),
    Column("train/nc1", "NC1", 3, test="none"),
    Column("train/nc2_means", "NC2 of class means", 3, test="none"),
    Column("train/nc3", "NC3", 3, test="none"),
    *(Column(f"nc5/{name}", f"NC5, {name}", 3, test="none") for name in OUTLIERS),
    *(Column(f"auroc/{name}/{score}", f"AUROC, {name}, {SCORES[score]}", 3) for name in OUTLIERS for score in SCORES),
    *(
        Column(f"fpr95/{name}/{score}", f"FPR95, {name}, {SCORES[score]}", 3, test="none")
        for name in OUTLIERS
        for score in SCORES
    ),
)
SHORT, LONG = "8 epochs", "100 epochs"
DEFAULT = Config(
    methods=("linear", "learned", "fixed", "nearest"),
    seeds=5,
    data=DataOptions("glyphs", num_classes=20),
    backbone=BackboneOptions(hidden=(256, 256), dim=64),
    optimizer=OptimizerOptions(learning_rate=0.05, weight_decay=5e-4, schedule="cosine", clip_norm=1.0),
    loop=LoopOptions(epochs=100, batch_size=64, evaluate_every=20, checkpoint_every=100, keep_checkpoints=1, devices=1),
    # The claims are about the time after the training error is zero, which it is after 8 epochs with all four heads.
    grid={"": {SHORT: {"loop.epochs": 8}, LONG: {}}},
)
PRESETS = {
    "default": DEFAULT,
    # For the tests: every part of the program, in seconds.
    "smoke": dataclasses.replace(
        DEFAULT,
        methods=("linear", "nearest"),
        seeds=2,
        data=DataOptions("glyphs", num_classes=5),
        backbone=BackboneOptions(hidden=(16,), dim=8),
        loop=LoopOptions(epochs=2, batch_size=64, checkpoint_every=1, devices=1),
        outliers=("digits", "scrambled"),
        grid={"": {"": {}}},
    ),
    "decay": dataclasses.replace(
        DEFAULT,
        methods=("linear", "fixed"),
        optimizer=dataclasses.replace(DEFAULT.optimizer, weight_decay=5e-3),
        grid={"": {"": {}}},
    ),
    "fashion": dataclasses.replace(
        DEFAULT,
        # A sixth of the training set: networks reach the end of training, which the claims are about, in minutes.
        data=DataOptions("idx:/usr/share/datasets/fashion-mnist", per_class=1000),
        loop=dataclasses.replace(DEFAULT.loop, epochs=60, batch_size=128, checkpoint_every=60),
        outliers=("characters", "digits", "scrambled"),
        grid={"": {"": {}}},
    ),
}
ABOUT = {
    "default": About(
        "four heads on 20 characters after 8 and 100 epochs; other characters and scrambled images",
        13,
        "AUROC of the energy, other characters: linear 0.773, fixed 0.929; of NECO: 0.694, 0.914",
    ),
    "smoke": About("two methods in two epochs of a small network, for the tests", 0.4),
    "decay": About(
        "a linear classifier and a fixed ETF on 20 characters with ten times the weight decay",
        5,
        "AUROC with the fixed ETF, other characters: energy 0.921, NECO 0.932, ViM 0.933",
    ),
    "fashion": About(
        "four heads on 1,000 images of each class of Fashion-MNIST; characters, handwritten digits, scrambled images",
        14,
        "AUROC, digits: ViM 0.971 linear, 0.952 to 0.958 else; energy 0.943 and 0.923 to 0.933",
    ),
}


def check_sets(settings: Comparison) -> None:
    """Raise a ValueError unless the sets of outliers are known and have images like those of the data set."""
    config: Any = settings
    unknown = [name for name in config.outliers if name not in OUTLIERS]
    if unknown or not config.outliers:
        raise ValueError(f"outliers must be among {', '.join(OUTLIERS)}; got {', '.join(unknown) or 'none'}")
    check_images(data_of(settings))


def measure(run: Run) -> Found:
    """Return how well each score finds each set of outliers."""
    settings: Any = run.group.settings
    return find_outliers(run, settings.outliers, settings.data.name)


def scores(scene: Scene) -> Path:
    """Draw AUROC by score, one panel for each set of outliers: means over seeds with their 95 % intervals."""
    config: Any = scene.groups[0].settings
    path, values = scene.path("scores"), scene.results.values(scene.case)
    figure, axes = plots.grid(len(config.outliers), len(config.outliers), (5.0, 4.2), (0.0, 1.2))
    places = np.arange(len(SCORES))
    for axis, name in zip(axes.flat, config.outliers, strict=False):
        for number, (label, numbers) in enumerate(values.items()):
            found = [np.array(numbers.get(f"auroc/{name}/{score}", [np.nan])) for score in SCORES]
            shift = (number - (len(values) - 1) / 2) * 0.08
            look = scene.looks[label]
            style: Any = {"color": look.colour, "label": label, "marker": "." if look.dash == "-" else "x"}
            heights, widths = [each.mean() for each in found], [half_width(each) for each in found]
            axis.errorbar(places + shift, heights, widths, linestyle="none", capsize=2, linewidth=1, **style)
        axis.set_xticks(places, list(SCORES.values()), rotation=40, ha="right", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("AUROC")
    plots.legend_below(figure, axes.flat[0])
    plots.save(figure, path)
    return path


def against_energy(scene: Scene) -> list[str]:
    """Say, for each set and row, by how much the AUROC of each score differs from that of the energy, seed by seed."""
    config: Any = scene.groups[0].settings
    said = []
    for name in config.outliers:
        for label, numbers in scene.results.values(scene.case).items():
            found = {score: numbers.get(f"auroc/{name}/{score}") for score in SCORES}
            energy = found.pop("energy")
            if energy is None:
                continue  # every run diverged
            less = [f"{SCORES[score]} {paired_difference(auc, energy, 3)}" for score, auc in found.items() if auc]
            said.append(f"AUROC less that of the energy, {name}, {label}: {'; '.join(less)}.")
    return said


EXPERIMENT = Experiment(
    "outliers",
    COLUMNS,
    pairs=(("linear", "learned"), ("linear", "fixed"), ("learned", "fixed"), ("fixed", "nearest")),
    measure=measure,
    pictures=(scores, summary_picture),
    notes=against_energy,
    check=check_sets,
)


def run_comparison(config: Config) -> dict[str, Any]:
    """Train every method with every seed, and score outliers; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=partial(refuse_overridden, besides=("methods",)))
