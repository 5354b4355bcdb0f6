"""What does experience replay cost, beside a step of as many examples without a memory?

Claim     A step of experience replay takes at most 1.15 times as long as a step of the same number of new examples:
          the host plans what the memory holds, a segment at a time, and the step only gathers other rows. Stored logits
          (DER++) are state, which every step writes whole: with 5,120 of them, a short step takes up to 1.7 times.
Command   python -m benchmarks.replay [smoke|default|gpu]    (6 minutes on two CPU cores)
Checked   the memory of every plan against the examples with the smallest priorities, one draw at a time; the loss of
          each program is finite.
Writes    benchmarks/results/replay-<preset>-<device>-<time>.json and .png

Both train the same MLP on random inputs through the same compiled loop over a set on the device. Times include the plan
of the segment and the loop over its steps, and are medians of calls in turns. "plain" has batches of as many new
examples as the other has in all; "plan" is the host's part of the replay alone.
"""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks import harness
from nc_jax.data import LabelledArrays
from nc_jax.heads import fixed
from nc_jax.methods import METHODS, ContinualOptions, Setting
from nc_jax.models import MLP, Classifier, HeadModule
from nc_jax.streams import Epochs, Stream
from nc_jax.training import LoopOptions, ResidentSet, StepOptions, Trainer
from nc_jax.training.resident import padded

