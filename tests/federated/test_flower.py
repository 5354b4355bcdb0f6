"""Machines that Flower connects train what a simulation trains."""

import dataclasses
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import toy_machines as toy

from nc_jax.data.clients import ClientArrays
from nc_jax.extras import MissingExtraError
from nc_jax.federated import NoAnswerError, flower
from nc_jax.streams import read
from nc_jax.training import TrainState

TOLERANCE = {"rtol": 0, "atol": 1e-6}  # the server sums in double precision, a simulation in the order of its clients
flwr_app = pytest.importorskip("flwr.app")
TaskIdentity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
PAGE = Path(__file__).resolve().parents[2] / "docs" / "federated_machines.md"
PATIENCE = 300  # seconds; it takes 50 on two busy cores


def simulated(problem: flower.Problem) -> TrainState:
    """The server's state after all rounds of a simulation."""
    state = problem.trainer.init(problem.stream.source, problem.seed)
    for batch in read(problem.stream.source, problem.stream, seed=problem.seed):
        state, _ = problem.trainer.step(state, batch)
    return state


def assert_simulated(state: TrainState) -> None:
    whole = toy.everything()
    expected = simulated(flower.Problem(toy.trainer(), toy.stream_of(whole), toy.SEED))
    for name, array in toy.arrays_of(expected).items():
        np.testing.assert_allclose(toy.arrays_of(state)[name], array, err_msg=name, **TOLERANCE)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


class Processes:
    """Programs of Flower, each in a process group of its own, that end with the test."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment, self.running = folder, environment, []

    def start(self, name: str, *command: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("w") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            program = str(Path(sys.executable).with_name(command[0]))
            self.running.append(
                subprocess.Popen([program, *command[1:]], cwd=self.folder, env=self.environment, **options)
            )
        return self.running[-1]

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.running):
                try:
                    os.killpg(process.pid, number)
                    process.wait(timeout=10)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


class Network:
    """A network in one process: every machine has the same app, and a context that lasts from round to round."""

    def __init__(self, app, clients=(0, 1), spoil=lambda client, number, reply: reply):
        self.app, self.spoil = app, spoil
        self.contexts = [
            flwr_app.Context(7, machine, {"client": client}, flwr_app.RecordDict(), {})
            for machine, client in enumerate(clients)
        ]
        self.asked = []

    def get_node_ids(self):
        return range(len(self.contexts))

    def send_and_receive(self, messages, *, timeout):
        assert timeout > 0
        for message in messages:
            machine, number = message.metadata.dst_node_id, message.content["round"]["number"]
            self.asked.append((number, machine))
            try:
                reply = self.app(message, self.contexts[machine])
                reply = self.spoil(self.contexts[machine].node_config["client"], number, reply)
            except Exception as error:
                reply = flwr_app.Message(flwr_app.Error(0, str(error)), reply_to=message)
            if reply is not None:
                yield reply


@pytest.fixture
def network(monkeypatch):
    """Make networks of the toy's machines."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 0)
    return lambda *args, **keywords: Network(flower.client_app(toy.problem), *args, **keywords)


@pytest.fixture
def messages(monkeypatch):
    """Warnings of the server, in a list."""
    found = []
    monkeypatch.setattr(flower.LOG, "warning", lambda text, *values: found.append(text % values))
    return found


def serve(network, problem=toy.problem):
    """Run the server's app, and return its state after every round."""
    states = []
    app = flower.server_app(problem, on_round=lambda done, state, _: states.append(state), patience=0.01)
    app(network, None)
    return states


@pytest.mark.slow
def test_apps_train_what_a_simulation_trains(network, messages):
    assert_simulated(serve(network())[-1])
    assert not messages


@pytest.mark.slow
def test_a_client_that_fails_is_left_out_and_the_round_goes_on(network, messages):
    def spoil(client, number, reply):
        if number == 0 and client == 1:
            raise RuntimeError("no power")
        return None if number == 1 and client == 0 else reply

    states = serve(network(spoil=spoil))
    assert [state.clients.dropped.tolist() for state in states] == [[0, 1], [1, 1]]
    assert messages == [
        "round 1: the answer of machine 1 cannot be used: its client has failed: no power",
        "round 1: client 1 is left out: no answer that can be used has come",
        "round 2: client 0 is left out: no answer that can be used has come",
    ]


@pytest.mark.slow
def test_an_answer_without_its_arrays_is_left_out(network, messages):
    def spoil(client, _, reply):
        if client == 0:
            reply.content.pop("arrays")
        return reply

    serve(network(spoil=spoil))
    assert messages[0].startswith("round 1: the answer of machine 0 cannot be used: arrays must be those of the model")


