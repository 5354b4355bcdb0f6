"""Are sums over each class's own features faster than a matrix product, for the logits of an orthogonal classifier?

Claim     The class vectors of a non-negative orthogonal frame share no feature. So logits take N d products as sums
          over the features of each class, instead of N d K. On a CPU, the matrix product is faster all the same, unless
          the owner of each feature is known beforehand and there are hundreds of classes.
Command   python -m benchmarks.orthogonal_logits [smoke|default|gpu]    (3 minutes on two CPU cores)
Checked   logits and gradient of all programs against the matrix product of NumPy in float64, to 1e-5.
Writes    benchmarks/results/orthogonal_logits-<preset>-<device>-<time>.json and .png

"forward" is the logits of a batch. "gradient" is the gradient of the mean cross-entropy in the features and in the
learned scale of the method fno-weighted. "product" multiplies features and frame. "sums" reads off the frame, in each
call, which class owns which feature. "sums, owner kept" gets the owners and the weights of the features as arguments. A
fixed head with this frame keeps the owners in its state, and takes the sums where they were faster in every case.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from matplotlib.figure import Figure

from benchmarks import harness
from nc_jax.data import Batch
from nc_jax.frames import nonnegative_orthogonal, owner
from nc_jax.heads import fixed
from nc_jax.losses import cross_entropy
from nc_jax.models import MLP, Classifier, HeadModule, WithNeck
from nc_jax.training import create_state, make_train_step

# Largest relative error of logits and gradients in float32 against NumPy in float64; else no time is reported.
TOLERANCE = 1e-5
Case = tuple[int, int, int]  # d, K, N
STEP_BATCH = 256
PEERS = ("sums", "sums, owner kept")


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        sizes: pairs of feature dimension d and number of classes K.
        step_sizes: pairs of d and K of whole training steps, in batches of `STEP_BATCH`.
        batch_sizes: numbers of examples N.
        repeats: timed calls of each program.
        budget: seconds after which a program gets no more timed calls.
    """

    # Digits and Fashion-MNIST; CIFAR-100 with the paper's narrow network; ResNet-18 and ResNet-50.
    sizes: tuple[tuple[int, int], ...] = (
        (64, 10),
        (128, 10),
        (128, 100),
        (512, 10),
        (512, 100),
        (512, 200),
        (2048, 10),
        (2048, 100),
        (2048, 200),
        (2048, 1000),
    )
    step_sizes: tuple[tuple[int, int], ...] = ((512, 200), (512, 500), (1024, 1000), (2048, 1000))
    batch_sizes: tuple[int, ...] = (10, 64, 256)  # 10: replay of the continual experiments
    repeats: int = 15
    budget: float = 5.0


PRESETS = {
    "smoke": Config(sizes=((12, 5),), step_sizes=((220, 200),), batch_sizes=(7,), repeats=2),
    "default": Config(),
    "gpu": Config(),
}


def product(features: Any, frame: Any) -> Any:
    """Logits (N, K) as the heads compute them."""
    return features @ frame


def sums(features: Any, frame: Any) -> Any:
    """Logits (N, K) as sums over the features that each class owns."""
    return sums_by(features, (owner(frame), jnp.sum(frame, axis=1)), num_classes=frame.shape[1])


def sums_by(features: Any, owned: Any, *, num_classes: int) -> Any:
    """Logits (N, K) as sums, given the class that owns each feature (d,), and the entry of its class vector (d,)."""
    owners, entries = owned
    return jax.ops.segment_sum((features * entries).T, owners, num_segments=num_classes).T


def programs(case: Case) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return the compiled programs of a case, by name and by what they compute."""
    features, frame, labels = problem(case)
    owned = owner(frame), jnp.sum(frame, axis=1)
    ways: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
        "product": (product, frame),
        "sums": (sums, frame),
        "sums, owner kept": (partial(sums_by, num_classes=frame.shape[1]), owned),
    }
    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, (logits, constant) in ways.items():

        def loss(features: Any, scale: Any, constant: Any, logits: Any = logits) -> Any:
            return jnp.mean(cross_entropy(scale * logits(features, constant), labels))

        found[name, "forward"] = partial(jax.jit(logits), features, constant)
        found[name, "gradient"] = partial(jax.jit(jax.grad(loss, argnums=(0, 1))), features, jnp.ones(()), constant)
    return found


def problem(case: Case) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return non-negative features (N, d), as after a ReLU, a frame (d, K), and labels (N,)."""
    dim, num_classes, size = case
    features = jax.nn.relu(jax.random.normal(jax.random.key(1), (size, dim)))
    frame = nonnegative_orthogonal(num_classes, dim, key=jax.random.key(0))
    return features, frame, jnp.arange(size) % num_classes


def expected(case: Case) -> dict[str, Any]:
    """Return logits and gradient from NumPy in float64."""
    features, frame, labels = (np.asarray(part, np.float64) for part in problem(case))
    logits = features @ frame
    slopes = (scipy.special.softmax(logits, axis=1) - np.eye(case[1])[labels.astype(int)]) / len(labels)
    return {"forward": logits, "gradient": (slopes @ frame.T, np.sum(slopes * logits))}


