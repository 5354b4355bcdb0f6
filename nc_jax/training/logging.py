"""Logs of metrics, which only grow; a crash loses at most the line being written."""

import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from nc_jax.files import append_line, read_lines, sync

FILE = "metrics.jsonl"


class MetricsLog:
    """Metrics as JSON lines and as TensorBoard events. Several processes may log different runs into one directory.

    Every line is a JSON object with "run" (name of a run in this directory), "step", "epoch" and the metrics. A number
    that is not finite is written as null. Lines are only ever added: a line {"run": ..., "rewind": step} says that the
    run began again after that step, so that its earlier lines of later steps no longer count. `read_metrics` leaves
    both out.

    Args:
        directory: directory of the log, created if it does not exist. The files metrics.jsonl and tensorboard/ in it
            are created, or continued if they exist.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE
        self.path.touch()
        self._events = directory / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, run: str, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and the same numbers to the TensorBoard events."""
        row = {"run": run, "step": step, "epoch": epoch, **metrics}
        append_line(
            self.path, {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        )
        if run not in self._writers:
            # After a resume, hide older events from this step on, so that TensorBoard shows the newest attempt only.
            self._writers[run] = SummaryWriter(str(self._events / run), purge_step=step)
        # One event for all metrics: a call of `add_scalar` for each (0.16 ms) took an eighth of an epoch on the digits.
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writers[run]._get_file_writer().add_summary(Summary(value=values), step)

    def rewind(self, run: str, step: int) -> None:
        """Say that a run goes on after `step`: its lines of later steps, if there are any, no longer count."""
        if any(row["run"] == run and row["step"] > step for row in read_metrics(self.path)):
            append_line(self.path, {"run": run, "rewind": step})

    def sync(self) -> None:
        """Wait until all lines are on the disk, so that they survive the end of the machine."""
        sync(self.path)

    def close(self) -> None:
        """Close the TensorBoard events."""
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log that count, as dicts, with NaN for null. A last line that a crash cut short does not.

    Args:
        path: directory of a run, or its file metrics.jsonl. If the file does not exist, the result is empty.

    Raises:
        ValueError: if a line is no JSON object, or lacks "run" or "step".
    """
    path = path / FILE if path.is_dir() else path
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_lines(path), start=1):
        row = {name: math.nan if value is None else value for name, value in line.items()}
        if "run" in row and "rewind" in row:
            rows = [old for old in rows if old["run"] != row["run"] or old["step"] <= row["rewind"]]
        elif "run" in row and "step" in row:
            rows.append(row)
        else:
            raise ValueError(
                f'{path} must hold lines with "run" and "step"; line {number} has {", ".join(row) or "nothing"}'
            )
    return rows