LIMIT = 1.15  # replay may cost so many times the plain step
TITLES = {"er": "experience replay", "derpp": "DER++"}


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        shapes: pairs of the number of inputs of an example and the width of the two layers of the MLP.
        batch_sizes: new examples per step, and examples in each draw from the memory.
        methods: methods with a replay memory.
        memories: sizes of the memory.
        examples: size of the training set; a timed call is one epoch of it.
        repeats: timed calls of each program.
        budget: seconds after which a program gets no more timed calls.
    """

    shapes: tuple[tuple[int, int], ...] = ((64, 100), (784, 100))  # digits, Fashion-MNIST
    batch_sizes: tuple[int, ...] = (10, 128)
    methods: tuple[str, ...] = ("er", "derpp")
    memories: tuple[int, ...] = (200, 5120)
    examples: int = 6_000  # half a task of Fashion-MNIST
    repeats: int = 9
    budget: float = 20.0


PRESETS = {
    "smoke": Config(shapes=((8, 12),), batch_sizes=(5,), memories=(20,), examples=60, repeats=2),
    "default": Config(),
    "gpu": Config(batch_sizes=(128, 1024)),
}


class Program:
    """The training of one segment, from the plan of its examples to the state after it.

    Args:
        config: settings of the benchmark.
        shape: number of inputs and width.
        batch_size: new examples per step.
        method: name of a method with a memory; None trains on `extra` times as many new examples instead.
        memory: size of the memory.
        draws: number of draws of the method that this one is compared with.
    """

    def __init__(
        self, config: Config, shape: tuple[int, int], batch_size: int, method: str | None, memory: int, draws: int
    ):
        inputs, width = shape
        generator = np.random.default_rng(0)
        labels = np.arange(config.examples) % 10
        self.source = LabelledArrays(generator.normal(size=(config.examples, inputs)).astype(np.float32), labels, 10)
        options = ContinualOptions(memory=memory, draw_size=batch_size)
        setting = Setting(num_classes=10, num_examples=config.examples, continual=options)
        step, size = StepOptions(), batch_size * (1 + draws)
        self.stream: Stream = Epochs(self.source, size, 4)
        if method is not None:
            row = METHODS[method]
            self.stream = row.stream(setting, Epochs(self.source, batch_size, 4))
            step = StepOptions(loss=row.loss(setting), extensions=row.extensions(setting))
        model = Classifier(MLP((width,), width), HeadModule(fixed(10)))
        self.trainer = Trainer(model, optax.sgd(0.01), LoopOptions(batch_size=size, devices=1), step=step)
        self.content = ResidentSet(self.source, size, devices=self.trainer.devices).content
        self.state = self.trainer.init(self.source, 0)

    def plan(self) -> Any:
        """Return the plan of the second epoch, with a memory that is in use."""
        return self.stream.plan(0, 1)

    def train(self) -> Any:
        """Train one epoch, and return what its steps reported."""
        plan = self.plan()
        self.state = self.trainer.segment(self.state, None, self.content, padded(plan), 0, len(plan.index))
        return self.state.totals

    def steps(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self.plan().index)


def check(totals: Any) -> bool:
    """Return whether all steps were finite."""
    return not hasattr(totals, "finite") or bool(totals.finite)


def check_plan(program: Program) -> None:
    """Compare the replayed examples of a plan with the memory, found from the priorities alone.

    Raises:
        harness.WrongAnswerError: if an example was drawn that the memory does not hold.
    """
    plan, start = program.plan(), program.stream.ends[0]
    assert plan.replayed is not None, "the stream has a memory"
    for row in (0, len(plan.index) // 2, len(plan.index) - 1):
        held = set(program.stream.memory(0, start + row).tolist())  # pyright: ignore[reportAttributeAccessIssue]
        drawn = plan.index[row][plan.replayed[row] > 0].tolist()
        if not set(drawn) - {-1} <= held:
            raise harness.WrongAnswerError(f"replayed examples must be in the memory; got {sorted(set(drawn) - held)}")


def run(config: Config) -> dict[str, Any]:
    """Check and time every case; see the module docstring."""
    rows: list[dict[str, Any]] = []
    for shape in config.shapes:
        for batch_size in config.batch_sizes:
            for method in config.methods:
                for memory in config.memories:
                    rows.append(measure(config, shape, batch_size, method, min(memory, config.examples)))
    claims = [
        harness.Claim(
            f"{TITLES[row['method']]}: time of a step, of as many new examples",
            case(row),
            row["ratio"],
            at_most=LIMIT,
            unit="x",
        )
        for row in rows
    ]
    return harness.report("replay", config, rows=rows, table=table(rows), claims=claims, draw=partial(draw, rows))


def measure(config: Config, shape: tuple[int, int], batch_size: int, method: str, memory: int) -> dict[str, Any]:
    """Time one case: the epoch with replay, the plain one, and the plan alone."""
    draws = 2 if method == "derpp" else 1
    found = {"method": method, "inputs": shape[0], "width": shape[1], "batch_size": batch_size, "memory": memory}
    harness.progress(case(found))
    replay, plain = (Program(config, shape, batch_size, name, memory, draws) for name in (method, None))
    check_plan(replay)
    calls = {"replay": replay.train, "plain": plain.train, "plan": replay.plan}
    timings = harness.compare(calls, repeats=config.repeats, budget=config.budget, check=lambda name, one: check(one))
    seconds = {name: timing.row()["seconds"] for name, timing in timings.items()}
    # Both see equally many examples per step, and the epoch with replay has more steps.
    each = {name: seconds[name] / one.steps() for name, one in (("replay", replay), ("plain", plain))}
    return found | {
        "seconds_per_step": each["replay"],
        "plain_seconds_per_step": each["plain"],
        "plan_share": seconds["plan"] / seconds["replay"],
        "ratio": each["replay"] / each["plain"],
    }


def case(row: dict[str, Any]) -> str:
    """Return a case in words."""
    return f"{row['method']}, {row['inputs']}-{row['width']}, batch {row['batch_size']}, memory {row['memory']}"


def table(rows: list[dict[str, Any]]) -> harness.Table:
    """Return the time of a step in every case."""
    lines = [
        [
            case(row),
            harness.duration(row["seconds_per_step"]),
            harness.duration(row["plain_seconds_per_step"]),
            harness.number(row["ratio"]),
            f"{100 * row['plan_share']:.1f} %",
        ]
        for row in rows
    ]
    return harness.Table("a step with replay", ("case", "replay", "plain", "ratio", "plan's share"), lines)


def draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Draw the ratios."""
    axes = figure.subplots()
    axes.plot([row["ratio"] for row in rows], range(len(rows)), "o")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.axvline(LIMIT, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [case(row) for row in rows], fontsize=6)
    axes.set_xlabel("time of a step with replay over that of a plain step")


if __name__ == "__main__":
    harness.main(run, PRESETS, synchronous=True)
