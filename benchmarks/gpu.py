"""Everything about speed that only an accelerator can show, in one run.

Claim     On one H100-class GPU: solve and gradient at (d, K) = (2048, 1000) take at most 10 ms; a step with a nearest
          frame of 100,000 classes takes at most 1.3 times a learned one; the nearest head takes at most 3 % of a step
          of ResNet-18 and ResNet-50; a step of ResNet-18 is at least 1.5 times as fast as PyTorch's eager one and as
          fast as its compiled one; rotations are exact to 1e-4 and orthogonal to 1e-5 at any default precision.
Command   python -m benchmarks.gpu [smoke|default]    (meant for less than 8 minutes; smoke: any device, in seconds)
Checked   as in the benchmarks whose parts these are: scaling, many_classes, train_step, throughput. `precision` reports
          errors without a tolerance.
Writes    benchmarks/results/gpu-<preset>-<device>-<time>.json and .png

A part that fails, for instance for lack of memory, has a row with the sentence of its error, and the others still run.
The parts that matter most come first: none begins after `minutes`.
"""

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks import harness, many_classes, precision, scaling, throughput, train_step
from benchmarks.problems import Problem, make_problem, make_wide_problem

Found = tuple[list[dict[str, Any]], list[harness.Claim]]
MANY = many_classes.Config(
    batch_size=1024,
    drawn=8192,
    programs=("nearest", "learned", "nearest-all", "learned-all"),  # without programs for what a CPU shows, too
    budget=5.0,
)
STEPS = train_step.Config(
    cases=("resnet18:10", "resnet50-imagenet:1000"),
    dtypes=("float32", "bfloat16"),
    solvers=("polar",),
    resnet_batch=256,  # enough work for a large card to be busy with
    rounds=60,
    budget=20.0,
    chunk=4,  # hides the host's part of a step, and leaves more rounds to the budget than longer calls
)
BESIDE = throughput.Config(batch_size=256, dtypes=("bfloat16", "float32"), epochs=0, repeats=50, budget=10.0)
COLUMNS = ("part", "case", "program", "time", "found")


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        size: (d, K) of the solve and of its precision.
        wide_size: (d, K) of the solve with very many classes.
        many: settings of the steps with very many classes.
        steps: settings of the training steps with the nearest head; each case runs with the dtype of the same place.
        beside: settings of the comparison with PyTorch; each dtype is a part.
        memory: measure the peak memory of solve and gradient.
        repeats: timed calls of each solve and each polar factor.
        budget: seconds after which a program of a part gets no more timed calls.
        minutes: minutes after which no part begins.
        anywhere: run on a CPU, too. At full size this takes hours.
    """

    size: tuple[int, int] = scaling.KEY_SIZE
    wide_size: tuple[int, int] = (128, 100_000)
    many: many_classes.Config = MANY
    steps: train_step.Config = STEPS
    beside: throughput.Config = BESIDE
    memory: bool = True
    repeats: int = 20
    budget: float = 3.0
    minutes: float = 7.0  # a part takes at most about one
    anywhere: bool = False


PRESETS = {
    "default": Config(),
    # Leaves out what takes too long to compile for a test: ResNets.
    "smoke": Config(
        size=(24, 5),
        wide_size=(6, 40),
        many=dataclasses.replace(many_classes.PRESETS["smoke"], programs=("nearest", "learned")),
        steps=dataclasses.replace(train_step.PRESETS["smoke"], budget=1.0),
        beside=dataclasses.replace(throughput.PRESETS["smoke"], dtypes=()),
        memory=False,
        repeats=2,
        budget=0.1,
        anywhere=True,
    ),
}


# --- The parts: each returns its rows and claims. ---


@functools.cache
def problem_of(size: tuple[int, int]) -> Problem:
    """Return the problem of a size, whose answers in float64 are computed once."""
    return (make_problem if size[1] <= size[0] else make_wide_problem)(*size)


def solve(config: Config, size: tuple[int, int]) -> Found:
    """Time solve and gradient at one size."""
    memory = (size,) if config.memory and size == config.size else ()
    settings = scaling.Config(memory=memory, repeats=config.repeats, budget=config.budget)
    rows = scaling.time_size(problem_of(size), settings)
    return [{"case": f"({row['d']}, {row['K']})"} | row for row in rows], scaling.claims_of(rows, [])


def products(config: Config) -> Found:
    """Compare full precision and TF32 as the default of products."""
    rows = precision.products_in(problem_of(config.size), ("highest", "tensorfloat32"))
    return rows, precision.claims_of_products(rows)


def narrow_inputs(config: Config) -> Found:
    """Solve for class means in bfloat16."""
    return precision.narrow_inputs(problem_of(config.size)), []


def polar_methods(config: Config) -> Found:
    """Compare the methods for the polar factor."""
    rows = precision.polar_methods(problem_of(config.size), repeats=config.repeats, budget=config.budget)
    return rows, precision.claims_of_methods(rows)


def steps_with_many_classes(config: Config) -> Found:
    """Time training steps with very many classes."""
    rows = many_classes.measure(config.many, config.many.classes[-1])
    return [{"case": f"K = {row['num_classes']:,}"} | row for row in rows], many_classes.claims_of(rows)


def share_of_step(config: Config, case: str, dtype: train_step.Dtype) -> Found:
    """Time training steps of one network with the nearest head and with a learned one."""
    rows = train_step.time_case(config.steps, case, dtype, 1)
    claims = [claim for row in rows for claim in train_step.claims_of(row)]
    return [row | {"program": f"{row['solver']}, {row['dtype']}"} for row in rows], claims


def beside_pytorch(config: Config, dtype: throughput.Dtype) -> Found:
    """Time a training step beside PyTorch's, where that is installed."""
    rows = throughput.time_steps(config.beside, dtype)
    claims = [claim for row in rows for claim in throughput.claims_of(row, rows)]
    case = f"ResNet-18, batch {config.beside.batch_size}, {dtype}"
    return [{"case": case} | row for row in rows], claims


