"""What `nc-jax measure` says: the most important numbers first, on the terminal and on one page of HTML."""

import textwrap
from collections.abc import Iterable, Mapping

import numpy as np

from nc_jax.extras import MissingExtraError, require
from nc_jax.metrics import Entry, Report, effective_depth
from nc_jax.metrics.report import shown, shown_at_collapse
from nc_jax.study.page import Page
from nc_jax.study.planning import WIDTH
from nc_jax.study.tables import Table, fitted, show_table

# What papers report first. Entries that a report lacks are left out, and of NC2 those that fit the number of classes.
FIRST = ("nc1_pinv", "nc1_cdnv", "nearest_centre_accuracy")
SIMPLEX = ("nc2_equinorm_means", "nc2_equiangle_means", "nc2_maximal_angle_means", "nc2_etf_means")
MANY_CLASSES = ("nc2_equinorm_means", "energy_gap_means", "separation_means", "nc2_etf_means")
CLASSIFIER = ("nc3_difference", "nc3_angle", "nc4", "accuracy", "margin_cosine_mean", "margin_cosine_min")
OF_LAYERS = ("nc1_pinv", "nc1_quotient", "nc1_cdnv", "nearest_centre_accuracy")
GROUPS = {
    "NC1": "NC1: variability within classes",
    "NC2": "NC2: class means and class vectors beside a simplex",
    "NC3": "NC3: class vectors beside class means",
    "NC4": "NC4: decisions",
    "margins": "Margins",
    "generalized": "Generalized collapse: even spread, for any number of classes",
    "geometry": "Geometry: dimensions in use",
    "zero mean": "Zero-mean collapse: about the origin, for orthogonal class vectors",
}
SYMBOLS = (
    "Σ_W: covariance within classes. Σ_B: covariance of the class means. μ_k, m_k: mean of class k, and less the "
    "centre. W, w_k: class vectors. A hat: scaled to length 1. The page “Measuring any model” of the documentation "
    "lists the papers, with what differs between them."
)
LAST = "features"  # name of the last layer among the others
MOST_CLASSES = 20  # classes up to which the terminal shows each
WORST = 10  # of more classes, it shows those with the largest variance relative to the nearest other class


