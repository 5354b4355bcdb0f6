"""Run directories and their logs: nothing is overwritten, and a crash loses at most the line being written."""

import json
import math
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]


class MetricsLog:
    """Metrics as JSON lines and as TensorBoard events.

    Every line is an object with "run" (which of the directory's runs), "step", "epoch" and the metrics; a number that
    is not finite is null.

    Args:
        directory: of the run, created if need be; metrics.jsonl and tensorboard/ are created in it, or continued.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        self._events = directory / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, run: str, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append one line and the corresponding events, and hand them to the operating system."""
        self._file.write(_json_line({"run": run, "step": step, "epoch": epoch, **metrics}))
        self._file.flush()
        if run not in self._writers:
            # After a resume, events from this step on are hidden: TensorBoard shows the newest attempt only.
            self._writers[run] = SummaryWriter(str(self._events / run), purge_step=step)
        # One event for all of them: `add_scalar` takes 0.16 ms each, which made an eighth of an epoch of digits.
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writers[run]._get_file_writer().add_summary(Summary(value=values), step)

    def drop_after(self, run: str, step: int) -> None:
        """Remove a run's lines from beyond a step: the run resumes there and will write them again."""
        kept = [row for row in read_metrics(self.path) if row["run"] != run or row["step"] <= step]
        self._file.close()
        write_atomically(self.path, "".join(_json_line(row) for row in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl. A last line that a crash cut short is left out; null becomes NaN.

    Raises:
        ValueError: if a line other than the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ValueError(f"{path} must hold one JSON object a line; line {number} is {line[:40]!r}") from None
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def _json_line(row: dict[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean) + "\n"


def create_run_directory(experiment: str, preset: str, *, root: Path = Path("runs"), path: Path | None = None) -> Path:
    """Create the directory of a new run, `root/experiment/time-preset` unless a path is given.

    Raises:
        FileExistsError: if it exists, with or without content.
    """
    path = path or root / experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{preset}"
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(f"a new run needs a directory that does not exist yet; got {path}") from None
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it holds either the old or the new text, whenever the machine stops."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """Return what a number depends on besides the configuration: versions, devices, commit, time."""
    packages = ("nc_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jaxopt", "numpy")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(sys.argv),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in packages},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # the package runs from a source tree that was never installed
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout
        return None
