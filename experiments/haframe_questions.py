"""The open questions of Liang and Davis (2023): which map, gamma, alpha and layer, and does a frame always exist?

Claim     None: each question is answered by a table (docs/findings/hierarchy.md).
Command   python -m experiments.haframe_questions [trees|grid|maps|epochs|transformation]
Writes    runs/haframe_questions/<time>-<question>/: config.json, summary.md, summary.json, of the grid heat maps, and
          below it the run of every variant (see experiments.haframe)

"trees" draws 10,000 random trees of varied depth and branching and counts how often a map of distances admits no frame.
The other questions train variants of HAFrame on glyphs. A run that was interrupted resumes at the variant.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import haframe, haframe_plots, harness
from experiments.haframe_methods import MappingName, MethodOptions, wanted_cosines
from nc_jax.hierarchy import LabelTree
from nc_jax.training.logging import write_atomically

Question = Literal["trees", "grid", "maps", "epochs", "transformation"]


@dataclasses.dataclass(frozen=True)
class Config(harness.RunOptions):
    """Settings of the experiment.

    Attributes:
        question: which.
        trees: how many random trees.
        seeds: of the questions that train.
        epochs: of these; None takes the question's own.
        dataset: what they train on.
        tree: the tree of its classes.
        data_dir: where TFDS keeps prepared data.
    """

    question: Question = "trees"
    trees: int = 10_000  # issue 7
    seeds: int = 3
    epochs: int | None = None
    dataset: str = "glyphs/low-data"
    tree: str = "glyphs/shape"
    data_dir: str | None = None


PRESETS = {
    "default": Config(),
    **{name: Config(preset=name, question=name) for name in ("trees", "grid", "maps", "epochs", "transformation")},
    # For the tests, in seconds.
    "smoke": Config(preset="smoke", trees=20),
}
GAMMAS, ALPHAS = (1.0, 3.0, 5.0), (0.1, 0.5, 0.9)
# Name and gamma of the maps of u = d / d_max.
MAPS: dict[str, tuple[MappingName, float]] = {
    "exp(-3 u)": ("exponential", 3.0),
    "exp(-0.5 u)": ("exponential", 0.5),
    "1 - u": ("linear", 1.0),
    "1 / (1 + 3 u)": ("reciprocal", 3.0),
    "exp(-3 u^2)": ("gaussian", 3.0),
    "cos(pi u / 2)": ("cosine", 1.0),
}
METRICS = haframe.METRICS[:4]


def run(config: Config) -> dict[str, Any]:
    """Answer the question; write and show a table.

    Returns:
        What summary.json holds.

    Raises:
        FileExistsError: if the run directory exists.
    """
    directory, config = harness.open_run("haframe_questions", config)
    summary = _trees(config, directory) if config.question == "trees" else _trained(config, directory)
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"written to {directory}")
    return summary


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


def _trees(config: Config, directory: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    failures = {kind: dict.fromkeys(MAPS, 0) for kind in ("depth", "height", "path")}
    maps = {name: MethodOptions(mapping=mapping, gamma=gamma) for name, (mapping, gamma) in MAPS.items()}
    below, count, sizes = 0, 0, []
    while count < config.trees:
        tree = random_tree(rng)
        if len(tree.classes) < 3:
            continue
        count += 1
        sizes.append(len(tree.classes))
        distances = {"depth": tree.distances("depth"), "height": tree.distances("height"), "path": path_lengths(tree)}
        for kind, matrix in distances.items():
            for name, options in maps.items():
                try:
                    found = wanted_cosines(options, matrix)
                    below += bool(np.linalg.eigvalsh(found)[0] < -1e-8)
                except ValueError:
                    failures[kind][name] += 1
    columns = ["map of u = d / d_max", *(f"no frame, {kind}" for kind in failures)]
    rows = [[name, *(f"{failures[kind][name] / count:.2%}" for kind in failures)] for name in MAPS]
    title = f"{count} random trees of {min(sizes)} to {max(sizes)} classes; below -1e-8 at the closed form's s: {below}"
    harness.show_table(title, columns, rows)
    write_atomically(directory / "summary.md", f"{title}\n\n{harness.markdown_table(columns, rows)}")
    return {"trees": count, "failures": failures, "negative": below}


def variants(config: Config) -> dict[str, haframe.Config]:
    """Return the runs that a question compares."""
    base = dataclasses.replace(
        haframe.PRESETS["default"],
        datasets=(config.dataset,),
        trees=(config.tree,),
        methods=("haframe",),
        seeds=config.seeds,
        data_dir=config.data_dir,
        epochs=config.epochs or haframe.PRESETS["default"].epochs,
        rates=(1.6, 3.2),  # what cross-entropy and HAFrame choose on these data from more
    )
    changes: dict[str, dict[str, Any]] = {}
    if config.question in ("grid", "maps"):
        base = dataclasses.replace(base, rates=(), learning_rate=3.2)
    if config.question == "grid":
        changes = {f"gamma {g:g}, alpha {a:g}": {"gamma": g, "alpha": a} for g in GAMMAS for a in ALPHAS}
    elif config.question == "maps":
        sharper = {f"exp(-{gamma:g} u)": ("exponential", gamma) for gamma in (1.0, 5.0, 10.0)}
        changes = {name: {"mapping": mapping, "gamma": gamma} for name, (mapping, gamma) in (MAPS | sharper).items()}
    elif config.question == "epochs":
        both: dict[str, Any] = {"methods": ("ce", "haframe")}
        changes = {f"{epochs} epochs": both | {"epochs": epochs} for epochs in (5, 10, 20, 40)}
    else:
        both = {"methods": ("ce", "haframe")}
        changes = {neck: both | {"neck": neck} for neck in ("none", "norm", "type1", "type2", "transformation")}
    return {name: dataclasses.replace(base, **change) for name, change in changes.items()}


def _trained(config: Config, directory: Path) -> dict[str, Any]:
    rows, found = [], {}
    for name, variant in variants(config).items():
        below = directory / re.sub(r"[^\w.]+", "-", name).strip("-")
        (part,) = harness.subrun(haframe.run, variant, below)["tasks"].values()
        found[name] = part["methods"]
        for method, values in part["methods"].items():
            cells = [harness.mean_and_sd(values[metric], digits) for metric, _, digits in METRICS]
            rows.append([f"{name}, {haframe.TITLES[method]}", *cells])
    columns = ["", *(title for _, title, _ in METRICS)]
    title = f"{config.dataset}, tree {config.tree}: {config.seeds} seeds, mean ± standard deviation"
    harness.show_table(title, columns, rows)
    text = f"{title}\n\n{harness.markdown_table(columns, rows)}"
    if config.question == "grid":
        means = {
            label: np.array(
                [[np.mean(found[f"gamma {g:g}, alpha {a:g}"]["haframe"][metric]) for a in ALPHAS] for g in GAMMAS]
            )
            for metric, label, _ in METRICS
        }
        haframe_plots.heat_maps(directory / "grid.png", means, GAMMAS, ALPHAS, ("gamma", "alpha"))
        text += "\n![means over gamma and alpha](grid.png)\n"
    write_atomically(directory / "summary.md", text)
    return found


if __name__ == "__main__":
    harness.main(run, PRESETS)