@pytest.mark.parametrize("content", [{}, {"answer": {"client": 5}}, {"answer": {"examples": 14}}])
def test_what_is_no_answer_ends_no_round(network, messages, content):
    def spoil(client, _, reply):
        if client == 0:
            records = {name: flwr_app.MetricRecord(record) for name, record in content.items()}
            reply.content = flwr_app.RecordDict(records)
        return reply

    assert len(serve(network(spoil=spoil))) == toy.ROUNDS
    assert "round 1: client 0 is left out: no answer that can be used has come" in messages


@pytest.mark.slow
def test_two_machines_of_one_client_count_once(network, messages):
    assert_simulated(serve(network(clients=(0, 1, 1)))[-1])
    assert "client 1 must have one machine; got a second one" in messages[0]


def test_a_round_that_all_leave_ends_the_run(network, messages):
    with pytest.raises(NoAnswerError, match="a round needs an answer from one of its clients at least"):
        serve(network(spoil=lambda client, number, reply: None if number else reply))
    assert len(messages) == 2


@pytest.mark.slow
def test_only_machines_of_chosen_clients_are_asked_once_they_are_known(network):
    def problem(client):
        made = toy.problem(client)
        stream = toy.stream_of(made.stream.source, rounds=4, per_round=1)
        return made._replace(trainer=toy.trainer(1), stream=stream)

    here = network()
    here.app = flower.client_app(problem)
    serve(here, problem)
    chosen = [flower.participants(problem(-1).stream, toy.SEED, number) for number in range(4)]
    asked = [[machine for number, machine in here.asked if number == wanted] for wanted in range(4)]
    assert asked[0] == [0, 1]
    assert asked[1:] == chosen[1:]


def test_a_machine_must_know_its_client(network, messages):
    here = network()
    for context in here.contexts:
        context.node_config = {"colour": "red"}
    with pytest.raises(NoAnswerError):
        serve(here)
    assert "a machine must be told its client (--node-config client=0); got {'colour': 'red'}" in messages[0]


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(MissingExtraError, match=r"^training on several machines needs flwr; .* 'nc_jax\[flower\]'$"):
        flower.client_app(toy.problem)
    with pytest.raises(ValueError, match=r"patience must be positive; got 0\.0"):
        flower.server_app(toy.problem, on_round=print, patience=0.0)


@pytest.mark.slow
def test_the_page_trains_on_two_machines_what_a_simulation_trains(tmp_path, monkeypatch):
    app, home, port = tmp_path / "app", tmp_path / "home", free_port()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (program,) = (text for kind, text in blocks if kind == "python")
    project, connection = (text for kind, text in blocks if kind == "toml")
    assert "ROUNDS = 10" in program
    program = program.replace("ROUNDS = 10", f"ROUNDS = {toy.ROUNDS}")
    for path, text in (
        (app / "app.py", program),
        (app / "pyproject.toml", project),
        (home / "config.toml", connection.replace("SERVER:8000", f"127.0.0.1:{port}")),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PAGE.parents[1]),
    }
    with Processes(tmp_path, environment) as processes:
        here = "--host", "127.0.0.1", "--port"
        processes.start(
            "link", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation", *here, str(port)
        )
        for client in range(2):
            node = "--insecure", "--superlink", f"127.0.0.1:{port}", "--node-config", f"client={client}"
            processes.start(f"client{client}", "flower-supernode", *node, *here, str(free_port()))
        await_link(f"http://127.0.0.1:{port}/health", processes)
        run = processes.start("run", "flwr", "run", str(app), "lab", "--stream")
        assert run.wait(timeout=PATIENCE) == 0, processes.logs()
        logs = processes.logs()
    assert f"after round {toy.ROUNDS}: generic accuracy" in logs, logs
    assert "left out" not in logs, logs
    monkeypatch.syspath_prepend(app)
    module = importlib.import_module("app")
    monkeypatch.delitem(sys.modules, "app")
    parts = [module.examples(client) for client in range(2)]
    inputs, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "labels"))
    whole = ClientArrays(inputs, labels, 10, clients=np.repeat(np.arange(2), module.SIZES), num_clients=2)
    made = module.problem(-1)
    expected = simulated(made._replace(stream=dataclasses.replace(made.stream, source=whole)))
    for name, layer in expected.params["backbone"].items():
        with np.load(tmp_path / f"{name}.npz") as found:
            for part, array in layer.items():
                np.testing.assert_allclose(found[part], array, err_msg=f"{name}/{part}", **TOLERANCE)


def await_link(url: str, processes: Processes) -> None:
    """Wait until the server takes connections."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, processes.logs()
            time.sleep(0.1)
