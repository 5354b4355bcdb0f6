"""Does every label tree have a hierarchy-aware frame, whatever the map of distances to cosines?

Claim     Liang and Davis (2023), section 3, give a frame for trees whose leaves are equally deep. This tests all trees.
Command   python -m experiments.haframe_trees        (10,000 random trees: 4 minutes on a CPU core)
Expected  no failure for distances by depth or height; path lengths fail where leaves are not equally deep
Writes    runs/haframe_trees/<time>-<preset>/: config.json, summary.md, summary.json
Data      random trees of varied depth and branching.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.checks import check_at_least
from nc_jax.hierarchy import LabelTree
from nc_jax.methods import HierarchyOptions
from nc_jax.methods.hierarchy import MAPS, wanted_cosines
from nc_jax.study import About, Plan, RunOptions, Table, main
from nc_jax.study.progress import Progress
from nc_jax.study.report import Report
from nc_jax.study.runs import open_run


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Settings of the experiment.

    Attributes:
        trees: number of random trees.
    """

    trees: int = 10_000  # a failure in a thousand would be seen ten times


PRESETS = {"default": Config(), "smoke": Config(trees=20)}
ABOUT = {
    "default": About("10,000 random trees, three distances, six maps", 4, "no failure by depth or height"),
    "smoke": About("twenty trees, for the tests", 0.1),
}


def random_tree(rng: np.random.Generator) -> LabelTree:
    """Draw a tree of 1 to 6 levels with 1 to 5 children a node; a branch may end early."""
    depth, edges, level = int(rng.integers(1, 7)), [], ["n"]
    for at in range(depth):
        below = []
        for node in level[:12]:  # at most 60 leaves a level: the eigenvalues, not the tree, take the time
            ends = at > 0 and rng.random() < 0.25
            below += [] if ends else [f"{node}.{child}" for child in range(int(rng.integers(1, 6)))]
        below = below or [f"{level[0]}.0", f"{level[0]}.1"]
        edges += [(name.rpartition(".")[0], name) for name in below]
        level = below
    return LabelTree.from_edges(edges)


def path_lengths(tree: LabelTree) -> np.ndarray:
    """Number of edges between leaves: a distance that is no ultrametric where leaves are not equally deep."""
    depths = tree.depths[tree.leaves]
    common = tree.height - tree.distances()
    lengths = depths[:, None] + depths - 2 * common
    np.fill_diagonal(lengths, 0)
    return lengths


def plan(config: Config) -> Plan:
    """Say how many trees are drawn."""
    return Plan("one run", lambda: config.trees, "trees")


def run(config: Config) -> dict[str, Any]:
    """Draw trees and count those without a frame; write and show a table.

    Returns:
        What summary.json holds: "failures" by kind of distance and map, "negative", how many matrices had an eigenvalue
        below -1e-8 at the closed form's s, and the number of "trees".

    Raises:
        ValueError: if there are fewer than one.
        FileExistsError: if the run directory exists.
    """
    check_at_least("trees", config.trees)
    with open_run("haframe_trees", config) as (directory, config):
        return _test(config, directory)


def _test(config: Config, directory: Path) -> dict[str, Any]:
    """Draw the trees of a run whose directory exists, and count."""
    rng = np.random.default_rng(0)
    failures = {kind: dict.fromkeys(MAPS, 0) for kind in ("depth", "height", "path")}
    maps = {name: HierarchyOptions(mapping=mapping, gamma=gamma) for name, (mapping, gamma) in MAPS.items()}
    below, count, sizes = 0, 0, []
    with Progress(config.trees, "trees") as bar:
        while count < config.trees:
            tree = random_tree(rng)
            if len(tree.classes) < 3:
                continue
            count += 1
            bar.advance(1, f"trees of {len(tree.classes)} classes")
            sizes.append(len(tree.classes))
            distances = {
                "depth": tree.distances("depth"),
                "height": tree.distances("height"),
                "path": path_lengths(tree),
            }
            for kind, matrix in distances.items():
                for name, options in maps.items():
                    try:
                        found = wanted_cosines(options, matrix)
                        below += bool(np.linalg.eigvalsh(found)[0] < -1e-8)
                    except ValueError:
                        failures[kind][name] += 1
    columns = ["map of u = d / d_max", *(f"no frame, {kind}" for kind in failures)]
    rows = [[name, *(f"{failures[kind][name] / count:.2%}" for kind in failures)] for name in MAPS]
    title = (
        f"Share of {count} random trees of {min(sizes)} to {max(sizes)} classes without a frame, by distance and map; "
        f"matrices of cosines with an eigenvalue below -1e-8: {below}"
    )
    summary = {"trees": count, "failures": failures, "negative": below, "directory": str(directory)}
    report = Report(directory, "haframe_trees")
    report.say([_verdict(failures, count)])
    report.tables([Table(title, columns, rows)])
    report.write(summary)
    return summary


def _verdict(failures: dict[str, dict[str, int]], count: int) -> str:
    """Say for which distances a frame always exists."""
    worst = {kind: max(by_map.values()) for kind, by_map in failures.items()}
    always = [kind for kind, number in worst.items() if number == 0]
    failing = [f"{kind} (up to {number / count:.2%} of the trees)" for kind, number in worst.items() if number]
    said = f"Every tree has a frame for distances by {' and by '.join(always)}, with every map" if always else ""
    return (
        "; ".join(filter(None, (said, f"some have none for distances by {', '.join(failing)}" if failing else "")))
        + "."
    )


if __name__ == "__main__":
    main(run, PRESETS, about=ABOUT, plan=plan)
