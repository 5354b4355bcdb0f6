"""The smoke preset of the drawn problems: nothing is wrong without a status, and a fault would be found."""

import json

import numpy as np
import pytest

from benchmarks import harness, solver_draws

pytestmark = pytest.mark.benchmark


def test_nothing_is_wrong_without_a_status(tmp_path):
    harness.main(solver_draws.run, solver_draws.PRESETS, ["smoke", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("solver_draws-smoke-cpu-*.json")
    document = json.loads(path.read_text())
    assert sum(int(row[1]) for row in document["table"]["rows"]) >= 300
    assert [claim["obtained"] for claim in document["claims"]] == [0, 0]


def test_a_wrong_gradient_and_a_wrong_frame_are_found():
    _, problem = solver_draws.draw_problems(np.random.default_rng(0), 1, (12, 5), "float32", "alone")
    means = np.random.default_rng(1).normal(size=(1, 12, 5)).astype(np.float32)
    problem = problem._replace(means=means)
    frames, statuses, gradients = solver_draws.solve(problem, "float32", "polar", "alone")
    found = [
        solver_draws.check(problem, "float32", "alone", *answer)[0]
        for answer in ((frames, statuses, gradients), (1.1 * frames, statuses, gradients * 1.01))
    ]
    assert [(row["frame_wrong"], row["gradient_wrong"]) for row in found] == [(False, False), (True, True)]
