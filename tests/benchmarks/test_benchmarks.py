"""The harness counts and measures right, and every benchmark runs from end to end on a tiny problem."""

import itertools
import json
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import declarative, harness, implicit_gradient, nearest_frame, peers, problems, scaling
from benchmarks.memory import peak_memory

pytestmark = pytest.mark.benchmark

MODULES = {"nearest_frame": nearest_frame, "implicit_gradient": implicit_gradient, "scaling": scaling}


@pytest.mark.skipif(not harness.available("pymanopt"), reason="the extra `bench` is not installed")
def test_a_peer_leaves_jax_at_32_bits():
    problem = problems.make_problem(12, 3)
    peers.pymanopt_numpy(problem, problem.previous, 1e-6)
    assert jnp.zeros(1).dtype == jnp.float32


def test_turns_are_taken_and_compilation_is_apart(monkeypatch):
    calls = []

    def slow():
        calls.append("slow")
        time.perf_counter()
        return np.zeros(1)

    def fast():
        calls.append("fast")
        return jnp.zeros(1)

    monkeypatch.setattr(harness, "SHORT_CALL", 0.0)
    times = harness.compare({"slow": slow, "fast": fast}, repeats=5)
    # First one call of each, then the warm-up, then calls in turns.
    assert calls == ["slow", "fast"] * 7
    assert {name: timing.repeats for name, timing in times.items()} == {"slow": 5, "fast": 5}
    for timing in times.values():
        assert 0 < timing.minimum <= timing.lower_quartile <= timing.median <= timing.upper_quartile


def test_short_calls_are_timed_in_rows():
    calls = []
    times = harness.compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, budget=1.0)
    assert len(calls) > 1000
    assert sum(now != before for before, now in itertools.pairwise(calls)) < 20
    assert times["a"].median < harness.SHORT_CALL / 100


def test_the_budget_ends_the_turns():
    times = harness.compare({"a": lambda: None}, repeats=50, budget=0.0, minimum=3)
    assert times["a"].repeats == 3


def test_a_wrong_answer_gets_no_time():
    def check(name, result):
        return harness.relative_error(result, 1.0) < 1e-6

    times = harness.compare({"right": lambda: 1.0, "wrong": lambda: 1.1}, repeats=1, check=check)
    assert list(times) == ["right"]
    with pytest.raises(harness.WrongAnswerError, match="the relative error of it must be at most"):
        harness.require_close("it", np.array([1.1]), np.array([1.0]), 1e-6)
    with pytest.raises(harness.WrongAnswerError):
        harness.require_close("it", np.array([np.nan]), np.array([1.0]), 1e-6)


def prepare_product(size: int):
    """A product whose result and intermediate have known sizes, for the test of the memory meter."""
    matrix = jnp.ones((size, size))
    program = jax.jit(lambda x: (x @ x) @ x)
    return partial(program.lower(matrix).compile(), matrix)


def test_the_memory_meter_sees_a_known_product():
    size, matrix = 1500, 4 * 1500**2
    memory = peak_memory(prepare_product, size)
    assert memory.planned == pytest.approx(2 * matrix, rel=0.01)
    # The peak may exceed the plan by the packing buffers of matrix products and by pages touched for the first time.
    assert 1.9 * matrix < memory.peak < 2 * matrix + 20e6


def test_numbers_and_durations():
    assert [harness.number(x) for x in (0.0, 1234.5, 12.345, 0.012345, 2.5e-7)] == [
        "0",
        "1234",
        "12.3",
        "0.0123",
        "2.50e-07",
    ]
    assert [harness.duration(x) for x in (2.0, 0.0125, 3e-5)] == ["2.00 s", "12.5 ms", "30.0 us"]


@pytest.mark.parametrize(
    ("claim", "met"),
    [
        (harness.Claim("s", "c", 3.0, at_least=2), True),
        (harness.Claim("s", "c", 3.0, at_most=2), False),
        (harness.Claim("s", "c", 3.0), None),
    ],
)
def test_a_claim_knows_whether_it_is_met(claim, met):
    assert claim.met is met