def parts_of(config: Config) -> dict[str, Callable[[], Found]]:
    """Return the parts by name, the most important ones first."""
    first, *rest = (
        (f"step of {case}, {dtype}", functools.partial(share_of_step, config, case, dtype))
        for case, dtype in zip(config.steps.cases, config.steps.dtypes, strict=True)
    )
    peers = [
        (f"beside PyTorch, {dtype}", functools.partial(beside_pytorch, config, dtype)) for dtype in config.beside.dtypes
    ]
    return dict(
        [
            ("solve and gradient", functools.partial(solve, config, config.size)),
            ("solve and gradient, many classes", functools.partial(solve, config, config.wide_size)),
            ("TF32", functools.partial(products, config)),
            ("bfloat16 inputs", functools.partial(narrow_inputs, config)),
            ("polar factor", functools.partial(polar_methods, config)),
            first,
            *peers[:1],
            ("steps with many classes", functools.partial(steps_with_many_classes, config)),
            *rest,
            *peers[1:],
        ]
    )


# --- The run. ---


def run(config: Config) -> dict[str, Any]:
    """Run all parts, and write the result.

    Returns:
        The document of `harness.report`.

    Raises:
        ValueError: if there is no accelerator, and the settings do not say that any device will do.
    """
    if jax.default_backend() == "cpu" and not config.anywhere:
        raise ValueError(
            "the full size needs an accelerator, on a CPU it takes hours (preset smoke, or --anywhere); got a CPU"
        )
    rows: list[dict[str, Any]] = []
    claims: list[harness.Claim] = []
    began = time.perf_counter()
    for name, part in parts_of(config).items():
        if time.perf_counter() - began > 60 * config.minutes:
            rows.append({"part": name, "failed": f"left out: {config.minutes:g} minutes were over"})
            continue
        harness.progress(name)
        found, met = attempt(name, part)
        rows += found
        claims += met
    return harness.report(
        "gpu",
        config,
        rows=rows,
        table=harness.Table(f"on {jax.devices()[0].device_kind}", COLUMNS, [cells(row) for row in rows]),
        claims=claims,
        draw=functools.partial(draw, rows),
    )


def attempt(name: str, part: Callable[[], Found]) -> Found:
    """Run a part; if it fails, its only row has the sentence of the error."""
    began = time.perf_counter()
    try:
        rows, claims = part()
    except Exception as error:  # whatever it is, the other parts can still be measured
        rows, claims = [{"failed": harness.sentence(error)}], []
        print(f"{name}: {rows[0]['failed']}")
    gc.collect()  # gives the memory of a part back to the next
    seconds = time.perf_counter() - began
    return [{"part": name} | row | {"part_seconds": seconds} for row in rows], claims


FIGURES = {  # what a row says beside its time, by the key of the number
    "products": "{:.3g} products",
    "moves": "{:.3g} moves",
    "memory_peak": "{:.3g} B peak",
    "peak_bytes": "{:.3g} B planned",
    "images_per_second": "{:.0f} images/s",
    "error": "error {:.1e}",
    "error_to_unrounded": "{:.1e} to float32 means",
    "gradient_error": "error of the gradient {:.1e}",
    "orthogonality": "|U^T U - I| {:.1e}",
    "iterations": "{} iterations",
}


def cells(row: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    seconds = row.get("seconds", row.get("nearest_seconds"))
    found = [form.format(row[key]) for key, form in FIGURES.items() if row.get(key)]
    if "share" in row:
        found.append(f"share of the head {train_step.interval(row, 'share')}, alone {100 * row['head_share']:.2g} %")
    program = ", ".join(str(row[key]) for key in ("program", "precision") if key in row)
    if sentence := row.get("failed", row.get("refused")):
        found = [sentence]
    time_ = harness.duration(seconds) if seconds else "-"
    return [row["part"], row.get("case", "-"), program or "-", time_, ", ".join(found) or "-"]


def draw(rows: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """Time of everything that was timed."""
    timed = [(row, row.get("seconds", row.get("nearest_seconds"))) for row in rows]
    timed = [(row, seconds) for row, seconds in timed if seconds]
    if not timed:  # a logarithmic axis needs a number
        return
    axes = figure.subplots()
    names = [", ".join(cells(row)[:3]) for row, _ in timed]
    axes.barh(range(len(timed)), [seconds for _, seconds in timed])
    axes.set_yticks(range(len(timed)), names, fontsize=4)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds")


if __name__ == "__main__":
    harness.main(run, PRESETS)
