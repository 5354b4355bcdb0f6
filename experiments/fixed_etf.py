"""Does a fixed simplex ETF, with features of only K dimensions, cost accuracy?

Claim     Zhu et al. (2021), abstract: a fixed classifier and fewer feature dimensions without loss of generalisation.
Command   python -m experiments.fixed_etf        (6 cells x 4 seeds: 12 minutes on two CPU cores)
Expected  accuracy on digits 0.967 learned with d = 64, 0.972 fixed with d = K, 0.958 turned (sd 0.01)
Writes    runs/fixed_etf/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, convergence.png, summary.png, confusion.png
Data      scikit-learn's handwritten digits.

The abstract also claims to save more than 20 % of the memory of ResNet-18. `benchmarks.step_memory` measures that.

Three classifiers (linear, a fixed simplex ETF aligned with the coordinates, the same ETF turned at random) are trained
with two feature dimensions, d = the network's own and d = K. With d = K, the last convolution of the network has K
channels. Features are averages of ReLUs, so they are not negative. They can align with the first fixed frame, which is
that of the released program (the coordinate axes less their mean), and not with the second.
"""

import dataclasses
from typing import Any

import jax

from nc_jax.study import About, Column, Comparison, Experiment, main, plan, refuse_overridden, run
from nc_jax.study.backbones import BackboneOptions
from nc_jax.training import LoopOptions, OptimizerOptions

COLUMNS = (
    Column("test/accuracy", "test accuracy", 4, "test accuracy", words=("less accurate", "more accurate")),
    Column("train/loss", "training loss", 4, "training loss", "log", test="none"),
    Column("train/nc1", "NC1", 3, test="none"),
    Column("train/nc2_means", "NC2 of class means", 3, test="none"),
    Column("train/nc3", "NC3", 3, "NC3: classifier to class means", "log", test="none"),
)
DEFAULT = Comparison(
    methods=("linear", "aligned", "turned"),
    seeds=4,
    # d = 64 at this width: still far more than K, and all 24 runs take minutes.
    backbone=BackboneOptions("resnet18", width_multiplier=1 / 8),
    # Zhu et al. (2021), released settings.
    optimizer=OptimizerOptions(learning_rate=0.05, weight_decay=5e-4, schedule="cosine"),
    # Training accuracy is above 99.7 % after ten epochs, which take less than half a minute.
    loop=LoopOptions(epochs=10, batch_size=128, checkpoint_every=10, devices=1),
    grid={"": {"d = own": {}, "d = K": {"backbone.final_dim": 10}}},
)
PRESETS = {
    "default": DEFAULT,
    # For the tests, in seconds: without the convolutional network, whose compilation takes a minute.
    "smoke": dataclasses.replace(
        DEFAULT,
        seeds=2,
        backbone=BackboneOptions(hidden=(16,)),
        loop=LoopOptions(epochs=1, batch_size=512, devices=1),
        grid={"": {"d = 32": {"backbone.dim": 32}, "d = K": {"backbone.dim": 10}}},
    ),
}
ABOUT = {
    "default": About(
        "learned, fixed and randomly turned ETF, with d = 64 and d = K, a small ResNet-18 on digits",
        12,
        "accuracy: learned, d = 64: 0.967; fixed, d = K: 0.972; turned at random, d = K: 0.958",
    ),
    "smoke": About("every part of the program in one epoch of an MLP, for the tests", 0.4),
}
EXPERIMENT = Experiment("fixed_etf", COLUMNS)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every cell with every seed; write and show the comparison."""
    # XLA takes minutes to compile the default generator for the network's kernels on a CPU, and seconds for this one.
    with jax.default_prng_impl("rbg"):
        return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=refuse_overridden)
