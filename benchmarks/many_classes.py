"""What does a training step with a nearest frame cost, with very many more classes than dimensions?

Claim     With K far above d, a nearest frame needs the polar factor of a d x d matrix only. At K = 100,000 and d = 128,
          a step with the nearest head (random unit vectors as template, sampled softmax) takes at most 1.3 times the
          time and the memory of a step of a learned linear classifier with the same sample. Its gradient is exact.
Command   OPENBLAS_NUM_THREADS=1 python -m benchmarks.many_classes [smoke|default]    (12 minutes on two busy cores)
Checked   the rotation of a step against the polar factor, in float64, of H T^T with the class means of all classes, to
          1e-3; the loss against that of the dense nearest head with the same candidates in float64, to 1e-3; the losses
          of all programs are finite. (The tests compare the gradients, in float64, to 1e-9.)
Writes    benchmarks/results/many_classes-<preset>-<device>-<time>.json and .png

A dense layer of d units precedes the head. The programs are, in turns in one process:

- learned, nearest: the training step of `nc_jax.training` with SGD and momentum, and `nc_jax.heads.sampled`. The
  optimiser updates all d K numbers of the learned head, as optax's transformations do.
- learned-lazy, nearest-alone: steps without the training step's checks and metrics. The learned head gets a gradient
  for the sampled columns only, and its momentum and its class vectors change in those columns only. That is not SGD
  with momentum, and optax does not have it; it is the least that a learned head can cost.
- learned-all, nearest-all: the training step with the softmax over all classes, for the nearest head by drawing all.
- nearest-dense: the training step of `nc_jax.heads.nearest` itself, which needs products of size d r K.

Memory is not measured: it is what XLA plans for the compiled step (state, batch, result, temporaries, and constants of
the program, which XLA does not count). One thread for LAPACK (OPENBLAS_NUM_THREADS=1) is for machines that others use,
too: a thread that waits for a core held up the decompositions of 128 x 128 matrices for 20 to 90 ms.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks import harness
from nc_jax import heads
from nc_jax.data import Batch
from nc_jax.frames import random_unit
from nc_jax.losses import cross_entropy
from nc_jax.models import MLP, Classifier, HeadModule
from nc_jax.training import create_state, make_train_step

# Times the learned head, in time and in memory, from so many classes on.
LIMIT, CLAIMED = 1.3, 100_000
RADIUS = 5.0  # Markou et al. (2024)
RATE, MOMENTUM = 0.05, 0.9
TOLERANCE = 1e-3  # of the rotation and the loss in float32, against float64
PAIRS = (
    ("nearest", "learned"),
    ("nearest-alone", "learned-lazy"),
    ("nearest-all", "learned-all"),
    ("nearest-dense", "learned-all"),
)
PROGRAMS = tuple(dict.fromkeys(name for pair in PAIRS for name in pair))
COLUMNS = ("K", "program", "sampled", "step", "quartiles", "MB planned", "compile")


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        classes: numbers of classes K.
        dim: feature dimension d.
        batch_size: examples per step.
        drawn: random classes in a step's softmax, at most a quarter of all.
        programs: which programs are timed.
        repeats: timed calls of each program; 0 only compiles, to get the planned memory.
        budget: seconds after which a program gets no more timed calls, if it has had three.
    """

    classes: tuple[int, ...] = (1_000, 10_000, 100_000)
    dim: int = 128
    batch_size: int = 256
    drawn: int = 2048
    programs: tuple[str, ...] = PROGRAMS
    repeats: int = 25
    budget: float = 20.0


PRESETS = {
    "smoke": Config(classes=(40,), dim=6, batch_size=12, repeats=1),
    "default": Config(),
}


class Program:
    """A compiled step; each call takes the next step.

    Args:
        function: the step, (state, batch) -> (state, loss).
        init: function () -> initial state.
        batch: batch of every step.
        constants: bytes of constants in the program.
    """

    def __init__(self, function: Callable, init: Callable[[], Any], batch: Any, constants: int):
        self.init, self.batch, self.losses, self.state = jax.jit(init), batch, [], None
        began = time.perf_counter()
        step = jax.jit(function, donate_argnums=0)
        self.compiled = step.lower(jax.eval_shape(init), batch).compile()
        analysis: Any = self.compiled.memory_analysis()
        self.row: dict[str, Any] = {
            # Not analysis.peak_memory_in_bytes, which leaves out the temporaries on a CPU (JAX 0.10.2).
            "peak_bytes": constants
            + int(
                analysis.argument_size_in_bytes
                + analysis.output_size_in_bytes
                - analysis.alias_size_in_bytes
                + analysis.temp_size_in_bytes
            ),
            "argument_bytes": constants + int(analysis.argument_size_in_bytes),
            "first_compile_seconds": time.perf_counter() - began,
        }

    def __call__(self) -> Any:
        """Take a step and return the loss."""
        self.state = self.init() if self.state is None else self.state
        self.state, loss = self.compiled(self.state, self.batch)
        self.losses.append(float(loss))
        return loss