def test_the_gradient_in_float64_is_the_declarative_node_formula():
    """Two independent derivations: ours in closed form, theirs with constraints and multipliers."""
    pytest.importorskip("torch")
    problem = problems.make_problem(12, 5)
    for whole_hessian in (False, True):
        found = declarative.dense_backward(problem, problem.rotation, dtype="float64", whole_hessian=whole_hessian)()
        np.testing.assert_allclose(found.numpy(), problem.gradient, rtol=0, atol=1e-12)


def test_a_problem_has_the_condition_number_and_move_that_it_says():
    values = np.linalg.svd(problems.make_problem(20, 6, condition=100.0).matrix, compute_uv=False)
    assert values[0] / values[-1] == pytest.approx(100, rel=1e-4)
    problem = problems.make_problem(20, 6, move=1e-3)
    assert np.linalg.norm(problem.previous - problem.rotation) < 5e-3 * np.sqrt(5)
    assert problem.gradient_norm(problem.rotation) < 1e-14


def test_exponents_are_slopes():
    config = scaling.Config(dim=8, classes=(10, 20, 40, 80), num_classes=10, dims=(8,), fit_from=(1, 20))
    rows = [{"program": "it", "d": 8, "K": k, "seconds": 1e-3 * k**2 if k > 10 else 1.0} for k in config.classes]
    (fit,) = scaling.exponents(rows, "it", config)
    assert fit.exponent == pytest.approx(2)
    assert fit.half_width == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_writes_what_it_measured(name, tmp_path):
    """Run the smoke preset of a benchmark as the command line does."""
    module = MODULES[name]
    harness.main(module.run, module.PRESETS, ["smoke", "--results", str(tmp_path)])
    (path,) = tmp_path.glob(f"{name}-smoke-cpu-*.json")
    assert path.with_suffix(".png").stat().st_size > 0
    document = json.loads(path.read_text())
    assert document["benchmark"] == name
    assert document["environment"]["versions"]["jax"] == jax.__version__
    assert document["environment"]["cpu"]["cores"] >= 1
    assert all(len(row) == len(document["table"]["columns"]) for row in document["table"]["rows"])
    rows = {str(row.get("solver", row.get("method", row.get("program")))): row for row in document["rows"]}
    ours = [row for program, row in rows.items() if program.startswith(("polar", "trust"))]
    assert len(ours) >= 2
    assert all(row["error"] < 1e-4 and "refused" not in row for row in ours)
    assert all(claim["met"] is not False for claim in document["claims"])  # only exactness has a target at this size
    if name == "implicit_gradient":  # what fails is shown, and gets no time
        assert "must be at most" in rows["autodiff of the SVD, condition 1"]["refused"]
        assert rows["polar"]["memory_peak"] > 0


def test_a_result_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    config = harness.Options(results=tmp_path)
    write = partial(harness.report, "it", config, rows=[], table=harness.Table("t", ("a",), []))
    write()
    with pytest.raises(FileExistsError):
        write()


def test_a_preset_without_flags_needs_neither_the_training_stack_nor_the_peers():
    """The module must run on a rented accelerator, where few packages are installed."""
    needless = (
        "grain",
        "orbax",
        "tensorflow_datasets",
        "tensorboardX",
        "sklearn",
        "flax",
        "torch",
        "pymanopt",
        "geojax",
    )
    program = (
        "import sys\n"
        "from benchmarks import implicit_gradient, nearest_frame, scaling\n"
        f"print(sorted(set({needless}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=harness.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["huge"], "the preset must be one of default, smoke; got 'huge'"),
        (["smoke", "--repeat", "3"], "the command line must name settings that exist"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_status_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        harness.main(scaling.run, scaling.PRESETS, arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
