"""What do a fixed simplex ETF and features of only K dimensions save: parameters, memory, time, or accuracy?

Claim     Zhu et al. (2021), abstract: more than 20 % of the memory of ResNet-18, without loss of generalisation.
Command   python -m experiments.fixed_etf        (14 minutes on two CPU cores that did other work, too)
Expected  parameters saved on ResNet-18: 0.05 % by fixing, 20.7 % by d = K; of a step's memory in batches of 32, 0.02 %
          and 9.4 %; accuracy on digits 0.962 learned with d = 64, 0.973 fixed with d = K, 0.952 turned (sd 0.01)
Writes    runs/fixed_etf/<time>-<preset>/: config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.md,
          summary.json, convergence.png
Data      scikit-learn's handwritten digits for the accuracy; noise in the shape of CIFAR-10 for memory and time.

The grid is {learned, fixed} x {d = the network's own, d = K}. In the second column the last block's last convolution
has K channels ("fixdim"). Features are averages of ReLUs, so none is negative: the fixed frame is that of the released
program, the first K coordinates less their mean, which such features can align with; a third row has it turned at
random.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from experiments import harness, plots, setups
from nc_jax.data import steps_per_epoch
from nc_jax.frames import simplex_etf, simplex_template
from nc_jax.models import Classifier, FixedHead, LearnedHead, ResNet
from nc_jax.training import (
    LoopOptions,
    MetricsLog,
    OptimizerOptions,
    Trainer,
    create_state,
    make_optimizer,
    make_train_step,
    read_metrics,
)
from nc_jax.training.logging import write_atomically

HeadName = Literal["learned", "fixed", "turned"]
GRID: tuple[HeadName, ...] = ("learned", "fixed")  # "turned" costs what "fixed" does
# The number behind the abstract, of a network with d = 512 and ten classes: nobody measured memory.
COUNTED = (("resnet18", "imagenet"), ("resnet18", "cifar"), ("resnet50", "imagenet"), ("resnet50", "cifar"))


@dataclasses.dataclass(frozen=True)
class Config(harness.RunOptions):
    """Settings of the experiment.

    Attributes:
        heads: which to measure and train: "learned"; "fixed", aligned with the coordinates; "turned", fixed in a random
            orientation. Parameters are counted for the first two in any case.
        model: a residual network of `experiments.setups`, whose steps are measured.
        num_classes: K, of the parameter counts and of the steps.
        size: height and width of the images that steps are measured on; the stem follows from it.
        batch_size: images per measured step.
        steps: timed ones; 0 compiles only, for the memory.
        trained_model: the network that is trained on digits: a residual one, or "mlp".
        width_multiplier: of it.
        seeds: of the training.
        epochs: likewise.
        learning_rate: of SGD with momentum 0.9, likewise.
        weight_decay: likewise.
        train_batch_size: likewise.
        checkpoint_every: epochs between checkpoints.
    """

    heads: tuple[HeadName, ...] = ("learned", "fixed", "turned")
    model: str = "resnet18"
    num_classes: int = 10
    size: int = 32  # Zhu et al. (2021), CIFAR-10
    batch_size: int = 32  # a step takes a second on two CPU cores; the preset paper-cifar has theirs
    steps: int = 5  # their median varies by a few percent
    trained_model: str = "resnet18"
    width_multiplier: float = 1 / 8  # d = 64: still far more than K, and all 24 runs take minutes
    seeds: int = 4
    epochs: int = 10  # training accuracy is above 99.7 % by then
    learning_rate: float = 0.05  # Zhu et al. (2021), released settings, as the next
    weight_decay: float = 5e-4
    train_batch_size: int = 128
    checkpoint_every: int = 10  # the last epoch: a run takes less than half a minute


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(
        preset="smoke",
        heads=("fixed",),
        size=8,
        batch_size=4,
        steps=1,
        trained_model="mlp",
        seeds=2,
        epochs=1,
        train_batch_size=512,
    ),
    # What Zhu et al. trained: CIFAR-10's images in batches of 128, and the stem of ImageNet.
    "paper-cifar": Config(preset="paper-cifar", batch_size=128, steps=3),
    "paper-imagenet": Config(preset="paper-imagenet", size=224, batch_size=128, steps=0),
}

METRICS = [
    ("test/accuracy", "test accuracy", 4),
    ("train/loss", "training loss", 4),
    ("train/nc1", "NC1", 3),
    ("train/nc2_means", "NC2 means", 3),
    ("train/nc3", "NC3", 3),
]
PANELS = [
    ("test/accuracy", "test accuracy", "linear"),
    ("train/loss", "training loss", "log"),
    ("train/nc3", "NC3: classifier to class means", "log"),
]


def run(config: Config) -> dict[str, Any]:
    """Count, compile, time and train the cells of the grid; write and show the tables.

    Returns:
        What summary.json holds: "counts" per network, "costs" and "training" per cell, and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        NonFiniteError: if training diverges.
    """
    if config.resume is None:
        check(config)
    directory, config = harness.open_run("fixed_etf", config)
    counts = {f"{model}, {stem} stem": count_cells(config.num_classes, model, stem) for model, stem in COUNTED}
    costs = harness.part(directory / "costs.json", lambda: measure_steps(config))
    training = train(config, directory)
    summary = {"counts": counts, "costs": costs, "training": training, "directory": str(directory)}
    report(config, summary, directory)
    return summary


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    for name in ("model", "trained_model")[: 1 if config.trained_model == "mlp" else 2]:
        if not getattr(config, name).startswith("resnet"):
            raise ValueError(
                f"{name} must be a residual network, whose last block is narrowed; got {getattr(config, name)!r}"
            )
        setups.make_backbone(getattr(config, name), size=config.size)
    if not set(config.heads) & set(GRID):
        raise ValueError(f"heads must have one of {', '.join(GRID)}, whose steps are measured; got {config.heads}")
    for name in ("seeds", "epochs", "batch_size", "size", "train_batch_size", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    if config.num_classes < 2 or config.steps < 0:
        raise ValueError(
            f"num_classes must be at least 2 and steps at least 0; got {config.num_classes} and {config.steps}"
        )


def aligned_etf(
    num_classes: int, dim: int, *, key: PRNGKeyArray | None = None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "dim classes"]:
    """Simplex ETF of the released program: K coordinates less their mean, in the first K dimensions.

    Non-negative features can align with it, since the direction of ones is orthogonal to all class vectors.

    Args:
        num_classes: K >= 2.
        dim: d >= K.
        key: not looked at: there is one such frame.
        dtype: a floating dtype.

    Raises:
        ValueError: if d < K.

    Reference: Zhu et al. (2021), released program.
    """
    del key
    if dim < num_classes:
        raise ValueError(f"a simplex ETF on {num_classes} coordinates needs dim >= {num_classes}; got dim={dim}")
    unit = math.sqrt(num_classes / (num_classes - 1)) * simplex_template(num_classes, reduced=False, dtype=dtype)
    return jnp.pad(unit, ((0, dim - num_classes), (0, 0)))


def make_head(name: HeadName, num_classes: int) -> LearnedHead | FixedHead:
    """Return a head; all of them learn a bias, as in the released program."""
    if name == "learned":
        return LearnedHead(num_classes)
    return FixedHead(num_classes, frame=simplex_etf if name == "turned" else aligned_etf, use_bias=True)


def cells(heads: Sequence[HeadName], num_classes: int) -> dict[str, tuple[HeadName, int | None]]:
    """Name the cells of the grid; each has a head and a feature dimension, None being the network's own."""
    return {f"{head}, d = {dim or 'own'}": (head, dim) for dim in (None, num_classes) for head in heads}


