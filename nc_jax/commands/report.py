"""One HTML page about one or several runs, which holds all it shows and can be sent to others.

Usage: nc-jax report RUN ... [--out FILE.html]

RUN is the directory of a run of an experiment, such as runs/nearest_etf/20261126-130000-default; a run need not be
finished. The page says what was run, sets the settings side by side, those that differ first, and has the results with
means over seeds and paired tests between methods; of several runs of one experiment, also between runs. Curves,
confusions, recall of each class and the run's own pictures follow.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from nc_jax.commands.experiments_folder import NAME, import_experiments
from nc_jax.files import check_new_file, write_atomically
from nc_jax.study.cli import parse
from nc_jax.study.ends import started_by_nc_jax

ENDINGS = (".html",)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to report on.

    Attributes:
        runs: directories of runs. The first one of each experiment is what its others are compared with.
        out: file to write, which must not exist yet.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("report.html")


def main(words: Sequence[str]) -> None:
    """Write the page."""
    config = parse(Config(()), words, header=__doc__)
    check_new_file(config.out, ENDINGS)
    from nc_jax.study.opened import open_runs  # with all that reads a run
    from nc_jax.study.run_page import page_of

    runs = open_runs(config.runs)
    with started_by_nc_jax():
        text = page_of(runs, {run.saved.experiment: _known(run.saved.experiment) for run in runs})
    write_atomically(config.out, text)
    print(f"a page about {len(runs)} {'run' if len(runs) == 1 else 'runs'} is in {config.out} ({len(text) // 1000} kB)")


def _known(experiment: str) -> Any:
    """Return what is known of an experiment; little of one that does not come with nc_jax."""
    from nc_jax.study.listing import experiments_in, part_of
    from nc_jax.study.run_page import Known
    from nc_jax.study.runs import SETTINGS, read_config
    from nc_jax.study.settings import Comparison, expand

    header = experiments_in(import_experiments()).get(experiment)
    if header is None:
        return Known()
    module = importlib.import_module(f"{NAME}.{experiment}")
    presets = getattr(module, "PRESETS", {})

    def planned(directory: Path) -> int | None:
        like = presets.get("default")
        if not isinstance(like, Comparison):
            return None
        try:
            groups = expand(read_config(directory / SETTINGS, experiment, like))
        except ValueError:  # settings of another version
            return None
        return sum(group.settings.seeds for case in groups.values() for group in case)

    return Known(header.splitlines()[0], part_of(header, "Claim"), getattr(module, "COLUMNS", ()), planned)
