"""Pictures of heads against the ratio of class sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.study.colours import FIXED, LEARNED, NEAREST, ROTATED
from nc_jax.study.plots import Look, colour_of, grid, save

# Rows of `experiments.minority_collapse`: hues for heads, shades for weights, dashes with decay, dots if cut.
LOOKS = {
    "learned, decay": Look(LEARNED, "--"),
    "learned": Look(LEARNED),
    "fixed, decay": Look(FIXED, "--"),
    "fixed": Look(FIXED),
    "nearest, decay": Look(NEAREST, "--"),
    "nearest": Look(NEAREST),
    "nearest, cut": Look(NEAREST, ":"),
    "nearest, counts": Look("#66C2A5"),
    "nearest, rare": Look("#004D36"),
    "nearest, classes": Look(ROTATED),
    "nearest, classes, cut": Look(ROTATED, ":"),
    "nearest, classes, counts": Look("#F2CD7D"),
    "nearest, classes, rare": Look("#8A5F00"),
}

LEAST = 1e-3  # mistakes below this are drawn here: half a mistake in a seed's 500 copies
# Metric, title.
PANELS = [
    ("minority accuracy", "mistakes in the minority (share of noisy copies)"),
    ("majority accuracy", "mistakes in the majority (share of noisy copies)"),
    ("minority cosine", "cosine of minority class vectors"),
    ("minority mean cosine", "cosine of minority class means"),
]


def against_ratio(path: Path, found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> None:
    """Draw mistakes and cosines against the ratio of class sizes: the mean over seeds, bars of one standard deviation.

    Args:
        path: path of the picture; its suffix is the file format.
        found: numbers per seed, by ratio, row and metric.
    """
    figure, axes = grid(len(PANELS), 2, (5.2, 3.4), (0.0, 0.9))
    ratios = [float(ratio) for ratio in found]
    names = list(next(iter(found.values())))
    for axis, (metric, title) in zip(axes.flat, PANELS, strict=True):
        for name in names:
            look = LOOKS.get(name, Look(colour_of(name)))
            values = np.array([rows[name][metric] for rows in found.values()])
            if "accuracy" in metric:
                values = np.maximum(1 - values, LEAST)
            mean, sd = values.mean(axis=1), values.std(axis=1, ddof=min(1, values.shape[1] - 1))
            low = np.maximum(mean - sd, values.min(axis=1))  # a bar must not reach below zero on a log axis
            style: Any = {"color": look.colour, "linestyle": look.dash, "marker": ".", "linewidth": 1.2}
            axis.errorbar(ratios, mean, yerr=(mean - low, sd), label=name, elinewidth=0.7, **style)
        if "accuracy" in metric:
            axis.set_yscale("log")
            axis.set_ylim(0.9 * LEAST, 1.1)
            axis.set_yticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
        axis.set_xscale("log")
        axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axis.xaxis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("largest class over smallest class")
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    save(figure, path)
