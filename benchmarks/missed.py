"""Targets that results miss, and where the time or the memory goes.

Every reason is a sentence whose numbers are found in the result that misses the target.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.scaling import BOTH, EIGH

Document = Mapping[str, Any]
COLUMNS = ("module", "missed target", "at", "target", "obtained", "where the time or the memory goes")


def misses(documents: Sequence[Document]) -> list[list[str]]:
    """Return the cells of all claims whose target is missed, with where the time or the memory goes."""
    found = []
    for document in documents:
        for claim in claims_of(document):
            if claim.met is False:
                reasons = (
                    reason(document, claim)
                    for (name, start), reason in REASONS.items()
                    if name == document["benchmark"] and claim.statement.startswith(start)
                )
                cells = harness.claims_table([claim]).rows[0]
                found.append([document["benchmark"], *cells[:-1], next(reasons, None) or "not analysed"])
    return found


def claims_of(document: Document) -> list[harness.Claim]:
    """Return the claims of a document."""
    return [
        harness.Claim(**{key: value for key, value in claim.items() if key != "met"}) for claim in document["claims"]
    ]


def rows_at(document: Document, claim: harness.Claim) -> list[Mapping[str, Any]]:
    """Return the rows of the (d, K) that a claim is about."""
    return [row for row in document["rows"] if f"({row.get('d')}, {row.get('K')})" == claim.case]


def of_trust_region(document: Document, claim: harness.Claim) -> str | None:
    """Say how many iterations a solve takes, and how long each."""
    for row in rows_at(document, claim):
        if (row["start"], row["solver"]) == ("warm", "trust region") and row["inner_iterations"]:
            each = harness.duration(row["seconds"] / row["inner_iterations"])
            return (
                f"{row['iterations']} steps with {row['inner_iterations']} products by the Hessian, {each} for each "
                "with its share of the steps"
            )
    return None


def of_closed_form(document: Document, claim: harness.Claim) -> str | None:
    """Say what both solves take, and what the target asks for."""
    rows = {
        row["solver"]: row["seconds"] for row in rows_at(document, claim) if row["start"] == "warm" and "seconds" in row
    }
    ours, theirs = rows["polar"], rows["pymanopt (NumPy)"]
    assert claim.at_least is not None
    return (
        f"{harness.duration(ours)} beside {harness.duration(theirs)}, of which the target leaves "
        f"{harness.duration(theirs / claim.at_least)}"
    )


def of_backward(document: Document, claim: harness.Claim) -> str | None:
    """Say what both gradients take."""
    rows = {row["method"]: row["backward_seconds"] for row in rows_at(document, claim) if "backward_seconds" in row}
    ours = rows[claim.statement.partition(": ")[0]]
    theirs = next(seconds for method, seconds in rows.items() if method.startswith("dense formula"))
    return (
        f"{harness.duration(ours)} beside {harness.duration(theirs)}: at this size the fixed cost of operations, not "
        "arithmetic"
    )


def of_products(document: Document, claim: harness.Claim) -> str | None:
    """Say how many products the parts of solve and gradient are worth."""
    rows = [row for row in rows_at(document, claim) if "products" in row]
    products = {row["program"]: harness.number(row["products"]) for row in rows}
    return (
        f"one eigendecomposition by LAPACK {products[EIGH]}, the whole forward pass {products['polar: forward']}, both "
        f"passes {products[f'polar: {BOTH}']}: the faster a machine multiplies, the more products LAPACK is worth"
    )


def of_peak(document: Document, claim: harness.Claim) -> str | None:
    """Say what the compiled program plans, and what its results take."""
    for row in rows_at(document, claim):
        if row["program"] == f"polar: {BOTH}":
            results = 3 * 4 * row["d"] * row["K"]  # frame, rotation and gradient, in float32
            planned, results = (harness.number(size / 1e6) for size in (row["memory_planned"], results))
            return (
                f"{planned} MB are planned by XLA, of which frame, rotation and gradient are {results} MB; the rest is "
                "work space of LAPACK and of matrix products"
            )
    return None


def of_share(document: Document, claim: harness.Claim) -> str | None:
    """Say what the solve takes of a step, or what the noise of a step makes of an interval."""
    for row in document["rows"]:
        names = (row["case"], f"batch {row['batch']}", row["dtype"], row["solver"])
        if row["solve_share"] is None or claim.case != ", ".join(names):
            continue
        solve, step = harness.duration(row["solve_seconds"]), harness.duration(row["nearest_seconds"])
        alone = f"solve and its derivative alone take {solve} of a step of {step}"
        if "small_batch" in row and row["share_lower"] < 0 and "at batch" not in claim.statement:
            ends = [harness.number(100 * row[f"small_batch_share_{end}"]) for end in ("lower", "upper")]
            return (
                f"noise of the machine, since the interval holds zero, too: {alone}; by difference at batch "
                f"{row['small_batch']} the share is {ends[0]} to {ends[1]} %"
            )
        return alone
    return None


def of_engine(document: Document, claim: harness.Claim) -> str | None:
    """Say what a local step takes here and there."""
    for row in document["rows"]:
        if row["beside"] == "Flower's engine" and claim.case.startswith(f"{row['case']}, {row['clients']} clients, "):
            steps = row["clients"] * row["steps"]
            if f"{row['steps']} step" in claim.case:
                ours, theirs = (harness.duration(row[name] / steps) for name in ("seconds", "other_seconds"))
                return (
                    f"local steps: {ours} each in our rounds, one client after another, and {theirs} in the engine, "
                    "whose processes use all cores, and whose fixed cost of a round is spread over the steps"
                )
    return None


def of_memory_of_replay(document: Document, claim: harness.Claim) -> str | None:
    """Say what the plan takes, and what a smaller memory would cost."""
    for row in document["rows"]:
        name = f"{row['method']}, {row['inputs']}-{row['width']}, batch {row['batch_size']}, memory "
        if claim.case == f"{name}{row['memory']}":
            same = [other for other in document["rows"] if all(other[key] == row[key] for key in _REPLAY)]
            least = min(same, key=lambda other: other["memory"])
            return (
                f"{100 * row['plan_share']:.1f} % to draw the plan; {harness.number(least['ratio'])} x with a memory "
                f"of {least['memory']}: the state of a step grows with the memory"
            )
    return None


_REPLAY = ("method", "inputs", "width", "batch_size")


def of_report(document: Document, claim: harness.Claim) -> str | None:
    """Say how much memory both reports take."""
    rows = [row for row in document["rows"] if claim.case == f"batch {row['batch']}"]
    taken = [f"{harness.number(row['peak_bytes'] / 1e6)} MB ({row['program']})" for row in rows]
    return f"peaks of {' and '.join(taken)}, beside which the features are held by both" if rows else None


def of_outside(document: Document, claim: harness.Claim) -> str | None:
    """Say how long that is."""
    del claim
    for row in document["rows"]:
        if "digits_seconds" in row:
            outside = harness.duration(row["digits_share_outside"] * row["digits_seconds"])
            return f"{outside} of an epoch of {harness.duration(row['digits_seconds'])}, for calls of programs and logs"
    return None


REASONS: dict[tuple[str, str], Callable[[Document, harness.Claim], str | None]] = {
    ("nearest_frame", "trust region: times faster"): of_trust_region,
    ("nearest_frame", "polar: times faster"): of_closed_form,
    ("implicit_gradient", "polar: backward"): of_backward,
    ("implicit_gradient", "trust region: backward"): of_backward,
    ("scaling", f"polar: {BOTH}, in"): of_products,
    ("scaling", f"polar: {BOTH}, extra peak memory"): of_peak,
    ("train_step", "nearest head's share"): of_share,
    ("federated", "rounds, times faster"): of_engine,
    ("replay", "DER++"): of_memory_of_replay,
    ("replay", "experience replay"): of_memory_of_replay,
    ("peer_metrics", "memory"): of_report,
    ("throughput", "share of an epoch outside"): of_outside,
}