def step_ratio(config: Config, dim: int, num_classes: int) -> float:
    """Return how many times as fast a training step of an MLP 64-256-256-d is with sums as with the product.

    Raises:
        harness.WrongAnswerError: if the two have different losses.
    """
    labels = jnp.arange(STEP_BATCH) % num_classes
    batch = Batch.of(jax.random.normal(jax.random.key(2), (STEP_BATCH, 64)), labels)
    # A head knows the owners of the constructor itself only; behind `partial`, it computes the product.
    frames = {"sums": nonnegative_orthogonal, "product": partial(nonnegative_orthogonal)}
    optimizer, calls, losses = optax.sgd(0.01, 0.9), {}, {}
    for name, frame in frames.items():
        backbone = WithNeck(MLP((256, 256), dim), (jax.nn.relu,))
        model = Classifier(backbone, HeadModule(fixed(num_classes, frame=frame)))
        state = create_state(model, optimizer, jax.random.key(0), batch.inputs)
        step = jax.jit(make_train_step(model, optimizer))
        calls[name] = partial(step, state, batch)
        losses[name] = calls[name]()[1].loss
    harness.require_close("loss of a step", losses["sums"], losses["product"], 1e-4)
    timings = harness.compare(calls, repeats=config.repeats, budget=config.budget)
    return harness.ratio(timings["product"], timings["sums"])


def run(config: Config) -> dict[str, Any]:
    """Check and time both programs on every case; see the module docstring."""
    rows: list[dict[str, Any]] = []
    for size in config.sizes:
        for batch_size in config.batch_sizes:
            case = (*size, batch_size)
            harness.progress(f"(d, K, N) = {case}")
            right = expected(case)

            def check(name: tuple[str, str], result: Any, right: Any = right) -> bool:
                for found, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(right[name[1]]), strict=True):
                    harness.require_close(" ".join(name), found, wanted, TOLERANCE)
                return True

            timings = harness.compare(programs(case), repeats=config.repeats, budget=config.budget, check=check)
            for (program, part), timing in timings.items():
                shape = {"dim": case[0], "num_classes": case[1], "batch_size": case[2]}
                rows.append(shape | {"program": program, "part": part} | timing.row())
    shown = compared(rows)
    claims = [
        harness.Claim(f"{name}: times faster than the product, {part}, median", f"K = {num_classes}", float(median))
        for name in PEERS
        for num_classes in sorted({row["num_classes"] for row in shown})
        for part in ("forward", "gradient")
        for same in [[row for row in shown if (row["num_classes"], row["part"]) == (num_classes, part)]]
        for median in [np.median([row["product"] / row[name] for row in same])]
    ]
    for dim, num_classes in config.step_sizes:
        harness.progress(f"training step, (d, K) = {dim, num_classes}")
        faster = step_ratio(config, dim, num_classes)
        rows.append({"dim": dim, "num_classes": num_classes, "batch_size": STEP_BATCH, "part": "step", "ratio": faster})
        case = f"(d, K, N) = ({dim}, {num_classes}, {STEP_BATCH})"
        claims.append(
            harness.Claim("training step of an MLP: times as fast with sums as with the product", case, faster)
        )
    return harness.report(
        "orthogonal_logits", config, rows=rows, table=table(shown), claims=claims, draw=partial(draw, shown)
    )


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each case and part, with the median times of all programs by name, in seconds."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        case: dict[str, Any] = {name: row[name] for name in ("dim", "num_classes", "batch_size", "part")}
        found.setdefault(tuple(case.values()), case)[row["program"]] = row["seconds"]
    return list(found.values())


def table(shown: list[dict[str, Any]]) -> harness.Table:
    """Return the times of every case and part, and how many times faster than the product the sums are."""
    columns = ("(d, K, N)", "part", "product", *(title for name in PEERS for title in (name, "times faster")))
    lines = []
    for row in shown:
        line = [f"({row['dim']}, {row['num_classes']}, {row['batch_size']})", row["part"]]
        line.append(harness.duration(row["product"]))
        for name in PEERS:
            line += [harness.duration(row[name]), harness.number(row["product"] / row[name])]
        lines.append(line)
    return harness.Table("orthogonal logits", columns, lines)


def draw(shown: list[dict[str, Any]], figure: Figure) -> None:
    """Draw the ratio of the times over the number of classes."""
    for axes, name in zip(figure.subplots(1, len(PEERS), sharey=True), PEERS, strict=True):
        for part, marker in (("forward", "o"), ("gradient", "s")):
            rows = [row for row in shown if row["part"] == part]
            ratios = [row["product"] / row[name] for row in rows]
            axes.plot([row["num_classes"] for row in rows], ratios, marker, fillstyle="none", label=part)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="number of classes", title=name)
        axes.legend()
    figure.supylabel("times faster than the matrix product")


if __name__ == "__main__":
    harness.main(run, PRESETS, synchronous=True)
