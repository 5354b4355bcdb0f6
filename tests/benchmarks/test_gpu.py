"""The benchmark for accelerators: on a CPU in small, with parts that fail, and never at full size."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, harness, ours, precision, problems

pytestmark = pytest.mark.benchmark

SMOKE = dataclasses.replace(gpu.PRESETS["smoke"], preset="smoke")


def test_all_parts_run_in_small(tmp_path):
    harness.main(gpu.run, gpu.PRESETS, ["smoke", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("gpu-smoke-cpu-*.json")
    assert path.with_suffix(".png").stat().st_size > 0
    document = json.loads(path.read_text())
    rows = document["rows"]
    assert not [row for row in rows if "failed" in row]
    assert {row["part"] for row in rows} == {
        "solve and gradient",
        "solve and gradient, many classes",
        "TF32",
        "bfloat16 inputs",
        "polar factor",
        "step of mlp:10, float32",
        "steps with many classes",
    }
    assert all(row["orthogonality"] < 1e-5 for row in rows if "orthogonality" in row)
    assert all(claim["met"] is not False for claim in document["claims"] if "orthogonal" in claim["statement"])
    assert len({tuple(line[:3]) for line in document["table"]["rows"]}) == len(rows)


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand a long trace")

    parts = {"one": fails, "two": lambda: ([{"program": "it", "seconds": 1.0}], [])}
    monkeypatch.setattr(gpu, "parts_of", lambda config: parts)
    document = gpu.run(dataclasses.replace(SMOKE, results=tmp_path))
    assert document["rows"][0]["failed"] == "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert [line[-2:] for line in document["table"]["rows"]] == [
        ["-", "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"],
        ["1.00 s", "-"],
    ]
    document = gpu.run(dataclasses.replace(SMOKE, results=tmp_path / "late", minutes=-1.0))
    assert {row["failed"] for row in document["rows"]} == {"left out: -1 minutes were over"}


def test_full_size_needs_an_accelerator():
    with pytest.raises(ValueError, match="the full size needs an accelerator"):
        gpu.run(gpu.PRESETS["default"])


def test_a_method_that_fails_has_its_sentence(monkeypatch):
    right = precision.polar_decomposition

    def without_qdwh(matrix, *, method, init):
        if method == "qdwh":
            raise NotImplementedError("no such decomposition here")
        return right(matrix, method=method, init=init)

    monkeypatch.setattr(precision, "polar_decomposition", without_qdwh)
    rows = precision.polar_methods(problems.make_problem(12, 4), repeats=1, budget=0.0)
    failed = [row for row in rows if "failed" in row]
    assert [row["program"] for row in failed] == ["qdwh"]
    assert all(row["error"] < 1e-5 for row in rows if "seconds" in row)
    assert {claim.statement.rpartition(" ")[2] for claim in precision.claims_of_methods(rows)} == {"svd", "gram"}


def test_errors_are_those_of_the_rotation():
    rotation = np.array([[1.0, 0.0], [0.0, 1.01]])
    found = precision.errors_of(rotation, np.eye(2))
    assert found["orthogonality"] == pytest.approx(1.01**2 - 1)
    assert found["error"] == pytest.approx(0.01 / np.sqrt(2))


def test_narrow_means_lose_what_their_rounding_loses():
    rows = precision.narrow_inputs(problems.make_problem(24, 5))
    assert all(row["error"] < 1e-3 < row["error_to_unrounded"] < 2e-2 for row in rows)


def test_a_wide_problem_has_more_classes_than_dimensions():
    """Its answers in float64 are those of our solvers, and the matrix is well conditioned."""
    problem = problems.make_wide_problem(6, 400)
    assert problem.template.shape == problem.means.shape == (6, 400)
    values = np.linalg.svd(problem.matrix, compute_uv=False)
    assert values[0] / values[-1] < 2
    means, *rest = map(jnp.asarray, ours.inputs_of(problem))
    for solver in ours.SOLVERS:
        ours.check_rotation(solver, problem, ours.compiled(solver)(means, *rest).rotation)
