"""Does a classifier frame that follows a label tree make milder mistakes, and when?

Claim     Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 5: lower mistake
          severity and average hierarchical distance than cross-entropy, CRM, Flamingo and HAFeature at equal accuracy.
Command   python -m experiments.haframe        (10 seeds of 11 methods on glyphs: half an hour on two CPU cores)
Expected  HAFrame less cross-entropy: severity -0.11, AHD@1 -0.012, top-1 -0.002 (docs/findings/hierarchy.md)
Writes    runs/haframe/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, dendrogram.png, summary.png, severity.png, cosines.png, confusion.png
Data      100 rendered characters with 20 training images each and the tree of their shapes. The preset digits has
          handwritten digits and the tree of their strokes; the presets paper-... need images and trees of your own,
          the preset imagenet needs imagenet2012 of TFDS and WordNet 3.0 (apt-get install wordnet-base).

Every table has two controls. A frozen simplex ETF with the same loss shows what a frozen frame and the cosine loss do
without a hierarchy. HAFrame on the same tree with its classes shuffled shows what a meaningless hierarchy does. As soon
as cross-entropy has been trained, a line says how well the tree agrees with its confusions. Every method is trained at
the learning rate that is best for it on images held out of the training set.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nc_jax.data import hierarchies, known_labels
from nc_jax.heads import NearestOptions
from nc_jax.hierarchy import draw_dendrogram
from nc_jax.losses import conditional_risk_scores
from nc_jax.methods import HierarchyOptions
from nc_jax.methods.hierarchy import wanted_cosines
from nc_jax.metrics import HierarchyStatistics, similarity_errors, usual_top
from nc_jax.study import (
    About,
    Column,
    Comparison,
    Experiment,
    Found,
    Group,
    Run,
    Scene,
    check,
    confusion_trees,
    confusions,
    finish,
    heat_maps,
    main,
    plan,
    plots,
    summary_picture,
)
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.config import changed
from nc_jax.study.data import DataOptions
from nc_jax.study.runs import open_run
from nc_jax.study.statistics import mean_and_sd
from nc_jax.training import LoopOptions, OptimizerOptions

LEAST_ACCURACY = 0.5  # of cross-entropy, for a word on the tree: a guess; at chance, mistakes follow no tree
# A rule that decides for the least expected distance costs no training, so these come with the methods' own runs.
CRM = {"ce": "cross-entropy + CRM", "haframe": "HAFrame + CRM"}
COLUMNS = (
    Column("top1", "top-1", 4, test="wilcoxon", words=("less accurate", "more accurate")),
    Column("mistake_severity", "severity", 3, test="wilcoxon", words=("milder mistakes", "more severe mistakes")),
    Column("ahd@1", "AHD@1", 3, test="wilcoxon"),
    Column("ahd@5", "AHD@5", 3, test="wilcoxon"),
    Column("ahd@20", "AHD@20", 3, test="none"),
    Column("hp@5", "precision@5", 3, test="none"),
    Column("rank_severity", "rank-aware", 3, test="none"),
    Column("cosine_error", "error of cosines", 3, test="none"),
)


def _loop(epochs: int, batch_size: int) -> LoopOptions:
    half = max(epochs // 2, 1)
    return LoopOptions(
        epochs=epochs, batch_size=batch_size, evaluate_every=epochs, checkpoint_every=half, keep_checkpoints=1
    )


DEFAULT = Comparison(
    methods=(
        "ce",
        "soft-labels",
        "hxe",
        "yolo",
        "barz-denzler",
        "flamingo",
        "hafeature",
        "etf",
        "shuffled",
        "haframe",
        "nearest-haframe",
    ),
    seeds=10,  # a signed-rank test cannot reach p = 0.01 with fewer than 8
    rates=(0.4, 0.8, 1.6, 3.2),  # from one at which no method has converged to one at which some diverge
    data=DataOptions("glyphs/low-data", "glyphs/shape"),
    # Without the normalisation an MLP's features keep a large common part, orthogonal to the frame, which the cosine
    # loss, whose gradient falls with their length, does not take away: mean error of the cosines 0.45 on glyphs, and
    # 0.10 with it.
    backbone=BackboneOptions(neck="norm"),
    optimizer=OptimizerOptions(
        learning_rate=1.6,  # what cross-entropy chooses on glyphs
        momentum=0.0,
        clip_norm=1.0,  # without, one in ten runs of cross-entropy on glyphs diverged
        schedule="cosine",  # Liang and Davis (2023)
    ),
    loop=_loop(20, 64),  # the batch of Liang and Davis (2023) on CIFAR-100 and FGVC-Aircraft
    head=NearestOptions(radius=None),
)


def _paper(
    dataset: str,
    tree: str,
    *,
    gamma: float,
    alpha: float = 0.5,
    batch_size: int = 64,
    rate_part: Any = "all",
    augmentation: str = "flip",
    train_crop: Any = "random",
    **backbone: Any,
) -> Comparison:
    """Liang and Davis (2023), section 5 and released scripts.

    Three of the four sets are yours to bring, as folders of images below --data.data-dir (`nc_jax.data.folders`): TFDS
    has no loader for them. So are their trees, as files: their licence does not allow to ship them. The paper tests the
    epoch that is best on a validation set, this program the last one.
    """
    return dataclasses.replace(
        DEFAULT,
        methods=("ce", "flamingo", "hafeature", "etf", "shuffled", "haframe"),
        seeds=5,
        rates=(),
        data=DataOptions(dataset, tree, augmentation=augmentation, train_crop=train_crop, test_crop="stretch"),
        backbone=BackboneOptions(
            **{"name": "resnet50", "neck": "type2", "rate_factor": 0.1, "rate_part": rate_part} | backbone
        ),
        optimizer=OptimizerOptions(learning_rate=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine"),
        loop=_loop(100, batch_size),
        hierarchy=HierarchyOptions(gamma=gamma, alpha=alpha),
    )


PRESETS = {
    "default": DEFAULT,
    "digits": changed(DEFAULT, {"data.name": "digits", "data.tree": "digits"}),
    # For the tests: every part of the program, in seconds.
    "smoke": changed(
        DEFAULT,
        {
            "data.name": "digits",
            "data.tree": "digits",
            "methods": ("ce", "haframe"),
            "seeds": 2,
            "rates": (),
            "backbone.hidden": (32,),
            "backbone.dim": 16,
            "loop.epochs": 2,
            "loop.evaluate_every": 2,
            "loop.checkpoint_every": 1,
        },
    ),
    # The tree clusters what cross-entropy confuses on held-out halves of the training set. A seed leaves some ten
    # mistakes, so it takes many.
    "confusion": changed(
        DEFAULT, {"data.name": "digits", "data.tree": "confusion", "data.per_class": 100, "seeds": 30}
    ),
    "script": changed(DEFAULT, {"data.tree": "glyphs/script"}),
    "full-data": changed(DEFAULT, {"data.name": "glyphs", "hierarchy.gamma": 5.0}),
    # WideResNet-28-8 from scratch. The tree is that of the 20 superclasses; the paper's has five levels.
    "paper-cifar100": _paper(
        "cifar100",
        "cifar100",
        gamma=2.0,
        alpha=0.4,
        augmentation="cifar-reflect",
        name="wide-resnet28",
        width_multiplier=0.8,
    ),
    "paper-fgvc-aircraft": _paper(
        "fgvc_aircraft",
        "fgvc_aircraft.json",
        gamma=1.0,
        rate_part="backbone",
        augmentation="cifar",
        train_crop="stretch",
    ),
    "paper-inaturalist19": _paper(
        "inaturalist19", "inaturalist19.parent_child.txt", gamma=5.0, alpha=0.4, batch_size=256
    ),
    "paper-tiered-imagenet": _paper("tiered_imagenet", "tiered_imagenet.parent_child.txt", gamma=3.0, batch_size=256),
    # All classes, with the settings for the 608 of tieredImageNet-H. Images are decoded while others are trained on.
    "imagenet": changed(_paper("imagenet2012", "wordnet", gamma=3.0, batch_size=256), {"loop.threads": 16}),
}


ABOUT = {
    "default": About(
        "11 methods on 100 glyphs with 20 images each, the tree of their shapes",
        30,
        "severity: HAFrame 1.82, cross-entropy 1.93; top-1: 0.861, 0.863",
    ),
    "digits": About("the same methods on digits, the tree of their strokes", 22),
    "smoke": About("two methods on digits in two epochs, for the tests", 0.5),
    "confusion": About("digits, 100 images each, with a tree made from the confusions of cross-entropy; 30 seeds", 34),
    "script": About(
        "the same methods on glyphs, a tree of scripts and cases that confusions do not follow",
        30,
        "HAFrame three points less accurate than cross-entropy, its mistakes no milder",
    ),
    "full-data": About(
        "the same methods on glyphs with 60 images each", 90, "top-1: HAFrame 0.943, cross-entropy 0.952"
    ),
    **{name: About("the paper's settings; images and trees are yours to bring") for name in PRESETS if "paper" in name},
    "imagenet": About("the paper's settings for tieredImageNet-H on ImageNet, with the tree of WordNet; not tried"),
}


def measure(run: Run) -> Found:
    """Return the severity of mistakes over the whole test set, by the logits and by the conditional risk."""
    tree, settings = run.data.tree, run.group.settings
    assert tree is not None, "every method of this experiment has one"
    distances = jnp.asarray(tree.distances())
    top = usual_top(run.data.num_classes)
    sums = [HierarchyStatistics.init(tree.height, top)] * 2
    for output, batch in run.trainer.outputs(run.trained.state, run.data.test):
        scores = output.logits, conditional_risk_scores(output.logits, distances)
        found = [_ranked(one, known_labels(batch), distances, top, tree.height) for one in scores]
        sums = [one.merge(other) for one, other in zip(sums, found, strict=True)]
    statistics = run.trained.statistics
    wanted = jnp.asarray(wanted_cosines(settings.hierarchy, tree.distances()), jnp.float32)
    error = float(similarity_errors(statistics.means, wanted, statistics.present)["mean"])
    by_logits, by_risk = (_numbers(one, top) | {"cosine_error": error} for one in sums)
    vectors = np.asarray(statistics.means)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)
    result: Found = by_logits | {"cosines": heat_maps.rounded(units.T @ units) if len(units.T) <= 200 else []}
    gamma = run.trained.state.params.get("head", {}).get("template", {}).get("log_gamma")
    if gamma is not None:
        result["gamma"] = float(jnp.exp(gamma))
    if run.group.method in CRM:
        result["also"] = {CRM[run.group.method]: by_risk}
    return result


def measure_alone(run: Run) -> Found:
    """Return the same, decided by the logits alone."""
    return {name: value for name, value in measure(run).items() if name != "also"}


@functools.partial(jax.jit, static_argnames=("top", "height"))
def _ranked(scores, labels, distances, top, height):
    return HierarchyStatistics.from_batch(scores, labels, distances, top, max_distance=height)


def _numbers(sums: HierarchyStatistics, top: tuple[int, ...]) -> Found:
    shares = (sums.histogram / jnp.sum(sums.histogram)).tolist()
    return {name: float(value) for name, value in sums.compute(top).items()} | {"histogram": shares}


def alignment_sentence(tree_name: str, values: list[float], accuracies: list[float]) -> str:
    """Say how well the tree agrees with what cross-entropy confuses, whose accuracies on the test set are given."""
    middle, accuracy = float(np.nanmean(values)), float(np.mean(accuracies))
    if accuracy < LEAST_ACCURACY:
        verdict = f"with an accuracy of {accuracy:.2f}, this says nothing of the tree yet"
    elif middle > 0.9:
        verdict = "the tree has little to do with the confusions, so expect no gain"
    else:
        verdict = "confusions follow the tree, so it may help"
    distance = f"at {middle:.2f} of the distance of random ones in the tree {tree_name}"
    return f"Mistakes of cross-entropy lie {distance}; {verdict}."


def say_alignment(group: Group, found: list[Found]) -> None:
    """Print that sentence before any method that uses the tree is trained."""
    values = [run["alignment"] for run in found if "alignment" in run]
    if group.method == "ce" and values:
        accuracies = [run["top1"] for run in found if "top1" in run]
        print(alignment_sentence(str(group.settings.data.tree), values, accuracies), flush=True)


def notes(scene: Scene) -> list[str]:
    """Return that sentence, and the learned gamma."""
    found = []
    for group in scene.groups:
        runs = [run for run in scene.rows[group.label] if not run["diverged"]]
        if group.method == "ce" and runs:
            values, accuracies = ([run[name] for run in runs] for name in ("alignment", "top1"))
            found.append(alignment_sentence(str(group.settings.data.tree), values, accuracies))
        if runs and "gamma" in runs[0]:
            found.append(f"{group.label}: gamma {mean_and_sd([run['gamma'] for run in runs], 2)}.")
    return found


def severity(scene: Scene) -> Path:
    """Draw how large a share of the test examples is mistaken for a class at each distance from the true one."""
    tree, path = scene.data.tree, scene.path("severity")
    assert tree is not None, "every method of this experiment has one"
    panels = {
        f"distance {distance}": {
            label: [100 * run["histogram"][distance] for run in runs if "histogram" in run]
            for label, runs in scene.rows.items()
        }
        for distance in range(1, tree.height + 1)
    }
    caption = (
        "% of the test examples that are taken for a class at that distance in the tree (edges up to the common "
        "ancestor)\na faint point is a seed; the mean with its 95 % interval over seeds"
    )
    plots.points(path, panels, look=scene.looks, caption=caption)
    return path


def cosines(scene: Scene) -> Path:
    """Draw the wanted cosines between classes and those of the class means, of each method's last seed."""
    tree = scene.data.tree
    assert tree is not None, "every method of this experiment has one"
    means = {label: np.array(runs[-1]["cosines"]) for label, runs in scene.rows.items() if "cosines" in runs[-1]}
    options, path = scene.groups[0].settings.hierarchy, scene.path("cosines")
    errors = {label: runs[-1]["cosine_error"] for label, runs in scene.rows.items() if label in means}
    # Where gamma or the map is varied, what is wanted is that of the first row.
    wanted = wanted_cosines(options, tree.distances())
    heat_maps.wanted_cosines(path, wanted, means, errors, scene.data.class_names)
    return path