def count_cells(num_classes: int, model: str, stem: str) -> dict[str, dict[str, int]]:
    """Count trainable parameters, constants, and bytes of SGD's momentum per cell; nothing is computed."""
    found = {}
    for cell, (head, dim) in cells(GRID, num_classes).items():
        backbone = ResNet(depth=int(model.removeprefix("resnet")), stem=stem, final_dim=dim)  # pyright: ignore
        classifier = Classifier(backbone, make_head(head, num_classes))
        variables = jax.eval_shape(classifier.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        momentum = jax.eval_shape(optax.sgd(0.05, 0.9).init, variables["params"])
        found[cell] = {
            "trainable": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])),
            "constant": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("frame", {}))),
            "optimizer_bytes": sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(momentum)),
        }
    return found


def measure_steps(config: Config) -> dict[str, dict[str, float]]:
    """Compile a step of every cell, ask XLA what memory it plans, and time the steps in turns.

    Returns:
        Per cell: bytes at the peak (state, batch and temporaries: activations, gradients), of the temporaries, of state
        and batch ("argument"); seconds per step, their median (null without steps), and seconds of compilation.
    """
    generator = np.random.default_rng(0)
    images = generator.normal(size=(config.batch_size, config.size, config.size, 3)).astype(np.float32)
    batch = {"features": images, "labels": generator.integers(0, config.num_classes, config.batch_size)}
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, tuple[Any, Any]] = {}
    for cell, (head, dim) in cells([head for head in GRID if head in config.heads], config.num_classes).items():
        print(f"{cell}: compiling", flush=True)
        backbone = setups.make_backbone(config.model, size=config.size).clone(axis_name=None, final_dim=dim)
        model, optimizer = Classifier(backbone, make_head(head, config.num_classes)), optax.sgd(0.05, 0.9)

        def init(model: Any = model, optimizer: Any = optimizer) -> Any:
            # XLA needs long to compile the default generator for every kernel on a CPU.
            return create_state(model, optimizer, jax.random.key(0, impl="rbg"), images[:1])

        step = jax.jit(make_train_step(model, optimizer), donate_argnums=0)
        began = time.perf_counter()
        compiled = step.lower(jax.eval_shape(init), batch).compile()
        analysis: Any = compiled.memory_analysis()
        found[cell] = {
            # Not its peak_memory_in_bytes, which leaves the temporaries out on a CPU (JAX 0.10.2).
            "peak_bytes": int(
                analysis.argument_size_in_bytes
                + analysis.output_size_in_bytes
                - analysis.alias_size_in_bytes
                + analysis.temp_size_in_bytes
            ),
            "temporary_bytes": int(analysis.temp_size_in_bytes),
            "argument_bytes": int(analysis.argument_size_in_bytes),
            "compile_seconds": time.perf_counter() - began,
        }
        if config.steps:
            steps[cell] = compiled, init()
    seconds: dict[str, list[float]] = {cell: [] for cell in steps}
    for _ in range(config.steps + 1):
        for cell, (compiled, state) in list(steps.items()):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, batch))
            seconds[cell].append(time.perf_counter() - began)
            steps[cell] = compiled, state
    for cell, values in found.items():
        values["seconds"] = statistics.median(seconds[cell][1:]) if cell in seconds else None
    return found