def trained(head: heads.Head, batch: Batch, constants: int) -> Program:
    """Return the training step of the package, with SGD and momentum."""
    model, optimizer = Classifier(MLP((), batch.inputs.shape[1]), HeadModule(head)), optax.sgd(RATE, MOMENTUM)
    step = make_train_step(model, optimizer)

    def function(state: Any, batch: Batch) -> tuple[Any, Any]:
        state, metrics = step(state, batch)
        return state, metrics.loss

    return Program(
        function, lambda: create_state(model, optimizer, jax.random.key(0), batch.inputs[:1]), batch, constants
    )


def alone(head: heads.Head, batch: Batch) -> Program:
    """Return a step of a head without parameters, below a layer that is trained by plain gradient descent."""
    dim = batch.inputs.shape[1]

    def function(state: Any, batch: Batch) -> tuple[Any, Any]:
        weights, inner = state

        def loss_of(weights):
            output, after = head.apply({}, inner, batch.inputs @ weights, batch.labels, train=True)
            return mean_loss(output, batch.labels), after

        (loss, inner), slopes = jax.value_and_grad(loss_of, has_aux=True)(weights)
        return (weights - RATE * slopes, inner), loss

    return Program(function, lambda: (jnp.eye(dim), head.init(jax.random.key(0), dim)[1]), batch, 0)


def lazy(num_classes: int, number: int, batch: Batch) -> Program:
    """Return a step of a learned head that reads and writes the sampled columns of kernel and momentum only."""
    dim = batch.inputs.shape[1]

    def init() -> Any:
        kernel = jax.nn.initializers.lecun_normal()(jax.random.key(0), (dim, num_classes))
        return jnp.eye(dim), kernel, jnp.zeros_like(kernel), jnp.zeros((), jnp.int32)

    def function(state: Any, batch: Batch) -> tuple[Any, Any]:
        weights, kernel, momentum, step = state
        key = jax.random.fold_in(jax.random.key(1), step)
        candidates = heads.class_candidates(key, batch.labels, num_classes, number)
        read = jnp.maximum(candidates.classes, 0)
        written = jnp.where(candidates.classes < 0, num_classes, candidates.classes)

        def loss_of(weights, columns):
            features = heads.scale_features(batch.inputs @ weights, RADIUS)
            logits = features @ columns + candidates.log_weights[None]
            return jnp.mean(cross_entropy(logits, heads.places_among(candidates.classes, batch.labels)))

        columns = kernel[:, read]
        loss, (slopes, column_slopes) = jax.value_and_grad(loss_of, argnums=(0, 1))(weights, columns)
        change = MOMENTUM * momentum[:, read] + column_slopes
        momentum = momentum.at[:, written].set(change, mode="drop")
        kernel = kernel.at[:, written].set(columns - RATE * change, mode="drop")
        return (weights - RATE * slopes, kernel, momentum, step + 1), loss

    return Program(function, init, batch, 0)


def mean_loss(output: heads.HeadOutput, labels: Any) -> Any:
    """Return the mean cross-entropy of the output of a sampled head."""
    assert output.classes is not None, "the head samples"
    return jnp.mean(cross_entropy(output.logits, heads.places_among(output.classes, labels)))


def check_nearest(config: Config, num_classes: int, template: Any, batch: Batch) -> dict[str, float]:
    """Compare the second step of the sampled nearest head with a NumPy program in float64.

    Raises:
        harness.WrongAnswerError: if the rotation or the loss is off.
    """
    number = sampled_number(config, num_classes)
    head = heads.sampled(heads.nearest(num_classes, template=template, radius=RADIUS), number)
    step = jax.jit(functools.partial(head.apply, train=True))
    inputs, labels = jnp.asarray(batch.inputs), jnp.asarray(batch.labels)
    _, before = step({}, head.init(jax.random.key(0), config.dim)[1], inputs, labels)
    labels = (labels + num_classes // 2) % num_classes
    output, after = step({}, before, inputs, labels)
    wide, means = np.asarray(template, np.float64), np.asarray(after["class_means"], np.float64)
    delta = heads.NearestOptions().prox_weight
    matrix = 2 * means @ wide.T / (np.linalg.norm(means) * np.linalg.norm(wide))
    left, _, right = np.linalg.svd(matrix + delta * np.asarray(before["rotation"], np.float64))
    rotation = left @ right
    case = f"K = {num_classes}"
    found = {"rotation_error": harness.require_close(f"the rotation, {case}", after["rotation"], rotation, TOLERANCE)}
    features = np.asarray(batch.inputs, np.float64)
    features = RADIUS * features / np.linalg.norm(features, axis=1, keepdims=True)
    assert output.classes is not None, "the head samples"
    used = np.asarray(output.classes) >= 0
    classes = np.asarray(output.classes)[used]
    # Of the output, only the classes and the logarithms of what they stand for (the template is not centred).
    logits = features @ rotation @ wide[:, classes] + np.asarray(output.bias, np.float64)[used]
    places = np.argmax(np.asarray(labels)[:, None] == classes[None], axis=1)
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(places)), places])
    found["loss_error"] = harness.require_close(f"the loss, {case}", mean_loss(output, labels), expected, TOLERANCE)
    return found


