"""Networks in training, for the benchmarks of training steps: a check of the frame, then a call per step."""

import itertools
import math
import sys
import time
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import harness, problems
from benchmarks.networks import Problem
from benchmarks.problems import PROX_WEIGHT
from nc_jax.models import Classifier
from nc_jax.training import AXIS, StepMetrics, create_state, data_parallel, make_train_step

FRAME_TOLERANCE = 1e-3  # largest relative error of a frame in float32 against float64


class Run:
    """A network in training; each call takes the next steps.

    Args:
        problem: backbone and batches.
        head: head of the network.
        num_devices: number of local devices to use.
        chunk: number of steps that a call takes.
    """

    def __init__(self, problem: Problem, head: Any, num_devices: int, chunk: int = 1):
        model = Classifier(problem.backbone(), head)
        optimizer = optax.sgd(0.05, 0.9)  # experiments.nearest_etf
        # Not the default random generator: on a CPU, XLA needs a second per kernel to compile it, for twenty kernels.
        key = jax.random.key(0, impl="rbg")
        self.chunk = chunk
        batches: Any = problem.batches
        if jax.default_backend() != "cpu" and num_devices == 1:
            batches = jax.device_put(batches)  # in a training loop, the transfer overlaps with the previous step
        self.num_batches, self.batches = len(batches), itertools.cycle(batches)
        self.state = create_state(model, optimizer, key, problem.batches[0].inputs[:1])
        step = make_train_step(model, optimizer, axis_name=AXIS)
        self.step = data_parallel(step, devices=jax.local_devices()[:num_devices], donate=True)

    def __call__(self) -> Any:
        """Take the steps of one chunk; return arrays that are ready when all steps have ended."""
        metrics = None
        for _ in range(self.chunk):
            metrics = self.take_step()
        return self.state, metrics

    def take_step(self) -> StepMetrics:
        """Take one step."""
        self.state, metrics = self.step(self.state, next(self.batches))
        return metrics

    def head_variables(self) -> dict[str, np.ndarray]:
        """Return a copy of the nearest head's state (steps donate the original)."""
        return jax.tree.map(np.array, self.state.variables["nearest"]["head"])


def check(name: str, run: Run) -> dict[str, Any]:
    """Take steps until every class has occurred. Then take one more, and compare its frame with NumPy's in float64.

    Returns:
        "loss" and "first_seconds" of the first step; for a nearest head also "class_means", "previous" (the rotation
        before the step), "frame_error" and "status" of the last step.

    Raises:
        WrongAnswerError: if the frame is wrong, or a loss is not finite.
    """
    start = time.perf_counter()
    metrics = jax.block_until_ready(run.take_step())
    checked: dict[str, Any] = {"loss": float(metrics.loss), "first_seconds": time.perf_counter() - start}
    if name != "learned":
        for _ in range(run.num_batches - 1):
            run.take_step()
        previous = run.head_variables()["rotation"]
        metrics = run.take_step()
        found = run.head_variables()
        means = found["class_means"].astype(np.float64)
        template = problems.simplex_template(means.shape[1])
        rank = len(template)
        matrix = 2 * (means / np.linalg.norm(means)) @ template.T / math.sqrt(rank) + PROX_WEIGHT * previous
        expected = problems.polar(matrix) @ template * math.sqrt((rank + 1) / rank)
        error = harness.require_close(f"the {name} head's frame", found["frame"], expected, FRAME_TOLERANCE)
        checked |= {
            "class_means": found["class_means"],
            "previous": previous,
            "frame_error": error,
            "status": int(metrics.solve_status),
        }
    harness.require_at_most(f"the loss of the {name} head", float(metrics.loss), sys.float_info.max)
    return checked
