"""Pictures of generalized neural collapse: features in two and three dimensions, energies, losses around a run."""

from nc_jax.extras import require

require("matplotlib", "plots", __name__)

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from nc_jax.study import plots
from nc_jax.study.experiment import Scene
from nc_jax.study.heat_maps import MOST_NAMES

# Features (N, d), labels (N,) and class vectors as columns (d, K).
Points = tuple[np.ndarray, np.ndarray, np.ndarray]
MOST_IN_LINE = 4  # panels
LEVELS = 25


def feature_picture(scene: Scene) -> Path | None:
    """Draw the features and class vectors that runs in two or three dimensions have found, as "points"."""
    found = {label: values[-1] for label, values in scene.found("points").items()}
    panels: dict[str, Points] = {
        label: (np.asarray(one["features"]), np.asarray(one["labels"]), np.asarray(one["frame"]))
        for label, one in found.items()
    }
    if not panels:
        return None
    path, flat = scene.path("features"), all(frame.shape[0] == 2 for _, _, frame in panels.values())
    (feature_circle if flat else feature_sphere)(path, panels, scene.data.class_names)
    return path


def surface_picture(scene: Scene) -> Path | None:
    """Draw the losses around the ends of runs, their "surface"."""
    found = {label: values[-1] for label, values in scene.found("surface").items()}
    if not found:
        return None
    path = scene.path("surface")
    loss_surface(path, found)
    return path


def feature_circle(path: Path, panels: Mapping[str, Points], class_names: Sequence[str] = ()) -> None:
    """Draw features in two dimensions as points, and class vectors as rays, one panel each.

    Args:
        path: path of the picture; its suffix is the file format.
        panels: features (N, 2), labels (N,) and class vectors (2, K), by title.
        class_names: K names, for the legend.
    """
    figure, axes = plots.grid(len(panels), MOST_IN_LINE, (3.0, 3.1), (0.0, _legend_height(class_names)))
    for axis, (title, (features, labels, frame)) in zip(axes.flat, panels.items(), strict=False):
        lengths = np.linalg.norm(features, axis=1)
        radius = float(np.percentile(lengths, 99)) or 1.0  # a few long features would hide the others
        colours = _class_colours(frame.shape[1])
        for k, name in _classes(frame, class_names):
            own, ray = features[labels == k], radius * _units(frame.T)[k]
            axis.plot([0, ray[0]], [0, ray[1]], color=colours[k], linewidth=1.0, label=name)
            axis.scatter(own[:, 0], own[:, 1], s=6, color=colours[k], alpha=0.6, linewidths=0)
        axis.set(xlim=(-1.1 * radius, 1.1 * radius), ylim=(-1.1 * radius, 1.1 * radius), aspect="equal")
        axis.tick_params(labelsize=7)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.2)
    _finish(figure, path, class_names)