def sampled_number(config: Config, num_classes: int) -> int:
    """Return how many random classes a step's softmax has."""
    return min(config.drawn, num_classes // 4)


def run(config: Config) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The document of `harness.report`.

    Raises:
        ValueError: if a setting cannot work.
        WrongAnswerError: if an answer is wrong or a loss is not finite.
    """
    unknown = sorted(set(config.programs) - set(PROGRAMS))
    if unknown:
        raise ValueError(f"programs must be among {', '.join(PROGRAMS)}; got {', '.join(unknown)}")
    if min(*config.classes, config.dim, config.batch_size, 4 * config.drawn) < 4 or config.repeats < 0:
        raise ValueError(
            "classes, dim and batch_size must be at least 4, drawn at least 1 and repeats at least 0; got "
            f"{config.classes}, {config.dim}, {config.batch_size}, {config.drawn} and {config.repeats}"
        )
    rows = [row for num_classes in config.classes for row in measure(config, num_classes)]
    return harness.report(
        "many_classes",
        config,
        rows=rows,
        table=harness.Table(
            f"a step with d = {config.dim}, batch {config.batch_size}", COLUMNS, [_cells(row) for row in rows]
        ),
        claims=claims_of(rows),
        draw=functools.partial(_draw, rows),
    )


def measure(config: Config, num_classes: int) -> list[dict[str, Any]]:
    """Check, compile and time the programs for one number of classes."""
    number, dim = sampled_number(config, num_classes), config.dim
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(config.batch_size, dim)).astype(np.float32)
    batch = Batch.of(inputs, generator.integers(0, num_classes, config.batch_size).astype(np.int32))
    template = random_unit(num_classes, dim, key=jax.random.key(0))
    errors = check_nearest(config, num_classes, template, batch)
    learned = heads.learned(num_classes, radius=RADIUS, use_bias=False)
    nearest = heads.nearest(num_classes, template=template, radius=RADIUS)
    make = {
        "learned": lambda: trained(heads.sampled(learned, number), batch, 0),
        "nearest": lambda: trained(heads.sampled(nearest, number), batch, 0),
        "learned-lazy": lambda: lazy(num_classes, number, batch),
        "nearest-alone": lambda: alone(heads.sampled(nearest, number), batch),
        "learned-all": lambda: trained(learned, batch, 0),
        "nearest-all": lambda: trained(heads.sampled(nearest, num_classes), batch, 0),
        "nearest-dense": lambda: trained(nearest, batch, template.nbytes),
    }
    programs = {}
    for name in config.programs:
        harness.progress(f"{name}, K = {num_classes}: compiling")
        programs[name] = make[name]()
    times = {}
    if config.repeats:
        harness.progress(f"K = {num_classes}: timing")
        times = harness.compare(programs, repeats=config.repeats, warmup=1, budget=config.budget)
    rows = []
    for name, program in programs.items():
        row = {
            "num_classes": num_classes,
            "program": name,
            "sampled": None if name.endswith(("all", "dense")) else number,
        }
        if name in times:
            largest = max(map(abs, program.losses))
            harness.require_at_most(f"the losses of {name}", largest, float(np.finfo(np.float32).max))
            row |= times[name].row() | {"last_loss": program.losses[-1]}
        rows.append(row | program.row | (errors if name.startswith("nearest") else {}))
        program.state = None
    return rows


def claims_of(rows: list[dict[str, Any]]) -> list[harness.Claim]:
    """Return time and planned memory of our steps beside those of a learned head."""
    found = {(row["num_classes"], row["program"]): row for row in rows}
    claims = []
    for number in dict.fromkeys(row["num_classes"] for row in rows):
        for ours, theirs in PAIRS:
            if not {(number, ours), (number, theirs)} <= set(found):
                continue
            limit = LIMIT if ours == "nearest" and number >= CLAIMED else None
            for what, key in (("time", "seconds"), ("planned memory", "peak_bytes")):
                own, other = (found[number, name].get(key) for name in (ours, theirs))
                if own and other:
                    claims.append(
                        harness.Claim(
                            f"{what}: {ours}, of {theirs}", f"K = {number:,}", own / other, at_most=limit, unit="x"
                        )
                    )
    return claims


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['num_classes']:,}",
        row["program"],
        "all" if row["sampled"] is None else f"{row['sampled']:,}",
        harness.duration(row["seconds"]) if "seconds" in row else "-",
        harness.quartiles(row),
        f"{row['peak_bytes'] / 1e6:.1f}",
        harness.duration(row["first_compile_seconds"]),
    ]


def _draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for axes, key, unit, label in (
        (left, "seconds", 1e-3, "a step, ms"),
        (right, "peak_bytes", 1e6, "planned memory, MB"),
    ):
        for name in dict.fromkeys(row["program"] for row in rows):
            points = [(row["num_classes"], row[key] / unit) for row in rows if row["program"] == name and key in row]
            style = "-" if name.startswith("nearest") else "--"
            axes.plot([x for x, _ in points], [y for _, y in points], style, marker="o", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("classes K")
        axes.set_ylabel(label)
    right.legend(fontsize=7)


if __name__ == "__main__":
    harness.main(run, PRESETS)
