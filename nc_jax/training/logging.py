"""Run directories and logs. A new run never overwrites an old one; a crash loses at most the line being written."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]


class MetricsLog:
    """Metrics as JSON lines and as TensorBoard events.

    Every line is a JSON object with "run" (name of a run in this directory), "step", "epoch" and the metrics. A number
    that is not finite is written as null.

    Args:
        directory: directory of the log, created if it does not exist. The files metrics.jsonl and tensorboard/ in it
            are created, or continued if they exist.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        self._events = directory / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, run: str, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and the same numbers to the TensorBoard events; flush the line."""
        self._file.write(_json_line({"run": run, "step": step, "epoch": epoch, **metrics}))
        self._file.flush()
        if run not in self._writers:
            # After a resume, hide older events from this step on, so that TensorBoard shows the newest attempt only.
            self._writers[run] = SummaryWriter(str(self._events / run), purge_step=step)
        # One event for all metrics: a call of `add_scalar` for each (0.16 ms) took an eighth of an epoch on the digits.
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writers[run]._get_file_writer().add_summary(Summary(value=values), step)

    def drop_after(self, run: str, step: int) -> None:
        """Remove the lines of a run after a step, because the run resumes at that step and will write them again."""
        kept = [row for row in read_metrics(self.path) if row["run"] != run or row["step"] <= step]
        self._file.close()
        write_atomically(self.path, "".join(_json_line(row) for row in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close metrics.jsonl and the TensorBoard events."""
        self._file.close()
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl as dicts, with NaN for null. Skip a last line that a crash cut short.

    Args:
        path: the file; if it does not exist, the result is empty.

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
    """Create and return the directory of a new run: `path`, or by default `root/experiment/time-preset`.

    Raises:
        FileExistsError: if the directory exists, even if it is empty.
    """
    path = path or root / experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{preset}"
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(f"a new run needs a directory that does not exist yet; got {path}") from None
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it holds either the whole old or the whole new text, even if the machine crashes."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