def dendrogram(scene: Scene) -> Path:
    """Draw the tree."""
    tree, options, path = scene.data.tree, scene.groups[0].settings.data, scene.path("dendrogram")
    assert tree is not None, "every method of this experiment has one"
    name = Path(options.name).name if Path(options.name).is_absolute() else options.name
    tree = hierarchies.readable(str(options.tree), tree)
    draw_dendrogram(tree, path, title=f"{name}: {Path(str(options.tree)).stem}")
    return path


EXPERIMENT = Experiment(
    "haframe",
    COLUMNS,
    baseline="haframe",
    rivals=("ce", "etf", "shuffled"),
    interval=True,
    measure=measure,
    score="ahd@1",
    pictures=(summary_picture, severity, cosines, dendrogram, confusions),
    notes=notes,
    after=say_alignment,
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every method with every seed; write and show the comparison."""
    if config.resume is None:
        flat = {"data.tree": "flat"} if config.data.tree == "confusion" else {}
        check(changed(config, flat))
    with open_run(EXPERIMENT.name, config) as (directory, config):
        if config.data.tree == "confusion":
            tree = confusion_trees.make(config, directory, measure=measure, score=EXPERIMENT.score)
            config = changed(config, {"data.tree": str(tree)})
        return finish(EXPERIMENT, config, directory)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan)
