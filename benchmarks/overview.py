"""What benchmarks/README.md says at a glance: ratios to physical limits and peers, and cost against K and d.

Every function takes the documents of results and finds its numbers there. What a document does not hold has no line.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.missed import Document
from benchmarks.scaling import BOTH, KEY_SIZE, PRODUCT


class Line(NamedTuple):
    """A ratio: beside what, of what, the number, and how it was measured."""

    beside: str
    what: str
    ratio: str
    how: str


RATIO_COLUMNS = ("beside", "what", "ratio", "how it is measured", "module, machine, date")


# --- Ratios. ---


def ratios(documents: Sequence[Document], machine: Callable[[Document], str]) -> list[list[str]]:
    """Return the cells of all ratios that the documents hold: physical limits, then training steps, then peers."""
    found = []
    for name, lines in LINES:
        for document in documents:
            if document["benchmark"] != name:
                continue
            where = f"[`{name}`](results/README.md#{anchor(document, machine)}), {machine(document)}, "
            for line in lines(document):
                found.append([*line, where + document["environment"]["time"][:10]])
    return found


def anchor(document: Document, machine: Callable[[Document], str]) -> str:
    """Return the anchor that GitHub gives the heading of a document's table."""
    heading = f"{document['benchmark']} on {machine(document)}".lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def spread(values: Mapping[str, float], unit: str = "x") -> str:
    """Return the least and the largest of some numbers with the cases at which they were obtained."""
    if len(values) == 1:
        ((case, value),) = values.items()
        return f"{harness.number(value)} {unit} at {case}"
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    return f"{harness.number(values[least])} {unit} at {least} to {harness.number(values[most])} {unit} at {most}"


def obtained(document: Document, statement: str) -> dict[str, float]:
    """Return the numbers of all claims of this statement by their case."""
    return {claim["case"]: claim["obtained"] for claim in document["claims"] if claim["statement"] == statement}


def of_scaling(document: Document) -> Iterator[Line]:
    """Yield what solve and gradient cost, in products and in moves of their inputs and results."""
    rows = [row for row in document["rows"] if row.get("program") == f"polar: {BOTH}"]
    how = (
        ("products", "one matrix product", f"time of solve and gradient over that of one {PRODUCT}, in turns"),
        ("moves", "bytes over bandwidth", "the same over the time to read and write as many bytes, in turns"),
    )
    for key, limit, text in how:
        values = {f"(d, K) = ({row['d']}, {row['K']})": row[key] for row in rows if key in row}
        keyed = {case: value for case, value in values.items() if case.endswith(f"({KEY_SIZE[0]}, {KEY_SIZE[1]})")}
        for chosen, what in ((keyed, "solve and gradient"), (values, "the same, all sizes")):
            if chosen:
                yield Line(limit, what, spread(chosen), text)


def of_statistics(document: Document) -> Iterator[Line]:
    """Yield what class statistics cost, in products."""
    values = {f"batch {row['batch']}": row["products"] for row in document["rows"] if row.get("products")}
    if values:
        how = "time of an update over that of one product features^T features, in turns"
        yield Line("one matrix product", "class statistics of a batch", spread(values), how)


def of_steps(document: Document) -> Iterator[Line]:
    """Yield the nearest head's share of training steps."""
    for row in document["rows"]:
        if row["devices"] > 1 or "share_lower" not in row:
            continue
        ends = [harness.number(100 * row[f"share_{end}"]) for end in ("lower", "upper")]
        share = f"{harness.number(100 * row['share'])} % ({ends[0]} to {ends[1]} %)"
        what = f"share of the nearest head, {row['solver'].replace('_', ' ')}: {row['case']}, batch {row['batch']}"
        how = f"difference of two compiled steps, median and interval of {row['share_rounds']} alternating rounds"
        yield Line("a step with a learned head", what, share, how)
        if "small_batch" in row:
            names = ("small_batch_share", "small_batch_share_lower", "small_batch_share_upper")
            share, *ends = (harness.number(100 * row[name]) for name in names)
            how = f"difference in seconds at batch {row['small_batch']}, over the step at batch {row['batch']}"
            yield Line("a step with a learned head", what, f"{share} % ({ends[0]} to {ends[1]} %)", how)


def of_many_classes(document: Document) -> Iterator[Line]:
    """Yield what a step with very many classes costs beside a learned head."""
    for what in ("time", "planned memory"):
        values = obtained(document, f"{what}: nearest, of learned")
        if values:
            how = "step with a sampled softmax over that of a learned head with the same sample, in turns"
            yield Line("a step with a learned head", f"{what} of a step, many classes", spread(values), how)