def feature_sphere(path: Path, panels: Mapping[str, Points], class_names: Sequence[str] = ()) -> None:
    """Draw the directions of features in three dimensions on the unit sphere, and class vectors as rays.

    What lies on the far side is paler.

    Args:
        path: path of the picture; its suffix is the file format.
        panels: features (N, 3), labels (N,) and class vectors (3, K), by title.
        class_names: K names, for the legend.
    """
    columns = min(len(panels), MOST_IN_LINE)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns, 3.1 * lines + _legend_height(class_names)), layout="constrained")
    axes: Any = figure.subplots(lines, columns, squeeze=False, subplot_kw={"projection": "3d"})
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    elevation, azimuth = 20.0, 35.0
    up, around = np.radians([elevation, azimuth])
    towards = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
    angles = np.linspace(0, 2 * np.pi, 60)
    for axis, (title, (features, labels, frame)) in zip(axes.flat, panels.items(), strict=False):
        colours = _class_colours(frame.shape[1])
        for height in np.radians([-60, -30, 0, 30, 60]):
            ring = np.cos(height)
            axis.plot(ring * np.cos(angles), ring * np.sin(angles), np.sin(height), color="0.85", linewidth=0.5)
        for turn in np.radians(range(0, 180, 30)):
            axis.plot(
                np.cos(angles) * np.cos(turn),
                np.cos(angles) * np.sin(turn),
                np.sin(angles),
                color="0.85",
                linewidth=0.5,
            )
        points = _units(features)
        for k, name in _classes(frame, class_names):
            own, ray = points[labels == k], 1.1 * _units(frame.T)[k]
            near = own @ towards >= 0
            for part, opacity in ((own[near], 0.8), (own[~near], 0.15)):
                axis.scatter(*part.T, s=6, color=colours[k], alpha=opacity, linewidths=0, depthshade=False)
            opacity = 1.0 if ray @ towards >= 0 else 0.3
            axis.plot(*zip((0, 0, 0), ray, strict=True), color=colours[k], linewidth=1.2, alpha=opacity, label=name)
        axis.view_init(elevation, azimuth)
        axis.set_box_aspect((1, 1, 1), zoom=1.25)
        axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
        axis.set_axis_off()
        axis.set_title(title, fontsize=10, y=1.03)
    _finish(figure, path, class_names)


def loss_surface(path: Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw losses on a plane through the end of a run, one panel each, on one scale of colours.

    The scale is logarithmic if all losses are positive. A value that is not finite stays white.

    Args:
        path: path of the picture; its suffix is the file format.
        panels: "alpha" (A,), "beta" (B,) and "values" (B, A), as `nc_jax.study.loss_surface` finds them, by title.
    """
    values = {title: np.ma.masked_invalid(np.asarray(panel["values"], float)) for title, panel in panels.items()}
    low = min((float(value.min()) for value in values.values() if value.count()), default=1.0)
    high = max((float(value.max()) for value in values.values() if value.count()), default=2.0)
    high = high if high > low else low + 1.0
    levels = np.geomspace(low, high, LEVELS) if low > 0 else np.linspace(low, high, LEVELS)
    norm = LogNorm(low, high) if low > 0 else Normalize(low, high)
    figure, axes = plots.grid(len(panels), MOST_IN_LINE, (3.2, 3.1), (0.7, 0.3))
    filled = None
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        where = panel["alpha"], panel["beta"], values[title]
        filled = axis.contourf(*where, levels=levels, norm=norm, cmap="viridis")
        axis.contour(*where, levels=levels, colors="white", linewidths=0.4)
        axis.plot(0, 0, "*", color="white", markersize=10, markeredgecolor="black")
        axis.set(title=title, xlabel="first direction", ylabel="second direction", aspect="equal")
        axis.title.set_fontsize(10)
    if filled is not None:
        bar = figure.colorbar(filled, ax=axes, shrink=0.8, label="training loss", format="{x:.3g}")
        bar.set_ticks(levels[:: LEVELS // 4].tolist())
    plots.save(figure, path)


def _class_colours(number: int) -> Any:
    """Return a colour for each class, the same for all pictures with as many classes."""
    if number <= 10:
        return colormaps["tab10"](range(number))
    return colormaps["gist_rainbow"](np.linspace(0, 1, number))


def _classes(frame: np.ndarray, class_names: Sequence[str]) -> list[tuple[int, str | None]]:
    """Return the numbers of the classes, with the names that the legend gives them."""
    number = frame.shape[1]
    return [(k, class_names[k] if 0 < len(class_names) <= MOST_NAMES else None) for k in range(number)]


def _legend_height(class_names: Sequence[str]) -> float:
    return 0.5 if 0 < len(class_names) <= MOST_NAMES else 0.0


def _units(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _finish(figure: Figure, path: Path, class_names: Sequence[str]) -> None:
    if _legend_height(class_names):
        plots.legend_below(figure, figure.axes[0])
        for line in figure.legends[0].get_lines():
            line.set(alpha=1.0, linewidth=2.5)  # rays on the far side are pale
    plots.save(figure, path)
