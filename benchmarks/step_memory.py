"""What do a fixed frame, a narrow feature space and the gradient through the nearest frame cost a training step?

Claim     A fixed ETF with d = K saves 20.7 % of the parameters of a ResNet-18 (Zhu et al. 2021, abstract; counted). A
          step of ImageNet's shape (ResNet-50, d = 2048, K = 1000) can use the whole gradient through the nearest frame.
          The program of Markou et al. (2024) had to cut this gradient.
Command   python -m benchmarks.step_memory [smoke|default|imagenet|gpu]
Checked   the loss of every timed step is finite, and the worst status of the inner solves is reported.
Writes    benchmarks/results/step_memory-<preset>-<device>-<time>.json and .png

Parameters are counted from shapes, without any computation. Memory is not measured: it is what XLA plans for the
compiled step (state, batch, result, and temporaries such as activations and gradients). Steps are timed in turns. The
inputs are noise, which does not change the cost; the accuracy is meaningless.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks import harness
from nc_jax.data import Batch
from nc_jax.heads import NearestOptions
from nc_jax.methods import Setting, method
from nc_jax.models import Classifier, HeadModule
from nc_jax.solvers import describe
from nc_jax.study.backbones import BackboneOptions, make_backbone
from nc_jax.training import create_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        heads: methods of `nc_jax.methods.METHODS`, or "nearest-cut", the nearest head without the gradient through its
            frame. All are compared with the first one.
        narrow: measure each head also with features of dimension K (residual networks only).
        backbone: the network.
        num_classes: number of classes K.
        size: height and width of the images in pixels, which also decide the stem.
        batch_size: images per step.
        repeats: number of timed steps; 0 only compiles, to get the planned memory.
        budget: seconds after which a head gets no more timed steps, if it has had three.
    """

    heads: tuple[str, ...] = ("linear", "aligned")
    narrow: bool = True
    backbone: BackboneOptions = dataclasses.field(default_factory=lambda: BackboneOptions("resnet18"))
    num_classes: int = 10
    size: int = 32  # Zhu et al. (2021), CIFAR-10
    batch_size: int = 32  # a step takes a second on two CPU cores; Zhu et al. have 128
    repeats: int = 5  # their median varies by a few percent
    budget: float = 30.0


IMAGENET = Config(
    heads=("learned", "nearest", "nearest-cut"),
    narrow=False,
    backbone=BackboneOptions("resnet50"),
    num_classes=1000,
    size=224,
    batch_size=16,
    repeats=3,
)
PRESETS = {
    "smoke": Config(
        backbone=BackboneOptions("mlp", hidden=(8,), dim=12), narrow=False, size=8, batch_size=4, repeats=1
    ),
    "default": Config(),
    "imagenet": IMAGENET,
    "gpu": dataclasses.replace(
        IMAGENET, backbone=BackboneOptions("resnet50", dtype="bfloat16"), batch_size=128, repeats=20
    ),
}
# Networks (name, stem) whose parameters are counted, to check the number in the abstract of Zhu et al. (2021).
COUNTED = (("resnet18", "imagenet"), ("resnet18", "cifar"), ("resnet50", "imagenet"), ("resnet50", "cifar"))
COLUMNS = ("network", "head", "d", "trainable", "saved", "MB planned", "saved", "step", "compile", "status")


def classifier(config: Config, head: str, dim: int | None, backbone: BackboneOptions | None = None) -> Classifier:
    """Return the network of a cell. `dim` is the feature dimension; None takes the network's own."""
    cut = head == "nearest-cut"
    setting = Setting(num_classes=config.num_classes, head=NearestOptions(stop_gradient=cut))
    options = dataclasses.replace(backbone or config.backbone, final_dim=dim)
    chosen = method("nearest" if cut else head).head(setting)
    return Classifier(make_backbone(options, size=config.size), HeadModule(chosen))


