"""What the entries of a report are at neural collapse, for any number of classes and dimensions."""

import math

from nc_jax.metrics.entries import KINDS
from nc_jax.metrics.simplex import etf_distance_floor


def values_at_collapse(num_classes: int, present: int, dim: int) -> dict[str, tuple[float, str]]:
    r"""Return the value of each entry at collapse and what it is ("", "at least" or "at most"), where it is known.

    For K <= d + 1 the class means are a simplex ETF. For more classes they have the least energy, and the metrics of
    NC2 have floors, whose proofs are in their docstrings.

    Args:
        num_classes: K, the number of class vectors; without a classifier, the number of classes with examples.
        present: number of classes with examples, at least 2.
        dim: d.

    Example:
        >>> values_at_collapse(4, 4, 3)["margin_cosine_mean"], values_at_collapse(8, 8, 3)["nc2_etf_means"][1]
        ((1.3333333333333333, ''), 'at least')
    """
    found: dict[str, tuple[float, str]] = {name: (0.0, "") for name in _ZERO} | {name: (1.0, "") for name in _ONE}
    for which, count in (("means", present), ("classifier", num_classes)):
        simplex, others, span = count <= dim + 1, count - 1, float(min(count - 1, dim))
        kind = "" if simplex else "at least"
        floor = float(etf_distance_floor(count, dim))
        missing = max(others - dim, 0)
        found |= {
            f"nc2_etf_{which}": (floor, kind),
            f"nc2_maximal_angle_{which}": (missing / others**2, kind),
            f"nc2_gap_{which}": (0.0, kind),
            f"rank_{which}": (span, ""),
            **{
                f"{name}_rank_{which}": (span, "" if simplex else "at most")
                for name in ("effective", "stable", "nuclear")
            },
        }
        if simplex:
            found |= {
                f"nc2_equiangle_{which}": (0.0, ""),
                f"separation_{which}": (math.sqrt(2 * count / others), ""),
                f"log_variance_{which}": (0.0, ""),
                f"one_vs_rest_{which}": (count / others, ""),
            }
    found["nc3_product"] = found["nc2_etf_means"]
    if present == num_classes <= dim + 1:
        found |= {name: (present / (present - 1), "") for name in ("margin_cosine_mean", "margin_cosine_min")}
        found |= {"margin_cosine_sd": (0.0, ""), "margin_logit_sd": (0.0, ""), "error_exponent_ratio": (1.0, "")}
    return found


_ZERO = (
    *(name for name, kind in KINDS.items() if kind.group in ("NC1", "NC3") and name != "nearest_centre_accuracy"),
    *(f"{name}_{of}" for name in ("nc2_equinorm", "nc2_nearest_etf", "energy_gap") for of in ("means", "classifier")),
    "zero_mean_variation",
    "bias_collapse",
)
_ONE = ("nearest_centre_accuracy", "nc4", "accuracy")
