"""The pictures of `nc-jax measure`."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

import io
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from nc_jax.commands.measure_page import LAST
from nc_jax.frames.properties import cosines
from nc_jax.metrics import Report
from nc_jax.study.plots import grid, legend_below, plain_ticks

MOST_CLASSES = 4096  # whose cosines, a K x K matrix, are drawn: 64 MiB
BLUE, ORANGE, GREY = "#1f77b4", "#d95f02", "0.5"
SIZE = (6.0, 3.2)
ROUNDING = 1e-10  # squared singular values below this share of the largest are rounding, in float32


def draw(report: Report, layers: Mapping[str, Report]) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Yield the name of each picture with its content, an SVG file, and its caption."""
    yield "spectra", _spectra(report)
    if len(report.classes.count) <= MOST_CLASSES:
        yield "cosines", _cosines(report)
    if report.margins.any():
        yield "margins", _margins(report)
    yield "classes", _classes(report)
    if layers:
        yield "layers", _layers(report, layers)


def _spectra(report: Report) -> tuple[bytes, str]:
    stats = report.statistics.at_unit_scale()
    present = int(np.sum(report.classes.count > 0))
    means = np.linalg.svd(np.asarray(stats.centred_means(), np.float64), compute_uv=False)[: present - 1] ** 2 / present
    total = means.sum()
    figure, axis = _labelled("direction", "variance")
    spectra = {"class means": (means, BLUE)}
    if stats.scaled_scatter is not None:
        within = np.linalg.eigvalsh(np.asarray(stats.scatter, np.float64))[::-1] / int(report.classes.count.sum())
        spectra["within classes"] = (within, ORANGE)
    for name, (variances, colour) in spectra.items():
        shares = variances[variances > ROUNDING * variances[0]] / (total or 1)
        axis.plot(np.arange(1, len(shares) + 1), shares, ".-", color=colour, label=name, markersize=4)
    _logarithmic(axis, "y")
    _logarithmic(axis, "x")
    legend_below(figure, axis)
    return _svg(figure), (
        "Variance of the class means and within classes by direction, largest first, relative to the total variance of "
        "the class means. At collapse, K - 1 directions of the means have equal variance, and classes have none."
    )


def _cosines(report: Report) -> tuple[bytes, str]:
    stats = report.statistics
    there = np.flatnonzero(report.classes.count)
    matrix = np.asarray(cosines(jnp.asarray(stats.centred_means())[:, there]))
    pairs = matrix[np.triu_indices(len(there), 1)]
    pairs = pairs[np.isfinite(pairs)]  # a class whose mean is the mean of all has no cosines
    # Equal cosines, as at collapse, would leave bins without a width.
    low, high = (pairs.min(), pairs.max()) if len(pairs) else (-1.0, 1.0)
    wider = max(0.05 - (high - low), 0) / 2
    figure, axis = _labelled("cosine of two centred class means", "pairs")
    axis.hist(pairs, bins=60 if len(pairs) > 100 else 20, range=(low - wider, high + wider), color=BLUE)
    axis.axvline(-1 / (len(there) - 1), color=ORANGE, linestyle="--", label=f"simplex: {-1 / (len(there) - 1):.3g}")
    legend_below(figure, axis)
    return _svg(figure), f"Cosines between centred class means, {len(pairs)} pairs. In a simplex all are equal."


def _margins(report: Report) -> tuple[bytes, str]:
    counts = report.margins
    edges = np.linspace(-2, 2, len(counts) + 1)
    used = np.flatnonzero(counts)
    figure, axis = _labelled("cosine margin", "examples")
    axis.stairs(counts, edges, fill=True, color=BLUE)
    axis.axvline(0, color=GREY, label="decision")
    wanted = report["margin_cosine_mean"].at_collapse
    if wanted is not None:
        axis.axvline(wanted, color=ORANGE, linestyle="--", label=f"at collapse: {wanted:.3g}")
    right = max(edges[used[-1] + 1], wanted or 0) + 0.05
    axis.set_xlim(min(edges[used[0]], 0) - 0.05, right)
    legend_below(figure, axis)
    return _svg(figure), (
        "Cosine margins of the examples: cosine of a centred feature with its own class less the largest one with "
        "another class. Left of 0, another class is nearer in angle."
    )


def _classes(report: Report) -> tuple[bytes, str]:
    classes = report.classes
    figure, axis = _labelled("distance to the nearest other class mean", "root of the variance")
    deviations = np.sqrt(classes.variance)
    axis.plot(classes.distance, deviations, ".", color=BLUE)
    for limit, values in ((axis.set_xlim, classes.distance), (axis.set_ylim, deviations)):
        finite = values[np.isfinite(values)]
        limit(0, 1.1 * finite.max() if finite.any() else 1)
    if len(classes.count) <= 30:  # more numbers would cover each other
        for k in np.flatnonzero(classes.count):
            axis.annotate(str(k), (classes.distance[k], deviations[k]), fontsize=8)
    return _svg(figure), (
        "How far the examples of each class are from their mean, and how far that is from the nearest other one. At "
        "collapse, all classes lie at one point of the horizontal axis."
    )


def _layers(report: Report, layers: Mapping[str, Report]) -> tuple[bytes, str]:
    every = {**layers, LAST: report}
    places = np.arange(len(every))
    figure, axes = grid(2, 2, (4.2, 3.4))
    variants = {"nc1_cdnv": BLUE, "nc1_quotient": ORANGE, "nc1_pinv": "#1b9e77"}
    for key, colour in variants.items():
        values = [one[key].value if key in one else np.nan for one in every.values()]
        if np.isfinite(values).any():
            axes[0, 0].plot(places, values, ".-", color=colour, label=key)
    _logarithmic(axes[0, 0], "y")
    axes[0, 0].set_title("NC1", fontsize=10)
    errors = [1 - one["nearest_centre_accuracy"].value for one in every.values()]
    axes[0, 1].plot(places, errors, ".-", color=BLUE)
    axes[0, 1].set_ylim(bottom=0)
    axes[0, 1].set_title("error of the nearest class mean", fontsize=10)
    for axis in axes.flat:
        axis.set_xticks(places, list(every), rotation=45, ha="right", fontsize=8)
        axis.grid(alpha=0.3)
    legend_below(figure, axes[0, 0])
    return _svg(figure), "Collapse by depth: variability within classes, and how often another class mean is nearer."


def _logarithmic(axis: Any, which: str) -> None:
    """Make an axis logarithmic, unless there is nothing above zero on it: at collapse, variances are zero."""
    lines = [np.asarray(line.get_ydata() if which == "y" else line.get_xdata(), float) for line in axis.get_lines()]
    if any(np.any(values[np.isfinite(values)] > 0) for values in lines):
        (axis.set_yscale if which == "y" else axis.set_xscale)("log")
        plain_ticks(axis, which)


def _labelled(across: str, upwards: str) -> tuple[Figure, Any]:
    """Return a figure with one empty panel."""
    figure, axes = grid(1, 1, SIZE)
    axis = axes[0, 0]
    axis.set_xlabel(across)
    axis.set_ylabel(upwards)
    axis.grid(alpha=0.3)
    return figure, axis


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})  # without the time, equal pictures are equal files
    return content.getvalue()