def count(model: Classifier, size: int) -> dict[str, int]:
    """Count trainable parameters, constants, and bytes of SGD's momentum, from shapes only."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    leaves = lambda tree: jax.tree.leaves(tree)  # noqa: E731
    momentum = jax.eval_shape(optax.sgd(0.05, 0.9).init, variables["params"])
    return {
        "trainable": sum(math.prod(leaf.shape) for leaf in leaves(variables["params"])),
        "constant": sum(math.prod(leaf.shape) for leaf in leaves(variables.get("frame", {}))),
        "optimizer_bytes": sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves(momentum)),
    }


def count_networks(config: Config) -> list[dict[str, Any]]:
    """Return the counts of every network of the claim, with each head and feature dimension."""
    rows = []
    for name, stem in COUNTED:
        options = BackboneOptions(name, stem=stem)  # pyright: ignore[reportArgumentType]
        for dim in (None, config.num_classes):
            for head in ("linear", "aligned"):
                cell = {"network": f"{name}, {stem} stem", "head": head, "dim": dim or "own"}
                rows.append(cell | count(classifier(config, head, dim, options), 64))
    return rows


class Cell:
    """A compiled training step; each call takes the next step."""

    def __init__(self, config: Config, head: str, dim: int | None, batch: Batch):
        model, optimizer = classifier(config, head, dim), optax.sgd(0.05, 0.9)
        self.batch, self.losses, self.status = batch, [], 0
        # Not the default random generator: on a CPU, XLA needs long to compile it for every kernel.
        self.init = lambda: create_state(model, optimizer, jax.random.key(0, impl="rbg"), batch.inputs[:1])
        self.state: Any = None
        began = time.perf_counter()
        step = jax.jit(make_train_step(model, optimizer), donate_argnums=0)
        self.compiled = step.lower(jax.eval_shape(self.init), batch).compile()
        analysis: Any = self.compiled.memory_analysis()
        self.row = {
            "network": config.backbone.name,
            "head": head,
            "dim": dim or "own",
            **count(model, config.size),
            # Not analysis.peak_memory_in_bytes, which leaves out the temporaries on a CPU (JAX 0.10.2).
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

    def __call__(self) -> Any:
        """Take a step."""
        self.state = self.init() if self.state is None else self.state
        self.state, metrics = self.compiled(self.state, self.batch)
        self.losses.append(float(metrics.loss))
        self.status = max(self.status, int(metrics.solve_status))
        return metrics


def run(config: Config) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The document of `harness.report`.

    Raises:
        ValueError: if a setting cannot work.
        WrongAnswerError: if a loss is not finite.
    """
    if min(config.num_classes - 1, config.size, config.batch_size) < 1 or config.repeats < 0 or not config.heads:
        raise ValueError(
            "num_classes must be at least 2, size and batch_size at least 1, repeats at least 0, and a head be named; "
            f"got {config.num_classes}, {config.size}, {config.batch_size}, {config.repeats} and {config.heads}"
        )
    generator = np.random.default_rng(0)
    images = generator.normal(size=(config.batch_size, config.size, config.size, 3)).astype(np.float32)
    batch = Batch.of(images, generator.integers(0, config.num_classes, config.batch_size).astype(np.int32))
    cells = {}
    for dim in (None, config.num_classes) if config.narrow else (None,):
        for head in config.heads:
            harness.progress(f"{head}, d = {dim or 'own'}: compiling")
            cells[head, dim] = Cell(config, head, dim, batch)
    if config.repeats:
        times = harness.compare(dict(cells), repeats=config.repeats, warmup=1, budget=config.budget)
        for key, cell in cells.items():
            harness.require_at_most(
                f"the losses of {key[0]}", max(map(abs, cell.losses)), float(np.finfo(np.float32).max)
            )
            cell.row |= times[key].row() | {"compile_seconds": cell.row["compile_seconds"]}
            cell.row |= {"losses": cell.losses, "solve_status": cell.status}
    rows = [cell.row for cell in cells.values()]
    counted = count_networks(config) if config.preset == "default" else []
    return harness.report(
        "step_memory",
        config,
        rows=rows + counted,
        table=harness.Table(
            f"a step of {config.backbone.name}, K = {config.num_classes}, {config.size} x {config.size} pixels, batch "
            f"{config.batch_size}, {config.backbone.dtype}; below it parameters, counted",
            COLUMNS,
            [_cells(row, rows[0]) for row in rows]
            + [_cells(row, counted[4 * (place // 4)]) for place, row in enumerate(counted)],
        ),
        claims=_claims(rows, counted),
        draw=functools.partial(_draw, rows),
    )


def _claims(rows: Sequence[dict[str, Any]], counted: Sequence[dict[str, Any]]) -> list[harness.Claim]:
    claims = []
    if counted:
        saved = 100 * (1 - counted[3]["trainable"] / counted[0]["trainable"])
        claims.append(harness.Claim("parameters saved, fixed with d = K", counted[0]["network"], saved, 20.0, unit="%"))
    for row in rows[1:]:
        case, base = f"{row['head']}, d = {row['dim']}", rows[0]
        claims.append(
            harness.Claim("planned memory saved", case, 100 * (1 - row["peak_bytes"] / base["peak_bytes"]), unit="%")
        )
        if "seconds" in row:
            claims.append(
                harness.Claim(f"time of {base['head']}'s step", case, row["seconds"] / base["seconds"], unit="x")
            )
    return claims


def _cells(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    planned = "peak_bytes" in row
    return [
        row["network"],
        row["head"],
        str(row["dim"]),
        f"{row['trainable']:,}",
        f"{100 * (1 - row['trainable'] / base['trainable']):.3f} %",
        f"{row['peak_bytes'] / 1e6:.1f}" if planned else "-",
        f"{100 * (1 - row['peak_bytes'] / base['peak_bytes']):.3f} %" if planned else "-",
        harness.duration(row["seconds"]) if "seconds" in row else "-",
        harness.duration(row["compile_seconds"]) if planned else "-",
        describe(row["solve_status"]).split(":")[0] if "nearest" in row["head"] and "solve_status" in row else "-",
    ]


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    axes = figure.subplots()
    names = [f"{row['head']}\nd = {row['dim']}" for row in rows]
    axes.bar(names, [row["argument_bytes"] / 1e6 for row in rows], label="state and batch")
    rest = [(row["peak_bytes"] - row["argument_bytes"]) / 1e6 for row in rows]
    axes.bar(names, rest, bottom=[row["argument_bytes"] / 1e6 for row in rows], label="temporaries and result")
    axes.set_ylabel("MB that XLA plans")
    axes.legend()


if __name__ == "__main__":
    harness.main(run, PRESETS)
