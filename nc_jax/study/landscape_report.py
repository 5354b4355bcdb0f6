"""Verdicts and tables of the landscape of unconstrained features."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from nc_jax.study.report import Report
from nc_jax.study.tables import Table, fitted


def report(config: Any, summary: dict[str, Any], pictures: list[Path]) -> None:
    """Write summary.json and summary.md and show verdicts and tables.

    Args:
        config: settings of the experiment.
        summary: what the experiment found.
        pictures: paths of the pictures.
    """
    report = Report(Path(summary["directory"]), f"landscape, preset {config.preset}")
    report.say(_verdict(config, summary))
    for table in (_descents(config, summary), _saddles(config, summary), _minority(config, summary)):
        report.tables(fitted(table))
    gap = max(summary["minority"]["duality_gaps"].values())
    report.say([f"Minority classes: no value lies more than {gap:.1e} above the least one (largest duality gap)."])
    for picture in pictures:
        report.picture(picture)
    report.write(summary)


def _verdict(config: Any, summary: dict[str, Any]) -> list[str]:
    ends = [found[optimizer] for found in summary["descents"].values() for optimizer in config.optimizers]
    starts, reached = config.starts * len(ends), sum(end["reached"] for end in ends)
    saddles = [saddle for ranks in summary["saddles"].values() for saddle in ranks.values()]
    points, called = (sum(saddle[name] for saddle in saddles) for name in ("points", "called_global"))
    strict, left = (sum(saddle[name] for saddle in saddles) for name in ("strict", "fallen"))
    return [
        f"{reached} of {starts} random starts reached the global minimum of the closed form, to a relative "
        f"{max(end['worst'] for end in ends):.1e} of its value at worst.",
        f"Of {points} critical points found in too few dimensions, the certificate called {called} a global minimum; "
        f"{strict} have a direction of negative curvature, and {left} were left by a step along it.",
    ]


def _descents(config: Any, summary: dict[str, Any]) -> Table:
    decays = f"decays {config.weight_decay:g}, {config.feature_decay:g}, bias {config.bias_decay:g}"
    title = (
        f"Descents from {config.starts} random starts each ({decays}); reached: within a relative {config.target:g} of "
        "the closed form; certified: recognised as global minima; distance: the worst relative one to the closed form; "
        "duality gap: the largest; steps: the median"
    )
    columns = ["loss:K:n:d, optimiser", "least value", "reached", "certified", "distance", "duality gap", "steps"]
    rows = [
        [
            f"{case}, {optimizer}",
            f"{found['value']:.9f}",
            f"{found[optimizer]['reached']} of {config.starts}",
            str(found[optimizer]["certified"]),
            f"{found[optimizer]['worst']:.1e}",
            f"{found[optimizer]['duality_gap']:.1e}",
            str(found[optimizer]["median_steps"]),
        ]
        for case, found in summary["descents"].items()
        for optimizer in config.optimizers
    ]
    return Table(title, columns, rows)


def _saddles(config: Any, summary: dict[str, Any]) -> Table:
    title = (
        f"Critical points found in fewer dimensions (rank), {config.saddle_starts} starts each: curvature along the "
        "predicted direction; left: lower after a step along it; kicked: perturbed descent reaches the minimum"
    )
    columns = ["loss:K:n:d, rank", "critical", "called global", "strict", "values", "curvature", "predicted within"]
    columns += ["least eigenvalue", "left", "kicked"]
    rows = [
        [
            f"{case}, {rank}",
            f"{saddle['critical']} of {saddle['points']}",
            str(saddle["called_global"]),
            str(saddle["strict"]),
            _range(saddle["values"]),
            f"{saddle['curvature']:.3g}",
            f"{saddle['prediction_error']:.1e}",
            f"{saddle['least_eigenvalue']:.3g}",
            str(saddle["fallen"]),
            str(saddle["reached"]),
        ]
        for case, ranks in summary["saddles"].items()
        for rank, saddle in ranks.items()
    ]
    return Table(title, columns, rows)


def _minority(config: Any, summary: dict[str, Any]) -> Table:
    minority, majority = summary["minority"], config.minority.majority
    title = (
        f"Angle in degrees between the class vectors of two minority classes of n examples, beside two classes of "
        f"{majority} (simplex ETF: 109.5); zero from: the decay from which they vanish"
    )
    chosen = np.unique(np.linspace(0, len(minority["decays"]) - 1, 7).round().astype(int))
    rows = [
        [f"{minority['decays'][place]:.3g}", *(_known(angles[place], ".1f") for angles in minority["angles"].values())]
        for place in chosen
    ]
    rows.append(["zero from", *(_known(value, ".3g") for value in minority["vanishes"].values())])
    return Table(title, ["decay", *(f"n = {count}" for count in minority["angles"])], rows)


def _range(values: list[float]) -> str:
    return f"{values[0]:.4f}" if len(values) == 1 else f"{values[0]:.4f} to {values[-1]:.4f} ({len(values)})"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)