def show(report: Report, layers: Mapping[str, Report]) -> None:
    """Print what is most important: the sizes, the first numbers, layers, and classes that stand out."""
    print(textwrap.fill(_sizes(report), WIDTH))
    for note in report.notes:
        print(textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  "))
    show_table(at_a_glance(report), text_columns=[3])
    for table in ([layer_table(report, layers)] if layers else []) + [class_table(report, worst_classes(report))]:
        for part in fitted(table):
            show_table(part)


def page_of(name: str, report: Report, layers: Mapping[str, Report]) -> str:
    """Return the page.

    Args:
        name: what was measured.
        report: what was found.
        layers: what was found of earlier layers, first to last.
    """
    page = Page(f"Neural collapse of {name}")
    page.say([_sizes(report), *report.notes])
    page.heading("At a glance")
    page.tables([at_a_glance(report)], text_columns=[3])
    pictures = _pictures(report, layers)
    if isinstance(pictures, str):
        page.say([pictures])
        pictures = {}
    if layers:
        page.heading("By layer")
        page.tables([layer_table(report, layers)])
        _draw(page, pictures, "layers")
    page.heading("Pictures")
    for which in ("spectra", "cosines", "margins", "classes"):
        _draw(page, pictures, which)
    page.heading("All numbers")
    page.say([SYMBOLS])
    for group, title in GROUPS.items():
        entries = {key: entry for key, entry in report.items() if entry.group == group}
        if entries:
            page.tables([_all_numbers(title, entries)], text_columns=[3, 4, 5])
    page.heading("Classes")
    page.tables([class_table(report, range(len(report.classes.count)))])
    return page.text()


def at_a_glance(report: Report) -> Table:
    """Return the table of the numbers that papers report first."""
    dim, present = report.statistics.shifts.shape[0], int(np.sum(report.classes.count > 0))
    first = report.get("nc1_pinv", report["nc1_quotient"])
    names = [*FIRST, *(SIMPLEX if present <= dim + 1 else MANY_CLASSES), *CLASSIFIER]
    if first is report["nc1_quotient"]:
        names.insert(0, "nc1_quotient")
    rows = [
        [key, shown(report[key].value), shown_at_collapse(report[key]), report[key].sentence]
        for key in names
        if key in report
    ]
    return Table("What papers report first", ["metric", "value", "at collapse", "what it says"], rows)


def layer_table(report: Report, layers: Mapping[str, Report]) -> Table:
    """Return the table of NC1 by layer, the measured features last."""
    every = {**layers, LAST: report}
    names = [key for key in OF_LAYERS if any(key in one for one in every.values())]
    rows = [
        [layer, str(one.statistics.shifts.shape[0]), *(shown(one[key].value) if key in one else "" for key in names)]
        for layer, one in every.items()
    ]
    depth = effective_depth([1 - one["nearest_centre_accuracy"].value for one in every.values()])
    reached = f"{depth:.0f} of {len(every)}" if np.isfinite(depth) else "none"
    return Table(
        "NC1 of earlier layers with the same labels, first to last, and of the features; effective depth (the first "
        f"layer in which the nearest class mean is right for every example): {reached}",
        ["layer", "dimensions", *names],
        rows,
    )


def class_table(report: Report, which: Iterable[int]) -> Table:
    """Return the table of some classes."""
    classes, some = report.classes, list(which)
    columns = ["class", "examples", "mean length", "variance", "nearest", "distance", "by mean"]
    numbers = [classes.mean_length, classes.variance, classes.nearest, classes.distance]
    numbers.append(classes.nearest_centre_accuracy)
    title = "Classes" if len(some) == len(classes.count) else f"The {len(some)} classes with the most variance"
    title += (
        ": examples, length of the centred class mean, variance, nearest other class, distance of its mean, share of "
    )
    title += "the examples that the nearest class mean gets right"
    if classes.accuracy is not None:
        columns, numbers = [*columns, "by classifier"], [*numbers, classes.accuracy]
        title += ", and the classifier"
    empty = ["-"] * len(numbers)
    rows = [
        [str(k), str(n := classes.count[k]), *([shown(float(column[k])) for column in numbers] if n else empty)]
        for k in some
    ]
    return Table(title, columns, rows)


def worst_classes(report: Report) -> list[int]:
    """Return all classes if they are few, else those with the most variance for the distance to the nearest one."""
    classes = report.classes
    if len(classes.count) <= MOST_CLASSES:
        return list(range(len(classes.count)))
    noise = np.nan_to_num(classes.variance / classes.distance**2, nan=-1.0, posinf=np.inf)
    return np.argsort(-noise, kind="stable")[:WORST].tolist()


def _sizes(report: Report) -> str:
    dim, num_classes = report.statistics.shifts.shape
    counts = report.classes.count
    fewest, most = int(counts[counts > 0].min()), int(counts.max())
    each = f"{most} of each" if fewest == most else f"{fewest} to {most} of each that is there"
    return f"{int(counts.sum())} examples of {num_classes} classes, {each}, in {dim} dimensions."


def _all_numbers(title: str, entries: Mapping[str, Entry]) -> Table:
    rows = [
        [key, shown(entry.value), shown_at_collapse(entry), entry.sentence, entry.variant, entry.source]
        for key, entry in entries.items()
    ]
    return Table(title, ["metric", "value", "at collapse", "what it says", "variant", "source"], rows)


def _pictures(report: Report, layers: Mapping[str, Report]) -> dict[str, tuple[bytes, str]] | str:
    """Return pictures with their captions by name, or a sentence where the package that draws them is missing."""
    try:
        require("matplotlib", "plots", "a picture")
    except MissingExtraError as error:
        return f"There are no pictures: {error}."
    from nc_jax.commands.measure_plots import draw

    return dict(draw(report, layers))


def _draw(page: Page, pictures: Mapping[str, tuple[bytes, str]], name: str) -> None:
    if name in pictures:
        page.picture(*pictures[name])