def make_backbone(config: Config, size: int, dim: int | None) -> Any:
    """Return the network that is trained, with features of its own dimension, or of the given one."""
    if config.trained_model == "mlp":
        return setups.make_backbone("mlp", size=size, dim=128 if dim is None else dim)
    network = setups.make_backbone(config.trained_model, size=size, width_multiplier=config.width_multiplier)
    return network.clone(final_dim=dim)


def train(config: Config, directory: Path) -> dict[str, dict[str, list[float]]]:
    """Train every cell with every seed on digits, and draw the curves.

    Returns:
        Per cell and metric the value of the last epoch, a number per seed.
    """
    task = setups.load("digits")
    num_classes = task.train.num_classes
    groups = {}
    with MetricsLog(directory) as log:
        for cell, (head, dim) in cells(config.heads, num_classes).items():
            backbone = make_backbone(config, task.size, dim)
            optimizer = OptimizerOptions(
                learning_rate=config.learning_rate, weight_decay=config.weight_decay, schedule="cosine"
            )
            epoch_steps = steps_per_epoch(len(task.train), config.train_batch_size)
            options = LoopOptions(
                epochs=config.epochs,
                batch_size=config.train_batch_size,
                checkpoint_every=config.checkpoint_every,
                step=task.step,
            )
            trainer = Trainer(
                Classifier(backbone, make_head(head, num_classes)),
                make_optimizer(optimizer, epochs=config.epochs, epoch_steps=epoch_steps),
                options,
                devices=jax.local_devices()[:1],
            )
            groups[cell] = [f"{cell.replace(', ', '-').replace(' = ', '')}-seed{seed}" for seed in range(config.seeds)]
            for seed, name in enumerate(groups[cell]):
                # As above: XLA takes minutes for the default generator's kernels where this takes seconds.
                with jax.default_prng_impl("rbg"):
                    trainer.fit(task.train, task.test, seed=seed, run=name, directory=directory, log=log)
            print(f"{cell}: {config.seeds} seeds trained", flush=True)
    rows = read_metrics(directory / "metrics.jsonl")
    plots.curves(directory / "convergence.png", rows, groups, PANELS)
    last = {row["run"]: row for row in sorted(rows, key=lambda row: row["epoch"])}
    return {
        cell: {metric: [last[name][metric] for name in runs] for metric, *_ in METRICS} for cell, runs in groups.items()
    }


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show the tables."""
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    text = f"# fixed_etf, preset {config.preset}\n"

    def add(title: str, columns: list[str], table: list[list[str]]) -> None:
        nonlocal text
        text += f"\n{title}\n\n{harness.markdown_table(columns, table)}"
        harness.show_table(title, columns, table)

    table = []
    for network, found in summary["counts"].items():
        base = next(iter(found.values()))
        table += [
            [
                network,
                cell,
                f"{values['trainable']:,}",
                _saved(base["trainable"], values["trainable"]),
                f"{values['constant']:,}",
                f"{values['optimizer_bytes'] / 1e6:.2f}",
            ]
            for cell, values in found.items()
        ]
    columns = ["network", "cell", "trainable parameters", "saved", "constants", "MB of momentum"]
    add(f"parameters, {config.num_classes} classes (counted, nothing measured)", columns, table)

    costs = summary["costs"]
    base = next(iter(costs.values()))
    table = [
        [
            cell,
            f"{values['peak_bytes'] / 1e6:.1f}",
            _saved(base["peak_bytes"], values["peak_bytes"]),
            f"{values['temporary_bytes'] / 1e6:.1f}",
            f"{values['argument_bytes'] / 1e6:.1f}",
            "-" if values["seconds"] is None else f"{1e3 * values['seconds']:.0f}",
            f"{values['compile_seconds']:.1f}",
        ]
        for cell, values in costs.items()
    ]
    title = (
        f"a step of {config.model}, {config.size} x {config.size} pixels, batch {config.batch_size}, float32, "
        f"{jax.devices()[0].device_kind}: memory that XLA plans, median time of {config.steps} steps in turns"
    )
    columns = ["cell", "MB at the peak", "saved", "MB of temporaries", "MB of state and batch", "ms per step"]
    add(title, [*columns, "s to compile"], table)

    training = summary["training"]
    first = next(iter(training))
    columns = ["cell", *(title for _, title, _ in METRICS), f"accuracy - {first}"]
    table = [
        [
            cell,
            *(harness.mean_and_sd(values[metric], digits) for metric, _, digits in METRICS),
            ""
            if cell == first
            else harness.paired_difference(values["test/accuracy"], training[first]["test/accuracy"], 4),
        ]
        for cell, values in training.items()
    ]
    title = (
        f"digits, {config.trained_model} at width {config.width_multiplier:g}, {config.epochs} epochs, "
        f"{config.seeds} seeds: mean ± standard deviation, difference with a paired t test"
    )
    add(title, columns, table)
    text += "\n![curves](convergence.png)\n"
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")


def _saved(base: float, value: float) -> str:
    return f"{100 * (1 - value / base):.3f} %"


if __name__ == "__main__":
    harness.main(run, PRESETS)