def of_solvers(document: Document) -> Iterator[Line]:
    """Yield how many times as fast as other solvers ours are, from a warm start; of a peer's variants, the fastest."""
    seconds: dict[str, dict[str, float]] = {}
    for row in document["rows"]:
        if row["start"] == "warm" and "seconds" in row:
            taken = seconds.setdefault(row["solver"].partition(" (")[0], {})
            case = f"({row['d']}, {row['K']})"
            taken[case] = min(row["seconds"], taken.get(case, row["seconds"]))
    for peer in ("pymanopt", "geojax"):
        for ours, name in (("polar", "closed form"), ("trust region", "trust region")):
            mine, theirs = seconds.get(ours, {}), seconds.get(peer, {})
            values = {case: theirs[case] / mine[case] for case in theirs if case in mine}
            if values:
                how = "its trust region, by its fastest backend, over our solver; same start and end, in turns"
                yield Line(peer, f"solve by {name}: times as fast", spread(values), how)


def of_gradient(document: Document) -> Iterator[Line]:
    """Yield how many times as fast as the dense formula our gradient is."""
    values = obtained(document, "polar: backward, times faster than the dense formula")
    if values:
        how = "time of the declarative-node formula with dense blocks, in PyTorch, over that of our gradient"
        yield Line("PyTorch", "gradient of the solve: times as fast", spread(values), how)


def of_throughput(document: Document) -> Iterator[Line]:
    """Yield how many times as fast as PyTorch a training step is."""
    for peer in ("PyTorch eager", "PyTorch compiled"):
        values = obtained(document, f"times as fast as {peer}")
        if values:
            how = "time of its step of ResNet-18 over that of ours, same parameters and batch, in turns"
            yield Line(peer, "training step: times as fast", spread(values), how)


def of_figures(document: Document) -> Iterator[Line]:
    """Yield time and memory of a report of neural collapse beside a package's."""
    pattern = re.compile(r"(time|memory): ours, of (.*)")
    for what, peer in dict.fromkeys(
        found.groups() for claim in document["claims"] if (found := pattern.fullmatch(claim["statement"]))
    ):
        values = obtained(document, f"{what}: ours, of {peer}")
        how = "a whole report on the same features, in turns"
        if what == "time":
            values = {case: 1 / value for case, value in values.items()}
            yield Line(peer, "report of ten figures: times as fast", spread(values), how)
        else:
            how = "peak memory of a report over that of its report, each in a fresh process"
            yield Line(peer, "report of ten figures: memory, of its", spread(values), how)


def of_rounds(document: Document) -> Iterator[Line]:
    """Yield how many times as fast as Flower's engine our rounds are."""
    values = obtained(document, "rounds, times faster than in Flower's engine")
    if values:
        how = "time of a round in its simulation engine over that of ours, each in a process of its own"
        yield Line("Flower", "federated round: times as fast", spread(values), how)


def of_gpu(document: Document) -> Iterator[Line]:
    """Yield everything with a name that only a GPU shows."""
    for claim in document["claims"]:
        ratio = f"{harness.number(claim['obtained'])} {claim['unit']} at {claim['case']}"
        yield Line("on a GPU", claim["statement"], ratio, "see the module")


LINES: tuple[tuple[str, Callable[[Document], Iterator[Line]]], ...] = (
    ("scaling", of_scaling),
    ("collapse_metrics", of_statistics),
    ("train_step", of_steps),
    ("many_classes", of_many_classes),
    ("nearest_frame", of_solvers),
    ("implicit_gradient", of_gradient),
    ("throughput", of_throughput),
    ("peer_metrics", of_figures),
    ("federated", of_rounds),
    ("gpu", of_gpu),
)


# --- Cost against K and d. ---


SHOWN = {PRODUCT: "one product", f"polar: {BOTH}": "closed form", f"trust region: {BOTH}": "trust region"}


def draw_scaling(document: Document, path: Path) -> None:
    """Draw time against K and against d in one plot, with the fitted slopes in the legend."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    config = document["config"]
    sweeps = (("K", "d", config["dim"], "-", "o", 1), ("d", "K", config["num_classes"], "--", "s", 0))
    for colour, (program, title) in enumerate(SHOWN.items()):
        for key, fixed, value, style, marker, place in sweeps:
            points = sorted(
                (row[key], row["seconds"])
                for row in document["rows"]
                if row.get("program") == program and "seconds" in row and row[fixed] == value
            )
            if not points:
                continue
            sizes, seconds = np.array(points).T
            label = f"{title} against {key} ({fixed} = {value})"
            look = {"marker": marker, "color": f"C{colour}", "markerfacecolor": "white" if marker == "s" else None}
            axes.plot(sizes, seconds, linestyle="", **look)
            for row in document["rows"]:
                if row.get("program") == program and str(row.get("fit", "")).startswith(f"time against {key} "):
                    used = sizes >= config["fit_from"][place]
                    middle = [np.exp(np.mean(np.log(numbers[used]))) for numbers in (sizes, seconds)]
                    fitted = middle[1] * (sizes[used] / middle[0]) ** row["exponent"]
                    label += f": slope {row['exponent']:.2f} ± {row['half_width']:.2f}"
                    axes.plot(sizes[used], fitted, style, color=f"C{colour}")
            axes.plot([], [], linestyle=style, **look, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("K or d")
    axes.set_ylabel("seconds for solve and gradient, median")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)
