"""Which of the nearest head's ingredients matter, and when? The open questions of Markou et al. (2024).

Claim     None. Each question is answered by a table and a picture (docs/findings/).
Command   python -m experiments.ablations [gradient | proximal | batches | backbones]
          (on two CPU cores: 18 and 22 minutes, an hour, an hour)
Expected  docs/findings: gradient.md, proximal.md, batches.md, backbones.md
Writes    runs/ablations/<time>-<question>/: config.json, results.jsonl, metrics.jsonl, checkpoints/, summary.md,
          summary.json, and for each case a folder with convergence.png, summary.png and confusion.png
Data      handwritten digits and 100 rendered characters with 20 training images each.

Every question compares variants of the settings of `experiments.nearest_etf` over the same seeds. The other variants of
a case are tested against its first one, seed by seed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments import nearest_etf
from nc_jax.streams import steps_per_epoch
from nc_jax.study import About, Column, Comparison, Experiment, main, plan, refuse_overridden, run

Case = Mapping[str, Mapping[str, Any]]  # by variant, what it changes in the settings

COLUMNS = (
    Column("accuracy_epoch_1", "accuracy after epoch 1", 3),
    Column("epochs_to_target", "epochs to {target}", 1),
    Column("test/accuracy", "final test accuracy", 4, "test accuracy", words=("less accurate", "more accurate")),
    Column("train/loss", "training loss", 4, "training loss", "log"),
    Column("train/nc1", "NC1", 4, test="none"),
    Column(
        "train/nc3",
        "NC3",
        4,
        "NC3: classifier to class means",
        "log",
        words=("closer to self-duality", "farther from self-duality"),
    ),
)

# What is trained. The learning rates are the best of 0.02, 0.05, 0.1 for the learned head on digits, 0.05 elsewhere.
BASE = dataclasses.replace(nearest_etf.DEFAULT, methods=("nearest",))
DIGITS: dict[str, Any] = {"loop.devices": 1}
GLYPHS: dict[str, Any] = {
    "loop.devices": 1,
    "data.name": "glyphs/low-data",
    "backbone.hidden": (256,),
    "backbone.dim": 256,
    "target_accuracy": 0.7,
}
# Convolutional networks take half as many seeds.
RESNET: dict[str, Any] = {
    "loop.devices": 1,
    "backbone.name": "resnet18",
    "backbone.width_multiplier": 1 / 8,
    "loop.batch_size": 128,
    "loop.epochs": 10,
    "seeds": BASE.seeds // 2,
}
STEPS = {"digits": steps_per_epoch(1437, BASE.loop.batch_size), "glyphs": steps_per_epoch(2000, BASE.loop.batch_size)}


def _case(base: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> Case:
    return {name: {**base, **changes} for name, changes in variants.items()}


def _gradient() -> dict[str, Case]:
    """With and without the gradient through the inner problem."""
    both: dict[str, Any] = {"with the gradient": {}, "without": {"head.stop_gradient": True}}

    def phases(epoch_steps: int) -> dict[str, Any]:
        epochs = BASE.loop.epochs
        early, late = (0, epochs // 4), (epochs // 4, epochs)
        return both | {
            f"without, epochs {start + 1} to {stop}": {"head.stop_gradient": (start * epoch_steps, stop * epoch_steps)}
            for start, stop in (early, late)
        }

    return {
        "digits, MLP": _case(DIGITS, phases(STEPS["digits"])),
        "glyphs, MLP": _case(GLYPHS, phases(STEPS["glyphs"])),
        "glyphs, MLP, batch 64": _case(GLYPHS | {"loop.batch_size": 64}, both),
        "glyphs, MLP, batch 1024": _case(GLYPHS | {"loop.batch_size": 1024, "loop.epochs": 60}, both),
        "digits, ResNet": _case(RESNET, both),
    }


def _proximal() -> dict[str, Case]:
    """Proximal weight over five decades; what the first step, and what later steps are drawn to."""
    weights = {f"weight {weight:g}": {"head.prox_weight": weight} for weight in (1e-5, 1e-4, 1e-2, 1e-1, 1.0)}
    starts: dict[str, dict[str, Any]] = {
        f"{initial}, {point}": {"head.initial": initial, "head.prox_point": point}
        for point in ("previous", "initial")
        for initial in ("unregularised", "canonical", "random")
    }
    del starts["unregularised, previous"]
    strong = {"random, initial, weight 1": {**starts["random, initial"], "head.prox_weight": 1.0}}
    variants = {"weight 0.001": {}} | weights | starts | strong
    return {"digits, MLP": _case(DIGITS, variants), "glyphs, MLP": _case(GLYPHS, variants)}


def _batches() -> dict[str, Case]:
    """Batches with fewer examples than classes; the averaging of means; template and solver."""
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "cumulative average": {"head.averaging": "cma"},
        "stratified": {"loop.stratified": True},
        "full template": {"head.reduced": False},
        "trust region": {"head.solver": "trust_region"},
    }
    return {
        "digits, MLP": _case(DIGITS, variants),
        "glyphs, MLP, batch 256": _case(GLYPHS, variants),
        "glyphs, MLP, batch 32": _case(GLYPHS | {"loop.batch_size": 32}, variants),
    }


def _backbones() -> dict[str, Case]:
    """The three heads on other networks, and on more classes."""
    heads: dict[str, Any] = {name: {"methods": (name,)} for name in ("nearest", "fixed", "learned")}
    cases = {}
    for model, width in {"resnet18": 1 / 8, "densenet40": 1 / 4, "efficientnet": 1 / 4, "vit": 1 / 4}.items():
        base = RESNET | {"backbone.name": model, "backbone.width_multiplier": width}
        if model in ("vit", "efficientnet"):
            # Without momentum's help they do not leave the start in ten epochs of plain SGD at 0.05.
            base |= {"optimizer.name": "adamw", "optimizer.learning_rate": 2e-3}
        if model == "vit":
            base |= {"loop.epochs": 20}  # the nearest head, seed 0: 94 % by then, 85 after ten
        cases[f"digits, {model}"] = _case(base, heads)
    # A simplex of 100 classes needs 99 dimensions, which this width has; the stem is that of quarter resolution, which
    # takes a tenth of the time.
    resnet = {"backbone.width_multiplier": 1 / 4, "backbone.stem": "imagenet"}
    glyphs = RESNET | resnet | {"data.name": "glyphs/low-data", "target_accuracy": 0.7}
    return cases | {"glyphs, resnet18": _case(glyphs, heads), "glyphs, MLP": _case(GLYPHS, heads)}


QUESTIONS = {"gradient": _gradient(), "proximal": _proximal(), "batches": _batches(), "backbones": _backbones()}
PRESETS = {
    "default": dataclasses.replace(BASE, grid=QUESTIONS["gradient"]),
    **{question: dataclasses.replace(BASE, grid=cases) for question, cases in QUESTIONS.items()},
    # For the tests: every part of the program, in seconds.
    "smoke": dataclasses.replace(
        BASE,
        seeds=2,
        loop=dataclasses.replace(BASE.loop, epochs=2),
        grid={"digits, MLP": QUESTIONS["gradient"]["digits, MLP"]},
    ),
}
ABOUT = {
    "default": About("the same as gradient", 18, "accuracy on digits: 0.979 with, 0.978 without"),
    "gradient": About(
        "with and without the gradient through the inner problem; findings/gradient.md",
        18,
        "accuracy on digits: 0.979 with, 0.978 without",
    ),
    "proximal": About(
        "proximal weights over five decades, and proximal points; findings/proximal.md",
        22,
        "accuracy on glyphs: 0.681 at weight 0.001, 0.742 at weight 1",
    ),
    "batches": About(
        "small batches, averaging of the means, template and solver; findings/batches.md",
        60,
        "neither template nor solver changes an accuracy",
    ),
    "backbones": About(
        "the three heads on ResNet, DenseNet, EfficientNet, ViT and MLP; findings/backbones.md",
        60,
        "accuracy of a ResNet on glyphs: nearest 0.916, fixed 0.878, learned 0.877",
    ),
    "smoke": About("the first case of gradient in two epochs, for the tests", 0.5),
}
EXPERIMENT = Experiment("ablations", COLUMNS)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every variant of every case; write and show a table and a plot for each case."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=refuse_overridden)
