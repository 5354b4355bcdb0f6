"""Rounds in Flower's own simulation engine, or ours, for `benchmarks.federated`: a program that times them.

    python -m benchmarks.flower_engine engine OUTPUT
    python -m benchmarks.flower_engine ours OUTPUT

It saves the parameters after the first round, and the times at which rounds ended. The case is in the environment,
because Flower's engine starts processes that must know it, too. Our rounds use all devices.
"""

import functools
import json
import os
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nc_jax.data import LabelledArrays
from nc_jax.data.clients import ClientArrays
from nc_jax.federated import Rounds
from nc_jax.federated.flower import Problem, client_app, server_app
from nc_jax.heads import fixed
from nc_jax.models import MLP, Classifier, HeadModule, ResNet
from nc_jax.streams import Clients
from nc_jax.training import LoopOptions, ResidentSet, Trainer, TrainState
from nc_jax.training.checkpoint import leaves_by_name
from nc_jax.training.resident import padded

CASE = "NC_JAX_BENCHMARK_CASE"
NUM_CLASSES = 10


class Case(NamedTuple):
    """What is trained.

    Attributes:
        network: "mlp", with two hidden layers of `width`, or "resnet18", with a CIFAR stem and `width` channels.
        inputs: shape of the inputs.
        width: of the network.
        batch: examples per local step.
        clients: number of clients, all of which take part in every round.
        steps: local steps of each client in a round.
        rounds: number of rounds.
    """

    network: str
    inputs: tuple[int, ...]
    width: int
    batch: int
    clients: int
    steps: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.network} {'x'.join(map(str, self.inputs))}-{self.width}, batch {self.batch}"


@functools.cache
def source(case: Case) -> ClientArrays:
    """Return random examples, as many for each client as its local steps take."""
    number = case.clients * case.steps * case.batch
    inputs = np.random.default_rng(0).normal(size=(number, *case.inputs)).astype(np.float32)
    # In blocks: every client has examples of several classes.
    return ClientArrays.of(
        LabelledArrays(inputs, np.arange(number) % NUM_CLASSES, NUM_CLASSES),
        np.arange(number) // (case.steps * case.batch),
        case.clients,
    )


@functools.cache
def trainer(case: Case, *, at_once: int | None = None, in_rounds: bool = True, devices: int = 1) -> Trainer:
    """Return a trainer of a case, whose steps are rounds or plain steps.

    Args:
        case: what is trained.
        at_once: clients that are trained at the same time; None: the default of `Rounds`.
        in_rounds: train in rounds.
        devices: number of devices, of which each trains equally many clients.
    """
    backbone: Any = MLP((case.width,), case.width)
    if case.network == "resnet18":
        backbone = ResNet(18, stem="cifar", width_multiplier=case.width / 64)
    rounds = Rounds(clients=case.clients, local_batch=case.batch, at_once=at_once) if in_rounds else None
    options = LoopOptions(batch_size=case.batch, devices=devices)
    return Trainer(Classifier(backbone, HeadModule(fixed(NUM_CLASSES))), optax.sgd(0.01, 0.9), options, rounds=rounds)


def stream(case: Case) -> Clients:
    """Return the rounds of a case."""
    return Clients(source(case), case.batch, case.rounds)


def problem(client: int) -> Problem:
    """Return what a machine trains: the case in the environment."""
    del client
    return Problem(trainer(case_here()), stream(case_here()), seed=0)


def case_here() -> Case:
    """Return the case in the environment."""
    values = json.loads(os.environ[CASE])
    return Case(**(values | {"inputs": tuple(values["inputs"])}))


def named(state: TrainState) -> dict[str, np.ndarray]:
    """Return the parameters of a state by name."""
    return {name: np.asarray(leaf) for name, leaf in leaves_by_name(state.params).items()}


class Watch:
    """What is seen of a run: called after every round."""

    def __init__(self):
        self.ends: list[float] = []
        self.first: dict[str, np.ndarray] = {}

    def __call__(self, done: int, state: TrainState, metrics: Any) -> None:
        """See the end of a round."""
        del metrics
        jax.block_until_ready(state.params)
        self.ends.append(time.perf_counter())
        if done == 1:
            self.first = named(state)


def engine(watch: Watch) -> None:
    """Run all rounds in Flower's engine."""
    from flwr.simulation import run_simulation  # deprecated, and the only door to the engine within a process

    from benchmarks import flower_engine  # under this name, the processes of the engine can import it

    run_simulation(
        server_app(flower_engine.problem, on_round=watch),
        client_app(flower_engine.problem),
        num_supernodes=problem(-1).stream.source.num_clients,
        # One client per core, as many at once as the machine has cores: the engine's default takes two cores for each.
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0))},
        },
    )


def ours(watch: Watch) -> None:
    """Run all rounds on all devices."""
    case = case_here()
    made, rounds = trainer(case, devices=jax.local_device_count()), stream(case)
    content = ResidentSet(source(case), case.batch, devices=made.devices).content
    state = made.init(source(case), 0)
    for number in range(case.rounds):
        plan = rounds.plan(0, number)
        state = made.segment(state, None, content, padded(plan), 0, 1)
        watch(number + 1, state, None)


def main(what: str, output: str) -> None:
    """Run all rounds of one kind.

    Args:
        what: "engine" or "ours".
        output: file that is written.
    """
    watch = Watch()
    {"engine": engine, "ours": ours}[what](watch)
    arrays: dict[str, Any] = watch.first | {"ends": np.array(watch.ends)}
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
