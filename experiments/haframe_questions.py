"""Which map, gamma, alpha, layer and how many epochs? The open questions of Liang and Davis (2023).

Claim     None. Each question is answered by a table (docs/findings/hierarchy.md).
Command   python -m experiments.haframe_questions [grid | maps | epochs | transformation]    (an hour for all of them)
          python -m experiments.haframe_trees                                              (does a frame always exist?)
Expected  docs/findings/hierarchy.md
Writes    runs/haframe_questions/<time>-<question>/: config.json, results.jsonl, metrics.jsonl, checkpoints/,
          summary.md, summary.json, summary.png, severity.png, cosines.png, confusion.png, and of the grid grid.png
Data      100 rendered characters (glyphs) with 20 training images each and the tree of their shapes.

Every question trains variants of HAFrame; some train cross-entropy beside it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import haframe
from nc_jax.methods.hierarchy import MAPS
from nc_jax.study import (
    About,
    Comparison,
    Experiment,
    Scene,
    confusions,
    heat_maps,
    main,
    plan,
    refuse_overridden,
    run,
    summary_picture,
)

GAMMAS, ALPHAS = (1.0, 3.0, 5.0), (0.1, 0.5, 0.9)
# Three seeds are enough for a t test and not for the signed-rank test.
COLUMNS = tuple(dataclasses.replace(column, test="t", words=None) for column in haframe.COLUMNS[:4])
# What cross-entropy and HAFrame choose on these data from more.
BASE = dataclasses.replace(haframe.DEFAULT, methods=("haframe",), seeds=3, rates=(1.6, 3.2))
AT_ONE_RATE: dict[str, Any] = {"rates": (), "optimizer.learning_rate": 3.2}
BOTH: dict[str, Any] = {"methods": ("ce", "haframe")}


def _grid() -> dict[str, dict[str, Any]]:
    return {
        f"gamma {gamma:g}, alpha {alpha:g}": AT_ONE_RATE | {"hierarchy.gamma": gamma, "hierarchy.alpha": alpha}
        for gamma in GAMMAS
        for alpha in ALPHAS
    }


def _maps() -> dict[str, dict[str, Any]]:
    sharper = {f"exp(-{gamma:g} u)": ("exponential", gamma) for gamma in (1.0, 5.0, 10.0)}
    return {
        name: AT_ONE_RATE | {"hierarchy.mapping": mapping, "hierarchy.gamma": gamma}
        for name, (mapping, gamma) in (MAPS | sharper).items()
    }


def _epochs() -> dict[str, dict[str, Any]]:
    return {
        f"{epochs} epochs": BOTH
        | {"loop.epochs": epochs, "loop.evaluate_every": epochs, "loop.checkpoint_every": max(epochs // 2, 1)}
        for epochs in (5, 10, 20, 40)
    }


def _transformation() -> dict[str, dict[str, Any]]:
    return {neck: BOTH | {"backbone.neck": neck} for neck in ("none", "norm", "type1", "type2", "transformation")}


QUESTIONS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "grid": _grid(),
    "maps": _maps(),
    "epochs": _epochs(),
    "transformation": _transformation(),
}
PRESETS = {
    "default": dataclasses.replace(BASE, grid={"": QUESTIONS["grid"]}),
    **{question: dataclasses.replace(BASE, grid={"": variants}) for question, variants in QUESTIONS.items()},
    # For the tests, in seconds.
    "smoke": dataclasses.replace(
        haframe.PRESETS["smoke"],
        methods=("haframe",),
        seeds=1,
        grid={"": {name: {"hierarchy.alpha": float(name.split()[-1])} for name in ("alpha 0.1", "alpha 0.9")}},
    ),
}


GRID = "severity from 1.70 (gamma 1, alpha 0.9) to 1.88; top-1 from 0.81 to 0.86"
ABOUT = {
    "default": About("the same as grid", 4, GRID),
    "grid": About("gamma in 1, 3, 5 and alpha in 0.1, 0.5, 0.9", 4, GRID),
    "maps": About(
        "nine maps of distances in the tree to cosines",
        4,
        "top-1 from 0.83 (cosine) to 0.86; severity from 1.80 to 1.88",
    ),
    "epochs": About("5, 10, 20 and 40 epochs, cross-entropy beside HAFrame", 7),
    "transformation": About("five layers between network and frame, cross-entropy beside HAFrame", 9),
    "smoke": About("two values of alpha on digits in two epochs, for the tests", 0.5),
}


def grid_picture(scene: Scene) -> Path | None:
    """Draw what gamma and alpha give as heat maps, if both were varied."""
    rows = scene.results.values(scene.case)
    cells = {(gamma, alpha): f"gamma {gamma:g}, alpha {alpha:g}" for gamma in GAMMAS for alpha in ALPHAS}
    if not all(name in rows for name in cells.values()):
        return None
    tables = {
        column.title: np.array([[np.mean(rows[cells[g, a]][column.key]) for a in ALPHAS] for g in GAMMAS])
        for column in COLUMNS
    }
    path = scene.path("grid")
    heat_maps.heat_maps(path, tables, GAMMAS, ALPHAS, ("gamma", "alpha"))
    return path


EXPERIMENT = Experiment(
    "haframe_questions",
    COLUMNS,
    measure=haframe.measure_alone,
    score="ahd@1",
    pictures=(grid_picture, summary_picture, haframe.severity, haframe.cosines, confusions),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train the variants of a question; write and show a table."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=refuse_overridden)
